"""Where kernels are made: one decorator, one set of flags.

Never `fastmath`: it assumes NaN away, and NaN is our missed sample; what it gains (≤ 5 %
in cache) is not worth scores that differ between machines. Never `cache` as such: a cached
kernel went stale when a function it calls changed in another file; `kept` knows of all files.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


# Every kernel of this process that is compiled at its first call.
KERNELS: Final[list[Any]] = []


class Kernel(Protocol, Generic[P, R]):
    """A compiled function and the Python function it was compiled from."""

    py_func: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel."""
        ...


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Return `function` compiled on its first call; it releases the GIL.

    Division by zero gives inf or NaN as in NumPy. With NUMBA_DISABLE_JIT=1 Numba returns
    the bare function, so `py_func` is added here for the tests that compare the two.
    """
    compiled = cast("Kernel[P, R]", numba.njit(nogil=True, error_model="numpy")(function))
    if not hasattr(compiled, "py_func"):
        compiled.py_func = function
    else:
        KERNELS.append(compiled)
    return compiled


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` as a part of the kernels that call it: never a call of its own.

    A call passes whole array descriptors and hides from the optimiser that an argument is
    a constant; without it the loops of a kernel run twice as fast.
    """
    part = numba.njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return cast("Callable[P, R]", part)

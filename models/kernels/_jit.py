"""Compile kernels: one decorator with one set of flags.

Never `fastmath`: it assumes that there is no NaN, and NaN is a missing sample here. Its gain
(≤ 5 % on data in cache) does not justify scores that differ between machines. Never Numba's own
`cache`: it does not notice when a function that a kernel calls changes in another file.
`kernel_files` caches kernels by the sources of all files.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


# All kernels of this process; each is compiled at its first call.
KERNELS: Final[list[Any]] = []


class Kernel(Protocol, Generic[P, R]):
    """A compiled function and its Python source function."""

    py_func: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel."""
        ...


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Return `function` as a kernel: compiled on its first call, and run without the GIL.

    Division by zero gives inf or NaN as in NumPy. With NUMBA_DISABLE_JIT=1 Numba returns the bare
    function. Tests that compare a kernel with its `py_func` need that attribute, so it is added.
    """
    compiled = cast("Kernel[P, R]", numba.njit(nogil=True, error_model="numpy")(function))
    if not hasattr(compiled, "py_func"):
        compiled.py_func = function
    else:
        KERNELS.append(compiled)
    return compiled


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` inlined into the kernels that call it.

    A call passes whole array descriptors and hides constant arguments from the optimiser.
    Inlined, the loops of a kernel run twice as fast.
    """
    part = numba.njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return cast("Callable[P, R]", part)

"""Prefetch memory, an operation that Numba lacks. Uncompiled code gives the same results."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numpy.typing import NDArray

# These parts of Numba have no types.
Untyped: TypeAlias = Any
_cgutils: Untyped = cgutils
_extending: Untyped = extending


def fetch(array: NDArray[np.float32], row: int, column: int) -> None:
    """Prefetch one line of memory into the cache; it may lie beyond the array's end."""


def _typer(context: object) -> Callable[..., types.Type]:
    def typer(array: types.Array, row: types.Integer, column: types.Integer) -> types.Type:
        return types.void

    return typer


def _lowered(
    context: Untyped, builder: Untyped, signature: Untyped, args: Sequence[Untyped]
) -> Untyped:
    of_array, *kinds = signature.args
    array = context.make_array(of_array)(context, builder, args[0])
    indices = [
        context.cast(builder, value, kind, types.intp)
        for value, kind in zip(args[1:], kinds, strict=True)
    ]
    address = _cgutils.get_item_pointer(
        context, builder, of_array, array, indices, wraparound=False
    )
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = _cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # Flags: for writing, kept in all cache levels, data cache.
    hints = [number(1), number(3), number(1)]
    builder.call(function, [builder.bitcast(address, byte), *hints])
    return context.get_dummy_value()


_extending.type_callable(fetch)(_typer)
_extending.lower_builtin(fetch, types.Array, types.Integer, types.Integer)(_lowered)

"""Add operations that Numba lacks: rows without reference counts, stack memory, prefetch.

Each is a plain function with a compiled form registered in Numba. Uncompiled code gives the same
results without it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.base import BaseContext
from numba.core.typing.context import Context
from numba.core.typing.templates import Signature
from numba.extending import lower_builtin, type_callable
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SCRATCH = 16


def row_of(array: F32, row: int) -> F32:
    """Return a row of a C-contiguous array; the caller keeps the array alive.

    A view made by Numba counts a reference atomically each time it is passed on, which takes a
    quarter of a kernel's time.
    """
    view: F32 = array[row]
    return view


def scratch() -> F32:
    """Return `SCRATCH` uninitialised values on the stack of the calling function."""
    return np.empty(SCRATCH, np.float32)


def fetch(array: F32, row: int, column: int) -> None:
    """Prefetch one line of memory into the cache; it may lie beyond the array's end."""


@type_callable(row_of)
def _type_row_of(context: Context) -> Callable[..., types.Type | None]:
    def typer(array: types.Array, row: types.Integer) -> types.Type | None:
        # A row of another type or layout would be misread.
        rows = array.dtype == types.float32 and array.ndim == 2
        return types.Array(types.float32, 1, "C") if rows else None

    return typer


@type_callable(scratch)
def _type_scratch(context: Context) -> Callable[..., types.Type]:
    def typer() -> types.Type:
        return types.Array(types.float32, 1, "C")

    return typer


@type_callable(fetch)
def _type_fetch(context: Context) -> Callable[..., types.Type]:
    def typer(array: types.Array, row: types.Integer, column: types.Integer) -> types.Type:
        return types.void

    return typer


def _address(
    context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Return an array and the address of one of its elements."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    indices = [
        context.cast(builder, value, kind, types.intp)
        for value, kind in zip(args[1:], signature.args[1:], strict=True)
    ]
    # The row number alone is a valid index.
    indices += [context.get_constant(types.intp, 0)] * (3 - len(args))
    address = cgutils.get_item_pointer(
        context, builder, signature.args[0], array, indices, wraparound=False
    )
    return array, address


@lower_builtin(row_of, types.Array, types.Integer)
def _lower_row_of(
    context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]
) -> ir.Value:
    array, address = _address(context, builder, signature, args)
    return _borrowed(
        context,
        builder,
        signature.return_type,
        address,
        builder.extract_value(array.shape, 1),
    )


@lower_builtin(scratch)
def _lower_scratch(
    context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]
) -> ir.Value:
    address = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), SCRATCH))
    size = context.get_constant(types.intp, SCRATCH)
    return _borrowed(context, builder, signature.return_type, address, size)


def _borrowed(
    context: BaseContext,
    builder: ir.IRBuilder,
    kind: types.Array,
    address: ir.Value,
    size: ir.Value,
) -> ir.Value:
    """Return an array over memory with another owner."""
    view = context.make_array(kind)(context, builder)
    step = context.get_constant(types.intp, np.float32().itemsize)
    populate_array(
        view,
        data=builder.bitcast(address, view.data.type),
        shape=[size],
        strides=[step],
        itemsize=step,
        meminfo=None,
    )
    return view._getvalue()  # noqa: SLF001 - Numba's own name for it.


@lower_builtin(fetch, types.Array, types.Integer, types.Integer)
def _lower_fetch(
    context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]
) -> ir.Value:
    _, address = _address(context, builder, signature, args)
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # Flags: for writing, kept in all cache levels, data cache.
    hints = [number(1), number(3), number(1)]
    builder.call(function, [builder.bitcast(address, byte), *hints])
    return context.get_dummy_value()

"""Numbers to text, a line a row: what writing history costs most, compiled.

The text is InfluxDB's line protocol, but this knows only the bytes handed to it: what stands
before the fields of a row, and each field's name.
"""

import numpy as np
from numpy.typing import NDArray

from models.kernels._jit import inlined, kernel

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# As `engine.wire.points`: what is not known, and which decimals floats are kept with.
_MISSING = -9_223_372_036_854_775_808
_SIX_DECIMALS, _THREE_DECIMALS, _EXACT = 1e9, 1e12, 1e15
# A sign, 19 digits, a point and what ends or begins a field.
NUMBER_BYTES = 24
_SPACE, _COMMA, _MINUS, _POINT, _ZERO, _I, _NEWLINE = 32, 44, 45, 46, 48, 105, 10


@inlined
def _copy(out: U8, at: int, source: U8, begin: int, end: int) -> int:
    for i in range(begin, end):
        out[at] = source[i]
        at += 1
    return at


@inlined
def _digits(out: U8, at: int, value: int) -> int:
    """Write a number that is not negative, and return where it ends."""
    count = 1
    rest = value // 10
    while rest > 0:
        rest //= 10
        count += 1
    for place in range(at + count - 1, at - 1, -1):
        tens = value // 10
        out[place] = _ZERO + value - 10 * tens
        value = tens
    return at + count


@inlined
def _decimal(out: U8, at: int, value: float) -> int:
    """Write a float below 1e15 with the decimals it is kept with, trailing zeros left out."""
    size = abs(value)
    decimals, scale = 0, 1.0
    if size < _SIX_DECIMALS:
        decimals, scale = 6, 1e6
    elif size < _THREE_DECIMALS:
        decimals, scale = 3, 1e3
    mantissa = int(np.rint(size * scale))
    if value < 0.0 and mantissa > 0:
        out[at] = _MINUS
        at += 1
    divisor = int(scale)
    whole = mantissa // divisor
    fraction = mantissa - whole * divisor
    at = _digits(out, at, whole)
    if fraction == 0:
        return at
    while fraction % 10 == 0:
        fraction //= 10
        decimals -= 1
    out[at] = _POINT
    for place in range(at + decimals, at, -1):
        tens = fraction // 10
        out[place] = _ZERO + fraction - 10 * tens
        fraction = tens
    return at + 1 + decimals


@inlined
def _integer(out: U8, at: int, number: int) -> int:
    """Write an integer with the protocol's suffix, and return where it ends."""
    if number < 0:
        out[at] = _MINUS
        at += 1
        number = -number
    at = _digits(out, at, number)
    out[at] = _I
    return at + 1


@kernel
def write_lines(
    out: U8,
    ends: I64,
    keys: U8,
    key_ends: I64,
    names: U8,
    name_ends: I64,
    integers: I64,
    floats: F64,
    times: I64,
) -> int:
    """Write one line for each row of which anything is known.

    Parameters
    ----------
    out
        Overwritten; long enough for every key, every name and `NUMBER_BYTES` a number.
    ends
        Shape (n,), overwritten: where each row's line ends in `out`; a row without a line ends
        where the one before it does.
    keys, key_ends
        What stands before the fields of each row, one after the other, and where each ends.
    names, name_ends
        Names of the fields with what follows them, first of the integers, then of the floats.
    integers
        Shape (fields, n); the smallest int64 is unknown.
    floats
        Shape (fields, n), all below 1e15; NaN is unknown.
    times
        Shape (n,), not negative.

    Returns
    -------
    int
        How many bytes of `out` were written.
    """
    at = 0
    whole = integers.shape[0]
    for row in range(times.shape[0]):
        begin = at
        at = _copy(out, at, keys, key_ends[row - 1] if row > 0 else 0, key_ends[row])
        separator = _SPACE
        for field in range(whole + floats.shape[0]):
            if field < whole:
                if integers[field, row] == _MISSING:
                    continue
            elif np.isnan(floats[field - whole, row]):
                continue
            out[at] = separator
            separator = _COMMA
            at = _copy(
                out, at + 1, names, name_ends[field - 1] if field > 0 else 0, name_ends[field]
            )
            if field < whole:
                at = _integer(out, at, integers[field, row])
            else:
                at = _decimal(out, at, floats[field - whole, row])
        if separator == _SPACE:
            at = begin
        else:
            out[at] = _SPACE
            at = _digits(out, at + 1, times[row])
            out[at] = _NEWLINE
            at += 1
        ends[row] = at
    return at

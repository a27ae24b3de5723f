"""Format numbers as text, one line per row; formatting is the largest cost of writing history.

The text is InfluxDB's line protocol. The caller passes in the bytes before the fields of a row,
and each field's name.
"""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined, kernel

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# As in `engine.wire.points`: the integer that means unknown, and the limits of a float's size for
# six, three and no decimals. A larger float is not written here.
_MISSING = -9_223_372_036_854_775_808
_SIX_DECIMALS, _THREE_DECIMALS, _EXACT = 1e9, 1e12, 1e15
_SPACE, _COMMA, _MINUS, _POINT, _ZERO, _I, _NEWLINE = 32, 44, 45, 46, 48, 105, 10
# Unsigned, because dividing a signed number by a constant needs corrections for its sign.
_ONE, _HUNDRED = np.uint64(1), np.uint64(100)
_THOUSAND, _MILLION = np.uint64(1_000), np.uint64(1_000_000)
_POWERS = np.array([10**exponent for exponent in range(20)], np.uint64)
# Two digits at a time halve the divisions.
_PAIRS = np.frombuffer(b"".join(b"%02d" % pair for pair in range(100)), np.uint8)


@inlined
def _copy(out: U8, at: int, source: U8, begin: int, end: int) -> int:
    # Unsigned, because a signed index costs a test for each byte whether it is negative.
    to, of = np.uintp(at), np.uintp(begin)
    for i in range(np.uintp(end - begin)):
        out[to + i] = source[of + i]
    return at + end - begin


@inlined
def _digits(out: U8, at: int, value: np.uint64) -> int:
    """Write a number and return its end."""
    count = 1
    while count < 20 and value >= _POWERS[count]:
        count += 1
    index = at + count
    while value >= _HUNDRED:
        rest = value // _HUNDRED
        pair = np.int64(value - rest * _HUNDRED)
        index -= 2
        out[index] = _PAIRS[2 * pair]
        out[index + 1] = _PAIRS[2 * pair + 1]
        value = rest
    pair = np.int64(value)
    if pair >= 10:
        out[at] = _PAIRS[2 * pair]
    out[index - 1] = _PAIRS[2 * pair + 1]
    return at + count


@inlined
def _decimal(out: U8, at: int, value: float) -> int:
    """Write a float below 1e15 with its decimals, without trailing zeros."""
    size = abs(value)
    if size < _SIX_DECIMALS:
        mantissa = np.uint64(np.rint(size * 1e6))
        whole = mantissa // _MILLION
        millionths = mantissa - whole * _MILLION
    elif size < _THREE_DECIMALS:
        mantissa = np.uint64(np.rint(size * 1e3))
        whole = mantissa // _THOUSAND
        millionths = (mantissa - whole * _THOUSAND) * _THOUSAND
    else:
        whole = mantissa = np.uint64(np.rint(size))
        millionths = whole - whole
    if value < 0.0 and mantissa >= _ONE:
        out[at] = _MINUS
        at += 1
    at = _digits(out, at, whole)
    if millionths < _ONE:
        return at
    out[at] = _POINT
    for index in range(at + 5, at, -2):
        rest = millionths // _HUNDRED
        pair = np.int64(millionths - rest * _HUNDRED)
        out[index] = _PAIRS[2 * pair]
        out[index + 1] = _PAIRS[2 * pair + 1]
        millionths = rest
    at += 7
    while out[at - 1] == _ZERO:
        at -= 1
    return at


@inlined
def _integer(out: U8, at: int, number: int) -> int:
    """Write an integer with the protocol's suffix, and return its end."""
    if number < 0:
        out[at] = _MINUS
        at += 1
        number = -number
    at = _digits(out, at, np.uint64(number))
    out[at] = _I
    return at + 1


@inlined
def _fields(
    out: U8, at: int, names: U8, name_ends: I64, integers: I64, floats: F64, row: int
) -> int:
    """Write the known fields of a row, and return their end; -1 if a float is too large."""
    whole = integers.shape[0]
    separator = _SPACE
    for field in range(whole + floats.shape[0]):
        if field < whole:
            if integers[field, row] == _MISSING:
                continue
        else:
            value = floats[field - whole, row]
            if np.isnan(value):
                continue
            if abs(value) >= _EXACT:
                return -1
        out[at] = separator
        separator = _COMMA
        at = _copy(out, at + 1, names, name_ends[field - 1] if field > 0 else 0, name_ends[field])
        if field < whole:
            at = _integer(out, at, integers[field, row])
        else:
            at = _decimal(out, at, floats[field - whole, row])
    return at


@kernel
def write_lines(
    out: U8,
    at: int,
    ends: I64,
    measurement: U8,
    tags: U8,
    tag_ends: I64,
    first: int,
    names: U8,
    name_ends: I64,
    integers: I64,
    floats: F64,
    times: I64,
) -> int:
    """Write one line for each row with a known field.

    Parameters
    ----------
    out
        Written from `at` on; it has space for every tag and name and 24 bytes per number.
    ends
        Shape (n,), overwritten: end of each row's line in `out`; for a row without a line the
        end of the line before.
    measurement
        Bytes at the beginning of every line.
    tags, tag_ends, first
        Bytes that follow it, one row after the other, and the end of each row. The lines use the
        rows from `first` on.
    names, name_ends
        Names of the fields, each with its `=`, one after the other, and the end of each. Those of
        the integers come first, then those of the floats.
    integers
        Shape (fields, n); the smallest int64 is unknown.
    floats
        Shape (fields, n); NaN is unknown.
    times
        Shape (n,), in ns since the epoch, not negative.

    Returns
    -------
    int
        End of the last line in `out`; -1 if a float is 1e15 or more, which does not fit into
        fixed point.
    """
    written_ns, time_begin, time_end = -1, 0, 0
    for row in range(times.shape[0]):
        begin = at
        at = _copy(out, at, measurement, 0, measurement.shape[0])
        tag = first + row
        at = _copy(out, at, tags, tag_ends[tag - 1] if tag > 0 else 0, tag_ends[tag])
        line = _fields(out, at, names, name_ends, integers, floats, row)
        if line < 0:
            return -1
        if line == at:
            at = begin
        else:
            out[line] = _SPACE
            at = line + 1
            # Rows of one frame have the same time, so its digits are copied from the line before.
            if times[row] == written_ns:
                at = _copy(out, at, out, time_begin, time_end)
            else:
                written_ns, time_begin = times[row], at
                at = time_end = _digits(out, at, np.uint64(written_ns))
            out[at] = _NEWLINE
            at += 1
        ends[row] = at
    return at

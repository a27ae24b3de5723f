"""Columns packed into bytes: each in the narrowest width that holds it without loss.

A column of unsigned integers is divided by its quantum if all values are multiples of it. Each
value is then stored in 1 to 8 little-endian bytes. A column of equal values is stored as one value.
Values of 3, 5, 6 and 7 bytes are split into parts of 4, 2 and 1 bytes. Parts of one size are
contiguous, so packing and unpacking need only a few array operations for any number of columns. The
layout (the position of each column) is a small byte string that repeats from frame to frame, so
writers and readers cache parsed layouts.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.metrics import Columns

# Layouts change when a counter outgrows its width: a handful per node and hour. The limit keeps a
# flood of invented layouts from filling memory.
_LAYOUTS_KEPT: Final = 1024
# More columns than any release has: a larger layout is rejected before it costs memory.
_MAX_COLUMNS: Final = 256
_WORD_BYTES: Final = 8

_ABSENT: Final = 2

Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]


# A function (data, places, quanta, order, values) that writes the unpacked words to `values`. A row
# of `places` describes a column: its width and, for parts of 8, 4, 2 and 1 bytes, the number of
# bytes per VM before that part. The other arguments are fields of `_Layout`.
Widen = Callable[[NDArray[np.uint8], NDArray[np.int64], Words, NDArray[np.int64], Words], None]


class PackedTable(msgspec.Struct, frozen=True, array_like=True):
    """Columns in their packed form.

    Attributes
    ----------
    layout
        A msgpack list of `PackedColumn`, by ascending width.
    data
        One 8-byte word for each column of width 0, then the 8-byte parts of all columns that have
        one, then the 4-, 2- and 1-byte parts (`_Part`).
    missing
        One bit per value for each column with some missing values. A column without any known value
        is omitted from the layout, the data and this field.
    """

    layout: bytes = b""
    data: bytes = b""
    missing: bytes = b""


class PackedColumn(msgspec.Struct, frozen=True, array_like=True):
    """How one column is packed; `width` is in bytes, 0 for a column of equal values."""

    name: str
    width: int
    quantum: int
    has_missing: bool


class _Part(NamedTuple):
    """Adjacent columns whose values have a part of the same size at the same place.

    A value of 7 bytes has three parts: the 4 low bytes, then 2, then 1. Each part is stored beside
    the same parts of other columns, so packing and unpacking are casts and strided copies of
    slices.
    """

    dtype: str
    start: int
    stop: int
    place: int  # position of the part within its word, in units of its size; 0: the low end
    per_word: int


class _Layout(NamedTuple):
    """A parsed layout, related to the metrics that one reader knows."""

    constants: int
    parts: tuple[_Part, ...]
    stored: int  # number of columns in the data
    width_total: int
    divided: slice  # range that contains all columns divided by a quantum
    quanta: Words  # divisor of each column; 1 if it is not divided
    places: NDArray[np.int64]  # see `Widen`
    limits: Words | None  # largest valid quotients; None: no product can exceed 64 bits
    constant_limits: tuple[tuple[int, int], ...]  # (constant, largest quotient)
    order: NDArray[np.int64]  # index of each row's column; the value `stored` is a row of zeros
    absent: NDArray[np.intp]  # rows that the writer did not send
    missing_rows: tuple[int, ...]  # row of each bitmap, -1 for a column that the reader ignores


class _Scale(NamedTuple):
    """The divisors of the rows of one list of metrics."""

    shifts: Words  # log2 of a quantum that is a power of two, else 0
    low_bits: Words  # bits that must be 0 in every multiple of such a quantum
    others: tuple[tuple[slice, int], ...]  # adjacent rows with a quantum that is no power of two


class _Writer(NamedTuple):
    """The packing plan of a writer for one combination of widths."""

    layout: bytes
    order: NDArray[np.intp]
    constants: int
    parts: tuple[_Part, ...]
    shifted: slice
    shifts: Words  # one for each column of `shifted`
    missing_rows: NDArray[np.intp]


_columns_encoder = msgspec.msgpack.Encoder()
_columns_decoder = msgspec.msgpack.Decoder(tuple[PackedColumn, ...])
_PART_DTYPES: Final = {8: "<u8", 4: "<u4", 2: "<u2", 1: "u1"}
# Largest value of each width from 1 to 7 bytes; `np.searchsorted` in it gives the width of a value.
_WIDTH_LIMITS: Final = np.array([2 ** (8 * k) - 1 for k in range(1, _WORD_BYTES)], np.uint64)


def pack(columns: Columns, values: Words, missing: Flags | None) -> PackedTable:
    """Return `values` packed without loss.

    Parameters
    ----------
    columns
        The metrics of the rows of `values`.
    values
        Shape (len(columns), n); values where `missing` is True are packed too, so the writer puts 0
        there.
    missing
        Same shape; None where nothing is missing.
    """
    if values.shape[1] == 0:
        return PackedTable()
    scale = _scale(columns)
    scaled, exact = _divided(scale, values)
    bits = np.bitwise_or.reduce(scaled, axis=1)
    varying = bits != np.bitwise_and.reduce(scaled, axis=1)
    # A power of two divides all values if no value has a lower bit set.
    exact |= (bits & scale.low_bits) == 0
    bits >>= scale.shifts * exact
    widths = (np.searchsorted(_WIDTH_LIMITS, bits) + 1) * varying
    # One byte for each column: 0 if nothing is missing, `_ABSENT` if everything is, else 1.
    gaps = b""
    if missing is not None:
        gaps = (missing.any(axis=1).view(np.uint8) + missing.all(axis=1)).tobytes()
    writer = _writer(columns, widths.astype(np.uint8).tobytes(), exact.tobytes(), gaps)
    stored = scaled.take(writer.order, axis=0, mode="clip")
    if len(writer.shifts):
        stored[writer.shifted] >>= writer.shifts[:, None]
    data = [stored[: writer.constants, 0].tobytes()]
    for dtype, start, stop, place, per_word in writer.parts:
        if place == 0:
            data.append(stored[start:stop].astype(dtype).tobytes())
        else:
            data.append(stored.view(dtype)[start:stop, place::per_word].tobytes())
    bitmaps = b""
    if missing is not None and len(writer.missing_rows):
        bitmaps = np.packbits(missing[writer.missing_rows], axis=1).tobytes()
    return PackedTable(layout=writer.layout, data=b"".join(data), missing=bitmaps)


def unpack(
    columns: Columns, table: PackedTable, size: int, widen: Widen | None = None
) -> tuple[Words, Flags | None]:
    """Return the values, shape (len(columns), size), and the mask of missing ones (None: none).

    `columns` are the metrics of the rows to return, and `size` is the number of values of each.
    `widen` is a faster function than `_widen` (see `models.codecs.columns`); None: NumPy. Columns
    that the reader does not know are skipped. Columns that the writer did not send are missing.

    Raises
    ------
    RecordRejected
        Lengths that do not fit the layout, or an impossible layout.
    """
    if size == 0:
        return np.zeros((len(columns), 0), np.uint64), None
    layout = _parse(columns, table.layout)
    expected = _WORD_BYTES * layout.constants + size * layout.width_total
    if len(table.data) != expected:
        reason = "truncated" if len(table.data) < expected else "malformed"
        raise RecordRejected(reason, f"{len(table.data)} bytes of columns instead of {expected}")
    for place, limit in layout.constant_limits:
        word = table.data[_WORD_BYTES * place : _WORD_BYTES * (place + 1)]
        if int.from_bytes(word, "little") > limit:
            raise RecordRejected("bad_value", "a constant times its quantum exceeds 64 bits")
    if widen is None or layout.limits is not None:
        values = _widen(layout, table.data, size)
    else:
        values = np.empty((len(columns), size), np.uint64)
        data = np.frombuffer(table.data, np.uint8)
        widen(data, layout.places, layout.quanta, layout.order, values)
    return values, _missing(layout, table.missing, values.shape)


def _widen(layout: _Layout, data: bytes, size: int) -> Words:
    stored = np.empty((layout.stored + 1, size), "<u8")
    stored[-1] = 0
    constants = np.frombuffer(data, "<u8", layout.constants)
    stored[: layout.constants] = constants[:, None]
    offset = _WORD_BYTES * layout.constants
    for dtype, start, stop, place, per_word in layout.parts:
        part = np.frombuffer(data, dtype, (stop - start) * size, offset)
        offset += part.nbytes
        part = part.reshape(stop - start, size)
        if place == 0:
            stored[start:stop] = part
        else:
            stored.view(dtype)[start:stop, place::per_word] = part
    if layout.divided.stop:
        quotients = stored[layout.divided]
        if layout.limits is not None and (quotients > layout.limits[layout.divided, None]).any():
            raise RecordRejected("bad_value", "a value times its quantum exceeds 64 bits")
        quotients *= layout.quanta[layout.divided, None]
    # Every index is within bounds, and with the mode "clip" NumPy needs no second buffer.
    return stored.take(layout.order, axis=0, mode="clip")


def _missing(layout: _Layout, bitmaps: bytes, shape: tuple[int, ...]) -> Flags | None:
    size = shape[1]
    stride = (size + 7) // 8
    if len(bitmaps) != stride * len(layout.missing_rows):
        raise RecordRejected(
            "malformed", f"{len(bitmaps)} bytes of bitmaps for missing values do not fit"
        )
    if not bitmaps and not len(layout.absent):
        return None
    missing = np.zeros(shape, np.bool_)
    missing[layout.absent] = True
    for index, row in enumerate(layout.missing_rows):
        if row >= 0:
            bits = np.frombuffer(bitmaps, np.uint8, stride, index * stride)
            missing[row] = np.unpackbits(bits, count=size).view(np.bool_)
    return missing


def _parts(widths: Sequence[int]) -> tuple[_Part, ...]:
    """Return the parts of columns of such ascending widths, in the order of the data."""
    parts = []
    for size, dtype in _PART_DTYPES.items():
        # A value's larger parts are in the lower bytes of its word.
        below = [width & ~(2 * size - 1) & (_WORD_BYTES - 1) for width in widths]
        members = [index for index, width in enumerate(widths) if width & size]
        for place, run in groupby(members, key=lambda index: below[index] // size):
            indices = list(run)
            parts.append(_Part(dtype, indices[0], indices[-1] + 1, place, _WORD_BYTES // size))
    return tuple(parts)


def _places(widths: Sequence[int]) -> NDArray[np.int64]:
    places = np.zeros((len(widths), 1 + len(_PART_DTYPES)), np.int64)
    places[:, 0] = widths
    before = 0
    for index, size in enumerate(_PART_DTYPES, start=1):
        for column, width in enumerate(widths):
            if width & size:
                places[column, index] = before
                before += size
    return places


@lru_cache(maxsize=16)
def _scale(columns: Columns) -> _Scale:
    quanta = [metric.quantum for metric in columns.metrics]
    powers = [quantum & (quantum - 1) == 0 for quantum in quanta]
    others = []
    for (quantum, power), run in groupby(
        range(len(quanta)), key=lambda row: (quanta[row], powers[row])
    ):
        rows = list(run)
        if not power:
            others.append((slice(rows[0], rows[-1] + 1), quantum))
    return _Scale(
        shifts=np.array(
            [q.bit_length() - 1 if power else 0 for q, power in zip(quanta, powers, strict=True)],
            np.uint64,
        ),
        # `_divided` has already tested the other quanta: with all bits set, `low_bits` accepts only
        # rows of zeros, which every quantum divides.
        low_bits=np.array(
            [q - 1 if power else 2**64 - 1 for q, power in zip(quanta, powers, strict=True)],
            np.uint64,
        ),
        others=tuple(others),
    )


def _divided(scale: _Scale, values: Words) -> tuple[Words, Flags]:
    """Return `values` divided by quanta that are no power of two, and the rows so divided."""
    exact = np.zeros(len(values), np.bool_)
    if not scale.others:
        return values, exact
    scaled = values.copy()
    for rows, quantum in scale.others:
        # The divisor is a scalar, so NumPy multiplies and shifts instead of dividing each value.
        quotients = values[rows] // np.uint64(quantum)
        lossless = (quotients * np.uint64(quantum) == values[rows]).all(axis=1)
        exact[rows] = lossless
        np.copyto(scaled[rows], quotients, where=lossless[:, None])
    return scaled, exact


@lru_cache(maxsize=_LAYOUTS_KEPT)
def _writer(columns: Columns, widths: bytes, exact: bytes, gaps: bytes) -> _Writer:
    shifts = _scale(columns).shifts
    known = [row for row in range(len(columns)) if not gaps or gaps[row] != _ABSENT]
    order = sorted(known, key=lambda row: (widths[row], row))
    layout = [
        PackedColumn(
            name=columns.metrics[row].name,
            width=widths[row],
            quantum=columns.metrics[row].quantum if exact[row] else 1,
            has_missing=bool(gaps and gaps[row]),
        )
        for row in order
    ]
    shifted = _span([bool(exact[row] and shifts[row]) for row in order])
    return _Writer(
        layout=_columns_encoder.encode(layout),
        order=np.array(order, np.intp),
        constants=sum(widths[row] == 0 for row in order),
        parts=_parts([widths[row] for row in order]),
        shifted=shifted,
        shifts=np.array([shifts[row] if exact[row] else 0 for row in order[shifted]], np.uint64),
        missing_rows=np.array([row for row in order if gaps and gaps[row]], np.intp),
    )


@lru_cache(maxsize=_LAYOUTS_KEPT)
def _parse(wanted: Columns, layout: bytes) -> _Layout:
    try:
        columns = _columns_decoder.decode(layout)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordRejected("malformed", f"column layout: {error}") from error
    _check(columns)
    rows = {metric.name: row for row, metric in enumerate(wanted.metrics)}
    places = {column.name: place for place, column in enumerate(columns)}
    # Columns that the reader does not know are not multiplied.
    quanta = [column.quantum if column.name in rows else 1 for column in columns]
    divided = _span([quantum > 1 for quantum in quanta])
    overflowing = any(
        quantum > 1 and column.width * 8 + quantum.bit_length() > 64
        for column, quantum in zip(columns, quanta, strict=True)
    )
    limits = [(2**64 - 1) // quantum for quantum in quanta]
    return _Layout(
        constants=sum(column.width == 0 for column in columns),
        parts=_parts([column.width for column in columns]),
        stored=len(columns),
        width_total=sum(column.width for column in columns),
        divided=divided,
        quanta=np.array(quanta, np.uint64),
        places=_places([column.width for column in columns]),
        limits=np.array(limits, np.uint64) if overflowing else None,
        constant_limits=tuple(
            (place, limits[place])
            for place, column in enumerate(columns)
            if column.width == 0 and quanta[place] > 1
        ),
        order=np.array([places.get(name, len(columns)) for name in rows], np.int64),
        absent=np.array([row for name, row in rows.items() if name not in places], np.intp),
        missing_rows=tuple(rows.get(column.name, -1) for column in columns if column.has_missing),
    )


def _span(chosen: Sequence[bool]) -> slice:
    """Return the shortest slice that contains all chosen elements."""
    indices = [index for index, one in enumerate(chosen) if one]
    return slice(indices[0], indices[-1] + 1) if indices else slice(0, 0)


def _check(columns: tuple[PackedColumn, ...]) -> None:
    if len(columns) > _MAX_COLUMNS:
        raise RecordRejected(
            "oversized", f"{len(columns)} columns, at most {_MAX_COLUMNS} are allowed"
        )
    if len({column.name for column in columns}) != len(columns):
        raise RecordRejected("malformed", "a column occurs twice in the layout")
    if any(not 0 <= column.width <= _WORD_BYTES for column in columns):
        raise RecordRejected("malformed", "a column's width is not 0 to 8 bytes")
    if any(not 1 <= column.quantum <= 2**32 for column in columns):
        raise RecordRejected("malformed", "a column's quantum is not 1 to 2**32")
    if any(a.width > b.width for a, b in pairwise(columns)):
        raise RecordRejected("malformed", "the columns are not in the order of their widths")

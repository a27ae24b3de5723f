"""Write rows as line protocol, one line per row, for any names and texts; no I/O.

`engine.wire.points.Series` excludes what a tag of the protocol cannot hold: a line end, and a
backslash, which before a space or at the end would escape the next character. Texts in fields are
kept unchanged. A row without any known field has no line.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire.points import MISSING, Points, Series

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# The type of `models.codecs.lines.write_lines`. Without that kernel (None), Python writes the same
# text, twenty times slower.
WriteLines = Callable[[U8, int, I64, U8, U8, I64, int, U8, I64, I64, F64, I64], int]

# The most bytes of a number in a field: a sign, 19 digits, a point, and the delimiters.
_NUMBER_BYTES: Final = 24
# From this value on the kernel's fixed-point format overflows, so Python writes the rows.
_FIXED_BELOW: Final = 1e15
# Initial size of a buffer: a full batch of most measurements.
_ROOM_BYTES: Final = 1 << 21
_SPECIAL: Final = re.compile(r"([,= ])")
_QUOTED: Final = re.compile(r'(["\\])')
_ESCAPED: Final = r"\\\1"


class Line(NamedTuple):
    """The line of one row; `points` is the `number` that was passed to `Body.add` with the row."""

    points: int
    row: int
    text: bytes


class _Span(NamedTuple):
    """Rows that were added together, from `row` on, and the start and end of their lines."""

    points: int
    row: int
    begin: int
    ends: I64


class Body:
    """Lines of one request, written into a buffer that is reused.

    Parameters
    ----------
    write
        `models.codecs.lines.write_lines` where Numba may be imported; None writes the same in
        Python.

    Attributes
    ----------
    rows
        Number of rows added since the last `clear`, including those without a line.
    """

    def __init__(self, write: WriteLines | None = None) -> None:
        self._write = write
        self._buffer = np.empty(_ROOM_BYTES, np.uint8)
        self._length = 0
        self._spans: list[_Span] = []
        self.rows = 0

    @property
    def text(self) -> memoryview:
        """The lines; valid until the next `add` or `clear`."""
        return self._buffer[: self._length].data

    def clear(self) -> None:
        """Remove all lines."""
        self._length = self.rows = 0
        self._spans = []

    def add(self, points: Points, begin: int, end: int, *, number: int = 0) -> None:
        """Add the lines of rows `begin` up to, and not including, `end`, both counted from 0.

        `number` becomes their `Line.points`.
        """
        ends = np.empty(end - begin, np.int64)
        columns = _columns(points, begin, end)
        length = -1 if columns is None else self._compiled(points, begin, columns, ends)
        if length < 0:
            text = _in_python(points, begin, end, ends)
            self._make_room(len(text))
            ends += self._length
            length = self._length + len(text)
            self._buffer[self._length : length] = np.frombuffer(text, np.uint8)
        self._spans.append(_Span(number, begin, self._length, ends))
        self._length = length
        self.rows += end - begin

    def lines(self) -> list[Line]:
        """Return each line in order of addition; needed only when the server rejected some.

        A row without any known field has no line.
        """
        found = []
        for span in self._spans:
            begin = span.begin
            for index, end in enumerate(span.ends.tolist()):
                if end > begin:
                    text = self._buffer[begin:end].tobytes()
                    found.append(Line(span.points, span.row + index, text))
                begin = end
        return found

    def _compiled(self, points: Points, begin: int, columns: "_Columns", ends: I64) -> int:
        """Return where the lines end; -1 if there is no kernel or it cannot write these numbers."""
        if self._write is None:
            return -1
        tags = _tags(points.series)
        head = np.frombuffer(points.measurement.encode(), np.uint8)
        names = _names(columns.names)
        fields = len(names.text) + _NUMBER_BYTES * (len(columns.names) + 1)
        self._make_room(len(tags.text) + len(ends) * (len(head) + fields))
        return self._write(
            self._buffer,
            self._length,
            ends,
            head,
            tags.text,
            tags.ends,
            begin,
            names.text,
            names.ends,
            columns.integers,
            columns.floats,
            columns.times,
        )

    def _make_room(self, room_bytes: int) -> None:
        needed = self._length + room_bytes
        if needed > len(self._buffer):
            larger = np.empty(max(needed, 2 * len(self._buffer)), np.uint8)
            larger[: self._length] = self._buffer[: self._length]
            self._buffer = larger


def float_text(value: float) -> str:
    """Return a finite float in line protocol.

    It is rounded to 6 decimals; from 1e9 on to 3, from 1e12 on to none, from 1e15 on it is exact.
    """
    size = abs(value)
    if size >= _FIXED_BELOW:
        return repr(value)
    decimals = 6 if size < 1e9 else 3 if size < 1e12 else 0
    text = f"{value:.{decimals}f}"
    if decimals:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


class _Columns(NamedTuple):
    """The numbers of some rows, by field and row; `names` has the integer fields first."""

    names: tuple[str, ...]
    integers: I64
    floats: F64
    times: I64


class _Texts(NamedTuple):
    """Concatenated texts, and the position of the end of each text."""

    text: U8
    ends: I64


def _columns(points: Points, begin: int, end: int) -> _Columns | None:
    """Return the numbers of some rows; None if there are texts among the fields."""
    whole: dict[str, I64] = {}
    fractions: dict[str, F64] = {}
    for name, column in points.fields.items():
        if not isinstance(column, np.ndarray):
            return None
        if column.dtype.kind == "f":
            fractions[name] = column.astype(np.float64, copy=False)
        else:
            whole[name] = column.astype(np.int64, copy=False)
    integers = np.empty((len(whole), end - begin), np.int64)
    for row, numbers in enumerate(whole.values()):
        integers[row] = numbers[begin:end]
    floats = np.empty((len(fractions), end - begin))
    for row, values in enumerate(fractions.values()):
        floats[row] = values[begin:end]
    times = np.ascontiguousarray(points.time_ns[begin:end], np.int64)
    return _Columns((*whole, *fractions), integers, floats, times)


@lru_cache(maxsize=256)  # far more than the combinations of measurements and fields
def _names(names: tuple[str, ...]) -> _Texts:
    return _joined([f"{name}=" for name in names])


def _tags(series: Series) -> _Texts:
    """Return the escaped tags of each row; they are cached in the series for later points."""
    known = series.derived
    if not isinstance(known, _Texts):
        known = series.derived = _joined(_tag_texts(series))
    return known


def _tag_texts(series: Series) -> list[str]:
    columns = []
    for name, values in series.tags.items():
        # Most tags have the same value in all rows of a node, so each value is escaped only once.
        texts = {
            value: f",{name}={_SPECIAL.sub(_ESCAPED, value)}" if value else ""
            for value in set(values)
        }
        columns.append([texts[value] for value in values])
    return ["".join(parts) for parts in zip(*columns, strict=True)]


def _joined(texts: list[str]) -> _Texts:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return _Texts(np.frombuffer(b"".join(encoded), np.uint8), ends)


def _in_python(points: Points, begin: int, end: int, ends: I64) -> bytes:
    """Write the rows in Python, with the kernel's result; only this function writes text fields."""
    columns = {
        name: column[begin:end].tolist() if isinstance(column, np.ndarray) else column[begin:end]
        for name, column in points.fields.items()
    }
    parts: list[bytes] = []
    length = 0
    times = points.time_ns[begin:end].tolist()
    for row, tags in enumerate(_tag_texts(points.series)[begin:end]):
        fields = [
            f"{name}={text}"
            for name, column in columns.items()
            if (text := _field_text(column[row])) is not None
        ]
        if fields:
            line = f"{points.measurement}{tags} {','.join(fields)} {times[row]}\n"
            parts.append(line.encode(errors="replace"))
            length += len(parts[-1])
        ends[row] = length
    return b"".join(parts)


def _field_text(value: float | int | str | None) -> str | None:
    """Return a value in line protocol, None where it is not known."""
    match value:
        case str():
            return f'"{_QUOTED.sub(_ESCAPED, value)}"'
        case int():
            return None if value == MISSING else f"{value}i"
        case float():
            return float_text(value) if math.isfinite(value) else None
        case None:
            return None

"""Rows as line protocol: pure, one line a row, whatever stands in names and texts.

What the protocol cannot say in a tag is not in `engine.wire.points.Series`: a line end, and a
backslash, which before a space or at the end would escape what follows. Texts in fields are
kept as they are. A row without any known field has no line.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.wire.points import MISSING, Points, Series

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

# `models.kernels.lines.write_lines`, or the same in Python.
WriteLines = Callable[[U8, I64, U8, I64, U8, I64, I64, NDArray[np.float64], I64], int]

# A sign, 19 digits, a point and what ends or begins a field.
_NUMBER_BYTES: Final = 24
# Above it the kernel's fixed point has no room; Python writes such a row.
_FIXED_BELOW: Final = 1e15
_SPECIAL: Final = re.compile(r"([,= ])")
_QUOTED: Final = re.compile(r'(["\\])')


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Text of some rows; `ends` says where each row's line ends, as a row may have none."""

    text: bytes
    ends: I64

    def rows(self, begin: int, end: int) -> bytes:
        """Return the lines of some rows."""
        return self.text[int(self.ends[begin - 1]) if begin else 0 : int(self.ends[end - 1])]


class _Keys(NamedTuple):
    """What stands before the fields of each row."""

    text: U8
    ends: I64


def to_lines(points: Points, write: WriteLines | None = None) -> Lines:
    """Return the line protocol of `points`, times in ns.

    Parameters
    ----------
    write
        `models.kernels.lines.write_lines` where Numba may be imported; None writes the same
        in Python.
    """
    integers, floats, texts = _columns(points)
    # A missing comparison is False, so unknown numbers do not send a row to Python.
    if texts or write is None or (np.abs(floats[1]) >= _FIXED_BELOW).any():
        return _in_python(points)
    keys = _keys(points.series, points.measurement)
    names, name_ends = _joined([f"{name}=" for name in (*integers[0], *floats[0])])
    size = len(points)
    room = len(keys.text) + size * (
        len(names) + _NUMBER_BYTES * (len(integers[0]) + len(floats[0]) + 1)
    )
    out = np.empty(room, np.uint8)
    ends = np.empty(size, np.int64)
    length = write(
        out,
        ends,
        keys.text,
        keys.ends,
        names,
        name_ends,
        integers[1],
        floats[1],
        np.ascontiguousarray(points.time_ns, np.int64),
    )
    return Lines(out[:length].tobytes(), ends)


def float_text(value: float) -> str:
    """Return a kept float as the protocol says it."""
    size = abs(value)
    if size >= _FIXED_BELOW:
        return repr(value)
    decimals = 6 if size < 1e9 else 3 if size < 1e12 else 0
    text = f"{value:.{decimals}f}"
    if decimals:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _columns(
    points: Points,
) -> tuple[
    tuple[list[str], I64], tuple[list[str], NDArray[np.float64]], dict[str, Sequence[str | None]]
]:
    """Return integers and floats as (names, matrix), and texts by name."""
    integers: dict[str, I64] = {}
    floats: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, Sequence[str | None]] = {}
    for name, column in points.fields.items():
        if not isinstance(column, np.ndarray):
            texts[name] = column
        elif column.dtype.kind == "f":
            floats[name] = column.astype(np.float64, copy=False)
        else:
            integers[name] = column.astype(np.int64, copy=False)
    size = len(points)
    return (
        (list(integers), np.vstack([*integers.values(), np.empty((0, size), np.int64)])),
        (list(floats), np.vstack([*floats.values(), np.empty((0, size))])),
        texts,
    )


def _keys(series: Series, measurement: str) -> _Keys:
    """Return the escaped tags of each row, kept with the series for its next rows."""
    known = series.derived.get(measurement)
    if isinstance(known, _Keys):
        return known
    text, ends = _joined(_key_texts(series, measurement))
    keys = _Keys(text, ends)
    series.derived[measurement] = keys
    return keys


def _key_texts(series: Series, measurement: str) -> list[str]:
    columns = [
        [f",{name}={_SPECIAL.sub(_ESCAPED, value)}" if value else "" for value in values]
        for name, values in series.tags.items()
    ]
    return [measurement + "".join(parts) for parts in zip(*columns, strict=True)]


_ESCAPED: Final = r"\\\1"


def _joined(texts: list[str]) -> tuple[U8, I64]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def _in_python(points: Points) -> Lines:
    """Write every row in Python: the kernel's twin, and the only one that knows texts."""
    (whole, integers), (fractions, floats), texts = _columns(points)
    parts: list[bytes] = []
    ends: list[int] = []
    length = 0
    times = points.time_ns.tolist()
    for row, key in enumerate(_key_texts(points.series, points.measurement)):
        fields = [
            f"{name}={number}i"
            for name, number in zip(whole, integers[:, row].tolist(), strict=True)
            if number != MISSING
        ]
        fields += [
            f"{name}={float_text(number)}"
            for name, number in zip(fractions, floats[:, row].tolist(), strict=True)
            if math.isfinite(number)
        ]
        for name, values in texts.items():
            value = values[row]
            if value is not None:
                fields.append(f'{name}="{_QUOTED.sub(_ESCAPED, value)}"')
        if fields:
            line = f"{key} {','.join(fields)} {times[row]}\n".encode(errors="replace")
            parts.append(line)
            length += len(line)
        ends.append(length)
    return Lines(b"".join(parts), np.array(ends, np.int64))

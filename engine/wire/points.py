"""Rows of the history in columns: the form that the historian passes to every store."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire.measurement import MEASUREMENTS, Measurement

# This value means an unknown integer; counters are never negative.
MISSING: Final = int(np.iinfo(np.int64).min)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")

Column = NDArray[np.float64] | NDArray[np.int64] | Sequence[str | None]


class Series:
    """The tags of a set of rows; one object serves many writes, so that stores can cache data.

    Parameters
    ----------
    tags
        For each tag a list with the text of each row; an empty text means no tag. Characters that
        stores do not support in tags are replaced: control characters by spaces, backslashes by
        slashes.

    Attributes
    ----------
    derived
        Cache of a store for data derived from the tags.
    """

    __slots__ = ("derived", "size", "tags")

    def __init__(self, tags: Mapping[str, Sequence[str]]) -> None:
        sizes = {len(values) for values in tags.values()}
        if len(sizes) != 1:
            raise ValueError(f"the tags have {sorted(sizes)} rows, but all need the same number")
        self.tags = {name: tuple(map(tag_text, tags[name])) for name in sorted(tags)}
        self.size = sizes.pop()
        self.derived: object = None

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Rows of one measurement.

    Attributes
    ----------
    time_ns
        Shape (n,), int64, since the Unix epoch.
    fields
        One column of n values for each field: float64 rounded by `kept`, int64, or texts. Unknown
        is NaN, `MISSING` or None respectively. A row without any known value is not written.
        `Points.of` rounds floats itself.
    """

    measurement: str
    series: Series
    time_ns: NDArray[np.int64]
    fields: Mapping[str, Column]

    def __post_init__(self) -> None:
        tags, kinds = _declared(self.measurement)
        if not self.series.tags.keys() <= tags:
            raise ValueError(f"{self.measurement} does not have the tags {set(self.series.tags)}")
        size = self.series.size
        for name, column in self.fields.items():
            if kinds.get(name) != kind_of(column) or len(column) != size:
                raise ValueError(
                    f"{self.measurement}.{name} requires {size} values of kind {kinds.get(name)}, "
                    f"but has {len(column)} of kind {kind_of(column)}"
                )

    @classmethod
    def of(
        cls,
        measurement: str,
        series: Series,
        time_ns: NDArray[np.int64] | Sequence[int],
        fields: Mapping[str, Column],
    ) -> "Points":
        """Return rows whose floats are rounded by `kept`.

        `time_ns` and `fields` are as in `Points`, before rounding.

        Raises
        ------
        ValueError
            The measurement, a tag or a field is not declared, or a column has another kind than
            declared or not one value for each row of `series`.
        """
        columns = {
            name: kept(column)
            if isinstance(column, np.ndarray) and column.dtype.kind == "f"
            else column
            if isinstance(column, np.ndarray)
            else tuple(None if text is None else _encodable(text) for text in column)
            for name, column in fields.items()
        }
        return cls(measurement, series, np.asarray(time_ns, np.int64), columns)

    def __len__(self) -> int:
        return len(self.series)

    @property
    def declared(self) -> Measurement:
        """The schema of these rows in `engine.wire.measurement`."""
        return MEASUREMENTS[self.measurement]


@cache
def _declared(measurement: str) -> tuple[frozenset[str], dict[str, str]]:
    """Return the tags of a measurement and the kinds of its fields."""
    if measurement not in MEASUREMENTS:
        raise ValueError(f"{measurement!r} is not a declared measurement")
    found = MEASUREMENTS[measurement]
    return frozenset(found.tags), {field.name: field.kind for field in found.fields}


def tag_text(text: str) -> str:
    """Return a text in the form in which tags are stored; queries by tag must use it too."""
    plain = text if text.isalnum() and text.isascii() else _CONTROL.sub(" ", _encodable(text))
    return plain.replace("\\", "/")


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: half of a surrogate pair becomes a question mark."""
    return text.encode(errors="replace").decode()


def kind_of(column: Column) -> str:
    """Return the kind of a column, as `engine.wire.measurement` names it."""
    if not isinstance(column, np.ndarray):
        return "text"
    return "float" if column.dtype.kind == "f" else "integer"


def kept(values: NDArray[np.floating[Any]] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return floats as every store keeps them: finite and rounded to six decimals.

    Values from 1e9 on are rounded to three decimals, those from 1e12 on to integers, and those from
    1e15 on are not rounded. So stores of numbers and stores of texts hold the same bits. Infinity
    becomes NaN (unknown).
    """
    exact = np.asarray(values, np.float64)
    size = np.abs(exact)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded: NDArray[np.float64] = np.rint(exact * 1e6) / 1e6
        large = size >= 1e9
        # Most columns have no large values.
        if large.any():
            thousandths = np.rint(exact * 1e3) / 1e3
            plain = np.where(size < 1e15, np.rint(exact), exact)
            rounded = np.where(large, np.where(size < 1e12, thousandths, plain), rounded)
            rounded[np.isinf(exact)] = np.nan
    # Turns a negative zero into a plain one.
    return rounded + 0.0


def known_integers(
    values: NDArray[np.uint64], present: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], int]:
    """Return unsigned values as the stores hold them, and how many were too large.

    Values that were not measured, or are beyond 2^63 - 1, become `MISSING`: no store keeps them,
    and a clipped counter would look like one that has stopped. `present` states which
    values were measured; it and the result have the shape of `values`.
    """
    fits = values <= np.uint64(np.iinfo(np.int64).max)
    kept_values = np.where(present & fits, values, 0).astype(np.int64)
    kept_values[~(present & fits)] = MISSING
    return kept_values, int((present & ~fits).sum())

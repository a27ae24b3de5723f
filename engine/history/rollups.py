"""Roll-ups: count, mean, min, max and last of a minute's samples, and statistics of an hour's.

An hour is computed from its samples, not from its minutes. A minute's window is open until a sample
of another minute arrives. Sums are computed in the order of arrival, so that the same samples give
the same bits.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.ports import Answer, Query
from flatline.engine.wire.measurement import HOUR_STATISTICS, Field, Measurement
from flatline.engine.wire.points import MISSING, Column, Points, Series, kept

Floats = NDArray[np.float64]

_COUNT, _SUM, _MIN, _MAX, _LAST = range(5)
STATISTICS: Final = ("count", "sum", "min", "max", "last")


class Window:
    """The samples of one minute in accumulated form, for all series of one family on one node.

    Attributes
    ----------
    begin_s
        Start of the window, in s since the epoch.
    values
        Shape (len(STATISTICS), metrics, n).
    """

    __slots__ = ("begin_s", "values")

    def __init__(self, begin_s: int, values: Floats) -> None:
        self.begin_s = begin_s
        self.values = values

    @classmethod
    def empty(cls, begin_s: int, *, metrics: int, size: int) -> "Window":
        """Return an empty window of `size` series, each with `metrics` metrics.

        `begin_s` is the start of the window, in s since the epoch.
        """
        values = np.zeros((len(STATISTICS), metrics, size))
        values[_MIN] = np.inf
        values[_MAX] = -np.inf
        values[_LAST] = np.nan
        return cls(begin_s, values)

    def add(self, samples: Floats) -> None:
        """Add one sample of every series; shape (metrics, n), NaN is unknown."""
        known = ~np.isnan(samples)
        plain = np.where(known, samples, 0.0)
        self.values[_COUNT] += known
        self.values[_SUM] += plain
        np.fmin(self.values[_MIN], samples, out=self.values[_MIN])
        np.fmax(self.values[_MAX], samples, out=self.values[_MAX])
        self.values[_LAST] = np.where(known, samples, self.values[_LAST])

    def moved(self, indices: NDArray[np.int64]) -> "Window":
        """Return the window for another roster; `indices` has the old indices, -1 for new ones."""
        metrics = self.values.shape[1]
        other = Window.empty(self.begin_s, metrics=metrics, size=len(indices))
        stayed = indices >= 0
        other.values[:, :, stayed] = self.values[:, :, indices[stayed]]
        return other

    def columns(self, fields: Sequence[Field]) -> dict[str, Floats | NDArray[np.int64]]:
        """Return the columns of a minute's roll-up, named as in the schema.

        `fields` are those of `values`, in the same order. A column has shape (n,); for a series
        without a sample the count is `MISSING` and the other statistics are NaN.
        """
        count, total, smallest, largest, last = self.values
        known = count > 0
        mean = kept(np.where(known, total / np.where(known, count, 1.0), np.nan))
        columns: dict[str, Floats | NDArray[np.int64]] = {}
        for row, field in enumerate(fields):
            there = known[row]
            columns[f"{field.name}_count"] = np.where(there, count[row], MISSING).astype(np.int64)
            columns[f"{field.name}_mean"] = mean[row]
            columns[f"{field.name}_min"] = np.where(there, smallest[row], np.nan)
            columns[f"{field.name}_max"] = np.where(there, largest[row], np.nan)
            columns[f"{field.name}_last"] = last[row]
        return columns


def hour_queries(
    family: tuple[Measurement, Measurement, Measurement], *, cell: str, begin_s: int
) -> list[Query]:
    """Return the queries for the samples of an hour, one for each field of the samples, in order.

    Parameters
    ----------
    family
        One of `engine.wire.measurement.FAMILIES`: its samples, minutes and hours.
    begin_s
        Start of the hour, in s since the epoch.
    """
    raw = family[0]
    return [
        Query(
            measurement=raw.name,
            select=tuple((field.name, statistic) for statistic in HOUR_STATISTICS),
            begin_ns=begin_s * 1_000_000_000,
            end_ns=(begin_s + 3600) * 1_000_000_000,
            where={"cell": cell},
            group_by=tuple(tag for tag in raw.tags if tag != "cell"),
        )
        for field in raw.fields
    ]


def hour_points(
    family: tuple[Measurement, Measurement, Measurement],
    answers: Sequence[Sequence[Answer]],
    *,
    cell: str,
    begin_s: int,
) -> list[Points]:
    """Return the hour's roll-up from the results of `hour_queries`, in their order.

    The list has one item, or none if no result has a row. The other arguments are as in
    `hour_queries`.
    """
    raw, _, hour = family
    tags = [tag for tag in raw.tags if tag != "cell"]
    rows = {answer.tags: None for one in answers for answer in one}
    if not rows:
        return []
    place = {key: row for row, key in enumerate(rows)}
    columns: dict[str, Column] = {}
    for field, one in zip(raw.fields, answers, strict=True):
        table = np.full((len(HOUR_STATISTICS), len(rows)), np.nan)
        for answer in one:
            values = [np.nan if value is None else float(value) for value in answer.values]
            table[:, place[answer.tags]] = values
        for statistic, column in zip(HOUR_STATISTICS, table, strict=True):
            name = f"{field.name}_{statistic}"
            if statistic == "count":
                known = ~np.isnan(column)
                columns[name] = np.where(known, column, MISSING).astype(np.int64)
            else:
                columns[name] = column
    series = Series(
        {"cell": [cell] * len(rows)}
        | {tag: [key[index] for key in rows] for index, tag in enumerate(tags)}
    )
    return [Points.of(hour.name, series, [begin_s * 1_000_000_000] * len(rows), columns)]

"""Quality of forecasts: error compared with that of persistence, and coverage of intervals.

A forecast made at t is compared with the value at t + horizon, not with a mean over that time.
Persistence is the forecast that the value at t stays. The first 7 days of a series do not count.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels.forecast_row import BANDS, HORIZONS_S

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

WARM_UP_S: Final = 7 * 86_400
_DECILES: Final = 10
# A series counts as constant at the resolution of its values if at least this share of values
# equals the value one horizon earlier.
_CONSTANT_SHARE: Final = 0.5
_COUNT, _MISS, _PERSISTED, _IN90, _IN50, _LOAD, _SAME = range(7)
_SUMS: Final = 7


class Verdict(NamedTuple):
    """One metric at one horizon, over all series.

    Attributes
    ----------
    mae_ratio
        Median over series of the MAE (mean absolute error) divided by that of persistence. Series
        that never change are left out.
    worst_ratio, worst
        The highest of these ratios, and the name of its series.
    coverage_90, coverage_50
        Share of measured values inside the 90 % and the 50 % interval, over all forecasts.
    lowest_decile_90
        Series are divided into ten groups by mean load: the lowest `coverage_90` of a group.
    moving_90, moving_50
        As `coverage_90` and `coverage_50`, without the series that count as constant.
    """

    metric: str
    horizon_s: int
    series: int
    forecasts: int
    mae_ratio: float
    worst_ratio: float
    worst: str
    coverage_90: float
    coverage_50: float
    lowest_decile_90: float
    moving_90: float
    moving_50: float


class Judge:
    """Accumulates the errors of forecasts; keeps forecasts for a day, the longest horizon."""

    def __init__(self, metrics: tuple[str, ...], names: tuple[str, ...], *, step_s: int) -> None:
        self._metrics = metrics
        self._names = names
        self._step_s = step_s
        self._ahead = tuple(horizon // step_s for horizon in HORIZONS_S)
        series = len(metrics) * len(names)
        ring = max(self._ahead) + 1
        self._made = np.full((ring, series, len(HORIZONS_S), len(BANDS)), np.nan, np.float32)
        self._value = np.full((ring, series), np.nan)
        self._number = np.full(ring, -1, np.int64)
        self._first = np.full(series, -1, np.int64)
        self._sums = np.zeros((_SUMS, len(HORIZONS_S), series))

    def take(self, number: int, values: F64, made: F32) -> None:
        """Record the values of step `number` and the forecasts made then, metric by metric.

        Parameters
        ----------
        number
            End of the step in s since the epoch, divided by `step_s`. Steps are given in ascending
            order.
        values
            Shape (metrics * names,): all names of the first metric, then those of the next; NaN is
            unknown.
        made
            Shape (metrics * names, horizons, bands), in the order of `HORIZONS_S` and `BANDS`; NaN
            is no forecast.
        """
        known = ~np.isnan(values)
        self._first = np.where((self._first < 0) & known, number, self._first)
        warm = known & (self._first >= 0)
        ring = len(self._number)
        for horizon, ahead in enumerate(self._ahead):
            place = (number - ahead) % ring
            if self._number[place] != number - ahead:
                continue
            began = (number - ahead - self._first) * self._step_s >= WARM_UP_S
            self._settle(horizon, values, place, warm & began)
        place = number % ring
        self._made[place], self._value[place], self._number[place] = made, values, number

    def _settle(self, horizon: int, values: F64, place: int, judged: NDArray[np.bool_]) -> None:
        made = self._made[place, :, horizon]
        before = self._value[place]
        judged = judged & ~np.isnan(made[:, 0])
        outcome = values.astype(np.float32)
        sums = self._sums[:, horizon]
        sums[_COUNT] += judged
        sums[_MISS] += np.where(judged, np.abs(made[:, 0] - values), 0.0)
        sums[_PERSISTED] += np.where(judged, np.abs(before - values), 0.0)
        sums[_IN90] += judged & (made[:, 1] <= outcome) & (outcome <= made[:, 2])
        sums[_IN50] += judged & (made[:, 3] <= outcome) & (outcome <= made[:, 4])
        sums[_LOAD] += np.where(judged, values, 0.0)
        sums[_SAME] += judged & (before == values)

    def verdicts(self) -> list[Verdict]:
        """Return one verdict for each metric and horizon with at least one judged forecast.

        A share or ratio is NaN if no series counts for it.
        """
        found = []
        size = len(self._names)
        for row, metric in enumerate(self._metrics):
            for horizon, horizon_s in enumerate(HORIZONS_S):
                sums = self._sums[:, horizon, row * size : (row + 1) * size]
                seen = np.flatnonzero(sums[_COUNT] > 0)
                if len(seen):
                    names = [self._names[place] for place in seen]
                    found.append(_verdict(metric, horizon_s, names, sums[:, seen]))
        return found


def _verdict(metric: str, horizon_s: int, names: list[str], sums: F64) -> Verdict:
    moved = sums[_PERSISTED] > 0
    ratios = np.where(moved, sums[_MISS] / np.where(moved, sums[_PERSISTED], 1.0), np.nan)
    worst = int(np.nanargmax(ratios)) if moved.any() else 0
    by_load = np.argsort(sums[_LOAD] / sums[_COUNT], kind="stable")
    deciles = [part for part in np.array_split(by_load, _DECILES) if len(part)]
    moving = sums[_SAME] < _CONSTANT_SHARE * sums[_COUNT]
    return Verdict(
        metric=metric,
        horizon_s=horizon_s,
        series=len(names),
        forecasts=int(sums[_COUNT].sum()),
        mae_ratio=float(np.nanmedian(ratios)) if moved.any() else float("nan"),
        worst_ratio=float(ratios[worst]),
        worst=names[worst],
        coverage_90=_share(sums[_IN90], sums[_COUNT]),
        coverage_50=_share(sums[_IN50], sums[_COUNT]),
        lowest_decile_90=min(_share(sums[_IN90, part], sums[_COUNT, part]) for part in deciles),
        moving_90=_share(sums[_IN90, moving], sums[_COUNT, moving]),
        moving_50=_share(sums[_IN50, moving], sums[_COUNT, moving]),
    )


def _share(inside: F64, count: F64) -> float:
    total = float(count.sum())
    return float(inside.sum()) / total if total else float("nan")

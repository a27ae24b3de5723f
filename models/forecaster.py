"""Forecast many series with the same step; the state is one array with a row per series."""

from collections.abc import Mapping
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels.forecast import fold_step
from flatline.models.kernels.forecast_row import (
    AGE,
    BANDS,
    CELL,
    CELLS,
    EW_LONG,
    FINAL,
    HORIZON_COUNT,
    PENDING,
    SLOT_S,
    STATE,
    STATE_COUNTS,
    WIDTHS,
    constants,
    layout,
    new_series,
    profile_of,
    start_from,
)
from flatline.models.protocol import Arrays, fill

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Indices = NDArray[np.intp]

# A profile is what the mature series of one class have learned in common; new series of that class
# start from it. A series is mature, and contributes to a profile, after three days of history.
GROWN_UP_S: Final = 3 * 86_400
# Fewest series (teachers) for a profile. A profile of fewer would be the behaviour of single VMs.
_TEACHERS: Final = 3
# A longer gap resets all state, which is outdated by then. The steps of a shorter gap are folded as
# unknown values.
_LONGEST_GAP_S: Final = 2 * 86_400


class Forecaster:
    """Forecaster of `count` series on a grid of steps of `step_s` seconds.

    Attributes
    ----------
    state
        Shape (count, layout.size), float32: all learned state, one row per series. Rows may be
        copied between forecasters with the same `step_s`.
    number
        The last step folded (its end in s since the epoch, divided by `step_s`), 0 for none.
    """

    def __init__(self, count: int, *, step_s: int) -> None:
        self.plan = layout(step_s)
        self.step_s = step_s
        self.number = 0
        self.state = new_series(count, self.plan)
        self._weights = constants(step_s)

    def __len__(self) -> int:
        return len(self.state)

    def fold(self, values: F64, number: int) -> F32:
        """Fold the step that ends at `number * step_s` and return the new forecasts.

        Parameters
        ----------
        values
            Shape (count,): means over the step, ≥ 0; NaN is unknown.
        number
            Number of the step. Steps skipped since the last one are unknown.

        Returns
        -------
        Shape (count, HORIZON_COUNT, len(BANDS)): the point forecast and the bounds of its intervals
        for each horizon; NaN where there is no forecast.

        Raises
        ------
        ValueError
            `number` is not after the last step.
        """
        if self.number and number <= self.number:
            raise ValueError(f"step {number} is not after step {self.number}")
        last = self.number or number - 1
        if (number - last) * self.step_s > _LONGEST_GAP_S:
            self.state = new_series(len(self.state), self.plan)
            last = number - 1
        out = np.empty((len(self.state), HORIZON_COUNT * len(BANDS)), np.float32)
        unknown = np.full(len(self.state), np.nan)
        for step in range(last + 1, number + 1):
            fold_step(
                self.state,
                values if step == number else unknown,
                step,
                int(step * self.step_s % SLOT_S == 0),
                self.plan.start,
                self.plan.steps,
                self._weights,
                out,
            )
        self.number = number
        return out.reshape(-1, HORIZON_COUNT, len(BANDS))

    def is_new(self) -> NDArray[np.bool_]:
        """Return, per series, whether it had no known value yet."""
        new: NDArray[np.bool_] = self.state[:, AGE] == 0.0
        return new

    def level(self) -> F32:
        """Return shape (count,): the mean of each series over about 7 h; 0 for a new series."""
        level: F32 = self.state[:, EW_LONG]
        return level

    def profile(self, members: Indices) -> F32 | None:
        """Return the profile of the mature series in rows `members`; None if these are too few.

        `members` has shape (n,); series younger than three days are left out, and three must
        remain. The profile is as `forecast_row.profile_of` returns it.
        """
        grown_up = members[self.state[members, AGE] >= GROWN_UP_S / self.step_s]
        if len(grown_up) < _TEACHERS:
            return None
        return profile_of(self.state[grown_up], self.plan)

    def start(self, members: Indices, profile: F32) -> None:
        """Initialise new series from the profile of their class, including its error sizes.

        `members` are the rows of the series, shape (n,); `profile` is as `profile` returns it.
        """
        rows = self.state[members]
        start_from(rows, self.plan, profile)
        self.state[members] = rows

    def rearranged(self, indices: Indices) -> Self:
        """Return a copy whose row i is row `indices[i]` of this one, or a new series for -1.

        `indices` has shape (rows of the copy,).
        """
        moved = type(self)(len(indices), step_s=self.step_s)
        kept = np.flatnonzero(indices >= 0)
        moved.state[kept] = self.state[indices[kept]]
        moved.number = self.number
        return moved

    def to_arrays(self) -> Arrays:
        """Return the whole state by name; the arrays are not copies."""
        return {"state": self.state, "steps": np.array([self.step_s, self.number], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Restore a forecaster from the result of `to_arrays`; it continues bit for bit.

        Raises
        ------
        KeyError, ValueError
            An array is missing, or its shape, its type or an index in it is invalid.
        """
        step_s, number = (int(value) for value in arrays["steps"])
        forecaster = cls(len(arrays["state"]), step_s=step_s)
        fill(forecaster.state, arrays["state"], name="state")
        forecaster.number = number
        forecaster._check_places()
        return forecaster

    def _check_places(self) -> None:
        """Raise `ValueError` if a pending forecast has an invalid state or cell number.

        The kernels use these numbers as indices and do not check them.
        """
        for horizon, (start, steps) in enumerate(
            zip(self.plan.start, self.plan.steps, strict=True)
        ):
            width = WIDTHS[horizon]
            part = self.state[:, start : start + steps * (width + PENDING)]
            waiting = part.reshape(-1, width + PENDING)[:, width:]
            waiting = waiting[~np.isnan(waiting[:, FINAL])]
            indices = {STATE: STATE_COUNTS[horizon]}
            if horizon < HORIZON_COUNT - 1:
                indices[CELL] = CELLS
            for field, count in indices.items():
                named = waiting[:, field]
                if not ((named >= 0) & (named < count)).all():
                    raise ValueError(f"a forecast names an index that is not below {count}")

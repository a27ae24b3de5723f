"""Define the layout of a forecast series: one float32 row, equal for all series of a step length.

A row has all learned state of a series, so a migration copies a row and a snapshot is one array.
It begins with means and sizes. Then come the latest steps, three days of slots, and for each
horizon the pending forecasts and the data learned from past ones.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# Resolution of daily and hourly patterns.
SLOT_S: Final = 300
HOUR: Final = 12
DAY: Final = 288
HORIZONS_S: Final = (300, 1800, 86_400)
HORIZON_COUNT: Final = len(HORIZONS_S)
# Columns of a forecast, in the order of a CSV line.
BANDS: Final = ("mean", "lo90", "hi90", "lo50", "hi50")

# Candidates of the two near horizons, then those of the far one.
NEAR: Final = (
    "last",
    "previous",
    "ew_mean_fast",
    "ew_mean_slow",
    "holt",
    "median_5",
    "median_25",
    "same_minute",
    "same_time",
    "same_change",
    "similar_state",
    "without_spike",
    "next_step",
    "ew_mean_medium",
    "ew_mean_of_slot",
    "with_jump",
)
FAR: Final = (
    "last",
    "median_25",
    "ew_mean_slow",
    "same_time",
    "ew_mean_of_slot",
    "ew_mean_long",
)
NEAR_COUNT = len(NEAR)
FAR_COUNT = len(FAR)
# States: the size of the last move (3) by the distance from the median (3).
STATES: Final = 9
# Cells of `similar_state`: the same two distances with their sign, in 9 by 5 bands.
CELLS = 45
QUANTILES = 4

# Fields of a series' own level, at the start of its row.
LAST, PREVIOUS, AGE, EW_FAST, EW_SLOW, EW_LONG = 0, 1, 2, 3, 4, 5
HOLT_LEVEL, HOLT_TREND, MOVE, AWAY, SLOT_SUM, SLOT_COUNT = 6, 7, 8, 9, 10, 11
EW_MEDIUM, RESOLUTION = 12, 13
HEAD = 14
LATEST = 5
# Three days, and the slots around tomorrow's time of day on the first of them.
SLOTS = 3 * DAY + 8
WINDOW = 25

# Fields of each pending forecast, beside the predictions of its candidates.
BY_STATE, OVERALL, FINAL, SCALE, STATE, CELL, BASE, UNIT = range(8)
PENDING = 8
# Inputs of the final weighting: the last value, and the candidates by state and overall.
VOICES = 3


# Smaller than any metric's resolution: a constant series must not divide by zero.
LEAST = 1e-6


class Layout(NamedTuple):
    """Positions in the row of a series, for one step length.

    Attributes
    ----------
    step_s
        Length of a step in s; `SLOT_S` is a multiple of it.
    steps
        Horizons, the near ones in steps, the far one in slots.
    start
        Start of the part of each horizon.
    size
        float32 values in a row.
    """

    step_s: int
    steps: tuple[int, int, int]
    start: tuple[int, int, int]
    size: int


# Parts of a near horizon after its pending ring, as offsets: regrets and their squares by
# state and overall, the last voices, quantiles, error sizes and counts by state, cells.
WIDTHS = (NEAR_COUNT, NEAR_COUNT, FAR_COUNT)
STATE_COUNTS = (STATES, STATES, 1)
PART_LATEST = HEAD
# The last 25 slots sorted by size, so that their median is read and not searched.
PART_SORTED = PART_LATEST + LATEST
PART_SLOTS = PART_SORTED + WINDOW
PART_BY_SLOT = PART_SLOTS + SLOTS
PART_HORIZONS = PART_BY_SLOT + DAY


def layout(step_s: int) -> Layout:
    """Return the layout for steps of `step_s` seconds.

    Raises
    ------
    ValueError
        `SLOT_S` is not a multiple of `step_s`.
    """
    if step_s <= 0 or SLOT_S % step_s:
        raise ValueError(f"steps of {step_s} s do not divide {SLOT_S} s")
    steps = (HORIZONS_S[0] // step_s, HORIZONS_S[1] // step_s, DAY)
    start: list[int] = []
    index = PART_HORIZONS
    for horizon in range(HORIZON_COUNT):
        start.append(index)
        index += steps[horizon] * (WIDTHS[horizon] + PENDING) + _fixed(horizon)
    return Layout(step_s, steps, (start[0], start[1], start[2]), index)


def _fixed(horizon: int) -> int:
    """Return how many values a horizon has beside its pending forecasts."""
    sets = STATE_COUNTS[horizon] + 1
    cells = 2 * CELLS if horizon < HORIZON_COUNT - 1 else 0
    return 2 * sets * WIDTHS[horizon] + 2 * VOICES + QUANTILES + 2 * sets + cells


def _sizes(horizon: int, plan: Layout) -> int:
    """Return the start of the error sizes by state and overall; their counts follow."""
    width, sets = WIDTHS[horizon], STATE_COUNTS[horizon] + 1
    ring = plan.steps[horizon] * (width + PENDING)
    return plan.start[horizon] + ring + 2 * sets * width + 2 * VOICES + QUANTILES


def _size_places(plan: Layout) -> NDArray[np.intp]:
    """Return the position of the overall error size of each horizon."""
    return np.array([_sizes(h, plan) + STATE_COUNTS[h] for h in range(HORIZON_COUNT)])


def _cell_places(plan: Layout) -> NDArray[np.intp]:
    """Return, for each near horizon, the positions of its cells."""
    firsts = [_sizes(h, plan) + 2 * (STATE_COUNTS[h] + 1) for h in range(HORIZON_COUNT - 1)]
    return np.array(firsts)[:, None] + np.arange(CELLS)


# Number of own errors that equal the error size learned from a class (chosen on
# `bitbrains_faults_dev`).
_TAUGHT_COUNT: Final = 2.0

# Outcomes before which the usual error of a horizon is unknown: two give a size, which may be a
# class's; an error of zero needs six.
FEW_OUTCOMES = 2.0
ENOUGH_OUTCOMES = 6.0

# In units of the mean absolute error: those of a Laplace distribution.
_FIRST_QUANTILES: Final = (-2.3, 2.3, -0.69, 0.69)


def new_series(count: int, plan: Layout) -> F32:
    """Return the state of `count` new series, shape (count, plan.size)."""
    state = np.zeros((count, plan.size), np.float32)
    for horizon in range(HORIZON_COUNT):
        first, sizes = plan.start[horizon], _sizes(horizon, plan)
        state[:, first : first + plan.steps[horizon] * (WIDTHS[horizon] + PENDING)] = np.nan
        state[:, sizes - QUANTILES : sizes] = _FIRST_QUANTILES
    for indices in _cell_places(plan):
        state[:, indices] = _first_cells()
    return state


def _first_cells() -> F32:
    """Return the initial prediction of each cell: that the level stays."""
    middles = np.array([-5.0, -2.5, -1.0, -0.3, 0.0, 0.3, 1.0, 2.5, 5.0], np.float32)
    return np.repeat(middles, 5)


def profile_of(state: F32, plan: Layout) -> F32:
    """Return the profile of the mature series of one class, shape (size of a profile,).

    The profile has medians over `state`'s series: the movement after each state, and the size of
    errors relative to the level. Quantiles are not included: they apply to errors of known size,
    and are too narrow while the size is unknown.
    """
    level = np.maximum(state[:, EW_LONG], np.float32(LEAST))
    # Relative to a level of zero every error would be unbounded.
    sizes = np.minimum(state[:, _size_places(plan)] / level[:, None], np.float32(1.0))
    cells = state[:, _cell_places(plan).reshape(-1)]
    return np.asarray(np.median(np.concatenate([cells, sizes], axis=1), axis=0), np.float32)


def start_from(state: F32, plan: Layout, profile: F32) -> None:
    """Start the new series of `state` from a class's profile.

    Error sizes are shares of the level until the first value gives the level.

    Parameters
    ----------
    state
        Shape (n, plan.size), updated.
    profile
        As `profile_of` returned it for the same `plan`.
    """
    cells, sizes = _cell_places(plan).reshape(-1), _size_places(plan)
    state[:, cells] = profile[: cells.size]
    state[:, sizes] = profile[cells.size :]
    state[:, sizes + np.array(STATE_COUNTS) + 1] = _TAUGHT_COUNT


class Constants(NamedTuple):
    """Weights that follow from the length of a step."""

    forget: float
    slow: float
    long: float


def constants(step_s: int) -> Constants:
    """Return the weights for steps of `step_s` seconds.

    Regrets fade with a time constant of 42 h: an hour of a fault weighs as much as weeks of
    calm, and must not decide the candidates' weights for weeks. The slow and long means have 80 min
    and 7 h, the best values on 5-min traces.
    """
    share = step_s / SLOT_S
    return Constants(0.998**share, 1.0 - 0.94**share, 1.0 - 0.988**share)

"""How a forecast series is laid out: one row of float32, the same for all series of a step length.

A row holds everything a series has learned, so that a migration copies a row and a snapshot is
one array. At its head stand means and sizes, then the latest steps, three days of slots, and for
each horizon the forecasts that wait for their outcome, with what was learned from past ones.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# A slot is the grain of daily and hourly habits.
SLOT_S: Final = 300
HOUR: Final = 12
DAY: Final = 288
HORIZONS_S: Final = (300, 1800, 86_400)
HORIZON_COUNT: Final = len(HORIZONS_S)
# Columns of a forecast, in the order in which a line of a CSV has them.
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
# States: how far the series has just moved (3) by how far it is from its median (3).
STATES: Final = 9
# Cells of `similar_state`: the same two distances with their sign, in 9 by 5 bands.
CELLS = 45
QUANTILES = 4

# Fields of a series' own level, at the head of its row.
LAST, PREVIOUS, AGE, EW_FAST, EW_SLOW, EW_LONG = 0, 1, 2, 3, 4, 5
HOLT_LEVEL, HOLT_TREND, MOVE, AWAY, SLOT_SUM, SLOT_COUNT = 6, 7, 8, 9, 10, 11
EW_MEDIUM, RESOLUTION = 12, 13
HEAD = 14
LATEST = 5
# Three days, and the slots around tomorrow's time of day on the first of them.
SLOTS = 3 * DAY + 8
WINDOW = 25

# Of each forecast that waits for its outcome, beside what its candidates said.
BY_STATE, OVERALL, FINAL, SCALE, STATE, CELL, BASE, UNIT = range(8)
PENDING = 8
# Who is weighed at the end: the last value, and the candidates by state and overall.
VOICES = 3


# Smaller than any metric's resolution: a constant series must not divide by zero.
LEAST = 1e-6


class Layout(NamedTuple):
    """Where things stand in the row of a series, for one step length.

    Attributes
    ----------
    step_s
        Length of a step in s; `SLOT_S` is a multiple of it.
    steps
        Horizons, the near ones in steps, the far one in slots.
    start
        Where the part of each horizon begins.
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
# The last 25 slots in order of size, so that their median is read and not searched.
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
    place = PART_HORIZONS
    for horizon in range(HORIZON_COUNT):
        start.append(place)
        place += steps[horizon] * (WIDTHS[horizon] + PENDING) + _fixed(horizon)
    return Layout(step_s, steps, (start[0], start[1], start[2]), place)


def _fixed(horizon: int) -> int:
    """Return how many values a horizon has beside its pending forecasts."""
    sets = STATE_COUNTS[horizon] + 1
    cells = 2 * CELLS if horizon < HORIZON_COUNT - 1 else 0
    return 2 * sets * WIDTHS[horizon] + 2 * VOICES + QUANTILES + 2 * sets + cells


def _sizes(horizon: int, plan: Layout) -> int:
    """Return where error sizes by state and overall begin; their counts follow."""
    width, sets = WIDTHS[horizon], STATE_COUNTS[horizon] + 1
    ring = plan.steps[horizon] * (width + PENDING)
    return plan.start[horizon] + ring + 2 * sets * width + 2 * VOICES + QUANTILES


def _size_places(plan: Layout) -> NDArray[np.intp]:
    """Return where the overall error size of each horizon stands."""
    return np.array([_sizes(h, plan) + STATE_COUNTS[h] for h in range(HORIZON_COUNT)])


def _cell_places(plan: Layout) -> NDArray[np.intp]:
    """Return, for each near horizon, where stands what follows on a state."""
    firsts = [_sizes(h, plan) + 2 * (STATE_COUNTS[h] + 1) for h in range(HORIZON_COUNT - 1)]
    return np.array(firsts)[:, None] + np.arange(CELLS)


# As how many errors of its own a series takes what it was taught of their size (chosen on
# `bitbrains_faults_dev`).
_TAUGHT_COUNT: Final = 2.0

# Outcomes before which the usual error of a horizon is not known: two tell a size, which may be a
# class's; that it is nothing at all is believed of six.
FEW_OUTCOMES = 2.0
ENOUGH_OUTCOMES = 6.0

# In units of the mean absolute error: those of a Laplace distribution.
_FIRST_QUANTILES: Final = (-2.3, 2.3, -0.69, 0.69)


def new_series(count: int, plan: Layout) -> F32:
    """Return the state of `count` series that have not been seen yet."""
    state = np.zeros((count, plan.size), np.float32)
    for horizon in range(HORIZON_COUNT):
        first, sizes = plan.start[horizon], _sizes(horizon, plan)
        state[:, first : first + plan.steps[horizon] * (WIDTHS[horizon] + PENDING)] = np.nan
        state[:, sizes - QUANTILES : sizes] = _FIRST_QUANTILES
    for places in _cell_places(plan):
        state[:, places] = _first_cells()
    return state


def _first_cells() -> F32:
    """Return what each cell predicts before anything was learned: that the level stays."""
    middles = np.array([-5.0, -2.5, -1.0, -0.3, 0.0, 0.3, 1.0, 2.5, 5.0], np.float32)
    return np.repeat(middles, 5)


def profile_of(state: F32, plan: Layout) -> F32:
    """Return shape (size of a profile,): what grown-up series of one class have in common.

    Medians over `state`'s series: what follows on which state, and how large errors are beside
    the level. Their quantiles are not among it: those are of errors whose size the state tells,
    and too narrow where nobody knows it yet.
    """
    level = np.maximum(state[:, EW_LONG], np.float32(LEAST))
    # Beside a level of nothing every error would be without bounds.
    sizes = np.minimum(state[:, _size_places(plan)] / level[:, None], np.float32(1.0))
    cells = state[:, _cell_places(plan).reshape(-1)]
    return np.asarray(np.median(np.concatenate([cells, sizes], axis=1), axis=0), np.float32)


def start_from(state: F32, plan: Layout, profile: F32) -> None:
    """Let the series of `state`, which have not been seen yet, begin from a class's profile.

    Error sizes are shares of the level until the first value tells the level.
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
    rest, and must not decide for weeks who is heard. The slow and long means have 80 min and
    7 h: what was best on 5-min traces.
    """
    share = step_s / SLOT_S
    return Constants(0.998**share, 1.0 - 0.94**share, 1.0 - 0.988**share)

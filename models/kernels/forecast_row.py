"""Define the layout of a forecast series: one float32 row, equal for all series of a step length.

A row has all learned state of a series, so a migration copies a row and a snapshot is one array.
It begins with means and usual sizes of moves. Then come the latest steps, three days of slots, and
for each horizon the pending forecasts and the data learned from past ones.

Words: a candidate is an expert of a prediction with expert advice, a voice an expert of the final
weighting. A state is a context that has weights of its own. A cell is a bin of a table of learned
values. A forecast is pending until its outcome is known.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# A slot is the resolution of daily and hourly patterns. `HOUR` and `DAY` are in slots.
SLOT_S: Final = 300
HOUR: Final = 12
DAY: Final = 288
HORIZONS_S: Final = (300, 1800, 86_400)
HORIZON_COUNT: Final = len(HORIZONS_S)
# Columns of a forecast, in the order of a CSV line: the point forecast (named `mean`, although it
# is a median), and the bounds of the 90 % and the 50 % interval.
BANDS: Final = ("mean", "lo90", "hi90", "lo50", "hi50")

# Candidates of the two near horizons, then those of the far one, in the order of their values.
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
# Number of states: three sizes of the last move, times three distances from the median.
STATES: Final = 9
# Number of cells of `similar_state`: the signed distance of the last value from the median in 9
# bands, times that of the value before in 5 bands.
CELLS = 45
QUANTILES = 4

# Fields at the start of a row. `EW_…` are exponentially weighted means. `MOVE` and `AWAY` are the
# usual size of a step and of the distance from the median, `RESOLUTION` the smallest step above 0.
LAST, PREVIOUS, AGE, EW_FAST, EW_SLOW, EW_LONG = 0, 1, 2, 3, 4, 5
HOLT_LEVEL, HOLT_TREND, MOVE, AWAY, SLOT_SUM, SLOT_COUNT = 6, 7, 8, 9, 10, 11
EW_MEDIUM, RESOLUTION = 12, 13
HEAD = 14
LATEST = 5
# Slots stored: three days and a margin. The oldest slot read is three days before the last one.
SLOTS = 3 * DAY + 8
WINDOW = 25

# Fields of a pending forecast, stored after the predictions of its candidates: their predictions
# weighted by state and overall, the final one, the usual error, the numbers of state and cell, and
# the median and the unit (`AWAY`) of `similar_state`. A `FINAL` of NaN means that there is none.
BY_STATE, OVERALL, FINAL, SCALE, STATE, CELL, BASE, UNIT = range(8)
PENDING = 8
# Voices are the inputs of the final weighting: the last value, and the candidates weighted by what
# was learned in the current state, and in all states.
VOICES = 3


# Least size, below the resolution of any metric: sizes are divisors, so they must not be zero.
LEAST = 1e-6


class Layout(NamedTuple):
    """Positions in the row of a series, for one step length.

    Attributes
    ----------
    step_s
        Length of a step in s; `SLOT_S` is a multiple of it.
    steps
        Length of each horizon: the near ones in steps, the far one in slots.
    start
        Index in the row at which the data of each horizon start.
    size
        float32 values in a row.
    """

    step_s: int
    steps: tuple[int, int, int]
    start: tuple[int, int, int]
    size: int


# Order of a horizon's data: the ring of pending forecasts; by state and overall, the regrets of the
# candidates and the sums of their squares; both for the voices; quantiles; error sizes by state and
# overall, then their counts; for a near horizon the cells, then their counts. `WIDTHS` are the
# numbers of candidates, `STATE_COUNTS` those of states.
WIDTHS = (NEAR_COUNT, NEAR_COUNT, FAR_COUNT)
STATE_COUNTS = (STATES, STATES, 1)
PART_LATEST = HEAD
# The last 25 slots in ascending order, so that their median is the one in the middle.
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
    """Return the index of a horizon's error sizes: by state, then overall; counts follow."""
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


# Weight of the error size that a series takes from the profile of its class, as a number of own
# errors. The value was chosen on the dataset `bitbrains_faults_dev`.
_TAUGHT_COUNT: Final = 2.0

# Number of outcomes from which the usual error of a horizon counts as known: two, or six while it
# is zero. The error size of a profile counts as two outcomes.
FEW_OUTCOMES = 2.0
ENOUGH_OUTCOMES = 6.0

# Initial 5, 95, 25 and 75 % quantiles of the error, in units of the mean absolute error: those of a
# Laplace distribution.
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
    """Return the initial values of the cells, shape (CELLS,): the middle of each cell's band.

    In units of the usual distance from the median; it predicts that the last value stays.
    """
    middles = np.array([-5.0, -2.5, -1.0, -0.3, 0.0, 0.3, 1.0, 2.5, 5.0], np.float32)
    return np.repeat(middles, 5)


def profile_of(state: F32, plan: Layout) -> F32:
    """Return the profile of the mature series of one class, shape (size of a profile,).

    A profile has medians over the rows of `state`: the value of each cell, then the error size of
    each horizon relative to the level. Quantiles are not included: they apply to errors of known
    size, and are too narrow while the size is unknown.
    """
    level = np.maximum(state[:, EW_LONG], np.float32(LEAST))
    # At most 1, because relative to a level near zero an error would be unbounded.
    sizes = np.minimum(state[:, _size_places(plan)] / level[:, None], np.float32(1.0))
    cells = state[:, _cell_places(plan).reshape(-1)]
    return np.asarray(np.median(np.concatenate([cells, sizes], axis=1), axis=0), np.float32)


def start_from(state: F32, plan: Layout, profile: F32) -> None:
    """Initialise the new series of `state` from the profile of their class.

    Their error sizes stay shares of the level until the first value of a series defines its level.

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
    """Weights that follow from the length of a step.

    `forget` is the factor by which regrets fade with each outcome. `slow` and `long` are weights of
    one step in the means `EW_SLOW` and `EW_LONG`.
    """

    forget: float
    slow: float
    long: float


def constants(step_s: int) -> Constants:
    """Return the weights for steps of `step_s` seconds.

    Regrets of near horizons fade with a time constant of 42 h. Without fading, an hour of a fault,
    which causes as much regret as weeks of calm, would decide the weights for weeks. The slow and
    the long mean have time constants of 80 min and 7 h, the best values on 5-min traces.
    """
    share = step_s / SLOT_S
    return Constants(0.998**share, 1.0 - 0.94**share, 1.0 - 0.988**share)

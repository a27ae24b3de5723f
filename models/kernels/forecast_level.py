"""Update a series' level: means, trend, sizes of its moves, and the slots of its days."""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined
from flatline.models.kernels.forecast_candidates import replace_sorted
from flatline.models.kernels.forecast_row import (
    AGE,
    AWAY,
    DAY,
    EW_FAST,
    EW_LONG,
    EW_MEDIUM,
    EW_SLOW,
    HOLT_LEVEL,
    HOLT_TREND,
    LAST,
    LATEST,
    LEAST,
    MOVE,
    PART_BY_SLOT,
    PART_LATEST,
    PART_SLOTS,
    PART_SORTED,
    PREVIOUS,
    RESOLUTION,
    SLOT_COUNT,
    SLOT_SUM,
    SLOTS,
    WINDOW,
)

F32 = NDArray[np.float32]


@inlined
def begin(row: F32, x: float) -> None:
    """Start a series as if its past had been its first value `x`, which is not NaN.

    `row` is the row of the series, shape (layout.size,), updated.
    """
    for field in (LAST, PREVIOUS, EW_FAST, EW_SLOW, EW_LONG, EW_MEDIUM, HOLT_LEVEL):
        row[field] = x
    row[AGE] = 1.0
    row[MOVE] = max(0.05 * abs(x), LEAST)
    row[AWAY] = max(0.05 * abs(x), LEAST)
    for k in range(LATEST):
        row[PART_LATEST + k] = x
    for k in range(WINDOW):
        row[PART_SORTED + k] = x
    for k in range(SLOTS):
        row[PART_SLOTS + k] = x
    for k in range(DAY):
        row[PART_BY_SLOT + k] = x


@inlined
def follow(row: F32, x: float, slow: float, long: float) -> None:
    """Update the means, the trend and the size of moves of a series with one known step.

    Parameters
    ----------
    row
        The row of the series, shape (layout.size,), updated.
    x
        Mean over the step; not NaN.
    slow, long
        Weights of the step, as in `forecast_row.Constants`.
    """
    row[SLOT_SUM] += x
    row[SLOT_COUNT] += 1.0
    before = np.float64(row[LAST])
    row[PREVIOUS] = before
    row[LAST] = x
    for k in range(PART_LATEST, PART_LATEST + LATEST - 1):
        row[k] = row[k + 1]
    row[PART_LATEST + LATEST - 1] = x
    row[EW_FAST] = 0.5 * x + (1.0 - 0.5) * np.float64(row[EW_FAST])
    row[EW_MEDIUM] = 0.2 * x + (1.0 - 0.2) * np.float64(row[EW_MEDIUM])
    row[EW_SLOW] = slow * x + (1.0 - slow) * np.float64(row[EW_SLOW])
    row[EW_LONG] = long * x + (1.0 - long) * np.float64(row[EW_LONG])
    # Holt's linear trend (Holt 1957) with River's update.
    level, trend = np.float64(row[HOLT_LEVEL]), np.float64(row[HOLT_TREND])
    new_level = 0.3 * x + (1.0 - 0.3) * (level + trend)
    row[HOLT_LEVEL] = new_level
    row[HOLT_TREND] = 0.1 * (new_level - level) + (1.0 - 0.1) * trend
    step = abs(x - before)
    if step > 0.0 and (row[RESOLUTION] == 0.0 or step < row[RESOLUTION]):
        row[RESOLUTION] = step
    least = max(0.5 * np.float64(row[RESOLUTION]), LEAST)
    move = np.float64(row[MOVE])
    row[MOVE] = max(move + 0.01 * (min(step, 10.0 * move) - move), least)


@inlined
def close_slot(row: F32, slot: int) -> float:
    """Write the mean of the ended slot into the ring of slots, and return it; NaN if unknown.

    The ring has no NaN: for an unknown slot it gets the last known value. The sorted window of the
    last slots is updated too.

    Parameters
    ----------
    row
        The row of the series, shape (layout.size,), updated.
    slot
        Number of the slot: its end in s since the epoch, divided by `SLOT_S`.
    """
    count = np.float64(row[SLOT_COUNT])
    mean = np.float64(row[SLOT_SUM]) / count if count > 0.0 else np.nan
    row[SLOT_SUM] = 0.0
    row[SLOT_COUNT] = 0.0
    # As float32, so that `replace_sorted` finds an equal value when this one leaves the window.
    entered = np.float32(mean if count > 0.0 else row[LAST])
    left = row[PART_SLOTS + (slot - WINDOW) % SLOTS]
    row[PART_SLOTS + slot % SLOTS] = entered
    replace_sorted(row, left, entered)
    return mean

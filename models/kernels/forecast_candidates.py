"""Compute parts of the candidate predictions of `forecast`: medians, past slots, bands.

A slot is the mean of a series over 5 min. No argument is NaN.
"""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined
from flatline.models.kernels.forecast_row import (
    DAY,
    PART_SLOTS,
    PART_SORTED,
    SLOTS,
    WINDOW,
)

F32 = NDArray[np.float32]


@inlined
def median_3(a: float, b: float, c: float) -> float:
    """Return the median of three."""
    return max(min(a, b), min(max(a, b), c))


@inlined
def median_5(a: float, b: float, c: float, d: float, e: float) -> float:
    """Return the median of five."""
    # The smallest and the largest of a, b, c and d cannot be the median. The median is that of the
    # other two and e.
    low = max(min(a, b), min(c, d))
    high = min(max(a, b), max(c, d))
    return median_3(e, low, high)


@inlined
def slot_at(row: F32, index: int) -> float:
    """Return a slot's mean; an unknown slot has the last known value before it.

    `row` is the row of a series, shape (layout.size,). `index` counts from the ring's start and is
    between -SLOTS and SLOTS - 1; a negative one counts from the ring's end.
    """
    return np.float64(row[PART_SLOTS + (index if index >= 0 else index + SLOTS)])


@inlined
def band9(x: float) -> int:
    """Return the number of the band, 0 to 8, that a signed distance is in; band 4 is around 0."""
    size = abs(x)
    step = 0 if size <= 0.1 else 1 if size <= 0.5 else 2 if size <= 1.5 else 3 if size <= 4.0 else 4
    return 4 + step if x > 0.0 else 4 - step


@inlined
def band5(x: float) -> int:
    """Return the number of the band, 0 to 4, that a signed distance is in; band 2 is around 0."""
    size = abs(x)
    step = 0 if size <= 0.1 else 1 if size <= 1.0 else 2
    return 2 + step if x > 0.0 else 2 - step


@inlined
def same_time(row: F32, index: int) -> float:
    """Return the median, over three days, of the values `around` one time of day.

    `row` and `index` are as in `around`; `index` is in the future, and the days are those before
    it. The oldest day is read one slot later than the same time of day.
    """
    first = around(row, index - DAY)
    second = around(row, index - 2 * DAY)
    return median_3(first, second, around(row, index - 3 * DAY + 1))


@inlined
def around(row: F32, index: int) -> float:
    """Return the median of a slot and its two neighbours.

    `row` and `index` are as in `slot_at`; the indices of both neighbours must be valid too.
    """
    return median_3(slot_at(row, index - 1), slot_at(row, index), slot_at(row, index + 1))


@inlined
def replace_sorted(row: F32, left: np.float32, entered: np.float32) -> None:
    """Replace the value `left` of the sorted window by `entered`, and keep the window sorted.

    `row` is the row of a series, shape (layout.size,), updated. `left` must be in the window.
    """
    index = 0
    while index < WINDOW - 1 and row[PART_SORTED + index] < left:
        index += 1
    while index > 0 and row[PART_SORTED + index - 1] > entered:
        row[PART_SORTED + index] = row[PART_SORTED + index - 1]
        index -= 1
    while index < WINDOW - 1 and row[PART_SORTED + index + 1] < entered:
        row[PART_SORTED + index] = row[PART_SORTED + index + 1]
        index += 1
    row[PART_SORTED + index] = entered

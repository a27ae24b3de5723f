"""List the places that a step reads and writes in a series' row, equal for all rows."""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined
from flatline.models.kernels._prefetch import fetch
from flatline.models.kernels.forecast_row import (
    CELLS,
    DAY,
    FAR_COUNT,
    HORIZONS_S,
    HOUR,
    NEAR_COUNT,
    PART_BY_SLOT,
    PART_SLOTS,
    PENDING,
    QUANTILES,
    SLOT_S,
    SLOTS,
    STATE,
    STATES,
    VOICES,
)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

# Values in a cache line.
_LINE = 16
# Upper bound of the lines that a step touches.
MOST_LINES = 64


@inlined
def _lines(indices: I64, count: int, first: int, size: int) -> int:
    """Add the lines of `size` values from `first` on, for any alignment."""
    for index in range(first, first + size - 1, _LINE):
        indices[count] = index
        count += 1
    indices[count] = first + size - 1
    return count + 1


@inlined
def _latest_state(starts: tuple[int, int, int], lengths: tuple[int, int, int], number: int) -> int:
    index = (number - 1) % lengths[0]
    return starts[0] + index * (NEAR_COUNT + PENDING) + NEAR_COUNT + STATE


@inlined
def touched(
    indices: I64,
    starts: tuple[int, int, int],
    lengths: tuple[int, int, int],
    number: int,
    slot: int,
    slots_closed: int,
) -> int:
    """Write the places of a step, except those of a state, into `indices`; return their number."""
    count = _lines(indices, 0, 0, PART_SLOTS)
    farthest = HORIZONS_S[1] // SLOT_S
    # The last five hours, and the same time on three days with its neighbours.
    count = _lines(indices, count, PART_SLOTS + (slot - 5 * HOUR) % SLOTS, 5 * HOUR + 1)
    for day in range(1, 4):
        count = _lines(indices, count, PART_SLOTS + (slot - day * DAY - 1) % SLOTS, farthest + 3)
    count = _lines(indices, count, PART_BY_SLOT + slot % DAY, farthest + 1)
    indices[count] = _latest_state(starts, lengths, number)
    count += 1
    for horizon in range(2):
        ring = NEAR_COUNT + PENDING
        start, length = starts[horizon], lengths[horizon]
        count = _lines(indices, count, start + number % length * ring, ring)
        overall = start + length * ring + 2 * STATES * NEAR_COUNT
        rest = 2 * NEAR_COUNT + 2 * VOICES + QUANTILES + 2 * (STATES + 1) + 2 * CELLS
        count = _lines(indices, count, overall, rest)
    if slots_closed:
        ring = FAR_COUNT + PENDING
        count = _lines(indices, count, starts[2] + slot % DAY * ring, ring)
        rest = 4 * FAR_COUNT + 2 * VOICES + QUANTILES + 4
        count = _lines(indices, count, starts[2] + DAY * ring, rest)
    return count


@inlined
def fetch_series(
    state: F32,
    i: int,
    indices: I64,
    count: int,
    starts: tuple[int, int, int],
    lengths: tuple[int, int, int],
    number: int,
) -> None:
    """Prefetch the memory of the two series after `i` while series `i` is folded."""
    for k in range(count):
        fetch(state, i + 2, indices[k])
    if i + 1 >= state.shape[0]:
        return
    # The fixed places of the next series have arrived. Fetch its data of the state at the forecast
    # and, since states last, of the latest state.
    row = state[i + 1]
    latest = row[_latest_state(starts, lengths, number)]
    ring = NEAR_COUNT + PENDING
    for horizon in range(2):
        start, length = starts[horizon], lengths[horizon]
        was = row[start + number % length * ring + NEAR_COUNT + STATE]
        for one in (was, latest):
            if one == one:
                first = start + length * ring + 2 * NEAR_COUNT * int(one)
                fetch(state, i + 1, first)
                fetch(state, i + 1, first + NEAR_COUNT)
                fetch(state, i + 1, first + 2 * NEAR_COUNT - 1)

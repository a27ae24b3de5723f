"""Copy a frame's columns into a node's lanes: levels, epochs and known values, in one pass.

A smaller counter or another instance begins a new epoch and gives no rate. A missing value is
unknown: -1 or NaN, never zero.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.kernels import baseline
from models.kernels._jit import inlined, kernel

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

# Rows of `places`: row of a value in the frame, and in the lanes' integers.
CPU, READ, WRITTEN, SENT = 0, 1, 2, 3
INSTANCE, STATE, VCPUS, BUSY, JOB = 4, 5, 6, 7, 8
MEMORY, UPDATED, DELAY, WAIT = 9, 10, 11, 12
PLACES: Final = 13
_LEVELS: Final = (STATE, VCPUS, BUSY, JOB)

# Continuation of a lane's epoch.
SAME_EPOCH, NEW_EPOCH, NEW_BOOT = 0, 1, 2


class Taken(NamedTuple):
    """Values of each lane from one frame; overwritten by every frame.

    Attributes
    ----------
    counters, flags
        As `baseline.fold_counters` takes them.
    running, judged, measured, known
        Whether the guest should run, the same where the time since its last sample is
        known, whether its CPU was measured, and both.
    memory
        The memory figure in KiB, NaN unknown.
    updated, delay
        The balloon's last report (0 unknown) and ns waited for a core (-1 unknown).
    epochs
        `SAME_EPOCH`, `NEW_EPOCH` or `NEW_BOOT`.
    rates
        Shape (4, lanes), written by `note_rates`: as `counted`, NaN where not `judged`.
    alive, disk_alive, moves
        Memory for the results of `course.fold_signs`.
    """

    counters: U64
    flags: U8
    running: Bools
    judged: Bools
    measured: Bools
    known: Bools
    memory: F64
    updated: I64
    delay: I64
    epochs: U8
    rates: F32
    alive: I8
    disk_alive: I8
    moves: U8


def new_taken(lanes: int) -> Taken:
    """Return memory for the values of `lanes` lanes from a frame."""
    return Taken(
        counters=np.zeros((4, lanes), np.uint64),
        flags=np.zeros(lanes, np.uint8),
        running=np.zeros(lanes, np.bool_),
        judged=np.zeros(lanes, np.bool_),
        measured=np.zeros(lanes, np.bool_),
        known=np.zeros(lanes, np.bool_),
        memory=np.full(lanes, np.nan),
        updated=np.zeros(lanes, np.int64),
        delay=np.full(lanes, -1, np.int64),
        epochs=np.zeros(lanes, np.uint8),
        rates=np.full((4, lanes), np.nan, np.float32),
        alive=np.zeros(lanes, np.int8),
        disk_alive=np.zeros(lanes, np.int8),
        moves=np.zeros(lanes, np.uint8),
    )


@inlined
def _is_known(missing: Bools, row: int, lane: int) -> bool:
    return missing.shape[0] == 0 or not missing[row, lane]


@inlined
def _number(values: U64, missing: Bools, row: int, lane: int, unknown: int) -> int:
    return int(np.int64(values[row, lane])) if _is_known(missing, row, lane) else unknown


@inlined
def _take_counters(
    values: U64, missing: Bools, places: I64, lane: int, previous: U64, taken: Taken
) -> bool:
    """Copy the counters of a lane; return whether one is smaller than before."""
    smaller = False
    bits = np.uint8(baseline.FLAG_SAME_EPOCH)
    for k in range(4):
        row = places[k, 0]
        now, before = values[row, lane], previous[k, lane]
        taken.counters[k, lane] = now
        if _is_known(missing, row, lane):
            bits |= np.uint8(1 << k)
            smaller = smaller or (before != baseline.NO_PREVIOUS and now < before)
    taken.flags[lane] = bits
    return smaller


@inlined
def _take_instance(values: U64, missing: Bools, places: I64, lane: int, integers: I64) -> bool:
    """Copy the instance of a lane; return whether it has changed."""
    row, target = places[INSTANCE, 0], places[INSTANCE, 1]
    if not _is_known(missing, row, lane):
        return False
    stored = integers[target, lane]
    integers[target, lane] = np.int64(values[row, lane])
    return bool(stored >= 0 and integers[target, lane] != stored)


@inlined
def _forget(places: I64, lane: int, previous: U64, integers: I64) -> None:
    """Clear the previous counters of a lane, so that the next ones give no rate."""
    integers[places[DELAY, 1], lane] = -1
    for k in range(4):
        previous[k, lane] = baseline.NO_PREVIOUS


@inlined
def _delay_row(missing: Bools, places: I64, size: int) -> int:
    """Return the row of the time waited for a core: the run queue's if there is no better one."""
    delayed = places[DELAY, 0]
    for lane in range(size):
        if _is_known(missing, delayed, lane):
            return int(delayed)
    return int(places[WAIT, 0])


@kernel
def take_rows(
    values: U64,
    missing: Bools,
    places: I64,
    may_run: Bools,
    has_interval: bool,
    previous: U64,
    integers: I64,
    migrated_row: int,
    taken: Taken,
) -> int:
    """Copy one frame's rows into the lanes, in place.

    Parameters
    ----------
    values, missing
        Shape (metrics, VMs) of the frame; `missing` has no rows if no value is missing.
    places
        Shape (PLACES, 2): row of each value in `values` and in `integers`.
    may_run
        By state, the last entry for an unknown one: whether such a guest runs.
    has_interval
        Whether the time since the last frame is known; without it no counter is compared.
    previous
        Shape (4, lanes): counters of the last sample.
    integers
        The lanes' integers; `migrated_row` marks lanes whose next instance is no boot.
    taken
        Overwritten, except `rates` and the fields after it.

    Returns
    -------
    int
        Number of lanes that began an epoch.
    """
    size, width = values.shape[1], previous.shape[1]
    delayed, unknown = _delay_row(missing, places, size), may_run.shape[0] - 1
    begun = 0
    for lane in range(size):
        for level in _LEVELS:
            integers[places[level, 1], lane] = _number(values, missing, places[level, 0], lane, -1)
        smaller = _take_counters(values, missing, places, lane, previous, taken)
        other = _take_instance(values, missing, places, lane, integers)
        taken.epochs[lane] = SAME_EPOCH
        if other or smaller:
            begun += 1
            migrated = integers[migrated_row, lane] != 0
            taken.epochs[lane] = NEW_EPOCH if migrated else NEW_BOOT
            if other:
                integers[migrated_row, lane] = 0
            _forget(places, lane, previous, integers)
        state = integers[places[STATE, 1], lane]
        taken.running[lane] = may_run[state if 0 <= state < unknown else unknown]
        taken.judged[lane] = has_interval and taken.running[lane]
        taken.measured[lane] = _is_known(missing, places[CPU, 0], lane)
        taken.known[lane] = taken.measured[lane] and taken.judged[lane]
        row = places[MEMORY, 0]
        known = _is_known(missing, row, lane)
        taken.memory[lane] = np.float64(values[row, lane]) if known else np.nan
        taken.updated[lane] = _number(values, missing, places[UPDATED, 0], lane, 0)
        taken.delay[lane] = _number(values, missing, delayed, lane, -1)
    for lane in range(size, width):
        # Lanes beyond those in use have an unknown state, so `taken` keeps its values.
        taken.flags[lane] = np.uint8(baseline.FLAG_SAME_EPOCH)
    if not has_interval:
        for lane in range(width):
            _forget(places, lane, previous, integers)
    return begun


@kernel
def note_rates(
    counted: F32,
    minute_rows: I64,
    has_interval: bool,
    taken: Taken,
    sums: F64,
    counts: F64,
) -> int:
    """Write the rates of guests that should run, and add known values to the minute.

    Parameters
    ----------
    counted
        Results of `baseline.fold_counters` for the sample, shape (rows, lanes).
    minute_rows
        Rows of `counted` that a minute adds up.
    has_interval
        Whether this sample has rates; without them no value is added.
    taken
        Of this frame; `rates` is overwritten.
    sums, counts
        Shape (len(minute_rows), lanes), updated.

    Returns
    -------
    int
        Number of judged lanes.
    """
    judged = 0
    for lane in range(counted.shape[1]):
        judged += 1 if taken.judged[lane] else 0
        for k in range(4):
            taken.rates[k, lane] = counted[k, lane] if taken.judged[lane] else np.float32(np.nan)
    if not has_interval:
        return judged
    for row in range(minute_rows.shape[0]):
        for lane in range(counted.shape[1]):
            value = counted[minute_rows[row], lane]
            known = value == value
            sums[row, lane] += np.float64(value) if known else 0.0
            counts[row, lane] += 1.0 if known else 0.0
    return judged

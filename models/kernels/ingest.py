"""Copy a frame's columns into a node's rows: levels, epochs and known values, in one pass.

An epoch is a time in which the counters of a VM are comparable. A smaller counter or another
instance begins a new epoch and gives no rate. A missing value is unknown: -1 or NaN, and 0 only for
the time of the balloon's last report.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels import baseline
from flatline.models.kernels._jit import inlined, kernel

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

# Rows of `indices`. Each holds the row of one value in the frame, and in the table's integers.
CPU, READ, WRITTEN, SENT = 0, 1, 2, 3
INSTANCE, STATE, VCPUS, BUSY, JOB = 4, 5, 6, 7, 8
MEMORY, UPDATED, DELAY, WAIT = 9, 10, 11, 12
INDICES: Final = 13
_LEVELS: Final = (STATE, VCPUS, BUSY, JOB)

# Whether a sample continues the epoch of its VM, or begins a new one without or with a boot.
SAME_EPOCH, NEW_EPOCH, NEW_BOOT = 0, 1, 2


class Taken(NamedTuple):
    """Values of each row from one frame; overwritten by every frame.

    Attributes
    ----------
    counters, flags
        As `baseline.fold_counters` takes them.
    running, judged, measured, known
        `running`: the guest should run. `judged`: it should run, and the time since its last sample
        is known. `measured`: its CPU time was measured. `known`: `judged` and `measured`.
    memory
        The memory figure in KiB, NaN unknown.
    updated, delay
        Time of the balloon's last report in s since 1970 (0 unknown), and ns waited for a core
        since the VM started (-1 unknown).
    epochs
        `SAME_EPOCH`, `NEW_EPOCH` or `NEW_BOOT`.
    rates
        Shape (4, rows), written by `note_rates`: the rates of `baseline.fold_counters`, NaN where
        not `judged`.
    alive, disk_alive, moves
        Memory for the results of `state_update.fold_signs`.
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


def new_taken(size: int) -> Taken:
    """Return memory for the values of `size` rows from a frame; nothing is known yet.

    `size` is that of the arrays of `baseline.fold_counters`, a multiple of `BLOCK_ROWS`.
    """
    return Taken(
        counters=np.zeros((4, size), np.uint64),
        flags=np.zeros(size, np.uint8),
        running=np.zeros(size, np.bool_),
        judged=np.zeros(size, np.bool_),
        measured=np.zeros(size, np.bool_),
        known=np.zeros(size, np.bool_),
        memory=np.full(size, np.nan),
        updated=np.zeros(size, np.int64),
        delay=np.full(size, -1, np.int64),
        epochs=np.zeros(size, np.uint8),
        rates=np.full((4, size), np.nan, np.float32),
        alive=np.zeros(size, np.int8),
        disk_alive=np.zeros(size, np.int8),
        moves=np.zeros(size, np.uint8),
    )


@inlined
def _is_known(missing: Bools, row: int, index: int) -> bool:
    return missing.shape[0] == 0 or not missing[row, index]


@inlined
def _number(values: U64, missing: Bools, row: int, index: int, unknown: int) -> int:
    return int(np.int64(values[row, index])) if _is_known(missing, row, index) else unknown


@inlined
def _take_counters(
    values: U64, missing: Bools, indices: I64, index: int, previous: U64, taken: Taken
) -> bool:
    """Copy the counters of a row; return whether one is smaller than before."""
    smaller = False
    bits = np.uint8(baseline.FLAG_SAME_EPOCH)
    for k in range(4):
        row = indices[k, 0]
        now, before = values[row, index], previous[k, index]
        taken.counters[k, index] = now
        if _is_known(missing, row, index):
            bits |= np.uint8(1 << k)
            smaller = smaller or (before != baseline.NO_PREVIOUS and now < before)
    taken.flags[index] = bits
    return smaller


@inlined
def _take_instance(values: U64, missing: Bools, indices: I64, index: int, integers: I64) -> bool:
    """Copy the instance of a row; return whether it has changed."""
    row, target = indices[INSTANCE, 0], indices[INSTANCE, 1]
    if not _is_known(missing, row, index):
        return False
    stored = integers[target, index]
    integers[target, index] = np.int64(values[row, index])
    return bool(stored >= 0 and integers[target, index] != stored)


@inlined
def _forget(indices: I64, index: int, previous: U64, integers: I64) -> None:
    """Clear the previous counters of a row, so that those of this frame give no rate."""
    integers[indices[DELAY, 1], index] = -1
    for k in range(4):
        previous[k, index] = baseline.NO_PREVIOUS


@inlined
def _delay_row(missing: Bools, indices: I64, size: int) -> int:
    """Return the frame's row of the time waited for a core: `WAIT` if no VM has a `DELAY`."""
    delayed = indices[DELAY, 0]
    for index in range(size):
        if _is_known(missing, delayed, index):
            return int(delayed)
    return int(indices[WAIT, 0])


@kernel
def take_rows(
    values: U64,
    missing: Bools,
    indices: I64,
    may_run: Bools,
    has_interval: bool,
    previous: U64,
    integers: I64,
    migrated_row: int,
    taken: Taken,
) -> int:
    """Copy one frame's values into the rows of a VM table, in place.

    Parameters
    ----------
    values, missing
        Shape (metrics, VMs) of the frame; `missing` has no rows if no value is missing.
    indices
        Shape (INDICES, 2): row of each value in `values` and in `integers`, -1 for none.
    may_run
        Whether a guest should run, by its state; the last entry is for an unknown state.
    has_interval
        Whether the time since the last frame is known; without it no counter is compared.
    previous
        Shape (4, rows): counters of the last sample.
    integers
        Shape (numbers, rows), updated. Where `migrated_row` is not 0, a new instance is no boot.
    taken
        Overwritten, except `rates` and the fields after it.

    Returns
    -------
    int
        Number of rows that began an epoch.
    """
    size, width = values.shape[1], previous.shape[1]
    delayed, unknown = _delay_row(missing, indices, size), may_run.shape[0] - 1
    begun = 0
    for index in range(size):
        for level in _LEVELS:
            integers[indices[level, 1], index] = _number(
                values, missing, indices[level, 0], index, -1
            )
        smaller = _take_counters(values, missing, indices, index, previous, taken)
        other = _take_instance(values, missing, indices, index, integers)
        taken.epochs[index] = SAME_EPOCH
        if other or smaller:
            begun += 1
            migrated = integers[migrated_row, index] != 0
            taken.epochs[index] = NEW_EPOCH if migrated else NEW_BOOT
            if other:
                integers[migrated_row, index] = 0
            _forget(indices, index, previous, integers)
        state = integers[indices[STATE, 1], index]
        taken.running[index] = may_run[state if 0 <= state < unknown else unknown]
        taken.judged[index] = has_interval and taken.running[index]
        taken.measured[index] = _is_known(missing, indices[CPU, 0], index)
        taken.known[index] = taken.measured[index] and taken.judged[index]
        row = indices[MEMORY, 0]
        known = _is_known(missing, row, index)
        taken.memory[index] = np.float64(values[row, index]) if known else np.nan
        taken.updated[index] = _number(values, missing, indices[UPDATED, 0], index, 0)
        taken.delay[index] = _number(values, missing, delayed, index, -1)
    for index in range(size, width):
        # Rows beyond those in use: no counter is measured, other values stay as in `new_taken`.
        taken.flags[index] = np.uint8(baseline.FLAG_SAME_EPOCH)
    if not has_interval:
        for index in range(width):
            _forget(indices, index, previous, integers)
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
    """Write the rates of guests that should run, and add known values to the sums of the minute.

    Parameters
    ----------
    counted
        Results of `baseline.fold_counters` for the sample, shape (baseline.OUT_ROWS, rows).
    minute_rows
        Rows of `counted` whose values are summed over a minute.
    has_interval
        Whether this sample has rates; without them no value is added.
    taken
        Values of this frame; `rates` is overwritten.
    sums, counts
        Shape (len(minute_rows), rows), updated: sums of the known values, and their numbers.

    Returns
    -------
    int
        Number of judged rows.
    """
    judged = 0
    for index in range(counted.shape[1]):
        judged += 1 if taken.judged[index] else 0
        for k in range(4):
            taken.rates[k, index] = counted[k, index] if taken.judged[index] else np.float32(np.nan)
    if not has_interval:
        return judged
    for row in range(minute_rows.shape[0]):
        for index in range(counted.shape[1]):
            value = counted[minute_rows[row], index]
            known = value == value
            sums[row, index] += np.float64(value) if known else 0.0
            counts[row, index] += 1.0 if known else 0.0
    return judged

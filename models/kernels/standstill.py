"""Detect which vCPUs of each VM stand still: a death stops them, a computing guest does not.

When a Linux kernel panics, every vCPU but the one that panicked is stopped and gains exactly
0 ns from then on. When a kernel halts, all vCPUs are stopped (measured on guests in the lab:
benchmarks/README.md). While a kernel is alive, its idle vCPUs serve timers. So while a job computes
on one vCPU, the others still gain some time.

A standstill is a time in which vCPUs gain exactly 0 ns. Its usual length differs between live
guests: idle vCPUs of a tickless one may sleep for minutes. `models.kernels.silence_model` therefore
learns it per VM, from samples in which the vCPUs are idle. Samples with I/O are not learned: time
gained by work, however little, does not show how often timers alone end a standstill.

The time without an interrupt injected by KVM is learned per VM in the same way.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels import silence_model
from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.blocks import BLOCK_ROWS

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

# Stored in place of an unknown time or count.
NO_TIME: Final = np.uint64(2**64 - 1)
# Value of `mover` in a row where no vCPU has moved in the current standstill of the others.
NO_MOVER: Final = -1

# Result of a sample for a row's vCPUs.
STILL: Final = 0
MOVED: Final = 1
UNKNOWN: Final = -1

# `share` of `silence_model.fold_life`: a quarter of a standstill is compared with the past. Idle
# vCPUs of a tickless guest that computes for hours stand still again and again, sometimes longer
# than ever before. But they never stand still for four times the length that one in twenty of their
# standstills exceeds (by chance once in 10**5 gaps).
SHARE: Final = np.float32(0.25)

_RUN: Final = silence_model.RUN
_HELD: Final = silence_model.HELD


@inlined
def _end_run(state: F32, index: int) -> None:
    state[index // BLOCK_ROWS, _RUN, index % BLOCK_ROWS] = np.float32(0)
    state[index // BLOCK_ROWS, _HELD, index % BLOCK_ROWS] = np.float32(0)


@inlined
def _sign_of_move(state: F32, index: int, is_idle: bool) -> int:
    """Return what the silence model folds for a sample in which vCPUs gained time.

    `ALIVE` if they are idle. If they work, `CUT_SHORT` ends a standstill, whose full length is
    unknown, and without a standstill it is `UNKNOWN`.
    """
    if is_idle:
        return silence_model.ALIVE
    stood = state[index // BLOCK_ROWS, _RUN, index % BLOCK_ROWS] > np.float32(0)
    return silence_model.CUT_SHORT if stood else silence_model.UNKNOWN


@inlined
def _is_comparable(before: U64, now: U64) -> bool:
    """Return whether both times the same vCPUs were reported, and no time decreased."""
    if before.shape[0] != now.shape[0] or now.shape[0] == 0:
        return False
    for number in range(now.shape[0]):
        if (before[number] == NO_TIME) != (now[number] == NO_TIME):
            return False
        if now[number] < before[number]:
            return False
    return True


@inlined
def _most(before: U64, now: U64, but: int) -> int:
    """Return the vCPU that gained most, except `but`; -1 if there is no other."""
    best, most = -1, np.uint64(0)
    for number in range(now.shape[0]):
        if number == but or now[number] == NO_TIME:
            continue
        gain = now[number] - before[number]
        if best < 0 or gain > most:
            best, most = number, gain
    return best


@inlined
def _compare(
    was: U64, now: U64, idle_ns: float,
    others: F32, whole: F32, mover: I64, reported: I8, signs: I8, index: int,
) -> None:  # fmt: skip
    """Determine which vCPUs of one row stood still since they were last reported."""
    busiest = _most(was, now, -1)
    if busiest < 0:
        return
    most = now[busiest] - was[busiest]
    if most == 0:
        reported[1, index], signs[1, index] = STILL, silence_model.SILENT
    else:
        is_idle = bool(np.float64(most) <= idle_ns)
        reported[1, index], signs[1, index] = MOVED, _sign_of_move(whole, index, is_idle)
    next_busy = _most(was, now, busiest)
    if next_busy < 0:
        return
    # If only one vCPU moves, but not the one that moved earlier in this standstill, two moved.
    changed = mover[index] >= 0 and most > 0 and busiest != mover[index]
    second_most = now[next_busy] - was[next_busy]
    if second_most == 0 and not changed:
        reported[0, index], signs[0, index] = STILL, silence_model.SILENT
        if most > 0:
            mover[index] = busiest
    else:
        mover[index] = NO_MOVER
        is_idle = bool(np.float64(second_most) <= idle_ns)
        reported[0, index], signs[0, index] = MOVED, _sign_of_move(others, index, is_idle)


@kernel
def fold_vcpus(
    before_counts: I64,
    before: U64,
    counts: U16,
    times: U64,
    judged: Bools,
    broken: Bools,
    rests: Bools,
    idle_ns: float,
    others: F32,
    whole: F32,
    mover: I64,
    reported: I8,
    signs: I8,
) -> int:
    """Determine which vCPUs of every row in use stood still since they were last reported.

    Parameters
    ----------
    before_counts, before
        Number of vCPU times last reported for each row, shape (≥ n,), and these times in ns, one
        row after the other.
    counts, times
        The same for this frame, shape (n,) and (counts.sum(),). A missing time is `NO_TIME`.
    judged
        Shape (≥ n,): whether the guest should run and the time since the last sample is
        known.
    broken
        Shape (≥ n,), updated: whether the row began a new epoch, so that its values must not be
        compared. Also set here where other vCPUs are reported than last time, or a time decreased.
    rests
        Shape (≥ n,): whether the VM did no I/O in this sample.
    idle_ns
        Largest gain in ns, in one sample, of a vCPU that counts as idle in a VM without I/O.
    others, whole
        State of two gap models: of all vCPUs but the busiest, and of all vCPUs. The standstill of a
        row that must not be compared is ended in place and not learned.
    mover
        Shape (≥ n,), updated: the only vCPU that moved in the current standstill of the others.
    reported
        Shape (2, ≥ n), overwritten: `STILL`, `MOVED` or `UNKNOWN`; row 0: the others, row 1: all.
    signs
        Shape (2, ≥ n), overwritten: the same rows as signs of life for `silence_model.fold_life`.

    Returns
    -------
    int
        Number of rows that could be compared.
    """
    compared = begin = end = 0
    reported[:], signs[:] = UNKNOWN, silence_model.UNKNOWN
    for index in range(counts.shape[0]):
        first, second = begin, end
        begin += before_counts[index]
        end += counts[index]
        was, now = before[first:begin], times[second:end]
        # If this frame has no vCPU times of a VM, the next times are compared with the last ones.
        if now.shape[0] == 0 and not broken[index]:
            continue
        if broken[index] or not _is_comparable(was, now):
            broken[index], mover[index] = True, NO_MOVER
            _end_run(others, index)
            _end_run(whole, index)
        elif judged[index]:
            compared += 1
            most_ns = idle_ns if rests[index] else 0.0
            _compare(was, now, most_ns, others, whole, mover, reported, signs, index)
    return compared


@kernel
def keep_times(
    before_counts: I64, before: U64, counts: U16, times: U64, judged: Bools, broken: Bools
) -> tuple[I64, U64]:
    """Return the counts and times to compare with the next frame.

    The times of this frame replace the stored ones. A row keeps its stored times if this frame has
    none of it, or if it is not judged: its next times are then compared across the gap.

    Parameters
    ----------
    before_counts, before, counts, times, judged, broken
        As in `fold_vcpus`, which has updated `broken`.

    Returns
    -------
    tuple
        The number of times of each row, as long as `before_counts`; and the times, one row after
        the other, `NO_TIME` where missing.
    """
    kept = np.zeros(before_counts.shape[0], np.bool_)
    merged = np.zeros(before_counts.shape[0], np.int64)
    total = 0
    for index in range(counts.shape[0]):
        waits = counts[index] == 0 or (not judged[index] and before_counts[index] > 0)
        kept[index] = waits and not broken[index]
        merged[index] = before_counts[index] if kept[index] else counts[index]
        total += merged[index]
    out = np.empty(total, np.uint64)
    begin = end = position = 0
    for index in range(counts.shape[0]):
        source, first = (before, begin) if kept[index] else (times, end)
        for number in range(merged[index]):
            out[position + number] = source[first + number]
        position += merged[index]
        begin += before_counts[index]
        end += counts[index]
    return merged, out


@kernel
def fold_exits(
    before: U64,
    now: U64,
    judged: Bools,
    broken: Bools,
    rests: Bools,
    state: F32,
    reported: I8,
    signs: I8,
) -> int:
    """Determine for every row in use whether KVM injected an interrupt or served I/O.

    In a VM without I/O, a live kernel's own timers cause the injected interrupts, so only these are
    learned as life. Work only cuts a standstill short: it has the same cause as the activity of
    disks and network. Where the processor delivers interrupts by itself (APICv, AVIC), KVM injects
    and counts none. Then nothing is learned and no standstill is surprising.

    Parameters
    ----------
    before
        Shape (2, ≥ n), updated: counts of injected interrupts and I/O exits; `NO_TIME`: unknown.
    now
        The same counts in this frame, shape (2, n).
    judged, broken, rests, state
        As in `fold_vcpus`, but `broken` is only read; `state` is that of the gap model of
        interrupts, updated.
    reported, signs
        Shape (≥ n,), overwritten: as in `fold_vcpus`.

    Returns
    -------
    int
        Number of rows that could be compared.
    """
    compared = 0
    reported[:] = UNKNOWN
    signs[:] = silence_model.UNKNOWN
    for index in range(now.shape[1]):
        injected, served = now[0, index], now[1, index]
        if (injected == NO_TIME or served == NO_TIME) and not broken[index]:
            continue
        was_injected, was_served = before[0, index], before[1, index]
        is_known = was_injected != NO_TIME and injected >= was_injected and served >= was_served
        if broken[index] or not is_known:
            _end_run(state, index)
            before[0, index], before[1, index] = injected, served
            continue
        if not judged[index]:
            continue
        before[0, index], before[1, index] = injected, served
        compared += 1
        if injected == was_injected and served == was_served:
            reported[index], signs[index] = STILL, silence_model.SILENT
        else:
            reported[index] = MOVED
            signs[index] = _sign_of_move(
                state, index, bool(rests[index] and injected > was_injected)
            )
    return compared

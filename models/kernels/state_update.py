"""Update the state of each VM with a sample, in one pass over a node's rows.

The state is: which signals moved or stand still, for how long and since which sample; the CPU
level before a silence and how unusual the current level is; the balloon's own clock; time waited
for a core. All is scalar work on a few dozen rows, so a kernel call costs as much as three array
operations.

Unknown is NaN or -1. It neither ends a silence nor is learned. But it restarts the count of
consecutive samples with life, and an unknown wait lowers the mean share of time waited for a core.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels import silence_model
from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.blocks import BLOCK_ROWS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

# Bits of a row's `moves`.
DISK_KNOWN: Final = 1
DISK_MOVED: Final = 2
SENT_KNOWN: Final = 4
SENT_MOVED: Final = 8
WRITTEN: Final = 16

# Longest wait of a vCPU for a core. Linux adds a wait to its counter when the wait ends, so a
# sample may count more than its own length.
_LONGEST_WAIT_S: Final = 60.0
# In cores. A VM's CPU time includes the threads of its hypervisor, which use less than this.
_MOST_OVERHEAD: Final = 16.0

_SILENT: Final = silence_model.SILENT
_ALIVE: Final = silence_model.ALIVE
_UNKNOWN: Final = silence_model.UNKNOWN


class Figures(NamedTuple):
    """Row of each figure in the array of floats."""

    history_s: int
    epoch_s: int
    cpu: int
    cpu_last: int
    cpu_recent: int
    cpu_before: int
    cpu_nats: int
    busiest: int
    busiest_last: int
    busiest_recent: int
    busiest_before: int
    delay: int
    contention: int
    balloon_still_s: int
    balloon_period_s: int
    life_share: int
    disk_share: int
    tx_share: int
    tx_still_s: int
    alive_s: int
    known_s: int
    used_last: int
    used_recent: int
    used_before: int


class Numbers(NamedTuple):
    """Row of each number in the array of integers."""

    vcpus: int
    balloon_last: int
    balloon_moved: int
    balloon_fresh: int
    moved: int
    run_samples: int
    run_sequence: int
    onset_ms: int
    disk_samples: int
    disk_sequence: int
    disk_onset_ms: int
    alive_samples: int
    delay_ns: int


_F: Final = Figures(*range(len(Figures._fields)))
_N: Final = Numbers(*range(len(Numbers._fields)))


class Pace(NamedTuple):
    """Values shared by all rows of a sample.

    `has_interval` is False if the time since the last sample is unknown, as in the first sample of
    a collector's run: then no rates are known. In a silence of `habit_nats` or more, CPU levels are
    not learned. Above `levels_full` samples, the counts of levels are halved.
    """

    step_s: float
    has_interval: bool
    sequence: int
    event_ms: int
    share_tau_s: float
    level_weight: float
    contention_weight: float
    habit_nats: float
    levels_full: float


@kernel
def fold_signs(
    rates: F32,
    seen: F32,
    running: Bools,
    limit: np.float32,
    alive: I8,
    disk_alive: I8,
    moves: NDArray[np.uint8],
) -> int:
    """Classify rows as alive, silent or unknown: disk I/O and sent bytes are signs of life.

    Parameters
    ----------
    rates
        Shape (≥ 4, rows): CPU, bytes read, written and sent per second; NaN is unknown.
    seen
        Shape (blocks, 4, BLOCK_ROWS): number of samples of each rate so far. 0 means that the VM
        lacks the device, whose rate is then not needed to judge the VM.
    running
        Shape (rows,): whether the guest should run and the time since its last
        sample is known.
    limit
        In bytes/s. A rate this high or higher is a counter error and counts as unknown.
    alive, disk_alive
        Shape (rows,), overwritten: `ALIVE`, `SILENT` or `UNKNOWN` of `silence_model`.
    moves
        Shape (rows,), overwritten: the bits from `DISK_KNOWN` to `WRITTEN`.

    Returns
    -------
    int
        Number of rows that are alive.
    """
    living = 0
    for index in range(alive.shape[0]):
        block, position = index // BLOCK_ROWS, index % BLOCK_ROWS
        reads, writes, sends = rates[1, index], rates[2, index], rates[3, index]
        disk_known = (reads < limit) & (writes < limit)
        disk_moved = disk_known & ((reads > 0) | (writes > 0))
        sent_known = sends < limit
        sent_moved = sent_known & (sends > 0)
        has_disk = seen[block, 2, position] > 0
        has_net = seen[block, 3, position] > 0
        judged = (disk_known | (not has_disk)) & (sent_known | (not has_net))
        judged = judged & (disk_known | sent_known) & running[index]
        bits = np.uint8(0)
        if disk_known:
            bits |= np.uint8(DISK_KNOWN)
            if writes > 0:
                bits |= np.uint8(WRITTEN)
        if disk_moved:
            bits |= np.uint8(DISK_MOVED)
        if sent_known:
            bits |= np.uint8(SENT_KNOWN)
        if sent_moved:
            bits |= np.uint8(SENT_MOVED)
        moves[index] = bits
        moved = disk_moved | sent_moved
        alive[index] = (_ALIVE if moved else _SILENT) if judged else _UNKNOWN
        disk_judged = disk_known & running[index]
        disk_alive[index] = (_ALIVE if disk_moved else _SILENT) if disk_judged else _UNKNOWN
        living += 1 if judged & moved else 0
    return living


@inlined
def _begin(floats: F64, f: I64, index: int) -> None:
    floats[f[_F.cpu_before], index] = floats[f[_F.cpu_recent], index]
    floats[f[_F.busiest_before], index] = floats[f[_F.busiest_recent], index]
    floats[f[_F.used_before], index] = floats[f[_F.used_recent], index]


@inlined
def _approach(floats: F64, row: int, index: int, share: float, moved: bool) -> None:
    floats[row, index] += share * ((1.0 if moved else 0.0) - floats[row, index])


@inlined
def _fold_life(
    floats: F64, integers: I64, f: I64, n: I64, pace: Pace,
    alive: np.int8, disk_alive: np.int8, bits: np.uint8, running: bool, index: int,
) -> None:  # fmt: skip
    sent_known, sent_moved = (bits & SENT_KNOWN) != 0, (bits & SENT_MOVED) != 0
    living = alive == _ALIVE
    if alive == _SILENT:
        if integers[n[_N.run_samples], index] == 0:
            integers[n[_N.run_sequence], index] = pace.sequence
            integers[n[_N.onset_ms], index] = pace.event_ms
            integers[n[_N.balloon_fresh], index] = 0
            _begin(floats, f, index)
        integers[n[_N.run_samples], index] += 1
    elif living:
        integers[n[_N.run_samples], index] = 0
    if disk_alive == _SILENT:
        if integers[n[_N.disk_samples], index] == 0:
            integers[n[_N.disk_sequence], index] = pace.sequence
            integers[n[_N.disk_onset_ms], index] = pace.event_ms
            _begin(floats, f, index)
        integers[n[_N.disk_samples], index] += 1
    elif disk_alive == _ALIVE:
        integers[n[_N.disk_samples], index] = 0
    integers[n[_N.alive_samples], index] = integers[n[_N.alive_samples], index] + 1 if living else 0
    floats[f[_F.alive_s], index] = floats[f[_F.alive_s], index] + pace.step_s if living else 0.0
    # Only writes and sent bytes show that a guest lived since its boot: firmware reads too.
    if running and ((bits & WRITTEN) != 0 or sent_moved):
        integers[n[_N.moved], index] += 1
    if sent_moved:
        floats[f[_F.tx_still_s], index] = 0.0
    elif sent_known and running:
        floats[f[_F.tx_still_s], index] += pace.step_s
    _fold_shares(floats, f, pace, alive, bits, running, index)


@inlined
def _fold_shares(
    floats: F64, f: I64, pace: Pace, alive: np.int8, bits: np.uint8, running: bool, index: int
) -> None:
    """Update the shares of samples in which the VM is alive, uses its disks and sends."""
    # The first minute has a plain mean. If shares started from 0, busy VMs would count as quiet for
    # a minute, and the few VMs that fall silent in it would seem to be all the active ones.
    known_s = min(floats[f[_F.history_s], index] + pace.step_s, pace.share_tau_s)
    share = min(1.0, pace.step_s / known_s)
    if alive != _UNKNOWN:
        _approach(floats, f[_F.life_share], index, share, alive == _ALIVE)
    if (bits & DISK_KNOWN) != 0 and running:
        _approach(floats, f[_F.disk_share], index, share, (bits & DISK_MOVED) != 0)
    if (bits & SENT_KNOWN) != 0 and running:
        _approach(floats, f[_F.tx_share], index, share, (bits & SENT_MOVED) != 0)


@inlined
def _fold_level(
    floats: F64, levels: F32, edges: F64, f: I64, cpu: float, vcpus: float, index: int
) -> int:
    """Write how unusual a CPU level is in the VM's histogram, in nats; return its band (bin)."""
    band = 0
    while band < edges.shape[0] and cpu / vcpus >= edges[band]:
        band += 1
    total = np.float32(0)
    for level in range(levels.shape[0]):
        total += levels[level, index]
    below = levels[max(band - 1, 0), index]
    above = levels[min(band + 1, levels.shape[0] - 1), index]
    half = np.float32(0.5)
    share = (levels[band, index] + half * (below + above) + half) / (total + np.float32(1))
    floats[f[_F.cpu_nats], index] = -math.log(min(share, np.float32(1)))
    return band


@inlined
def _lag(
    floats: F64, last: int, recent: int, index: int, weight: float, now: float, first: bool
) -> None:
    """Update a mean of recent levels with the sample before the newest, and store the newest."""
    # So the mean lacks the last sample before a silence, in the middle of which a guest may die.
    level = floats[recent, index]
    floats[recent, index] = now if first else level + weight * (floats[last, index] - level)
    floats[last, index] = now


@inlined
def _fold_cpu(
    floats: F64, integers: I64, levels: F32, edges: F64, f: I64, n: I64, pace: Pace,
    cpu: float, known: bool, surprise: np.float32, index: int,
) -> None:  # fmt: skip
    """Update the mean of recent CPU levels, and write how unusual the current level is.

    A level is what the guest wants: the cores that it used and those that it waited for. The used
    cores alone also depend on its neighbours. A jump that no guest can make changes no level.
    """
    count = integers[n[_N.vcpus], index]
    if not known or math.isnan(cpu) or (count > 0 and cpu > count + _MOST_OVERHEAD):
        floats[f[_F.cpu_nats], index] = 0.0
        return
    delay = floats[f[_F.delay], index]
    wanted = cpu + (0.0 if math.isnan(delay) else delay)
    vcpus = float(max(count, 1))
    band = _fold_level(floats, levels, edges, f, wanted, vcpus, index)
    if surprise >= pace.habit_nats:
        return
    total = np.float32(0)
    for level in range(levels.shape[0]):
        total += levels[level, index]
    levels[band, index] += np.float32(1)
    if total > pace.levels_full:
        for level in range(levels.shape[0]):
            levels[level, index] *= np.float32(0.5)
    if integers[n[_N.run_samples], index] != 0:
        return
    busiest = floats[f[_F.busiest], index]
    busiest = 0.0 if math.isnan(busiest) else busiest
    first, weight = floats[f[_F.known_s], index] <= 0.0, pace.level_weight
    _lag(floats, f[_F.cpu_last], f[_F.cpu_recent], index, weight, wanted, first)
    _lag(floats, f[_F.busiest_last], f[_F.busiest_recent], index, weight, busiest, first)
    _lag(floats, f[_F.used_last], f[_F.used_recent], index, weight, cpu, first)
    floats[f[_F.known_s], index] += pace.step_s


@inlined
def _fold_balloon(
    floats: F64, integers: I64, f: I64, n: I64, step_s: float, update: int, index: int
) -> None:
    """Follow the balloon's own clock: each new report shows that the guest's kernel runs."""
    stored = integers[n[_N.balloon_last], index]
    lasted = floats[f[_F.balloon_still_s], index] + step_s
    moved = stored > 0 and update != stored
    if moved:
        period = floats[f[_F.balloon_period_s], index]
        floats[f[_F.balloon_period_s], index] = (
            lasted if period <= 0.0 else period + 0.2 * (lasted - period)
        )
        integers[n[_N.balloon_moved], index] += 1
        if integers[n[_N.run_samples], index] >= 2 or integers[n[_N.disk_samples], index] >= 2:
            integers[n[_N.balloon_fresh], index] += 1
    floats[f[_F.balloon_still_s], index] = 0.0 if moved else lasted
    integers[n[_N.balloon_last], index] = update


@inlined
def _fold_delay(
    floats: F64, integers: I64, f: I64, n: I64, pace: Pace, now: int, index: int
) -> bool:
    """Store how many cores the VM waited for on its node's run queues; `now` -1 is unknown.

    Return False for a jump that no guest can make.
    """
    before = integers[n[_N.delay_ns], index]
    integers[n[_N.delay_ns], index] = now
    delay = np.nan
    if now >= 0 and before >= 0 and now >= before:
        delay = (now - before) / (pace.step_s * 1e9)
    vcpus = integers[n[_N.vcpus], index]
    is_possible = vcpus <= 0 or not delay * pace.step_s > vcpus * (pace.step_s + _LONGEST_WAIT_S)
    if not is_possible:
        delay = np.nan
    floats[f[_F.delay], index] = delay
    wanted = floats[f[_F.cpu], index] + delay
    share = delay / wanted if wanted > 0 else 0.0
    mean = floats[f[_F.contention], index]
    floats[f[_F.contention], index] = mean + pace.contention_weight * (share - mean)
    return is_possible


@kernel
def update_state(
    floats: F64,
    integers: I64,
    levels: F32,
    edges: F64,
    f: I64,
    n: I64,
    pace: Pace,
    cpu: F32,
    running: Bools,
    known: Bools,
    alive: I8,
    disk_alive: I8,
    moves: NDArray[np.uint8],
    life_nats: F32,
    disk_nats: F32,
    busiest: F32,
    update: I64,
    delay: I64,
) -> int:
    """Fold one sample of every row into its state, in place.

    Parameters
    ----------
    floats, integers, levels
        Shape (figures, rows), (numbers, rows) and (len(edges) + 1, rows); updated. `f` and `n` are
        the rows of `Figures` and `Numbers`; `levels` counts the samples in each band of CPU use.
    edges
        Edges of the bands, as shares of all vCPUs.
    cpu
        Shape (rows,), cores; NaN is unknown.
    running, known
        Shape (rows,): `judged` and `known` of `ingest.Taken`.
    alive, disk_alive, moves
        Results of `fold_signs`.
    life_nats, disk_nats
        Shape (rows,): how surprising the silence of all signals and of the disks is, in nats.
    busiest, update, delay
        Shape (rows in use,): use of the busiest vCPU (NaN unknown), time of the balloon's last
        report in s (≤ 0 unknown) and cumulative ns waited for a core (-1 unknown).

    Returns
    -------
    int
        Number of rows that were measured.
    """
    measured = 0
    # Rows beyond those in use have no measurement and stay unchanged.
    for index in range(busiest.shape[0]):
        _fold_life(
            floats, integers, f, n, pace,
            alive[index], disk_alive[index], moves[index], running[index], index,
        )  # fmt: skip
        if not pace.has_interval:
            continue
        floats[f[_F.cpu], index] = np.float64(cpu[index])
        floats[f[_F.busiest], index] = busiest[index]
        is_possible = _fold_delay(floats, integers, f, n, pace, delay[index], index)
        surprise = max(life_nats[index], disk_nats[index])
        _fold_cpu(
            floats, integers, levels, edges, f, n, pace,
            np.float64(cpu[index]), known[index] and is_possible, surprise, index,
        )  # fmt: skip
        if update[index] > 0:
            _fold_balloon(floats, integers, f, n, pace.step_s, update[index], index)
        if known[index]:
            floats[f[_F.history_s], index] += pace.step_s
            floats[f[_F.epoch_s], index] += pace.step_s
            measured += 1
    return measured

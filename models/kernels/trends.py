"""Detect slow faults: a leak, a runaway, a flood of writes, a slow disk, an unannounced boot.

At any sampling interval, rates are averaged over buckets of five minutes (for memory, the last
figure is used). The last 32 means are stored per VM. A verdict needs many of them, so a single
strange sample never decides.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

import flatline.models.kernels.aggregates_layout as at
from flatline.models.kernels import hours as by_hour
from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.aggregates_evidence import band

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BUCKET_S: Final = 300.0
# Means stored per VM, for 2 h 40 min.
KEPT: Final = 32
CPU, READ, WRITE, SENT, MEMORY = range(5)
ROWS: Final = 5

_STATE: Final = (
    *("buckets", "time_s", "cpu", "read", "write", "sent"),
    *("write_peak", "flood", "unknown_s"),
)
FIELD: Final = {name: row for row, name in enumerate(_STATE)}
FIELD_COUNT: Final = len(_STATE)
_BUCKETS, _TIME_S, _SUM, _WRITE_PEAK, _FLOOD, _UNKNOWN_S = 0, 1, 2, 6, 7, 8

_OUT: Final = (
    "closed", "rises", "growth", "booted", "runaway_cores", "flood", "work_share", "slowed_hours",
    "write_share",
)  # fmt: skip
OUT: Final = {name: row for row, name in enumerate(_OUT)}
OUT_ROWS: Final = len(_OUT)
(
    _O_CLOSED, _O_RISES, _O_GROWTH, _O_BOOTED, _O_RUNAWAY, _O_FLOOD, _O_WORK, _O_SLOWED,
    _O_WRITE_SHARE,
) = range(OUT_ROWS)  # fmt: skip
# After an hour without a known sample earlier results are outdated; shorter gaps are common.
UNKNOWN_S: Final = 3600.0

# Number of differences between successive memory figures that are examined for a leak.
RISES: Final = 30
# In bytes/s, means of a bucket. A boot reads some hundred megabytes in five minutes; a backup reads
# more.
_BOOT_LEAST, _BOOT_MOST = 4e5, 3e6
_BOOT_RATIO: Final = 4.0
# As a share of all vCPUs. A dying kernel causes a CPU spike; in an orderly shutdown CPU use falls.
_SPIKE_SHARE: Final = 0.02
# A runaway uses whole cores for an hour while all other signals continue as before.
RUNAWAY_BUCKETS: Final = 12
_WHOLE_CORE: Final = 0.12
# Of many busy cores, each shows one or two hundredths less than a whole core.
_WHOLE_SHARE: Final = 0.02
_FLAT_CORES: Final = 0.25
_USUAL_SHARE: Final = 0.015
# In bytes/s. A flood is more than business guests write, and three times the VM's own maximum.
_FLOOD_BYTES: Final = 12e6
_FLOOD_RATIO: Final = 3.0
_FLOOD_CPU_SHARE: Final = 0.8
# Constants that affect decisions: builds that differ here decide differently.
CONSTANTS: Final = (
    *(FIELD_COUNT, OUT_ROWS, BUCKET_S, KEPT, RISES, UNKNOWN_S),
    *(_BOOT_LEAST, _BOOT_MOST, _BOOT_RATIO, _SPIKE_SHARE),
    *(RUNAWAY_BUCKETS, _WHOLE_CORE, _WHOLE_SHARE, _FLAT_CORES, _USUAL_SHARE),
    *(_FLOOD_BYTES, _FLOOD_RATIO, _FLOOD_CPU_SHARE),
)


def new_state(size: int) -> F64:
    """Return the state of `size` new VMs, shape (size, FIELD_COUNT); columns as `FIELD`."""
    return np.zeros((size, FIELD_COUNT))


def new_means(size: int) -> F64:
    """Return the empty means of `size` new VMs, shape (size, ROWS, KEPT); NaN is unknown.

    Mean i of a signal (`CPU` to `MEMORY`) is at i modulo `KEPT`.
    """
    return np.full((size, ROWS, KEPT), np.nan)


@inlined
def _mean_at(means: F64, row: int, count: int, back: int) -> float:
    """Return the mean `back` buckets before the last one; NaN before the first."""
    return float(means[row, (count - 1 - back) % KEPT])


@inlined
def _median(means: F64, row: int, count: int, first: int, last: int) -> float:
    """Return the median of the means from `first` to `last` buckets back, NaN if there is none."""
    found = np.empty(KEPT)
    size = 0
    for back in range(first, last + 1):
        value = _mean_at(means, row, count, back)
        if value == value:
            index = size
            while index > 0 and found[index - 1] > value:
                found[index] = found[index - 1]
                index -= 1
            found[index] = value
            size += 1
    if size == 0:
        return float(np.nan)
    return float(0.5 * (found[(size - 1) // 2] + found[size // 2]))


@inlined
def _leak(means: F64, count: int, out: F64) -> None:
    if count < KEPT:
        return
    rises = 0.0
    for back in range(RISES):
        now = _mean_at(means, MEMORY, count, back)
        before = _mean_at(means, MEMORY, count, back + 1)
        rises += 1.0 if now > before else 0.0
    out[_O_RISES] = rises
    first = _mean_at(means, MEMORY, count, RISES)
    last = _mean_at(means, MEMORY, count, 0)
    out[_O_GROWTH] = last / first if first > 0.0 else 0.0


@inlined
def _booted(means: F64, count: int, cores: float) -> bool:
    """Return whether the last bucket shows a boot, and the bucket before it a CPU spike.

    In the bucket of the spike, the guest must not have sent or written more than usual.
    """
    reads = _mean_at(means, READ, count, 0)
    if count < 26 or not (_BOOT_LEAST <= reads <= _BOOT_MOST):
        return False
    if _mean_at(means, READ, count, 1) > 0.5 * reads:
        return False
    for back in range(2, 26):
        if _mean_at(means, READ, count, back) * _BOOT_RATIO > reads:
            return False
    cpu, spike = _median(means, CPU, count, 2, 8), _mean_at(means, CPU, count, 1)
    sent, writes = _median(means, SENT, count, 2, 8), _median(means, WRITE, count, 2, 8)
    if not spike - cpu >= max(_SPIKE_SHARE * cores, cpu):
        return False
    if _mean_at(means, SENT, count, 1) > 1.15 * sent + 1.0:
        return False
    if writes > 1000.0 and _mean_at(means, WRITE, count, 1) > 1.5 * writes:
        return False
    works = _mean_at(means, CPU, count, 0) >= 0.08 * cores
    return works and _mean_at(means, WRITE, count, 0) >= 3.0 * writes


@inlined
def _unchanged(means: F64, row: int, count: int, floor: float) -> bool:
    now = _median(means, row, count, 0, RUNAWAY_BUCKETS - 1) + floor
    before = _median(means, row, count, RUNAWAY_BUCKETS + 1, RUNAWAY_BUCKETS + 7) + floor
    return 0.5 < now / before < 2.0


@inlined
def _runaway(means: F64, count: int, cores: float, levels: F64, dt_s: float) -> float:
    """Return the number of whole cores that a runaway process uses, 0 for none."""
    if count < RUNAWAY_BUCKETS + 8:
        return 0.0
    low = high = _mean_at(means, CPU, count, 0)
    alive = 0
    for back in range(RUNAWAY_BUCKETS):
        value = _mean_at(means, CPU, count, back)
        if value != value:
            return 0.0
        low, high = min(low, value), max(high, value)
        moved = _mean_at(means, SENT, count, back) + _mean_at(means, WRITE, count, back)
        alive += 1 if moved + _mean_at(means, READ, count, back) > 0.0 else 0
    step = _median(means, CPU, count, 0, RUNAWAY_BUCKETS - 1)
    before = _median(means, CPU, count, RUNAWAY_BUCKETS + 1, RUNAWAY_BUCKETS + 7)
    step -= before
    whole = float(round(step)) if step == step else 0.0
    if whole < 1.0 or 2 * alive < RUNAWAY_BUCKETS:
        return 0.0
    if high - low > _FLAT_CORES * whole:
        return 0.0
    is_whole = abs(step - whole) < max(_WHOLE_CORE, _WHOLE_SHARE * whole)
    if not (is_whole or low >= 0.93 * cores):
        return 0.0
    if not (_unchanged(means, SENT, count, 500.0) and _unchanged_disk(means, count)):
        return 0.0
    total = above = 0.0
    first = band(0.9 * low / cores)
    for level in range(at.LEVELS):
        total += levels[level]
        above += levels[level] if level >= first else 0.0
    own = RUNAWAY_BUCKETS * BUCKET_S / dt_s
    if above - 1.1 * own > _USUAL_SHARE * total or total < 8.0 * own:
        return 0.0
    return whole


@inlined
def _unchanged_disk(means: F64, count: int) -> bool:
    return _unchanged(means, WRITE, count, 2000.0) and _unchanged(means, READ, count, 2000.0)


@inlined
def _flood(state: F64, means: F64, count: int, cores: float) -> None:
    """Count consecutive buckets with a flood: far more writes than ever before, and a busy CPU."""
    writes = _mean_at(means, WRITE, count, 0)
    floods = writes >= _FLOOD_BYTES and writes >= _FLOOD_RATIO * state[_WRITE_PEAK]
    if floods and _mean_at(means, CPU, count, 0) >= _FLOOD_CPU_SHARE * cores:
        state[_FLOOD] += 1.0
        return
    state[_FLOOD] = 0.0
    if writes == writes:
        # A peak fades over a fortnight, so that one backup does not hide later floods permanently.
        state[_WRITE_PEAK] = max(state[_WRITE_PEAK] * 0.9998, writes)


@inlined
def _slowed(own: F32, means: F64, count: int, cores: float, time_s: float, out: F64) -> None:
    """At the end of a clock hour, store in how many consecutive hours writing has fallen."""
    # A mean belongs to the hour that contains most of it.
    hour = float((time_s - 0.5 * BUCKET_S) // by_hour.HOUR_S)
    if not by_hour.is_over(own, hour):
        return
    size = by_hour.means_of(own, count)
    enough = by_hour.MEANS_LEAST <= size < KEPT
    writes = _median(means, WRITE, count, 1, size) if enough else float(np.nan)
    cpu = _median(means, CPU, count, 1, size) if enough else float(np.nan)
    out[_O_SLOWED] = by_hour.close_hour(own, writes, cpu, cores)
    out[_O_WRITE_SHARE] = by_hour.write_share(own)
    if not by_hour.follows(own, hour):
        by_hour.forget_row(own)
    by_hour.begin_hour(own, hour, count - 1)


@inlined
def _close(
    state: F64, means: F64, out: F64, levels: F64, memory: float, cores: float, dt_s: float
) -> None:
    count = int(state[_BUCKETS])
    index = count % KEPT
    for row in range(MEMORY):
        means[row, index] = state[_SUM + row] / state[_TIME_S]
        state[_SUM + row] = 0.0
    means[MEMORY, index] = memory
    state[_TIME_S] = 0.0
    count += 1
    state[_BUCKETS] = count
    out[_O_CLOSED] = 1.0
    _leak(means, count, out)
    out[_O_BOOTED] = 1.0 if _booted(means, count, cores) else 0.0
    out[_O_RUNAWAY] = _runaway(means, count, cores, levels, dt_s)
    _flood(state, means, count, cores)
    out[_O_FLOOD] = state[_FLOOD]
    now = before = 0.0
    for row in (WRITE, SENT, READ):
        now += _median(means, row, count, 0, 2)
        before += _median(means, row, count, 4, 14)
    out[_O_WORK] = now / before if before > 100.0 else 1.0


@kernel
def fold_trends(
    state: F64,
    means: F64,
    hours: F32,
    rates: F32,
    memory: F64,
    vcpus: I64,
    vitals: F64,
    dt_s: float,
    time_s: float,
    out: F64,
) -> int:
    """Fold one sample of every row, in place; write the results when five minutes are full.

    Parameters
    ----------
    state, means, hours
        Made by `new_state`, `new_means` and `hours.new_state`; updated.
    rates, memory, vcpus
        As for `aggregates.fold_aggregates`.
    vitals
        State of `aggregates.fold_aggregates`, for the usual CPU levels of a VM.
    dt_s
        Time since the sample before.
    time_s
        Of the sample, since the epoch.
    out
        Shape (rows, OUT_ROWS); columns as `OUT`. Overwritten when five minutes are full, those of
        `hours` when an hour is over; otherwise only `closed` becomes 0. The whole row is NaN if the
        VM was unknown for `UNKNOWN_S`.

    Returns
    -------
    int
        Number of rows that closed five minutes.
    """
    closed = 0
    for index in range(state.shape[0]):
        fields = state[index]
        out[index, _O_CLOSED] = 0.0
        cpu = float(rates[0, index])
        reads, writes, sent = float(rates[1, index]), float(rates[2, index]), float(rates[3, index])
        if cpu != cpu or not reads + writes + sent < 4e9:
            fields[_UNKNOWN_S] += dt_s
            if fields[_UNKNOWN_S] >= UNKNOWN_S:
                out[index, :] = np.nan
            continue
        fields[_UNKNOWN_S] = 0.0
        fields[_TIME_S] += dt_s
        fields[_SUM + CPU] += cpu * dt_s
        fields[_SUM + READ] += reads * dt_s
        fields[_SUM + WRITE] += writes * dt_s
        fields[_SUM + SENT] += sent * dt_s
        # Intervals jitter, so five minutes count as full half a sample early.
        if fields[_TIME_S] >= BUCKET_S - 0.5 * dt_s:
            levels = vitals[index, at.F_LEVEL : at.F_LEVEL + at.LEVELS]
            cores = float(max(vcpus[index], 1))
            _close(fields, means[index], out[index], levels, memory[index], cores, dt_s)
            count = int(fields[_BUCKETS])
            _slowed(hours[index], means[index], count, cores, time_s, out[index])
            closed += 1
    return closed

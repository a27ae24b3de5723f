"""From a frame's columns to rates, epochs and signs of life, for a whole node at once.

Missing is unknown: it neither counts as silence nor ends one. A smaller counter, another
instance or a reboot begins a new epoch and is never a rate.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.detection.configuration import Configuration
from engine.detection.lanes import LEVEL_EDGES, MINUTE_ROWS, F, I, Lanes
from engine.wire.frame import VmRows
from engine.wire.metrics import GAUGE_ROW, INTEGER_ROW, VM_STATES
from models.kernels import baseline, gaps, vitals

Bools = NDArray[np.bool_]

_COUNTERS: Final = np.array(
    [
        INTEGER_ROW[name]
        for name in ("cpu_time_ns", "block_rd_bytes", "block_wr_bytes", "net_tx_bytes")
    ]
)
_BITS: Final = np.array([[1], [2], [4], [8]], np.uint8)
_LEVELS: Final = ("instance", "state", "vcpus", "vcpus_busy", "job_active")
# More than any device moves: a glitch of the counter, not a sign of life.
_IMPOSSIBLE_BYTES_PER_S: Final = 1e11
# By state; the last entry is for a state that is not known (-1).
_RUNNING: Final = np.array(
    [*(name in {"running", "blocked", "crashed"} for name in VM_STATES), False], np.bool_
)
_SHARE_TAU_S: Final = 60.0
_DAY_S: Final = 86_400.0
# A silence worth more than this may be a fault: what happens in it is not learned as habit.
_HABIT_NATS: Final = 2.0


@lru_cache(maxsize=256)
def _weights(dt_s: float) -> NDArray[np.float32]:
    return baseline.constants(dt_s)


def fold_rows(
    lanes: Lanes,
    rows: VmRows,
    *,
    dt_s: float | None,
    sequence: int,
    event_ms: int,
    configuration: Configuration,
) -> None:
    """Fold one frame's rows, whose roster is that of `lanes`.

    Parameters
    ----------
    dt_s
        Time since the node's last frame on its own monotonic clock; None where there is
        no interval (first frame of a run, clock that went back): no rates, no silence.
    """
    size = len(rows)
    present = rows.present()
    _take_levels(lanes, rows, present)
    counters = np.zeros_like(lanes.previous)
    counters[:, :size] = rows.integers[_COUNTERS]
    measured = np.zeros(counters.shape, np.bool_)
    measured[:, :size] = present[_COUNTERS]
    _begin_epochs(lanes, rows, present, counters, measured)
    flags = (measured * _BITS).sum(axis=0, dtype=np.uint8)
    step_s = 1.0 if dt_s is None else dt_s
    if dt_s is None:
        lanes.previous[...] = baseline.NO_PREVIOUS
        lanes.numbers("delay_ns")[...] = -1
    baseline.fold_counters(
        lanes.baseline,
        lanes.previous,
        counters,
        flags | np.uint8(baseline.FLAG_SAME_EPOCH),
        _weights(round(step_s, 3)),
        lanes.counted,
    )
    running = _RUNNING[np.clip(lanes.numbers("state"), -1, len(VM_STATES))]
    running[size:] = False
    _fold_life(
        lanes,
        running & (dt_s is not None),
        step_s=step_s,
        sequence=sequence,
        event_ms=event_ms,
    )
    _fold_vitals(lanes, rows, present, running, dt_s=dt_s, step_s=step_s)
    if dt_s is None:
        return
    known = running & present_any(present, lanes.integers.shape[1])
    _fold_cpu(lanes, rows, known, dt_s=dt_s, configuration=configuration)
    _fold_balloon(lanes, rows, present, dt_s=dt_s)
    _fold_delay(lanes, rows, present, dt_s=dt_s, configuration=configuration)
    lanes.row("history_s")[known] += dt_s
    lanes.row("epoch_s")[known] += dt_s
    values = lanes.counted[MINUTE_ROWS]
    valid = ~np.isnan(values)
    lanes.sums += np.where(valid, values, 0.0)
    lanes.sum_counts += valid


def _fold_vitals(
    lanes: Lanes,
    rows: VmRows,
    present: Bools,
    running: Bools,
    *,
    dt_s: float | None,
    step_s: float,
) -> None:
    """Fold what totals alone tell; a VM that is not meant to run is unknown, not silent."""
    size = len(rows)
    width = running.size
    memory = np.full(width, np.nan)
    row = INTEGER_ROW["balloon_rss_kib"]
    memory[:size] = np.where(present[row], rows.integers[row], np.nan)
    rates = np.where(running if dt_s is not None else False, lanes.counted[:4], np.nan)
    vitals.fold_vitals(
        lanes.vitals[:size],
        lanes.recent[:size],
        rates.astype(np.float32),
        memory,
        lanes.numbers("vcpus"),
        present_any(present, width),
        lanes.hold,
        step_s,
        -math.expm1(-step_s / _DAY_S),
        lanes.signs[:size],
    )


def present_any(present: Bools, width: int) -> Bools:
    """Return, padded to `width`, which VMs have their disk and CPU columns measured."""
    measured = np.zeros(width, np.bool_)
    measured[: present.shape[1]] = present[_COUNTERS[0]]
    return measured


def _take_levels(lanes: Lanes, rows: VmRows, present: Bools) -> None:
    size = len(rows)
    for name in _LEVELS[1:]:
        row = INTEGER_ROW[name]
        lanes.numbers(name)[:size] = np.where(present[row], rows.integers[row].astype(np.int64), -1)


def _begin_epochs(
    lanes: Lanes,
    rows: VmRows,
    present: Bools,
    counters: NDArray[np.uint64],
    measured: Bools,
) -> None:
    """Begin epochs: counters start anew; a boot also forgets what was seen moving."""
    size = len(rows)
    row = INTEGER_ROW["instance"]
    instance = rows.integers[row].astype(np.int64)
    stored = lanes.numbers("instance")
    other = np.zeros(stored.shape, np.bool_)
    other[:size] = present[row] & (stored[:size] >= 0) & (instance != stored[:size])
    valid = measured & (lanes.previous != baseline.NO_PREVIOUS)
    smaller = (valid & (counters < lanes.previous)).any(axis=0)
    broken = other | smaller
    stored[:size] = np.where(present[row], instance, stored[:size])
    if not broken.any():
        return
    lanes.previous[:, broken] = baseline.NO_PREVIOUS
    lanes.numbers("delay_ns")[broken] = -1
    migrated = lanes.numbers("migrated")
    booted = broken & (migrated == 0)
    migrated[other] = 0
    if booted.any():
        lanes.begin_boot(np.flatnonzero(booted))


def _fold_life(
    lanes: Lanes, running: Bools, *, step_s: float, sequence: int, event_ms: int
) -> None:
    """Tell moving from silent from unknown; disks and transmit are signs of life, receive not."""
    reads, writes, sends = lanes.counted[1], lanes.counted[2], lanes.counted[3]
    limit = _IMPOSSIBLE_BYTES_PER_S
    disk_known = (reads < limit) & (writes < limit)
    disk_moved = disk_known & ((reads > 0) | (writes > 0))
    tx_known = sends < limit
    tx_moved = tx_known & (sends > 0)
    counts = lanes.baseline[:, baseline.COUNT : baseline.COUNT + 4]
    has_tx = counts[:, 3].reshape(-1) > 0
    has_disk = counts[:, 2].reshape(-1) > 0
    judged = (disk_known | ~has_disk) & (tx_known | ~has_tx) & (disk_known | tx_known) & running
    disk_judged = disk_known & running
    alive = _signs(judged, disk_moved | tx_moved)
    disk_alive = _signs(disk_judged, disk_moved)
    step = np.float32(step_s)
    gaps.fold_life(lanes.gaps, alive, lanes.hold, step, lanes.life)
    gaps.fold_life(lanes.disk_gaps, disk_alive, lanes.hold, step, lanes.disk)
    _count_run(lanes, alive, "run", "onset_ms", sequence=sequence, event_ms=event_ms)
    _count_run(lanes, disk_alive, "disk", "disk_onset_ms", sequence=sequence, event_ms=event_ms)
    living = alive == gaps.ALIVE
    lanes.numbers("alive_samples")[...] = np.where(living, lanes.numbers("alive_samples") + 1, 0)
    lanes.row("alive_s")[...] = np.where(living, lanes.row("alive_s") + step_s, 0.0)
    # What firmware reads at a boot prompt is no sign that a guest ever lived in this epoch.
    lanes.numbers("moved")[...] += running & ((writes > 0) & disk_known | tx_moved)
    lanes.row("tx_still_s")[...] = np.where(
        tx_moved, 0.0, lanes.row("tx_still_s") + np.where(tx_known & running, step_s, 0.0)
    )
    # A plain mean at first: from 0 upwards a busy VM would count as a quiet one for a minute,
    # and the few that fell silent meanwhile would be all that seemed to be at work.
    share = np.minimum(1.0, step_s / np.minimum(lanes.row("history_s") + step_s, _SHARE_TAU_S))
    for name, known, moved in (
        ("life_share", judged, living),
        ("disk_share", disk_judged, disk_moved),
        ("tx_share", tx_known & running, tx_moved),
    ):
        lanes.row(name)[...] += np.where(known, share * (moved - lanes.row(name)), 0.0)


def _signs(judged: Bools, moved: Bools) -> NDArray[np.int8]:
    signs = np.where(moved, gaps.ALIVE, gaps.SILENT)
    return np.where(judged, signs, gaps.UNKNOWN).astype(np.int8)


def _count_run(
    lanes: Lanes,
    alive: NDArray[np.int8],
    name: str,
    onset: str,
    *,
    sequence: int,
    event_ms: int,
) -> None:
    """Count silent samples, and remember the frame and moment at which they began."""
    samples = lanes.numbers(f"{name}_samples")
    silent = alive == gaps.SILENT
    if not silent.any() and not samples.any():
        return
    begun = silent & (samples == 0)
    samples[...] = np.where(alive == gaps.ALIVE, 0, samples + silent)
    if begun.any():
        lanes.numbers(f"{name}_sequence")[begun] = sequence
        lanes.numbers(onset)[begun] = event_ms
        if name == "run":
            lanes.numbers("balloon_fresh")[begun] = 0
        for signal in ("cpu", "busiest"):
            lanes.row(f"{signal}_before")[begun] = lanes.row(f"{signal}_recent")[begun]


def _fold_cpu(
    lanes: Lanes, rows: VmRows, known: Bools, *, dt_s: float, configuration: Configuration
) -> None:
    """Keep the level before the last sample, and how unusual the level now is for the VM.

    The sample before a silence is a mix of before and after, so the level lags by one.
    """
    size = len(rows)
    cpu = lanes.counted[0].astype(np.float64)
    lanes.floats[F["cpu"]] = cpu
    lanes.floats[F["busiest"], :size] = rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]]
    seen = known & ~np.isnan(cpu)
    vcpus = np.maximum(lanes.integers[I["vcpus"]], 1)
    band = np.searchsorted(LEVEL_EDGES, np.where(seen, cpu / vcpus, 0.0), side="right")
    lane = np.arange(len(band))
    levels = lanes.levels
    beside = levels[np.maximum(band - 1, 0), lane] + levels[np.minimum(band + 1, 14), lane]
    total = levels.sum(axis=0)
    share = (levels[band, lane] + 0.5 * beside + 0.5) / (total + 1.0)
    lanes.floats[F["cpu_nats"]] = np.where(seen, -np.log(np.minimum(share, 1.0)), 0.0)
    usual = seen & (lanes.life[1] < _HABIT_NATS) & (lanes.disk[1] < _HABIT_NATS)
    levels[band, lane] += usual
    full = total > 86_400.0
    if full.any():
        levels[:, full] *= 0.5
    steady = usual & (lanes.numbers("run_samples") == 0)
    weight = min(1.0, dt_s / configuration.level_tau_s)
    first = lanes.row("known_s") <= 0.0
    busiest = lanes.row("busiest")
    for signal, now in (("cpu", cpu), ("busiest", np.where(np.isnan(busiest), 0.0, busiest))):
        last, recent = lanes.row(f"{signal}_last"), lanes.row(f"{signal}_recent")
        lagged = np.where(first, now, recent + weight * (last - recent))
        recent[...] = np.where(steady, lagged, recent)
        last[...] = np.where(steady, now, last)
    lanes.row("known_s")[steady] += dt_s


def _fold_balloon(lanes: Lanes, rows: VmRows, present: Bools, *, dt_s: float) -> None:
    """Follow the balloon's own clock: each new report is a sign that the guest's kernel runs."""
    size = len(rows)
    row = INTEGER_ROW["balloon_last_update_s"]
    known = present[row] & (rows.integers[row] > 0)
    update = rows.integers[row].astype(np.int64)
    stored = lanes.numbers("balloon_last")[:size]
    moved = known & (stored > 0) & (update != stored)
    still = lanes.row("balloon_still_s")[:size]
    period = lanes.row("balloon_period_s")[:size]
    lasted = still + dt_s
    first = period <= 0.0
    period[...] = np.where(moved, np.where(first, lasted, period + 0.2 * (lasted - period)), period)
    still[...] = np.where(moved, 0.0, np.where(known, lasted, still))
    stored[...] = np.where(known, update, stored)
    lanes.numbers("balloon_moved")[:size] += moved
    in_run = lanes.numbers("run_samples")[:size] >= 2
    in_disk_run = lanes.numbers("disk_samples")[:size] >= 2
    lanes.numbers("balloon_fresh")[:size] += moved & (in_run | in_disk_run)


def _fold_delay(
    lanes: Lanes,
    rows: VmRows,
    present: Bools,
    *,
    dt_s: float,
    configuration: Configuration,
) -> None:
    """Keep how many cores the VM waited for on its node's run queues."""
    size = len(rows)
    name = "vcpu_delay_ns"
    row = INTEGER_ROW[name]
    if not present[row].any():
        row = INTEGER_ROW["vcpu_wait_ns"]
    known = present[row]
    now = rows.integers[row].astype(np.int64)
    before = lanes.numbers("delay_ns")[:size]
    usable = known & (before >= 0) & (now >= before)
    delay = np.where(usable, (now - before) / (dt_s * 1e9), np.nan)
    before[...] = np.where(known, now, -1)
    lanes.row("delay")[:size] = delay
    cpu = lanes.row("cpu")[:size]
    wanted = cpu + delay
    share = np.where(wanted > 0, delay / np.where(wanted > 0, wanted, 1.0), 0.0)
    weight = min(1.0, dt_s / configuration.contention_tau_s)
    mean = lanes.row("contention")[:size]
    mean[...] = np.where(np.isnan(share), mean, mean + weight * (share - mean))

"""The state update of each VM in whole-array steps: the twin of `models.kernels.state_update`."""

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.vm_table import F, I, VmTable
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW
from flatline.models.kernels import baseline, silence_model
from flatline.models.kernels.aggregates_layout import LEVEL_EDGES
from flatline.models.kernels.state_update import Pace

Bools = NDArray[np.bool_]

_IMPOSSIBLE_BYTES_PER_S = 1e11
_LONGEST_WAIT_S = 60.0
_MOST_OVERHEAD = 16.0


def update_state(table: VmTable, rows: VmRows, pace: Pace) -> None:
    """Replace `engine.detection.rates._update_state`."""
    present, running = rows.present(), table.taken.running
    judged = running & pace.has_interval
    _fold_life(table, judged, pace)
    if not pace.has_interval:
        return
    known = running & table.taken.measured
    table.floats[F["cpu"]] = table.counted[0].astype(np.float64)
    possible = _fold_delay(table, rows, present, pace)
    _fold_cpu(table, rows, known & possible, pace)
    _fold_balloon(table, rows, present, dt_s=pace.step_s)
    table.row("history_s")[known] += pace.step_s
    table.row("epoch_s")[known] += pace.step_s


def _fold_life(table: VmTable, running: Bools, pace: Pace) -> None:
    """Distinguish active, silent and unknown; disks and transmit are signs of life, receive not."""
    step_s, sequence, event_ms = pace.step_s, pace.sequence, pace.event_ms
    reads, writes, sends = table.counted[1], table.counted[2], table.counted[3]
    limit = _IMPOSSIBLE_BYTES_PER_S
    disk_known = (reads < limit) & (writes < limit)
    disk_moved = disk_known & ((reads > 0) | (writes > 0))
    tx_known = sends < limit
    tx_moved = tx_known & (sends > 0)
    counts = table.baseline[:, baseline.COUNT : baseline.COUNT + 4]
    has_tx = counts[:, 3].reshape(-1) > 0
    has_disk = counts[:, 2].reshape(-1) > 0
    judged = (disk_known | ~has_disk) & (tx_known | ~has_tx) & (disk_known | tx_known) & running
    disk_judged = disk_known & running
    alive = _signs(judged, disk_moved | tx_moved)
    disk_alive = _signs(disk_judged, disk_moved)
    step = np.float32(step_s)
    silence_model.fold_life(table.gaps, alive, table.hold, step, table.life, silence_model.WHOLE)
    silence_model.fold_life(
        table.disk_gaps, disk_alive, table.hold, step, table.disk, silence_model.WHOLE
    )
    _count_run(table, alive, "run", "onset_ms", sequence=sequence, event_ms=event_ms)
    _count_run(table, disk_alive, "disk", "disk_onset_ms", sequence=sequence, event_ms=event_ms)
    living = alive == silence_model.ALIVE
    table.numbers("alive_samples")[...] = np.where(living, table.numbers("alive_samples") + 1, 0)
    table.row("alive_s")[...] = np.where(living, table.row("alive_s") + step_s, 0.0)
    # Reads of the firmware at a boot prompt do not prove that a guest ever lived in this epoch.
    table.numbers("moved")[...] += running & ((writes > 0) & disk_known | tx_moved)
    table.row("tx_still_s")[...] = np.where(
        tx_moved, 0.0, table.row("tx_still_s") + np.where(tx_known & running, step_s, 0.0)
    )
    # A plain mean at first: from 0 upwards a busy VM would count as a quiet one for a minute, and
    # only the few that fell silent meanwhile would seem to be active.
    share = np.minimum(1.0, step_s / np.minimum(table.row("history_s") + step_s, pace.share_tau_s))
    for name, known, moved in (
        ("life_share", judged, living),
        ("disk_share", disk_judged, disk_moved),
        ("tx_share", tx_known & running, tx_moved),
    ):
        table.row(name)[...] += np.where(known, share * (moved - table.row(name)), 0.0)


def _signs(judged: Bools, moved: Bools) -> NDArray[np.int8]:
    signs = np.where(moved, silence_model.ALIVE, silence_model.SILENT)
    return np.where(judged, signs, silence_model.UNKNOWN).astype(np.int8)


def _count_run(
    table: VmTable,
    alive: NDArray[np.int8],
    name: str,
    onset: str,
    *,
    sequence: int,
    event_ms: int,
) -> None:
    """Count silent samples, and record the frame and time at which they began."""
    samples = table.numbers(f"{name}_samples")
    silent = alive == silence_model.SILENT
    if not silent.any() and not samples.any():
        return
    begun = silent & (samples == 0)
    samples[...] = np.where(alive == silence_model.ALIVE, 0, samples + silent)
    if begun.any():
        table.numbers(f"{name}_sequence")[begun] = sequence
        table.numbers(onset)[begun] = event_ms
        if name == "run":
            table.numbers("balloon_fresh")[begun] = 0
        for signal in ("cpu", "busiest", "used"):
            table.row(f"{signal}_before")[begun] = table.row(f"{signal}_recent")[begun]


def _fold_cpu(table: VmTable, rows: VmRows, known: Bools, pace: Pace) -> None:
    """Keep the level before the last sample, and how unusual the current level is for the VM.

    The sample before a silence is a mix of before and after, so the level lags by one.
    """
    size = len(rows)
    used = table.row("cpu")
    cpu = used + np.nan_to_num(table.row("delay"))
    table.floats[F["busiest"], :size] = rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]]
    count = table.integers[I["vcpus"]]
    possible = (count <= 0) | (used <= count + _MOST_OVERHEAD)
    seen = known & ~np.isnan(cpu) & possible
    vcpus = np.maximum(count, 1)
    band = np.searchsorted(LEVEL_EDGES, np.where(seen, cpu / vcpus, 0.0), side="right")
    index = np.arange(len(band))
    levels = table.levels
    beside = levels[np.maximum(band - 1, 0), index] + levels[np.minimum(band + 1, 14), index]
    total = levels.sum(axis=0)
    share = (levels[band, index] + 0.5 * beside + 0.5) / (total + 1.0)
    table.floats[F["cpu_nats"]] = np.where(seen, -np.log(np.minimum(share, 1.0)), 0.0)
    usual = seen & (table.life[1] < pace.habit_nats) & (table.disk[1] < pace.habit_nats)
    levels[band, index] += usual
    full = total > pace.levels_full
    if full.any():
        levels[:, full] *= 0.5
    steady = usual & (table.numbers("run_samples") == 0)
    weight = pace.level_weight
    first = table.row("known_s") <= 0.0
    busiest = np.nan_to_num(table.row("busiest"))
    for signal, now in (("cpu", cpu), ("busiest", busiest), ("used", used)):
        last, recent = table.row(f"{signal}_last"), table.row(f"{signal}_recent")
        lagged = np.where(first, now, recent + weight * (last - recent))
        recent[...] = np.where(steady, lagged, recent)
        last[...] = np.where(steady, now, last)
    table.row("known_s")[steady] += pace.step_s


def _fold_balloon(table: VmTable, rows: VmRows, present: Bools, *, dt_s: float) -> None:
    """Follow the balloon's own clock: each new report proves that the guest's kernel runs."""
    size = len(rows)
    row = INTEGER_ROW["balloon_last_update_s"]
    known = present[row] & (rows.integers[row] > 0)
    update = rows.integers[row].astype(np.int64)
    stored = table.numbers("balloon_last")[:size]
    moved = known & (stored > 0) & (update != stored)
    still = table.row("balloon_still_s")[:size]
    period = table.row("balloon_period_s")[:size]
    lasted = still + dt_s
    first = period <= 0.0
    period[...] = np.where(moved, np.where(first, lasted, period + 0.2 * (lasted - period)), period)
    still[...] = np.where(moved, 0.0, np.where(known, lasted, still))
    stored[...] = np.where(known, update, stored)
    table.numbers("balloon_moved")[:size] += moved
    in_run = table.numbers("run_samples")[:size] >= 2
    in_disk_run = table.numbers("disk_samples")[:size] >= 2
    table.numbers("balloon_fresh")[:size] += moved & (in_run | in_disk_run)


def _fold_delay(table: VmTable, rows: VmRows, present: Bools, pace: Pace) -> Bools:
    """Keep how many cores the VM waited for on its node's run queues; return what is possible."""
    size = len(rows)
    name = "vcpu_delay_ns"
    row = INTEGER_ROW[name]
    if not present[row].any():
        row = INTEGER_ROW["vcpu_wait_ns"]
    known = present[row]
    now = rows.integers[row].astype(np.int64)
    before = table.numbers("delay_ns")[:size]
    usable = known & (before >= 0) & (now >= before)
    delay = np.where(usable, (now - before) / (pace.step_s * 1e9), np.nan)
    before[...] = np.where(known, now, -1)
    vcpus = table.numbers("vcpus")[:size]
    most = vcpus * (pace.step_s + _LONGEST_WAIT_S)
    possible = np.ones(table.integers.shape[1], np.bool_)
    possible[:size] = ~((vcpus > 0) & (delay * pace.step_s > most))
    delay[~possible[:size]] = np.nan
    table.row("delay")[:size] = delay
    cpu = table.row("cpu")[:size]
    wanted = cpu + delay
    share = np.where(wanted > 0, delay / np.where(wanted > 0, wanted, 1.0), 0.0)
    weight = pace.contention_weight
    mean = table.row("contention")[:size]
    mean[...] = np.where(np.isnan(share), mean, mean + weight * (share - mean))
    return possible

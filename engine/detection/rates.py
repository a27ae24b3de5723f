"""Turn a frame's columns into rates, epochs and signs of life, for a whole node in one pass.

A missing value is unknown: it neither counts as silence nor ends one. A smaller counter, another
instance or a reboot begins a new epoch and gives no rate.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import MINUTE_ROWS, F, I, VmTable
from flatline.engine.stream.counters import IMPOSSIBLE_PER_S
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW, KVM_COUNTERS, VM_STATES
from flatline.models.kernels import (
    aggregates,
    baseline,
    ingest,
    silence_model,
    standstill,
    state_update,
    trends,
)
from flatline.models.kernels.aggregates_layout import LEVEL_EDGES
from flatline.models.kernels.state_update import Pace

# For each value that `models.kernels.ingest` reads: its row in the frame, and its row in
# `VmTable.integers`, -1 for none.
_INDICES: Final = np.array(
    [
        (INTEGER_ROW[metric], I.get(number, -1))
        for metric, number in (
            ("cpu_time_ns", ""),
            ("block_rd_bytes", ""),
            ("block_wr_bytes", ""),
            ("net_tx_bytes", ""),
            ("instance", "instance"),
            ("state", "state"),
            ("vcpus", "vcpus"),
            ("vcpus_busy", "vcpus_busy"),
            ("job_active", "job_active"),
            ("balloon_rss_kib", ""),
            ("balloon_last_update_s", ""),
            ("vcpu_delay_ns", "delay_ns"),
            ("vcpu_wait_ns", "delay_ns"),
        )
    ]
)
_KVM: Final = np.array([INTEGER_ROW[metric.name] for metric in KVM_COUNTERS])
_NOTHING_MISSING: Final = np.zeros((0, 0), np.bool_)
# A faster rate is a counter error and no sign of life.
_IMPOSSIBLE_BYTES_PER_S: Final = np.float32(IMPOSSIBLE_PER_S)
# By state, whether a guest is meant to run; the last entry is for an unknown state (-1).
MEANT_TO_RUN: Final = np.array(
    [*(name in {"running", "blocked", "crashed"} for name in VM_STATES), False], np.bool_
)
SHARE_TAU_S: Final = 60.0
_DAY_S: Final = 86_400.0
# A silence of more nats may be a fault, so the CPU levels in it are not learned as usual.
_HABIT_NATS: Final = 2.0
# Counts of a VM's CPU levels are halved when they sum up to a day of 1 s samples, so that they
# can adapt.
_LEVELS_FULL: Final = 86_400.0
# Arrays rather than tuples, because Numba converts a tuple field by field at each call.
_FIGURES: Final = np.array([F[name] for name in state_update.Figures._fields])
_NUMBERS: Final = np.array([I[name] for name in state_update.Numbers._fields])


@lru_cache(maxsize=256)
def _weights(dt_s: float) -> NDArray[np.float32]:
    return baseline.constants(dt_s)


def fold_rows(
    table: VmTable,
    rows: VmRows,
    *,
    dt_s: float | None,
    sequence: int,
    event_ms: int,
    configuration: Configuration,
) -> None:
    """Fold one frame's rows, whose roster is that of `table`.

    Parameters
    ----------
    dt_s
        Time since the node's last frame on its own monotonic clock; None where there is
        no interval (first frame of a run, clock that went back): no rates, no silence.
    sequence, event_ms
        Sequence and event time of the first sample that the frame covers: its own, or that of the
        first lost frame before it. A silence that this frame shows began there.
    """
    _take_device_sets(table, rows)
    _take_rows(table, rows, has_interval=dt_s is not None)
    step_s = 1.0 if dt_s is None else dt_s
    taken = table.taken
    baseline.fold_counters(
        table.baseline,
        table.previous,
        taken.counters,
        taken.flags,
        _weights(round(step_s, 3)),
        table.counted,
    )
    pace = _pace(dt_s, sequence=sequence, event_ms=event_ms, configuration=configuration)
    _update_state(table, rows, pace)
    _fold_standstill(table, rows, step_s, configuration)
    _note_rates(table, has_interval=pace.has_interval)
    _fold_aggregates(table, len(rows), step_s, event_ms / 1000.0)


def _take_rows(table: VmTable, rows: VmRows, *, has_interval: bool) -> None:
    """Store the frame's rows; a boot also resets the activity seen before."""
    missing = _NOTHING_MISSING if rows.missing is None else rows.missing
    # A replay passes slices: another layout would compile the kernel a second time.
    begun = ingest.take_rows(
        np.ascontiguousarray(rows.integers),
        np.ascontiguousarray(missing),
        _INDICES,
        MEANT_TO_RUN,
        has_interval,
        table.previous,
        table.integers,
        I["migrated"],
        table.taken,
    )
    if not begun:
        return
    booted = np.flatnonzero(table.taken.epochs[: len(rows)] == ingest.NEW_BOOT)
    if len(booted):
        table.begin_boot(booted)


def _take_device_sets(table: VmTable, rows: VmRows) -> None:
    """Reset sums over a changed set of devices: the change is neither boot nor life."""
    row, size = INTEGER_ROW["device_set"], len(rows)
    now = rows.integers[row].astype(np.int64)
    if rows.missing is not None:
        now[rows.missing[row]] = -1
    before = table.integers[I["device_set"], :size]
    other = (now >= 0) & (before >= 0) & (now != before)
    if other.any():
        # Row 0 is the CPU time, which is not a sum over devices.
        table.previous[1:4, np.flatnonzero(other)] = baseline.NO_PREVIOUS
    before[now >= 0] = now[now >= 0]


def _note_rates(table: VmTable, *, has_interval: bool) -> None:
    """Store the rates of guests that should run, and add known values to the minute."""
    ingest.note_rates(
        table.counted, MINUTE_ROWS, has_interval, table.taken, table.sums, table.sum_counts
    )


def _pace(
    dt_s: float | None, *, sequence: int, event_ms: int, configuration: Configuration
) -> Pace:
    step_s = 1.0 if dt_s is None else dt_s
    return Pace(
        step_s=float(step_s),
        has_interval=dt_s is not None,
        sequence=sequence,
        event_ms=event_ms,
        share_tau_s=SHARE_TAU_S,
        level_weight=min(1.0, step_s / configuration.level_tau_s),
        contention_weight=min(1.0, step_s / configuration.contention_tau_s),
        habit_nats=_HABIT_NATS,
        levels_full=_LEVELS_FULL,
    )


def _fold_aggregates(table: VmTable, size: int, step_s: float, time_s: float) -> None:
    """Fold totals; a VM that should not run is unknown, not silent."""
    taken = table.taken
    vcpus = table.numbers("vcpus")
    aggregates.fold_aggregates(
        table.vitals[:size],
        table.recent[:size],
        taken.rates,
        taken.memory,
        vcpus,
        taken.measured,
        table.hold,
        step_s,
        -math.expm1(-step_s / _DAY_S),
        table.signs[:size],
    )
    trends.fold_trends(
        table.trends[:size],
        table.means[:size],
        table.hours[:size],
        taken.rates,
        taken.memory,
        vcpus,
        table.vitals[:size],
        step_s,
        time_s,
        table.shows[:size],
    )


def _fold_standstill(
    table: VmTable, rows: VmRows, step_s: float, configuration: Configuration
) -> None:
    """Detect which vCPUs stood still, and learn for how long; missing is unknown."""
    if rows.vcpus is None and not len(table.vcpu_times) and not _reports_kvm(rows):
        # Recorded fleets have neither vCPU times nor KVM counts; skipping them shortens a replay.
        table.stills[...] = standstill.UNKNOWN
        return
    step = np.float32(step_s)
    broken = table.taken.epochs != ingest.SAME_EPOCH
    signs = np.full((3, len(table.hold)), silence_model.UNKNOWN, np.int8)
    counts, times = _vcpus_of(rows)
    rests = table.taken.alive == silence_model.SILENT
    standstill.fold_vcpus(
        table.vcpu_counts,
        table.vcpu_times,
        counts,
        times,
        table.taken.judged,
        broken,
        rests,
        configuration.vcpu_idle_share * step_s * 1e9,
        table.others_gaps,
        table.whole_gaps,
        table.numbers("vcpu_mover"),
        table.stills[:2],
        signs[:2],
    )
    table.vcpu_counts, table.vcpu_times = standstill.keep_times(
        table.vcpu_counts, table.vcpu_times, counts, times, table.taken.judged, broken
    )
    kvm = rows.integers[_KVM[1:]]
    if rows.missing is not None:
        kvm[rows.missing[_KVM[1:]]] = standstill.NO_TIME
    standstill.fold_exits(
        table.kvm,
        kvm,
        table.taken.judged,
        table.taken.epochs != ingest.SAME_EPOCH,
        rests,
        table.exit_gaps,
        table.stills[2],
        signs[2],
    )
    share = standstill.SHARE
    silence_model.fold_life(table.others_gaps, signs[0], table.hold, step, table.others, share)
    silence_model.fold_life(table.whole_gaps, signs[1], table.hold, step, table.whole, share)
    silence_model.fold_life(table.exit_gaps, signs[2], table.hold, step, table.exits, share)


def _reports_kvm(rows: VmRows) -> bool:
    return rows.missing is None or not rows.missing[_KVM].all()


def _vcpus_of(rows: VmRows) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Return a frame's counts and times in the form that the kernel takes."""
    if rows.vcpus is None:
        return np.zeros(len(rows), np.uint16), np.zeros(0, np.uint64)
    times = rows.vcpus.times_ns.copy()
    if rows.vcpus.missing is not None:
        times[rows.vcpus.missing] = standstill.NO_TIME
    return np.ascontiguousarray(rows.vcpus.counts), times


def _update_state(table: VmTable, rows: VmRows, pace: Pace) -> None:
    """Run the kernels that detect activity, learn gaps and update the state of each VM."""
    taken, size = table.taken, len(rows)
    seen = table.baseline[:, baseline.COUNT : baseline.COUNT + 4]
    state_update.fold_signs(
        table.counted,
        seen,
        taken.judged,
        _IMPOSSIBLE_BYTES_PER_S,
        taken.alive,
        taken.disk_alive,
        taken.moves,
    )
    step = np.float32(pace.step_s)
    silence_model.fold_life(
        table.gaps, taken.alive, table.hold, step, table.life, silence_model.WHOLE
    )
    silence_model.fold_life(
        table.disk_gaps, taken.disk_alive, table.hold, step, table.disk, silence_model.WHOLE
    )
    state_update.update_state(
        table.floats,
        table.integers,
        table.levels,
        LEVEL_EDGES,
        _FIGURES,
        _NUMBERS,
        pace,
        table.counted[0],
        taken.judged,
        taken.known,
        taken.alive,
        taken.disk_alive,
        taken.moves,
        table.life[1],
        table.disk[1],
        rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]],
        taken.updated[:size],
        taken.delay[:size],
    )

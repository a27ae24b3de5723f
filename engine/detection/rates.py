"""Turn a frame's columns into rates, epochs and signs of life, for a whole node in one pass.

A missing value is unknown: it neither counts as silence nor ends one. A smaller counter, another
instance or a reboot begins a new epoch and gives no rate.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.detection.configuration import Configuration
from engine.detection.lanes import MINUTE_ROWS, F, I, Lanes
from engine.stream.counters import IMPOSSIBLE_PER_S
from engine.wire.frame import VmRows
from engine.wire.metrics import GAUGE_ROW, INTEGER_ROW, KVM_COUNTERS, VM_STATES
from models.kernels import baseline, course, gaps, intake, standstill, trends, vitals
from models.kernels.course import Pace
from models.kernels.vitals_layout import LEVEL_EDGES

# Rows of the values of `models.kernels.intake` in a frame, and in the lanes' integers.
_PLACES: Final = np.array(
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
# A counter error is not a sign of life.
_IMPOSSIBLE_BYTES_PER_S: Final = np.float32(IMPOSSIBLE_PER_S)
# By state, whether a guest is meant to run; the last entry is for an unknown state (-1).
MEANT_TO_RUN: Final = np.array(
    [*(name in {"running", "blocked", "crashed"} for name in VM_STATES), False], np.bool_
)
SHARE_TAU_S: Final = 60.0
_DAY_S: Final = 86_400.0
# A silence worth more than this may be a fault: activity in it is not learned as usual.
_HABIT_NATS: Final = 2.0
# Counts of a VM's CPU levels are halved at a day of 1 s samples, so that they can adapt.
_LEVELS_FULL: Final = 86_400.0
# As arrays: Numba takes a tuple field by field.
_FIGURES: Final = np.array([F[name] for name in course.Figures._fields])
_NUMBERS: Final = np.array([I[name] for name in course.Numbers._fields])


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
    _take_device_sets(lanes, rows)
    _take_rows(lanes, rows, has_interval=dt_s is not None)
    step_s = 1.0 if dt_s is None else dt_s
    taken = lanes.taken
    baseline.fold_counters(
        lanes.baseline,
        lanes.previous,
        taken.counters,
        taken.flags,
        _weights(round(step_s, 3)),
        lanes.counted,
    )
    pace = _pace(dt_s, sequence=sequence, event_ms=event_ms, configuration=configuration)
    _fold_course(lanes, rows, pace)
    _fold_standstill(lanes, rows, step_s, configuration)
    _note_rates(lanes, has_interval=pace.has_interval)
    _fold_vitals(lanes, len(rows), step_s, event_ms / 1000.0)


def _take_rows(lanes: Lanes, rows: VmRows, *, has_interval: bool) -> None:
    """Store the frame's rows; a boot also resets the activity seen before."""
    missing = _NOTHING_MISSING if rows.missing is None else rows.missing
    # A replay passes slices: another layout would compile the kernel a second time.
    begun = intake.take_rows(
        np.ascontiguousarray(rows.integers),
        np.ascontiguousarray(missing),
        _PLACES,
        MEANT_TO_RUN,
        has_interval,
        lanes.previous,
        lanes.integers,
        I["migrated"],
        lanes.taken,
    )
    if not begun:
        return
    booted = np.flatnonzero(lanes.taken.epochs[: len(rows)] == intake.NEW_BOOT)
    if len(booted):
        lanes.begin_boot(booted)


def _take_device_sets(lanes: Lanes, rows: VmRows) -> None:
    """Reset sums over a changed set of devices: the change is neither boot nor life."""
    row, size = INTEGER_ROW["device_set"], len(rows)
    now = rows.integers[row].astype(np.int64)
    if rows.missing is not None:
        now[rows.missing[row]] = -1
    before = lanes.integers[I["device_set"], :size]
    other = (now >= 0) & (before >= 0) & (now != before)
    if other.any():
        # The CPU time, the first of them, is not summed over devices.
        lanes.previous[1:4, np.flatnonzero(other)] = baseline.NO_PREVIOUS
    before[now >= 0] = now[now >= 0]


def _note_rates(lanes: Lanes, *, has_interval: bool) -> None:
    """Store the rates of guests that should run, and add known values to the minute."""
    intake.note_rates(
        lanes.counted, MINUTE_ROWS, has_interval, lanes.taken, lanes.sums, lanes.sum_counts
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


def _fold_vitals(lanes: Lanes, size: int, step_s: float, time_s: float) -> None:
    """Fold totals; a VM that should not run is unknown, not silent."""
    taken = lanes.taken
    vcpus = lanes.numbers("vcpus")
    vitals.fold_vitals(
        lanes.vitals[:size],
        lanes.recent[:size],
        taken.rates,
        taken.memory,
        vcpus,
        taken.measured,
        lanes.hold,
        step_s,
        -math.expm1(-step_s / _DAY_S),
        lanes.signs[:size],
    )
    trends.fold_trends(
        lanes.trends[:size],
        lanes.means[:size],
        lanes.hours[:size],
        taken.rates,
        taken.memory,
        vcpus,
        lanes.vitals[:size],
        step_s,
        time_s,
        lanes.shows[:size],
    )


def _fold_standstill(
    lanes: Lanes, rows: VmRows, step_s: float, configuration: Configuration
) -> None:
    """Detect which vCPUs stood still, and learn for how long; missing is unknown."""
    if rows.vcpus is None and not len(lanes.vcpu_times) and not _tells_kvm(rows):
        # Recorded fleets have neither, and the cost of their replay is limited.
        lanes.stills[...] = standstill.UNKNOWN
        return
    step = np.float32(step_s)
    broken = lanes.taken.epochs != intake.SAME_EPOCH
    signs = np.full((3, len(lanes.hold)), gaps.UNKNOWN, np.int8)
    counts, times = _vcpus_of(rows)
    rests = lanes.taken.alive == gaps.SILENT
    standstill.fold_vcpus(
        lanes.vcpu_counts,
        lanes.vcpu_times,
        counts,
        times,
        lanes.taken.judged,
        broken,
        rests,
        configuration.vcpu_idle_share * step_s * 1e9,
        lanes.others_gaps,
        lanes.whole_gaps,
        lanes.numbers("vcpu_mover"),
        lanes.stills[:2],
        signs[:2],
    )
    lanes.vcpu_counts, lanes.vcpu_times = standstill.keep_times(
        lanes.vcpu_counts, lanes.vcpu_times, counts, times, lanes.taken.judged, broken
    )
    kvm = rows.integers[_KVM[1:]]
    if rows.missing is not None:
        kvm[rows.missing[_KVM[1:]]] = standstill.NO_TIME
    standstill.fold_exits(
        lanes.kvm,
        kvm,
        lanes.taken.judged,
        lanes.taken.epochs != intake.SAME_EPOCH,
        rests,
        lanes.exit_gaps,
        lanes.stills[2],
        signs[2],
    )
    share = standstill.SHARE
    gaps.fold_life(lanes.others_gaps, signs[0], lanes.hold, step, lanes.others, share)
    gaps.fold_life(lanes.whole_gaps, signs[1], lanes.hold, step, lanes.whole, share)
    gaps.fold_life(lanes.exit_gaps, signs[2], lanes.hold, step, lanes.exits, share)


def _tells_kvm(rows: VmRows) -> bool:
    return rows.missing is None or not rows.missing[_KVM].all()


def _vcpus_of(rows: VmRows) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Return a frame's counts and times in the form that the kernel takes."""
    if rows.vcpus is None:
        return np.zeros(len(rows), np.uint16), np.zeros(0, np.uint64)
    times = rows.vcpus.times_ns.copy()
    if rows.vcpus.missing is not None:
        times[rows.vcpus.missing] = standstill.NO_TIME
    return np.ascontiguousarray(rows.vcpus.counts), times


def _fold_course(lanes: Lanes, rows: VmRows, pace: Pace) -> None:
    """Run the kernels that detect activity, learn gaps and update each VM's course."""
    taken, size = lanes.taken, len(rows)
    seen = lanes.baseline[:, baseline.COUNT : baseline.COUNT + 4]
    course.fold_signs(
        lanes.counted,
        seen,
        taken.judged,
        _IMPOSSIBLE_BYTES_PER_S,
        taken.alive,
        taken.disk_alive,
        taken.moves,
    )
    step = np.float32(pace.step_s)
    gaps.fold_life(lanes.gaps, taken.alive, lanes.hold, step, lanes.life, gaps.WHOLE)
    gaps.fold_life(lanes.disk_gaps, taken.disk_alive, lanes.hold, step, lanes.disk, gaps.WHOLE)
    course.fold_course(
        lanes.floats,
        lanes.integers,
        lanes.levels,
        LEVEL_EDGES,
        _FIGURES,
        _NUMBERS,
        pace,
        lanes.counted[0],
        taken.judged,
        taken.known,
        taken.alive,
        taken.disk_alive,
        taken.moves,
        lanes.life[1],
        lanes.disk[1],
        rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]],
        taken.updated[:size],
        taken.delay[:size],
    )

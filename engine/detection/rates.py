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
from models.kernels import baseline, course, gaps, trends, vitals
from models.kernels.course import Pace

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
_IMPOSSIBLE_BYTES_PER_S: Final = np.float32(1e11)
# By state; the last entry is for a state that is not known (-1).
_RUNNING: Final = np.array(
    [*(name in {"running", "blocked", "crashed"} for name in VM_STATES), False], np.bool_
)
_SHARE_TAU_S: Final = 60.0
_DAY_S: Final = 86_400.0
# A silence worth more than this may be a fault: what happens in it is not learned as habit.
_HABIT_NATS: Final = 2.0
# Counts of a VM's CPU levels are halved at a day of samples a second, so that habits may change.
_LEVELS_FULL: Final = 86_400.0
_FIGURES: Final = course.Figures(**{name: F[name] for name in course.Figures._fields})
_NUMBERS: Final = course.Numbers(**{name: I[name] for name in course.Numbers._fields})


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
    pace = _pace(dt_s, sequence=sequence, event_ms=event_ms, configuration=configuration)
    _fold_course(lanes, rows, present, running, pace)
    _fold_vitals(lanes, rows, present, running, dt_s=dt_s, step_s=step_s)
    if dt_s is None:
        return
    values = lanes.counted[MINUTE_ROWS]
    valid = ~np.isnan(values)
    lanes.sums += np.where(valid, values, 0.0)
    lanes.sum_counts += valid


def _pace(
    dt_s: float | None, *, sequence: int, event_ms: int, configuration: Configuration
) -> Pace:
    step_s = 1.0 if dt_s is None else dt_s
    return Pace(
        step_s=float(step_s),
        has_interval=dt_s is not None,
        sequence=sequence,
        event_ms=event_ms,
        share_tau_s=_SHARE_TAU_S,
        level_weight=min(1.0, step_s / configuration.level_tau_s),
        contention_weight=min(1.0, step_s / configuration.contention_tau_s),
        habit_nats=_HABIT_NATS,
        levels_full=_LEVELS_FULL,
    )


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
    rates = rates.astype(np.float32)
    vitals.fold_vitals(
        lanes.vitals[:size],
        lanes.recent[:size],
        rates,
        memory,
        lanes.numbers("vcpus"),
        present_any(present, width),
        lanes.hold,
        step_s,
        -math.expm1(-step_s / _DAY_S),
        lanes.signs[:size],
    )
    trends.fold_trends(
        lanes.trends[:size],
        lanes.means[:size],
        rates,
        memory,
        lanes.numbers("vcpus"),
        lanes.vitals[:size],
        step_s,
        lanes.shows[:size],
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


def _fold_course(lanes: Lanes, rows: VmRows, present: Bools, running: Bools, pace: Pace) -> None:
    """Let the kernels say what moved, learn the gaps, and follow each VM's course."""
    width = running.size
    judged = running if pace.has_interval else np.zeros(width, np.bool_)
    alive, disk_alive = np.empty(width, np.int8), np.empty(width, np.int8)
    moves = np.empty(width, np.uint8)
    seen = lanes.baseline[:, baseline.COUNT : baseline.COUNT + 4]
    course.fold_signs(
        lanes.counted, seen, judged, _IMPOSSIBLE_BYTES_PER_S, alive, disk_alive, moves
    )
    step = np.float32(pace.step_s)
    gaps.fold_life(lanes.gaps, alive, lanes.hold, step, lanes.life)
    gaps.fold_life(lanes.disk_gaps, disk_alive, lanes.hold, step, lanes.disk)
    delayed = INTEGER_ROW["vcpu_delay_ns"]
    if not present[delayed].any():
        delayed = INTEGER_ROW["vcpu_wait_ns"]
    updated = INTEGER_ROW["balloon_last_update_s"]
    course.fold_course(
        lanes.floats,
        lanes.integers,
        lanes.levels,
        LEVEL_EDGES,
        _FIGURES,
        _NUMBERS,
        pace,
        lanes.counted[0],
        judged,
        judged & present_any(present, width),
        alive,
        disk_alive,
        moves,
        lanes.life[1],
        lanes.disk[1],
        rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]],
        np.where(present[updated], rows.integers[updated], 0).astype(np.int64),
        np.where(present[delayed], rows.integers[delayed].astype(np.int64), -1),
    )

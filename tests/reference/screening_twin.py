"""The screening of a node's rows in whole-array steps: the twin of `models.kernels.screening`."""

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Node
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import F, I, VmTable
from flatline.engine.wire.metrics import VM_STATES
from flatline.models.kernels import aggregates_layout, screening, trends

Bools = NDArray[np.bool_]
_CRASHED = VM_STATES.index("crashed")
_O, _SHOWS = aggregates_layout.OUT, trends.OUT
_SCORE = slice(_O["silence_nats"], _O["memory_nats"] + 1)


def look(table: VmTable, node: Node, configuration: Configuration) -> dict[int, Bools]:
    """Return, by bit, the rows in use that have it."""
    size = len(table)
    signs, shows = table.signs[:size], table.shows[:size]
    totals = _only_aggregates(table)
    unseen = signs[:, _O["unseen_s"]]
    absent_s = max(
        configuration.vm_silence_s, configuration.unseen_member_samples * node.interval_ms / 1e3
    )
    leak = (shows[:, _SHOWS["rises"]] >= configuration.leak_rises) & (
        shows[:, _SHOWS["growth"]] >= configuration.leak_growth
    )
    fresh = shows[:, _SHOWS["closed"]] > 0
    run = signs[:, _O["run"]]
    young = totals & (run >= 1) & (run <= configuration.totals_shared_samples)
    young &= signs[:, _O["active_share"]] >= configuration.totals_active_share
    young &= signs[:, _O["silence_nats"]] >= configuration.totals_shared_nats
    return {
        screening.ONLY_AGGREGATES: totals,
        screening.SUSPECT: _suspects(table, totals, configuration),
        screening.YOUNG: young,
        screening.MOVING: totals & (signs[:, _O["known"]] > 0) & (run == 0),
        screening.LEAK: leak,
        screening.FLOOD: shows[:, _SHOWS["flood"]] >= configuration.flood_buckets,
        screening.RUNAWAY: shows[:, _SHOWS["runaway_cores"]] > 0,
        screening.BOOTED: (shows[:, _SHOWS["booted"]] > 0) & fresh & totals,
        screening.SLOWED: shows[:, _SHOWS["slowed_hours"]] > 0,
        screening.FELL_DISK: _fell(table, node, "disk", configuration),
        screening.FELL_TX: _fell(table, node, "tx", configuration),
        screening.FELL_LIFE: _fell(table, node, "life", configuration),
        screening.UNSEEN: unseen > 0,
        screening.ABSENT: unseen >= absent_s,
    }


def _only_aggregates(table: VmTable) -> Bools:
    size = len(table)
    no_picture = (table.integers[I["vcpus_busy"], :size] < 0) & np.isnan(
        table.floats[F["busiest"], :size]
    )
    no_picture &= table.integers[I["balloon_moved"], :size] < 2
    return no_picture


def _suspects(table: VmTable, totals: Bools, configuration: Configuration) -> Bools:
    size = len(table)
    numbers, figures = table.integers[:, :size], table.floats[:, :size]
    level = figures[F["cpu_nats"]]
    at_most = np.maximum(np.minimum(level, configuration.cpu_cap_nats), configuration.one_core_nats)
    nats = table.life[1, :size]
    period = np.maximum(figures[F["balloon_period_s"]], 0.1)
    still = figures[F["balloon_still_s"]] / period * configuration.balloon_nats_per_period
    at_most = at_most + np.where(
        numbers[I["balloon_moved"]] >= 2, np.minimum(still, configuration.balloon_cap_nats), 0.0
    )
    suspect: Bools = (numbers[I["run_samples"]] >= 2) & (nats >= configuration.silence_alert_nats)
    suspect &= nats + at_most >= configuration.alert_nats
    suspect &= (numbers[I["balloon_fresh"]] == 0) | (numbers[I["balloon_moved"]] < 2)
    hung = (table.disk[0, :size] >= configuration.hung_s) & (level >= configuration.hung_level_nats)
    hung &= figures[F["cpu"]] <= configuration.hung_cpu_ratio * figures[F["cpu_before"]]
    suspect |= hung
    suspect &= ~totals
    suspect |= _by_totals(table, configuration) & totals
    suspect |= numbers[I["state"]] == _CRASHED
    suspect |= (figures[F["epoch_s"]] >= configuration.boot_stuck_s) & (
        (numbers[I["moved"]] == 0) & (numbers[I["balloon_moved"]] < 2)
    )
    return suspect


def _by_totals(table: VmTable, configuration: Configuration) -> Bools:
    signs = table.signs[: len(table)]
    found: Bools = (signs[:, _O["known"]] > 0) & (
        signs[:, _O["run"]] >= configuration.totals_alert_samples
    )
    found &= signs[:, _SCORE].sum(axis=1) >= configuration.totals_nats("alert")
    found |= signs[:, _O["disk_hung"]] >= configuration.totals_hung_samples
    return found


def _fell(table: VmTable, node: Node, signal: str, configuration: Configuration) -> Bools:
    size = len(table)
    window_s = max(configuration.gate_window_s, 3 * node.dt_s)
    if signal == "tx":
        still = table.row("tx_still_s")[:size]
        by_tx: Bools = (still >= 2 * node.dt_s) & (still <= window_s)
        return by_tx & (table.row("tx_share")[:size] >= 0.8 * np.exp(-still / 60.0))
    out = table.disk if signal == "disk" else table.life
    samples = table.numbers("disk_samples" if signal == "disk" else "run_samples")[:size]
    fell: Bools = samples >= (2 if signal == "disk" else 3)
    fell &= (out[0, :size] <= window_s) & (out[1, :size] >= configuration.shared_nats)
    return fell

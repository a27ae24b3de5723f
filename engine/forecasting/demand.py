"""Use of a node and of its VMs, as means over steps.

A missing value is unknown. A smaller counter, another instance or another run of the collector
starts a new epoch and never gives a rate.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.wire.forecast import METRICS
from engine.wire.frame import UUID_BYTES, Frame, VmRows, uuids_of
from engine.wire.metrics import INTEGER_ROW

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_COUNTED: Final = (
    "cpu_time_ns",
    "block_rd_bytes",
    "block_wr_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
)
_COUNTERS: Final = np.array([INTEGER_ROW[name] for name in _COUNTED])
# Rows of METRICS that come from counters, and the factor that converts each.
_RATES: Final = np.array([0, 2, 3, 4, 5])
_UNITS: Final = np.array([[1e-9], [1.0], [1.0], [1.0], [1.0]])
_KIB: Final = 1024.0
# More than any device moves: an error of the counter.
_IMPOSSIBLE_PER_S: Final = 1e11
_IMPOSSIBLE: Final = 1e18


class Demand:
    """Sums of the current step for one node, and the counters for the next rate.

    Attributes
    ----------
    roster
        UUIDs in the order of all arrays, 16 bytes each.
    vcpus
        Number of vCPUs of each VM, shape (n,); NaN where unknown.
    """

    def __init__(self, roster: bytes = b"") -> None:
        size = len(roster) // UUID_BYTES
        self.roster = roster
        self.run = ""
        self.sequence = -1
        self.mono_ns = 0
        self.counters = np.full((len(_COUNTERS), size), np.nan)
        self.instances = np.full(size, np.nan)
        self.device_sets = np.full(size, np.nan)
        self.vcpus = np.full(size, np.nan)
        # The node itself is the last column.
        self.sums = np.zeros((len(METRICS), size + 1))
        self.counts = np.zeros((len(METRICS), size + 1))

    def __len__(self) -> int:
        return len(self.roster) // UUID_BYTES

    def is_repeat(self, frame: Frame) -> bool:
        """Return whether this frame or a later one of its run was already processed."""
        return frame.header.run == self.run and frame.header.sequence <= self.sequence

    def take(self, frame: Frame) -> None:
        """Process a frame with the same roster."""
        rows, header = frame.rows, frame.header
        dt_s = None
        if header.run == self.run and header.mono_ns > self.mono_ns:
            dt_s = (header.mono_ns - self.mono_ns) / 1e9
        self.run, self.sequence, self.mono_ns = header.run, header.sequence, header.mono_ns
        values = np.full((len(METRICS), len(self) + 1), np.nan)
        values[1, :-1] = _memory(rows)
        counters = rows.integers[_COUNTERS].astype(np.float64)
        instances = _level(rows, "instance")
        if rows.missing is not None:
            counters[rows.missing[_COUNTERS]] = np.nan
        sets = _level(rows, "device_set")
        told = ~np.isnan(sets)
        # Sums over another set of devices cannot be compared. CPU time is not a sum over devices.
        self.counters[1:, told & ~np.isnan(self.device_sets) & (sets != self.device_sets)] = np.nan
        self.device_sets = np.where(told, sets, self.device_sets)
        if dt_s is not None:
            values[_RATES, :-1] = self._rates(counters, instances, dt_s)
        self.counters, self.instances = counters, instances
        vcpus = _level(rows, "vcpus")
        # None at all is unknown: a class needs a share of them.
        self.vcpus = np.where(vcpus > 0.0, vcpus, self.vcpus)
        values[:, -1] = _own(frame, values[:, :-1])
        # More than any node has: the gauge was not measured.
        values[~(np.abs(values) < _IMPOSSIBLE)] = np.nan
        known = ~np.isnan(values)
        self.sums += np.where(known, values, 0.0)
        self.counts += known

    def _rates(self, counters: F64, instances: F64, dt_s: float) -> F64:
        grown: F64 = (counters - self.counters) * _UNITS / dt_s
        anew = (grown < 0).any(axis=0) | (instances != self.instances) & ~np.isnan(instances)
        grown[:, anew] = np.nan
        grown[grown > _IMPOSSIBLE_PER_S] = np.nan
        return grown

    def close(self) -> F64:
        """Return the step's means, shape (n + 1, metrics), the node last; start the next step."""
        means = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1.0), np.nan)
        self.sums[...] = 0.0
        self.counts[...] = 0.0
        return np.ascontiguousarray(means.T)

    def followed(self, roster: bytes) -> tuple["Demand", I64]:
        """Return the demand in another order of VMs, and the old index of each, -1 for a new VM."""
        before = {vm: place for place, vm in enumerate(uuids_of(self.roster))}
        places = np.array([before.get(vm, -1) for vm in uuids_of(roster)], np.int64)
        moved = Demand(roster)
        moved.run, moved.sequence, moved.mono_ns = self.run, self.sequence, self.mono_ns
        kept = np.flatnonzero(places >= 0)
        for name in ("counters", "instances", "device_sets", "vcpus"):
            getattr(moved, name)[..., kept] = getattr(self, name)[..., places[kept]]
        for name in ("sums", "counts"):
            getattr(moved, name)[:, kept] = getattr(self, name)[:, places[kept]]
            getattr(moved, name)[:, -1] = getattr(self, name)[:, -1]
        return moved, places


def _memory(rows: VmRows) -> F64:
    used = _level(rows, "balloon_current_kib") - _level(rows, "balloon_usable_kib")
    resident = _level(rows, "balloon_rss_kib")
    return np.where(np.isnan(used), resident, np.maximum(used, 0.0)) * _KIB


def _level(rows: VmRows, name: str) -> F64:
    row = INTEGER_ROW[name]
    values: F64 = rows.integers[row].astype(np.float64)
    if rows.missing is not None:
        values[rows.missing[row]] = np.nan
    return values


def _own(frame: Frame, vms: F64) -> F64:
    """Return the metrics of the node: its gauges where measured, else the sum over its VMs."""
    known = ~np.isnan(vms)
    own = np.where(known.any(axis=1), np.where(known, vms, 0.0).sum(axis=1), np.nan)
    node = frame.node
    own[0] = node.get("cpu_busy_ratio", np.nan) * node.get("cpu_cores", np.nan)
    total = node.get("memory_total_bytes", np.nan)
    own[1] = total - node.get("memory_available_bytes", np.nan)
    return own

"""Resource usage of a node and of its VMs, averaged over each step of the forecast.

The first frame of a collector's run gives no rate: its monotonic clock is not comparable with that
of the run before.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.stream.counters import IMPOSSIBLE_PER_S, Counters, known
from flatline.engine.wire.forecast import METRICS
from flatline.engine.wire.frame import UUID_BYTES, Frame, VmRows, uuids_of

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_COUNTED: Final = (
    "cpu_time_ns",
    "block_rd_bytes",
    "block_wr_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
)
# The rows of METRICS that are rates of counters, and the factor that converts each counter's unit.
_RATES: Final = np.array([0, 2, 3, 4, 5])
_UNITS: Final = np.array([[1e-9], [1.0], [1.0], [1.0], [1.0]])
_KIB: Final = 1024.0
_IMPOSSIBLE: Final = 1e18


class Demand:
    """Sums of the current step for one node, and the last counters, which the next rates need.

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
        self.counters = Counters(_COUNTED, size)
        self.vcpus = np.full(size, np.nan)
        # The node itself is the last column.
        self.sums = np.zeros((len(METRICS), size + 1))
        self.counts = np.zeros((len(METRICS), size + 1))

    def __len__(self) -> int:
        return len(self.roster) // UUID_BYTES

    def is_repeat(self, frame: Frame) -> bool:
        """Return whether this frame or a later one of its run was already processed.

        The first frame of another run is no repeat.
        """
        return frame.header.run == self.run and frame.header.sequence <= self.sequence

    def take(self, frame: Frame) -> None:
        """Process a frame whose roster equals `roster`; for another roster use `followed` first.

        Repeated frames must be left out (`is_repeat`).
        """
        rows, header = frame.rows, frame.header
        dt_s = None
        if header.run == self.run and header.mono_ns > self.mono_ns:
            dt_s = (header.mono_ns - self.mono_ns) / 1e9
        self.run, self.sequence, self.mono_ns = header.run, header.sequence, header.mono_ns
        values = np.full((len(METRICS), len(self) + 1), np.nan)
        values[1, :-1] = _memory(rows)
        grown = self.counters.take(rows)
        if dt_s is not None:
            rates = grown * _UNITS / dt_s
            rates[rates > IMPOSSIBLE_PER_S] = np.nan
            values[_RATES, :-1] = rates
        (vcpus,) = known(rows, ("vcpus",))
        # A count of 0 is ignored and the last known count stays, because the workload class is a
        # share of the vCPUs.
        self.vcpus = np.where(vcpus > 0.0, vcpus, self.vcpus)
        values[:, -1] = _own(frame, values[:, :-1])
        # A value above what any node can have is an error of the gauge and counts as unknown.
        values[~(np.abs(values) < _IMPOSSIBLE)] = np.nan
        measured = ~np.isnan(values)
        self.sums += np.where(measured, values, 0.0)
        self.counts += measured

    def close(self) -> F64:
        """Return the step's means, shape (n + 1, metrics), the node last; start the next step.

        Metrics are in the order of `METRICS`; NaN is a metric without a known value in the step.
        """
        means = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1.0), np.nan)
        self.sums[...] = 0.0
        self.counts[...] = 0.0
        return np.ascontiguousarray(means.T)

    def arrays(self) -> dict[str, F64]:
        """Return the arrays of the state by name, to be saved or filled; they are not copies.

        The roster, the run, the sequence and the monotonic time are not among them.
        """
        return {
            "counters": self.counters.values,
            "instances": self.counters.instances,
            "device_sets": self.counters.device_sets,
            "vcpus": self.vcpus,
            "sums": self.sums,
            "counts": self.counts,
        }

    def followed(self, roster: bytes) -> tuple["Demand", I64]:
        """Return the demand with the VMs in the order of `roster`, and their old indices.

        `roster` has 16 bytes for each VM. The indices have shape (VMs of `roster`,); that of a new
        VM is -1. State of VMs that are not in `roster` is left out.
        """
        before = {vm: place for place, vm in enumerate(uuids_of(self.roster))}
        indices = np.array([before.get(vm, -1) for vm in uuids_of(roster)], np.int64)
        moved = Demand(roster)
        moved.run, moved.sequence, moved.mono_ns = self.run, self.sequence, self.mono_ns
        kept = np.flatnonzero(indices >= 0)
        moved.counters = self.counters.moved(indices)
        moved.vcpus[kept] = self.vcpus[indices[kept]]
        for name in ("sums", "counts"):
            getattr(moved, name)[:, kept] = getattr(self, name)[:, indices[kept]]
            getattr(moved, name)[:, -1] = getattr(self, name)[:, -1]
        return moved, indices


def _memory(rows: VmRows) -> F64:
    names = ("balloon_current_kib", "balloon_usable_kib", "balloon_rss_kib")
    current, usable, resident = known(rows, names)
    used = current - usable
    memory: F64 = np.where(np.isnan(used), resident, np.maximum(used, 0.0)) * _KIB
    return memory


def _own(frame: Frame, vms: F64) -> F64:
    """Return the metrics of the node.

    CPU and memory are gauges of the node, NaN if not measured. All others are sums over its VMs.
    """
    measured = ~np.isnan(vms)
    own = np.where(measured.any(axis=1), np.where(measured, vms, 0.0).sum(axis=1), np.nan)
    node = frame.node
    own[0] = node.get("cpu_busy_ratio", np.nan) * node.get("cpu_cores", np.nan)
    total = node.get("memory_total_bytes", np.nan)
    own[1] = total - node.get("memory_available_bytes", np.nan)
    return own

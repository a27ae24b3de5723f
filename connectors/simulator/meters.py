"""Counters that are exact at any moment, though behaviour changes once per step.

Between two changes a VM completes requests and packets at an even pace from a random start, and
uses CPU at a constant speed; its counters at time t follow from those at the last change. So a node
can be sampled at any moment, in any order, without stepping the world. The bytes and the duration
of a request are counted when it completes, never in part.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire import metrics

Floats = NDArray[np.float64]
# VM indices: a slice where they are consecutive, else an array.
Indices = slice | NDArray[np.intp]

# Rows of an array: completed requests and packets, then the elapsed time.
READ, WRITE, FLUSH, SEND, RECEIVE, _PASSED = range(6)

# The counters are in the order of the wire format, followed by the time of each vCPU.
ROW: Final = metrics.INTEGER_ROW
VCPUS: Final = len(metrics.COUNTERS)
_REQUESTS: Final = {
    "block_rd_reqs": READ,
    "block_wr_reqs": WRITE,
    "block_fl_reqs": FLUSH,
    "net_tx_pkts": SEND,
    "net_rx_pkts": RECEIVE,
}
# The kind of request or packet with which each counter grows. Other counters grow with time, or not
# at all if they are filled in elsewhere.
_MOVED_BY: Final = _REQUESTS | {
    "block_rd_bytes": READ,
    "block_wr_bytes": WRITE,
    "net_tx_bytes": SEND,
    "net_rx_bytes": RECEIVE,
    "block_rd_ns": READ,
    "block_wr_ns": WRITE,
    "block_fl_ns": FLUSH,
}
_TICK_NS: Final = np.uint64(10_000_000)
_TICKS: Final = slice(ROW["cpu_user_ns"], ROW["cpu_system_ns"] + 1)


class Paces(NamedTuple):
    """Growth of counters in a step; for several steps, the first axis is the step.

    Attributes
    ----------
    events
        Shape (5, N): requests and packets completed in a whole step.
    phase
        Shape (5, N), in [0, 1): position between two events at which the step starts.
    gains
        Shape (`VCPUS` + V, N): growth of each counter and vCPU time with one request or packet of
        its kind, or with one ns.
    """

    events: Floats
    phase: NDArray[np.float32]
    gains: Floats

    @classmethod
    def of(cls, *shape: int, vcpus: int) -> "Paces":
        """Return zero growth; `shape` is (VMs,) or (steps, VMs).

        `vcpus` is the largest number of vCPUs of a VM.
        """
        steps, size = shape[:-1], shape[-1]
        gains = np.zeros((*steps, VCPUS + vcpus, size))
        gains[..., [ROW[name] for name in _REQUESTS], :] = 1.0
        return cls(np.zeros((*steps, 5, size)), np.zeros((*steps, 5, size), np.float32), gains)


class Meters:
    """Counters of all VMs and their growth during the current step.

    Times are in ns since the world began.

    Attributes
    ----------
    pace
        Growth in the current step.
    """

    def __init__(self, size: int, *, vcpus: int, step_ns: int) -> None:
        self._step_ns = step_ns
        self._base = np.zeros((VCPUS + vcpus, size))
        self._since_ns = np.zeros(size, np.int64)
        self._asked_ns = -1
        self._everyone: tuple[NDArray[np.uint64], Floats] | None = None
        self.pace = Paces.of(size, vcpus=vcpus)
        counters = [_MOVED_BY.get(metric.name, _PASSED) for metric in metrics.COUNTERS]
        self._moved_by = np.array(counters + [_PASSED] * vcpus)

    def settle(self, vms: Indices, now_ns: int) -> None:
        """Bring the counters of `vms` up to `now_ns`; call this before any change of their pace."""
        self._base[:, vms] = self._at(vms, now_ns)
        self._since_ns[vms] = now_ns
        self._asked_ns = -1

    def restart(self, vms: Indices, now_ns: int) -> None:
        """Restart all counters of `vms` at 0, as a new qemu process does."""
        self._base[:, vms] = 0.0
        self._since_ns[vms] = now_ns
        self._asked_ns = -1

    def age(self, uptime_s: Floats) -> None:
        """Set all counters as if the current pace had lasted for `uptime_s`, shape (N,)."""
        moved = np.empty((6, uptime_s.size))
        moved[:_PASSED] = self.pace.events * np.floor(uptime_s * 1e9 / self._step_ns)
        moved[_PASSED] = uptime_s * 1e9
        self._base += moved[self._moved_by] * self.pace.gains
        self._asked_ns = -1

    def read(self, vms: Indices, now_ns: int) -> tuple[NDArray[np.uint64], Floats]:
        """Return counters, shape (len(COUNTERS), n), and vCPU times, shape (V, n), in ns.

        If a second node reads at the same moment, all nodes probably will. Then the whole site is
        read in one operation.
        """
        if now_ns != self._asked_ns:
            self._asked_ns, self._everyone = now_ns, None
            return self._shown(vms, now_ns)
        if self._everyone is None:
            self._everyone = self._shown(slice(None), now_ns)
        counters, vcpus = self._everyone
        return counters[:, vms], vcpus[:, vms]

    def counters(self, vms: Indices, now_ns: int) -> NDArray[np.uint64]:
        """Return shape (len(COUNTERS), n): the values with the hypervisor's resolution."""
        return self._shown(vms, now_ns)[0]

    def _shown(self, vms: Indices, now_ns: int) -> tuple[NDArray[np.uint64], Floats]:
        exact = self._at(vms, now_ns)
        shown = exact[:VCPUS].astype(np.uint64)
        # Bytes need no rounding, since requests are whole sectors. User and system time are rounded
        # down to whole scheduler ticks.
        shown[_TICKS] -= shown[_TICKS] % _TICK_NS
        return shown, exact[VCPUS:]

    def _at(self, vms: Indices, now_ns: int) -> Floats:
        """Return the values at the last change plus the growth since."""
        passed_ns = now_ns - self._since_ns[vms]
        moved = np.empty((6, passed_ns.size))
        done = moved[:_PASSED]
        np.multiply(self.pace.events[:, vms], passed_ns / self._step_ns, out=done)
        done += self.pace.phase[:, vms]
        np.floor(done, out=done)
        moved[_PASSED] = passed_ns
        grown: Floats = np.take(moved, self._moved_by, axis=0)
        grown *= self.pace.gains[:, vms]
        grown += self._base[:, vms]
        return grown

"""Counters that are exact at any moment, though behaviour changes once per step.

Between two changes a VM completes requests and packets at an even pace from a random
start, and uses CPU at a constant speed; its counters at time t follow from the counters
at the last change. So a node may be sampled at any moment, in any order, without stepping
the world for it. Bytes and times belong to completed requests: a request counts as a
whole or not at all.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.wire import metrics

Floats = NDArray[np.float64]
# Which VMs: a slice where they stand together, else their indices.
Lanes = slice | NDArray[np.intp]

# Rows of the event arrays.
READ, WRITE, FLUSH, SEND, RECEIVE = range(5)
# Rows of the linear array, in ns per ns.
CPU, USER, SYSTEM, WAIT, DELAY = range(5)

# Inside, counters of one kind stand together; `_ORDER` brings them into the wire's order.
_EVENTS: Final = ("block_rd_reqs", "block_wr_reqs", "block_fl_reqs", "net_tx_pkts", "net_rx_pkts")
_BYTES: Final = ("block_rd_bytes", "block_wr_bytes", "net_tx_bytes", "net_rx_bytes")
_TIMES: Final = ("block_rd_ns", "block_wr_ns", "block_fl_ns")
_LINEAR: Final = ("cpu_time_ns", "cpu_user_ns", "cpu_system_ns", "vcpu_wait_ns", "vcpu_delay_ns")
# The guest's own figure and what simulated cards never count are filled in elsewhere.
_REST: Final = (
    "balloon_major_faults",
    "net_rx_errs",
    "net_tx_errs",
    "net_rx_drop",
    "net_tx_drop",
)
_INSIDE: Final = _EVENTS + _BYTES + _TIMES + _LINEAR + _REST
_ORDER: Final = np.array([_INSIDE.index(metric.name) for metric in metrics.COUNTERS])
_TICK_NS: Final = np.uint64(10_000_000)
_TICKS: Final = slice(metrics.INTEGER_ROW["cpu_user_ns"], metrics.INTEGER_ROW["cpu_system_ns"] + 1)
_ROWS: Final = len(_INSIDE)
_BYTES_AT: Final = slice(5, 9)
_TIMES_AT: Final = slice(9, 12)
_LINEAR_AT: Final = slice(12, 17)
_SIZED: Final = np.array([READ, WRITE, SEND, RECEIVE])


class Meters:
    """Counters of all VMs and how they grow during the current step.

    Attributes
    ----------
    events
        Shape (5, N): requests and packets completed in a whole step.
    phase
        Shape (5, N), in [0, 1): where between two of them the step began.
    sizes
        Shape (4, N): bytes of one read, write, sent and received packet.
    costs
        Shape (3, N): ns that one read, write and flush take.
    speeds
        Shape (5, N): CPU, user, system, wait and delay, ns per ns.
    vcpu_speeds
        Shape (V, N): share of a core that each vCPU runs.
    """

    def __init__(self, size: int, *, vcpus: int, step_ns: int) -> None:
        self._step_ns = step_ns
        self._base = np.zeros((_ROWS, size))
        self._vcpu_base = np.zeros((vcpus, size))
        self._since_ns = np.zeros(size, np.int64)
        self._asked_ns = -1
        self._everyone: tuple[NDArray[np.uint64], Floats] | None = None
        self.events = np.zeros((5, size))
        self.phase = np.zeros((5, size), np.float32)
        self.sizes = np.zeros((4, size))
        self.costs = np.zeros((3, size))
        self.speeds = np.zeros((5, size))
        self.vcpu_speeds = np.zeros((vcpus, size))

    def settle(self, lanes: Lanes, now_ns: int) -> None:
        """Make `now_ns` the moment from which `lanes` grow; call it before any change."""
        if isinstance(lanes, slice):
            self._grow(self._base[:, lanes], lanes, now_ns)
        else:
            self._base[:, lanes] = self._at(lanes, now_ns)
        self._vcpu_base[:, lanes] = self._vcpus_at(lanes, now_ns)
        self._since_ns[lanes] = now_ns
        self._asked_ns = -1

    def restart(self, lanes: Lanes, now_ns: int) -> None:
        """Let all counters of `lanes` begin at 0, as a new qemu process does."""
        self._base[:, lanes] = 0.0
        self._vcpu_base[:, lanes] = 0.0
        self._since_ns[lanes] = now_ns
        self._asked_ns = -1

    def age(self, uptime_s: Floats) -> None:
        """Let all counters look as if the current pace had lasted for `uptime_s`, shape (N,)."""
        steps = np.floor(uptime_s * 1e9 / self._step_ns)
        done = self.events * steps
        self._base[:5] += done
        self._base[_BYTES_AT] += done[_SIZED] * self.sizes
        self._base[_TIMES_AT] += done[:3] * self.costs
        self._base[_LINEAR_AT] += self.speeds * (uptime_s * 1e9)
        self._vcpu_base += self.vcpu_speeds * (uptime_s * 1e9)
        self._asked_ns = -1

    def read(self, lanes: Lanes, now_ns: int) -> tuple[NDArray[np.uint64], Floats]:
        """Return counters, shape (len(COUNTERS), n), and vCPU times, shape (V, n), in ns.

        When a second node asks for the same moment, all of them probably will: then the
        whole site is read at once.
        """
        if now_ns != self._asked_ns:
            self._asked_ns, self._everyone = now_ns, None
            return self.counters(lanes, now_ns), self._vcpus_at(lanes, now_ns)
        if self._everyone is None:
            everyone = slice(None)
            self._everyone = self.counters(everyone, now_ns), self._vcpus_at(everyone, now_ns)
        counters, vcpus = self._everyone
        return counters[:, lanes], vcpus[:, lanes]

    def counters(self, lanes: Lanes, now_ns: int) -> NDArray[np.uint64]:
        """Return shape (len(COUNTERS), n): what the hypervisor shows, in its quanta."""
        shown: NDArray[np.uint64] = self._at(lanes, now_ns)[_ORDER].astype(np.uint64)
        # Bytes are whole sectors already, since requests are; scheduler ticks are not.
        shown[_TICKS] -= shown[_TICKS] % _TICK_NS
        return shown

    def _vcpus_at(self, lanes: Lanes, now_ns: int) -> Floats:
        passed_ns = now_ns - self._since_ns[lanes]
        times: Floats = self._vcpu_base[:, lanes] + self.vcpu_speeds[:, lanes] * passed_ns
        return times

    def _at(self, lanes: Lanes, now_ns: int) -> Floats:
        # A copy: slicing by a slice would share memory with the base.
        return self._grow(self._base[:, lanes].copy(), lanes, now_ns)

    def _grow(self, base: Floats, lanes: Lanes, now_ns: int) -> Floats:
        """Add to `base` what has come since, and return it."""
        passed_ns = now_ns - self._since_ns[lanes]
        done = self.events[:, lanes] * (passed_ns / self._step_ns)
        done += self.phase[:, lanes]
        np.floor(done, out=done)
        base[:5] += done
        base[_BYTES_AT] += done[_SIZED] * self.sizes[:, lanes]
        base[_TIMES_AT] += done[:3] * self.costs[:, lanes]
        base[_LINEAR_AT] += self.speeds[:, lanes] * passed_ns
        return base

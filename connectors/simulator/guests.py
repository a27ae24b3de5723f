"""The condition of every guest, as arrays: the state that incidents and actions change.

A condition is the behaviour of a guest's processes and kernel. Modifiers are the effects of the
guest's environment or of its own fault. A boot resets the state in the guest's memory, but not the
state outside it.
"""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.meters import Indices
from flatline.connectors.simulator.topology import Topology
from flatline.connectors.simulator.workloads import FREE
from flatline.engine.wire.metrics import VM_STATES


class Condition(IntEnum):
    """The behaviour of a guest."""

    RUNNING = 0
    BOOTING = 1
    STOPPING = 2  # an orderly shutdown: processes end, caches reach the disk
    PANIC_SPIN = 3  # one or more vCPUs busy-wait, the others are stopped
    PANIC_HALT = 4
    HUNG_USERLAND = 5  # no process runs, the kernel answers
    HUNG_IO = 6  # no request to the disk completes, the kernel answers
    KDUMP = 7  # the crash kernel writes memory to disk
    PROMPT = 8  # firmware or boot loader waits for a key
    PAUSED = 9
    CRASHED = 10  # stopped by its panic device
    OFF = 11


def _table(*, yes: tuple[Condition, ...]) -> NDArray[np.bool_]:
    return np.array([condition in yes for condition in Condition])


# Marks an event that never happened: it is before any time of the world.
NEVER_S: Final = -np.inf

_C = Condition
# Whether processes work, and whether a kernel updates the balloon and answers the network.
WORKS: Final = _table(yes=(_C.RUNNING,))
KERNEL: Final = _table(yes=(_C.RUNNING, _C.STOPPING, _C.HUNG_USERLAND, _C.HUNG_IO))
# Whether the guest is certainly dead.
DEAD: Final = _table(yes=(_C.PANIC_SPIN, _C.PANIC_HALT, _C.CRASHED))
# Cores that a condition itself uses, on the first vCPU, in addition to `spin_cores`.
CORES: Final = np.array([0.0, 0.85, 0.2, 0.0, 0.0, 0.008, 0.006, 0.9, 0.004, 0.0, 0.0, 0.0])
# Requests per second that a condition itself makes, of `BULK_BYTES` each.
READS: Final = np.array([0.0, 120.0, 2.0] + [0.0] * 9)
WRITES: Final = np.array([0.0, 4.0, 40.0, 0.0, 0.0, 0.0, 0.0, 320.0] + [0.0] * 4)
BULK_BYTES: Final = 256 * 1024
_STATES: Final = {_C.PAUSED: "paused", _C.CRASHED: "crashed", _C.OFF: "shut_off"}
STATE: Final = np.array(
    [VM_STATES.index(_STATES.get(condition, "running")) for condition in Condition], np.uint64
)

assert CORES.size == READS.size == WRITES.size == len(Condition)


class Guests:
    """One value per VM in each array, shape (N,).

    Attributes
    ----------
    condition, before_pause
        The current `Condition`, and the one to restore when a pause ends.
    boot
        Number of boots so far; a scheduled change is void if the guest has booted since.
    instance
        The hypervisor's number of this run of the VM.
    node
        The node it runs on.
    boot_s
        Duration of a boot.
    spin_cores, extra_cores
        Cores used by a spinning kernel, and by a runaway process.
    io_share, send_share
        Share of the VM's disk and transmit traffic that passes: 1 all, 0 none.
    io_stuck
        Whether the VM's own disk completes no request.
    slowness
        Factor on the duration of the VM's disk requests, ≥ 1.
    extra_reads, extra_writes
        Bulk requests per second in addition to the VM's habit.
    takes_all
        Whether the VM is the noisy VM of its node, which is not slowed itself.
    leak_kib_s, leaked_kib
        Memory lost per second, and so far.
    silent_since_s
        World time in s since which the VM's monitor has not answered; infinite while it answers.
    row_absent
        Whether samples lack the VM's row completely.
    glitch
        Error that a faulty reading adds to the VM's byte counters.
    """

    def __init__(self, topology: Topology, rng: np.random.Generator) -> None:
        size = topology.plan.vms
        self.condition = np.full(size, Condition.RUNNING, np.uint8)
        self.before_pause = self.condition.copy()
        self.boot = np.zeros(size, np.int64)
        self.instance = np.ones(size, np.int64)
        self.node = topology.home.copy()
        self.boot_s = rng.uniform(6.0, 25.0, size)
        self.spin_cores = np.zeros(size)
        self.extra_cores = np.zeros(size)
        self.io_share = np.ones(size)
        self.send_share = np.ones(size)
        self.io_stuck = np.zeros(size, np.bool_)
        self.slowness = np.ones(size)
        self.extra_reads = np.zeros(size)
        self.extra_writes = np.zeros(size)
        self.takes_all = np.zeros(size, np.bool_)
        self.forced = np.full(size, FREE, np.uint8)
        self.job = np.zeros(size, np.bool_)
        self.silent_since_s = np.full(size, np.inf)
        self.row_absent = np.zeros(size, np.bool_)
        self.glitch = np.zeros(size, np.int64)
        self.memory_kib = topology.memory_kib.astype(np.float64)
        self.used_share = rng.uniform(0.25, 0.65, size)
        self.leak_kib_s = np.zeros(size)
        self.leaked_kib = np.zeros(size)
        self.resident_share = rng.uniform(0.7, 0.98, size)
        # Last values reported by the balloon, their world time, and the time of the next report.
        self.reported_s = np.full(size, NEVER_S)
        self.report_due_s = np.zeros(size)
        self.usable_kib = np.zeros(size)
        self.faults = rng.uniform(500, 5_000, size)
        self.faults_reported = np.zeros(size)
        self._has_balloon = topology.balloon

    def forget(self, index: int) -> None:
        """Reset the state in the guest's memory, because it boots or is switched off."""
        self.boot[index] += 1
        self.spin_cores[index] = 0.0
        self.extra_cores[index] = 0.0
        self.leak_kib_s[index] = 0.0
        self.leaked_kib[index] = 0.0
        self.extra_reads[index] = 0.0
        self.extra_writes[index] = 0.0
        self.io_share[index] = 1.0
        self.takes_all[index] = False
        self.forced[index] = FREE
        self.faults[index] = 0.0

    def report_memory(
        self, now_s: float, *, period_s: float, activity: NDArray[np.float64]
    ) -> None:
        """Update the balloon's memory report of every live kernel whose report is due.

        `now_s` is world time. `activity`, shape (N,), is the share of its cores that each guest
        uses.
        """
        due = KERNEL[self.condition] & self._has_balloon & (now_s >= self.report_due_s)
        indices = np.flatnonzero(due)
        used = self.used_share[indices] + 0.08 * activity[indices]
        free = self.memory_kib[indices] * (1.0 - used) - self.leaked_kib[indices]
        self.usable_kib[indices] = np.maximum(free, 0.01 * self.memory_kib[indices])
        self.faults_reported[indices] = self.faults[indices]
        self.reported_s[indices] = now_s
        self.report_due_s[indices] += period_s
        # After a pause the next scheduled report may still be in the past: schedule it from now.
        late = indices[self.report_due_s[indices] <= now_s]
        self.report_due_s[late] = now_s + period_s

    def thrashes(self) -> NDArray[np.bool_]:
        """Return shape (N,): whether the memory is so full that the guest swaps."""
        room = self.memory_kib * (0.97 - self.used_share)
        full: NDArray[np.bool_] = self.leaked_kib >= room
        return full

    def leak(self, step_s: float) -> None:
        """Increase the memory that leaking processes take, until almost none is free."""
        self.leaked_kib += self.leak_kib_s * step_s
        np.minimum(self.leaked_kib, self.memory_kib * (0.98 - self.used_share), out=self.leaked_kib)

    def state(self, vms: Indices) -> NDArray[np.uint64]:
        """Return the hypervisor's state of each VM, shape (n,), as an index into `VM_STATES`."""
        return STATE[self.condition[vms]]

"""The data of an agent's preflight check: the live VM, and the permit for a call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

# Maximum age of the last sample at the call. A sample takes 10 ms, ten times that on a busy node,
# and changes of the guest after it would not be detected.
LAST_SAMPLE_S: Final = 0.1

# Reason for the VM's state: `crashed` means that its own crash caused it.
StateReason = Literal["unknown", "crashed", "other"]
# A report of the guest's own device to the hypervisor.
GuestReport = Literal["panicked", "watchdog"]
# `silent`: the guest answered before, within the time for which an answer counts, and not now.
Sign = Literal["unknown", "answered", "silent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightSample:
    """A sample of the live VM by the agent; no field may be left out.

    Counters are cumulative since `instance` began. None means that it could not be read: no such
    device, or the monitor did not answer. An unreadable value is a reason against a call.

    Attributes
    ----------
    mono_ns, wall_ms
        When the counters were requested, by the node's monotonic and wall clock.
    state, state_reason
        As `engine.wire.metrics.VM_STATES`, and the reason.
    monitor_answered
        Whether qemu's monitor answered; None is unknown.
    job_active
        Whether a job runs on the VM; None is unknown.
    boots_seen
        Number of resets and reboots of the VM reported on this connection.
    reported, reported_ns
        Report of the guest's own device to this node's hypervisor since the guest's last boot, and
        its time by the node's monotonic clock; None where this connection received none.
    tenant, group, opted_out
        From the VM's present definition; `opted_out` means that it forbids actions.
    uncounted
        A device of the VM whose traffic no counter here includes; None means that all are counted.
    vcpus
        Number of vCPUs that are plugged in.
    vcpu_time_ns, vcpu_delay_ns
        Run time of each vCPU, and the time that it waited for a core, in the same order; empty is
        unknown.
    balloon_last_update_s, balloon_period_s
        When the guest last reported its memory (s since the epoch), and how often it is asked to
        (s); 0 is never asked.
    kvm_irq_injections, kvm_io_exits
        Interrupts given to the guest, and its exits for I/O, over all vCPUs.
    """

    vm: bytes
    instance: int
    mono_ns: int
    wall_ms: int
    state: str
    state_reason: StateReason
    monitor_answered: bool | None
    job_active: bool | None
    boots_seen: int
    reported: GuestReport | None
    reported_ns: int | None
    tenant: str | None
    group: str | None
    opted_out: bool
    uncounted: str | None
    vcpus: int | None
    vcpu_time_ns: tuple[int, ...]
    vcpu_delay_ns: tuple[int, ...]
    cpu_time_ns: int | None
    block_rd_reqs: int | None
    block_wr_reqs: int | None
    block_rd_bytes: int | None
    block_wr_bytes: int | None
    net_tx_pkts: int | None
    net_tx_bytes: int | None
    balloon_last_update_s: int | None
    balloon_period_s: int | None
    kvm_irq_injections: int | None
    kvm_io_exits: int | None

    @property
    def moved(self) -> int | None:
        """Return the number of disk requests and packets sent, None without disks."""
        return moved(self.block_rd_reqs, self.block_wr_reqs, self.net_tx_pkts)


def moved(reads: int | None, writes: int | None, packets: int | None) -> int | None:
    """Return the total of a guest's reads, writes and packets sent.

    None where its disks are unknown; a guest without a network card has no packets.
    """
    return None if reads is None or writes is None else reads + writes + (packets or 0)


class Rest(NamedTuple):
    """Idle times of a vCPU, or of the guest's interrupts, in s, observed by the node in this boot.

    `still_s` is for how long it has gained exactly nothing until now. `longest_s` is the longest
    such time that ended. `idle_s` is how long the guest did no I/O and ran as little as an idle
    kernel needs: without that its idle behaviour is unknown.
    """

    still_s: float
    longest_s: float
    idle_s: float


class Card(NamedTuple):
    """A network card of a guest: its address, and the bridge of the node that it is attached to."""

    mac: str
    bridge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGuest:
    """A VM that actions are allowed on, in the latest sample of the node's guest probing.

    Attributes
    ----------
    mono_ns
        When it was requested, by the node's monotonic clock.
    vcpu_wanted_ns
        Run time plus time waiting for a core of each vCPU; empty is unknown.
    moved
        As `PreflightSample.moved`.
    kvm_irq_injections
        As in `PreflightSample`; None is not counted.
    cards
        Cards on a bridge of this node; a card that bypasses it is not included.
    balloon_period_s
        None is no balloon, 0 one that is never asked.
    agent_connected
        Whether the guest agent's channel is open.
    has_console
        Whether the guest's output on its serial port is kept in a file.
    """

    vm: bytes
    instance: int
    boots_seen: int
    mono_ns: int
    vcpu_wanted_ns: tuple[int, ...]
    moved: int | None = None
    kvm_irq_injections: int | None = None
    cards: tuple[Card, ...] = ()
    balloon_period_s: int | None = None
    agent_connected: bool = False
    has_console: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Signs of life of a guest that the node's guest probing has recorded, as of the check.

    Attributes
    ----------
    probe
        Answers to neighbour requests over the node's bridge.
    agent
        Answers of the guest agent.
    console_panic
        Whether the serial console shows a kernel panic since the last boot.
    rests
        By index in `PreflightSample.vcpu_time_ns`; empty where the node has not watched the vCPUs.
    interrupts
        Idle times of the interrupts that KVM injects; None where they are not counted.
    quiet_s
        For how long the guest has done no I/O; None where the node has seen none in this boot.
    """

    probe: Sign = "unknown"
    agent: Sign = "unknown"
    console_panic: bool = False
    rests: Mapping[int, Rest] = field(default_factory=dict)
    interrupts: Rest | None = None
    quiet_s: float | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission for one call to run `instance` of the VM, sent within `within_s`.

    `last_check` is called in the calling thread with one more sample, taken at most `LAST_SAMPLE_S`
    before the call: a sentence forbids the call, None allows it.
    """

    instance: int
    within_s: float
    last_check: Callable[[PreflightSample], str | None]

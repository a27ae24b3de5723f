"""The data of an agent's preflight check: the live VM, and the permit for a call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

# Maximum age of the last sample when the call is sent; changes of the guest after that sample are
# not detected. A sample takes 10 ms, on a busy node ten times as long.
LAST_SAMPLE_S: Final = 0.1

# Why the VM is in its state: `crashed` means that a crash of the VM itself caused the state.
StateReason = Literal["unknown", "crashed", "other"]
# A report by the guest's panic device or watchdog to the hypervisor.
GuestReport = Literal["panicked", "watchdog"]
# Result of a probe. `silent`: the guest does not answer now, although it answered a short time ago.
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
        A number that changes with each boot of the VM, and with each connection to the hypervisor.
    reported, reported_ns
        What the guest's panic device or watchdog reported to this node's hypervisor since the last
        boot, and when, by the node's monotonic clock; None if this connection received no report.
    tenant, group, opted_out
        From the VM's present definition; `opted_out` means that the definition forbids actions.
    uncounted
        A device whose traffic is not included in the counters of this sample; None: there is none.
    vcpus
        Number of vCPUs that are plugged in.
    vcpu_time_ns, vcpu_delay_ns
        For how long each vCPU ran, and for how long it waited for a core, in the same order; empty
        is unknown.
    balloon_last_update_s, balloon_period_s
        When the guest last reported its memory (s since the epoch), and at which interval it is
        asked for a report (s); 0: it is never asked.
    kvm_irq_injections, kvm_io_exits
        Interrupts injected into the guest, and its exits for I/O, summed over all vCPUs.
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
        """Return the number of disk requests and packets sent, None if the disks are unknown."""
        return moved(self.block_rd_reqs, self.block_wr_reqs, self.net_tx_pkts)


def moved(reads: int | None, writes: int | None, packets: int | None) -> int | None:
    """Return the total of a guest's reads, writes and packets sent.

    None if the disk requests are unknown. Unknown packets count as 0, because a guest may have no
    network card.
    """
    return None if reads is None or writes is None else reads + writes + (packets or 0)


class Rest(NamedTuple):
    """Idle times of a vCPU or of the guest's interrupts, in s, observed in this boot of the VM.

    `still_s` is for how long the counter has not increased until now. `longest_s` is the longest
    earlier time without an increase. `idle_s` is for how long the guest was observed at rest: it
    did no I/O and ran only as much as an idle kernel needs. Without that its idle times are not
    known.
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
        When the sample was requested, by the node's monotonic clock.
    vcpu_wanted_ns
        For how long each vCPU ran or waited for a core; empty is unknown.
    moved
        See `PreflightSample.moved`.
    kvm_irq_injections
        As in `PreflightSample`; None: the hypervisor does not count them.
    cards
        Network cards that are attached to a bridge of this node; other cards are not included.
    balloon_period_s
        Interval at which the balloon is asked for a report; 0: never, None: there is no balloon.
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
        Whether the guest answers ARP or neighbour requests over the node's bridge.
    agent
        Whether the guest agent answers.
    console_panic
        Whether the serial console has shown a kernel panic since the last boot.
    rests
        Idle times of each vCPU, by its index in `PreflightSample.vcpu_time_ns`; empty if the node
        has not observed the vCPUs.
    interrupts
        Idle times of the interrupts that KVM injects; None if they are not counted.
    quiet_s
        For how long the guest has done no I/O; None if the node has seen no I/O in this boot.
    """

    probe: Sign = "unknown"
    agent: Sign = "unknown"
    console_panic: bool = False
    rests: Mapping[int, Rest] = field(default_factory=dict)
    interrupts: Rest | None = None
    quiet_s: float | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission for one call on run `instance` of the VM, to be sent within `within_s`.

    The thread that sends the call first passes one more sample to `last_check`, taken at most
    `LAST_SAMPLE_S` before. If `last_check` returns a sentence, the call is not sent; None allows
    it.
    """

    instance: int
    within_s: float
    last_check: Callable[[PreflightSample], str | None]

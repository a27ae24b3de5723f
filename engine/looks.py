"""The live VM as an agent sees it, and what a look at it allows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

# So long before the call the last look may have been asked for: it takes 10 ms, ten times that on
# a busy node, and what happens to a guest in between could not be seen.
LAST_LOOK_S: Final = 0.1

# Why the VM is in its state: `crashed` is that its own crash put it there.
StateReason = Literal["unknown", "crashed", "other"]
# What a guest's own device told the hypervisor.
GuestReport = Literal["panicked", "watchdog"]
# `silent` is an answer that was had before, within the time in which it counts, and is not now.
Sign = Literal["unknown", "answered", "silent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The live VM as the agent sees it, at one moment; no field may be left out.

    Counters are cumulative since `instance` began. None means that it could not be read: no such
    device, or the monitor did not answer. What could not be read speaks against a call.

    Attributes
    ----------
    mono_ns, wall_ms
        When the counters were asked for, by the node's monotonic and wall clock.
    state, state_reason
        As `engine.wire.metrics.VM_STATES`, and why.
    monitor_answered
        Whether qemu's monitor answered; None is not known.
    job_active
        Whether a job runs on the VM; None is not known.
    boots_seen
        How many resets and reboots of the VM this connection was told of.
    reported, reported_ns
        What the guest's own device told this node's hypervisor since the guest's last boot, and
        when by the node's monotonic clock; None where this connection heard nothing.
    tenant, group, opted_out
        What the VM's definition says as of now; `opted_out` is that it forbids actions.
    uncounted
        A device of the VM whose traffic no counter here shows; None is that all is counted.
    vcpus
        How many vCPUs are plugged in.
    vcpu_time_ns, vcpu_delay_ns
        What each vCPU ran, and for how long it waited for a core, in the same order; empty is
        unknown.
    balloon_last_update_s, balloon_period_s
        When the guest last reported its memory (s since the epoch), and how often it is asked
        to (s); 0 is never asked.
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
        """Return how many requests its disks and packets its cards took, None without disks."""
        return moved(self.block_rd_reqs, self.block_wr_reqs, self.net_tx_pkts)


def moved(reads: int | None, writes: int | None, packets: int | None) -> int | None:
    """Return what a guest moved in all: reads, writes and packets sent.

    None where its disks are not known; a guest without a card has no packets.
    """
    return None if reads is None or writes is None else reads + writes + (packets or 0)


class Rest(NamedTuple):
    """How a vCPU, or the guest's interrupts, rested: by the node's watch of this boot, in s.

    `still_s` is for how long it has gained exactly nothing up to now, `longest_s` the longest time
    that it did and then ran again, `idle_s` how long the guest did no I/O while it was seen at the
    little that a living kernel needs at rest: without that nothing is known of how it rests.
    """

    still_s: float
    longest_s: float
    idle_s: float


class Card(NamedTuple):
    """A network card of a guest: its address, and the bridge of the node that it hangs on."""

    mac: str
    bridge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A VM that may be acted on, as the node's watch sees it now.

    Attributes
    ----------
    mono_ns
        When it was asked for, by the node's monotonic clock.
    vcpu_wanted_ns
        What each vCPU ran and for how long it waited for a core, together; empty is unknown.
    moved
        As `Look.moved`.
    kvm_irq_injections
        As in `Look`; None is not counted.
    cards
        Those that hang on a bridge of this node; a card that bypasses it is not among them.
    balloon_period_s
        None is no balloon, 0 one that is never asked.
    agent_connected
        Whether the guest agent's channel is open.
    has_console
        Whether what the guest writes to its serial port is kept in a file.
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
    """What the node's own watch knows of a guest's signs of life, as of the look.

    Attributes
    ----------
    probe
        Answers to neighbour requests over the node's bridge.
    agent
        Answers of the guest agent.
    console_panic
        Whether the serial console shows that the kernel panicked, since the last boot.
    rests
        By place in `Look.vcpu_time_ns`; empty where the node has not watched the vCPUs.
    interrupts
        How the interrupts that KVM injects rest; None where they are not counted.
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
    """What a look allows: a call to run `instance` of the VM, sent within `within_s`.

    `last_check` is asked in the calling thread about one more look, taken at most
    `LAST_LOOK_S` before the call: a sentence forbids the call, None allows it.
    """

    instance: int
    within_s: float
    last_check: Callable[[Look], str | None]

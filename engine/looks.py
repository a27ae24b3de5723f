"""The live VM as an agent sees it, and what a look at it allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Look:
    """The live VM as the agent sees it, at one moment.

    Counters are cumulative since `instance` began. None means the hypervisor does not
    know: no such device, or the monitor did not answer. `vcpu_delay_ns` is for how long each
    vCPU waited for a core, in the order of `vcpu_time_ns`; empty is unknown. `opted_out` says
    that the VM's definition forbids actions on it as of now. `uncounted` names a device of the
    VM whose traffic no counter here shows; None is that all of it is counted.
    """

    vm: bytes
    instance: int
    mono_ns: int
    state: str  # as `engine.wire.frame.VM_STATES`
    job_active: bool
    vcpu_time_ns: tuple[int, ...]
    cpu_time_ns: int | None
    block_rd_reqs: int | None
    block_wr_reqs: int | None
    block_wr_bytes: int | None
    net_tx_pkts: int | None
    balloon_last_update_s: int | None
    extra: Mapping[str, str] = field(default_factory=dict)
    vcpu_delay_ns: tuple[int, ...] = ()
    opted_out: bool = False
    block_rd_bytes: int | None = None
    net_tx_bytes: int | None = None
    uncounted: str | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """What a look allows: a call to run `instance` of the VM, sent within `within_s`."""

    instance: int
    within_s: float

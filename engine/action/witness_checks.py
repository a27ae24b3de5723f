"""Which independent evidence (witnesses) of a guest's death this node sees by itself.

Silence of disk and network, together with the CPU shape, is one witness, `activity`: a batch job
shows both. Each other witness rests on a sign that such a job does not show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from flatline.engine.action.guest_liveness import PRECEDES_S
from flatline.engine.preflight_data import PreflightSample, Rest, Signs
from flatline.engine.wire.alert import CpuShape

# The most that a vCPU of a halted guest may run during a preflight check: one tick of the host's
# clock, the unit in which libvirt counts. A vCPU that is really halted gains nothing at all, so for
# the witness `vcpus` it must have gained 0 ns.
HALTED_LIMIT_NS: Final = 10_000_000
# How long vCPUs must have stood still. In live guests at rest one vCPU stood still for at most 11
# s, and all vCPUs but one for at most 3 s (time plus delay, kernel watchdog on;
# benchmarks/README.md).
_STILL_S: Final = 20.0
# vCPUs must also have stood still for this factor times the longest standstill before, in this
# boot.
_REST_FACTOR: Final = 2.0
# A vCPU must have been observed while idle for this long in total; otherwise it is not known how
# long it usually stands still.
_IDLE_LEAST_S: Final = 300.0
# The balloon driver of a live guest reports once a period. It is overdue after two periods without
# a report, plus 5 s in case a busy node asked too late.
_BALLOON_MISSED: Final = 2
_BALLOON_SLACK_S: Final = 5


class DeadVcpu(NamedTuple):
    """A vCPU that a dead kernel does not run: index, time it ran, and the most it may have run."""

    place: int
    gained_ns: int
    limit_ns: int


def is_crashed(sample: PreflightSample) -> bool:
    """Return whether the hypervisor reports the VM as crashed, so that none of its vCPUs runs."""
    paused = sample.state == "paused" and sample.state_reason == "crashed"
    return sample.state == "crashed" or paused


def dead_vcpus(
    shape: CpuShape, first: PreflightSample, last: PreflightSample
) -> tuple[DeadVcpu, ...]:
    """Return the vCPUs that stand still in a dead guest of this shape, with the time they ran.

    If a kernel spins on one core, these are all others: they gain exactly 0 ns (measured 16 s after
    a Linux panic). If a kernel has halted, these are all vCPUs. For other shapes none are known.
    """
    wanted = gained(first.vcpu_time_ns, last.vcpu_time_ns)
    waited = gained(first.vcpu_delay_ns, last.vcpu_delay_ns)
    if not wanted:
        return ()
    if len(waited) == len(wanted):
        # The run time alone is too coarse: libvirt counts it in ticks of 10 ms. The delay is in ns
        # and grows with each wake-up.
        wanted = [ran + wait for ran, wait in zip(wanted, waited, strict=True)]
    match shape:
        case "one_core":
            spins = max(range(len(wanted)), key=wanted.__getitem__)
            return tuple(DeadVcpu(n, ns, 0) for n, ns in enumerate(wanted) if n != spins)
        case "idle":
            return tuple(DeadVcpu(n, ns, HALTED_LIMIT_NS) for n, ns in enumerate(wanted))
        case _:
            return ()


def gained(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return the increase of each counter of a list; empty if the lists differ in length."""
    if len(before) != len(after):
        return []
    return [late - early for early, late in zip(before, after, strict=True)]


def witnesses(shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> tuple[str, ...]:
    """Return the names of the witnesses seen on this node; `samples` are ordered oldest first.

    `activity` is always included: the caller has already refused if the guest moved any counter.
    """
    found = (name for name, seen in _SECOND.items() if seen(shape, samples, signs))
    return ("activity", *found)


def lacking(shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> str:
    """Return a sentence on why no second witness is seen, and how to get one.

    `samples` has at least one sample, the newest last.
    """
    last, why = samples[-1], []
    if len(last.vcpu_time_ns) < 2:
        why.append("the VM has one vCPU")
    elif shape not in ("one_core", "idle"):
        why.append("all its vCPUs run")
    else:
        why.append("its vCPUs were idle for as long before, or were not observed while idle")
    if not last.balloon_period_s:
        why.append("its balloon has no period (virsh dommemstat --period 10)")
    elif last.balloon_last_update_s is None:
        why.append("its balloon never reported")
    elif _is_overdue(last):
        why.append("its balloon was already late while the VM did I/O")
    else:
        why.append("its balloon is not overdue yet")
    if last.reported is None:
        why.append("this node received no report of a panic device or watchdog")
    elif not reports_crash(last, signs):
        why.append("the VM did I/O after the report of its panic device or watchdog")
    for what, sign in (("guest agent", signs.agent), ("probe", signs.probe)):
        if sign == "unknown":
            why.append(f"no {what} has answered before")
    return f"No second witness: {', '.join(why)}."


def _vcpus_stand_still(shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> bool:
    """Return whether all `dead_vcpus` stand still, and for longer than in the live guest.

    Each of them must have gained exactly 0 ns during the preflight check, and have stood still for
    at least twice as long as ever before in this boot. A VM with one vCPU, or a vCPU that this node
    has not observed while idle, gives no witness.
    """
    first, last = samples[0], samples[-1]
    vcpus = dead_vcpus(shape, first, last)
    counts = {
        len(times)
        for sample in (first, last)
        for times in (sample.vcpu_time_ns, sample.vcpu_delay_ns)
    }
    if counts != {last.vcpus} or len(last.vcpu_time_ns) < 2 or not vcpus:
        return False
    return all(
        vcpu.gained_ns == 0 and _rests_too_long(signs, signs.rests.get(vcpu.place))
        for vcpu in vcpus
    )


def _rests_too_long(signs: Signs, rest: Rest | None) -> bool:
    if rest is None or rest.idle_s < _IDLE_LEAST_S or _precedes(rest.still_s, signs):
        return False
    return rest.still_s >= max(_STILL_S, _REST_FACTOR * rest.longest_s)


def _precedes(still_s: float, signs: Signs) -> bool:
    """Return whether a counter stood still while the guest did I/O: then death did not stop it.

    A vCPU that was taken offline, or a balloon whose service was stopped, stands still in a live
    guest. If the node has seen no I/O in this boot, nothing contradicts the witness.
    """
    return signs.quiet_s is not None and still_s > signs.quiet_s + PRECEDES_S


def _exits_stand_still(_shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> bool:
    """Return whether no vCPU takes interrupts or does I/O; the hypervisor must count both.

    On a processor that delivers interrupts by itself (APICv, AVIC) KVM counts none in a live guest.
    So the node must have seen the count rise while the guest was idle.
    """
    counts = {(sample.kvm_irq_injections, sample.kvm_io_exits) for sample in samples}
    known = len(counts) == 1 and None not in next(iter(counts))
    return known and _rests_too_long(signs, signs.interrupts)


def _balloon_is_late(_shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> bool:
    """Return whether a balloon that reported while the guest worked is overdue in every sample."""
    if not all(_is_overdue(sample) for sample in samples):
        return False
    last = samples[-1]
    # The balloon has been silent since its next report was due, one period after the last one.
    return not _precedes(_balloon_age_s(last) - (last.balloon_period_s or 0), signs)


def _is_overdue(sample: PreflightSample) -> bool:
    if not sample.balloon_period_s or sample.balloon_last_update_s is None:
        return False
    return _balloon_age_s(sample) >= _BALLOON_MISSED * sample.balloon_period_s + _BALLOON_SLACK_S


def _balloon_age_s(sample: PreflightSample) -> float:
    return sample.wall_ms / 1000 - (sample.balloon_last_update_s or 0)


def reports_crash(sample: PreflightSample, signs: Signs) -> bool:
    """Return whether the guest's own device reported a crash that no I/O has followed.

    I/O after the report shows that the guest lives: a watchdog may be set to do nothing, and a
    device may report a fault that the kernel survives.
    """
    if sample.reported is None or sample.reported_ns is None:
        return False
    return not _precedes((sample.mono_ns - sample.reported_ns) / 1e9, signs)


def _guest_said(_shape: CpuShape, samples: Sequence[PreflightSample], signs: Signs) -> bool:
    """Return whether the guest reported its crash itself, or its agent stopped answering."""
    reported = all(reports_crash(sample, signs) for sample in samples)
    return reported or signs.agent == "silent" or signs.console_panic


def _hypervisor_said(_shape: CpuShape, samples: Sequence[PreflightSample], _signs: Signs) -> bool:
    return all(is_crashed(sample) for sample in samples)


def _probe_is_silent(_shape: CpuShape, _looks: Sequence[PreflightSample], signs: Signs) -> bool:
    return signs.probe == "silent"


_SECOND: Final[Mapping[str, Callable[[CpuShape, Sequence[PreflightSample], Signs], bool]]] = {
    "vcpus": _vcpus_stand_still,
    "exits": _exits_stand_still,
    "balloon": _balloon_is_late,
    "guest": _guest_said,
    "hypervisor": _hypervisor_said,
    "probe": _probe_is_silent,
}

"""Which independent witnesses of a guest's death this node sees by itself.

Silence of disk and network together with the CPU shape is one witness, `activity`: a batch job
shows both. Each of the others rests on something that such a job does not show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from engine.looks import Look, Signs
from engine.wire.alert import CpuShape

# What a vCPU of a halted guest may run during a look: one tick of the host's clock, in which
# libvirt counts. It gains nothing at all, so whoever stands as a witness has gained nothing.
HALTED_LIMIT_NS: Final = 10_000_000
# For how long vCPUs must have stood still: in guests that live and rest, one vCPU did for 11 s at
# most, all but one for 3 s (time plus delay, kernel's watchdog on; ARCHITECTURE).
_STILL_S: Final = 20.0
# So much longer than ever before while the guest lived.
_REST_FACTOR: Final = 2.0
# For so long a vCPU must have been seen at rest, or nothing is known of how long it rests.
_IDLE_LEAST_S: Final = 300.0
# A guest that lives answers its balloon once a period; two missed answers and 5 s for a node
# that is too busy to ask in time.
_BALLOON_MISSED: Final = 2
_BALLOON_SLACK_S: Final = 5


class DeadVcpu(NamedTuple):
    """A vCPU that a dead kernel does not run, what it ran all the same, and what it may have."""

    place: int
    gained_ns: int
    limit_ns: int


def is_crashed(look: Look) -> bool:
    """Return whether the hypervisor holds the VM as crashed: none of its vCPUs runs."""
    paused = look.state == "paused" and look.state_reason == "crashed"
    return look.state == "crashed" or paused


def dead_vcpus(shape: CpuShape, first: Look, last: Look) -> tuple[DeadVcpu, ...]:
    """Return the vCPUs that stand still in a dead guest of this shape, with what they ran.

    Of a kernel that spins on one core these are all others, which gain exactly 0 ns (measured:
    16 s after a Linux panic); of one that halted these are all. Of other shapes none are known.
    """
    gained = _gained(first.vcpu_time_ns, last.vcpu_time_ns)
    waited = _gained(first.vcpu_delay_ns, last.vcpu_delay_ns)
    if not gained:
        return ()
    if len(waited) == len(gained):
        # libvirt's time comes in ticks of 10 ms; the delay is in ns and grows with each wake-up.
        gained = [ran + wait for ran, wait in zip(gained, waited, strict=True)]
    match shape:
        case "one_core":
            spins = max(range(len(gained)), key=gained.__getitem__)
            return tuple(DeadVcpu(n, ns, 0) for n, ns in enumerate(gained) if n != spins)
        case "idle":
            return tuple(DeadVcpu(n, ns, HALTED_LIMIT_NS) for n, ns in enumerate(gained))
        case _:
            return ()


def _gained(before: Sequence[int], after: Sequence[int]) -> list[int]:
    if len(before) != len(after):
        return []
    return [late - early for early, late in zip(before, after, strict=True)]


def witnesses(shape: CpuShape, looks: Sequence[Look], signs: Signs) -> tuple[str, ...]:
    """Return the names of the witnesses seen on this node.

    `activity` is among them: whoever asks has refused by then where the guest moved anything.
    """
    found = (name for name, seen in _SECOND.items() if seen(shape, looks, signs))
    return ("activity", *found)


def lacking(shape: CpuShape, looks: Sequence[Look], signs: Signs) -> str:
    """Return a sentence on why no second witness is seen, and how to have one."""
    last, why = looks[-1], []
    if len(last.vcpu_time_ns) < 2:
        why.append("it has one vCPU")
    elif shape not in ("one_core", "idle"):
        why.append("all its vCPUs run")
    else:
        why.append("its vCPUs have rested for as long before, or were not watched at rest")
    if not last.balloon_period_s:
        why.append("its balloon has no period (virsh dommemstat --period 10)")
    elif last.balloon_last_update_s is None:
        why.append("its balloon never reported")
    else:
        why.append("its balloon is not late yet")
    if last.reported is None:
        why.append("this node heard nothing of a panic device or watchdog")
    for what, sign in (("guest agent", signs.agent), ("probe", signs.probe)):
        if sign == "unknown":
            why.append(f"no {what} has answered before")
    return f"Of second witnesses: {', '.join(why)}."


def _vcpus_stand_still(shape: CpuShape, looks: Sequence[Look], signs: Signs) -> bool:
    """Whether vCPUs stand still that a living kernel runs; a guest with one vCPU has none.

    They gained exactly nothing during the look, and before it for longer than they ever did while
    the guest lived. What the node has not watched while it rested is not known to rest.
    """
    first, last = looks[0], looks[-1]
    vcpus = dead_vcpus(shape, first, last)
    told = {
        len(times) for look in (first, last) for times in (look.vcpu_time_ns, look.vcpu_delay_ns)
    }
    if told != {last.vcpus} or len(last.vcpu_time_ns) < 2 or not vcpus:
        return False
    return all(vcpu.gained_ns == 0 and _rests_too_long(signs, vcpu.place) for vcpu in vcpus)


def _rests_too_long(signs: Signs, place: int) -> bool:
    rest = signs.rests.get(place)
    if rest is None or rest.idle_s < _IDLE_LEAST_S:
        return False
    return rest.still_s >= max(_STILL_S, _REST_FACTOR * rest.longest_s)


def _exits_stand_still(_shape: CpuShape, looks: Sequence[Look], _signs: Signs) -> bool:
    """Whether no vCPU took an interrupt or did I/O; the hypervisor must report both."""
    counts = {(look.kvm_irq_injections, look.kvm_io_exits) for look in looks}
    return len(counts) == 1 and None not in next(iter(counts))


def _balloon_is_late(_shape: CpuShape, looks: Sequence[Look], _signs: Signs) -> bool:
    """Whether a balloon that reported before has missed its reports, in every sample."""
    return all(_late(look) for look in looks)


def _late(look: Look) -> bool:
    if not look.balloon_period_s or look.balloon_last_update_s is None:
        return False
    age_s = look.wall_ms / 1000 - look.balloon_last_update_s
    return age_s >= _BALLOON_MISSED * look.balloon_period_s + _BALLOON_SLACK_S


def _guest_said(_shape: CpuShape, looks: Sequence[Look], signs: Signs) -> bool:
    """Whether the guest told of its crash itself, or its agent fell silent."""
    reported = all(look.reported is not None for look in looks)
    return reported or signs.agent == "silent" or signs.console_panic


def _hypervisor_said(_shape: CpuShape, looks: Sequence[Look], _signs: Signs) -> bool:
    return all(is_crashed(look) for look in looks)


def _probe_is_silent(_shape: CpuShape, _looks: Sequence[Look], signs: Signs) -> bool:
    return signs.probe == "silent"


_SECOND: Final[Mapping[str, Callable[[CpuShape, Sequence[Look], Signs], bool]]] = {
    "vcpus": _vcpus_stand_still,
    "exits": _exits_stand_still,
    "balloon": _balloon_is_late,
    "guest": _guest_said,
    "hypervisor": _hypervisor_said,
    "probe": _probe_is_silent,
}

"""Which independent witnesses of a guest's death this node sees by itself.

Silence of disk and network together with the CPU shape is one witness, `activity`: a batch job
shows both. Each of the others rests on something that such a job does not show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from engine.looks import Look, Signs
from engine.wire.alert import CpuShape

# What a vCPU of a halted guest may run during a look: one tick of the host's clock, in which
# libvirt counts. A live kernel that idles runs no more in 4 s (0 to 20 ms, measured), so that a
# look alone is no witness of a halt; over half a minute it runs 30 ms.
HALTED_LIMIT_NS: Final = 10_000_000
_HALTED_STILL_S: Final = 30.0
# How often beyond its longest known rest a vCPU must have stood still.
_REST_FACTOR: Final = 2.0
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
    before, after = first.vcpu_time_ns, last.vcpu_time_ns
    if not after or len(before) != len(after):
        return ()
    gained = [late - early for early, late in zip(before, after, strict=True)]
    match shape:
        case "one_core":
            spins = max(range(len(gained)), key=gained.__getitem__)
            return tuple(DeadVcpu(n, ns, 0) for n, ns in enumerate(gained) if n != spins)
        case "idle":
            return tuple(DeadVcpu(n, ns, HALTED_LIMIT_NS) for n, ns in enumerate(gained))
        case _:
            return ()


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

    Where the node watched the guest's vCPUs before, they must stand still for longer than they
    ever did while it lived. A halt is told only there: a look is too short for it.
    """
    first, last = looks[0], looks[-1]
    whole = len(first.vcpu_time_ns) == first.vcpus == last.vcpus == len(last.vcpu_time_ns)
    vcpus = dead_vcpus(shape, first, last)
    still = all(0 <= vcpu.gained_ns <= vcpu.limit_ns for vcpu in vcpus)
    if not (whole and len(last.vcpu_time_ns) > 1 and vcpus and still):
        return False
    least_s = _HALTED_STILL_S if shape == "idle" else 0.0
    rests = [signs.rests.get(vcpu.place) for vcpu in vcpus]
    if None in rests:
        return shape != "idle" and not signs.rests
    return all(
        rest.still_s >= max(least_s, _REST_FACTOR * rest.longest_s)
        for rest in rests
        if rest is not None
    )


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

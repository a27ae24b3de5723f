"""Write one plain sentence per finding: subject, place, observation, how surprising it is."""

from engine.detection.cell import Vm
from engine.detection.evidence import Picture
from engine.detection.hypotheses import Verdict
from engine.faults import Kind
from engine.wire.alert import counted_witnesses, may_be_reset

_CPU = {
    "idle": "has used no CPU",
    "one_core": "has used exactly one core",
    "all_cores": "has used all of its cores",
    "mixed": "has kept some cores busy",
    "unknown": "is running",
}


def name_of(vm: Vm, text: str) -> str:
    """Return the VM's name, or its UUID while its definition is unknown."""
    return vm.name or text


def of_verdict(name: str, node: str, verdict: Verdict, seen: Picture, *, way: str = "") -> str:
    """Return the sentence of a VM's verdict; `way` names how to add a witness."""
    meaning = verdict.kind.fault.meaning
    if verdict.kind is Kind.BOOT_STUCK:
        return (
            f"{name} on {node} {_CPU[seen.shape]} for {seen.epoch_s:.0f} s and nothing of it has "
            f"moved since it was started: {meaning}."
        )
    if verdict.kind.fault.family == "hang":
        return (
            f"{name} on {node} has not touched its disks for {seen.disk_run_s:.0f} s, which by "
            f"its past happens {_odds(seen.disk_nats)}, and its CPU fell from "
            f"{seen.cpu_before:.2f} to {seen.cpu or 0.0:.2f} cores: {meaning}."
        )
    longest = (
        f"its silences before were all shorter than {seen.longest_s:.0f} s"
        if 0 < seen.longest_s <= seen.run_s
        else f"by its past that happens {_odds(seen.silence_nats)}"
    )
    parts = [
        f"{name} on {node} {_CPU[seen.shape]} and neither read, written nor sent anything for "
        f"{seen.run_s:.0f} s",
        longest,
    ]
    parts += [
        item.text
        for item in verdict.evidence
        if item.witness not in {"", "activity"} and item.nats and item.text
    ]
    if not verdict.firing:
        return f"{'; '.join(parts)}: watching."
    told = f"{'; '.join(parts)}: {meaning}."
    if may_be_reset(counted_witnesses(verdict.evidence)):
        return told
    if any(
        item.witness not in {"", "activity"} and (item.nats or 0) > 0 for item in verdict.evidence
    ):
        return (
            f"{told} A guest that computes without I/O looks the same and the second witness is "
            "too weak to count so far, so somebody has to look at it."
        )
    advice = f" Switch on {way} to have one." if way else ""
    return (
        f"{told} A guest that computes without I/O looks the same and no second witness says that "
        f"it is dead, so somebody has to look at it.{advice}"
    )


def _odds(nats: float) -> str:
    """Return in words how often a silence this surprising occurs."""
    one_in = round(2.718281828 ** min(nats, 16.0))
    return f"once in {one_in:,} times" if one_in > 1 else "often"


def of_common_cause(
    *, scope: str, subject: str, signal: str, count: int, active: int, cell: str
) -> str:
    """Return the sentence of a silence that many VMs share."""
    what = {
        "disk": "whose disks fell silent together",
        "tx": "that stopped sending together",
        "life": "that fell silent together",
    }[signal]
    thing = {
        "pool": f"storage pool {subject}",
        "network": f"network {subject}",
        "host": f"node {subject}",
        "cell": f"cell {subject}",
    }[scope]
    return (
        f"{thing[0].upper()}{thing[1:]} has {count} of {active} active VMs {what}: one incident "
        f"of the {thing.split()[-2] if scope == 'pool' else thing.split()[0]}, no VM of cell "
        f"{cell} is judged by it."
    )


def of_silent_node(*, node: str, silent_s: float, count: int) -> str:
    """Return the sentence of a node that no longer reports."""
    return (
        f"Node {node} has not reported for {silent_s:.0f} s; its {count} VMs cannot be seen and "
        "are not judged."
    )


def of_silent_cell(*, cell: str, nodes: int, silent_s: float) -> str:
    """Return the sentence of a cell whose nodes fell silent together."""
    return (
        f"{nodes} nodes of cell {cell} have not reported for {silent_s:.0f} s: telemetry is away, "
        "nobody is judged by it."
    )


def of_contention(
    *, name: str, node: str, share: float, busy: float, seconds: float, calm: str
) -> str:
    """Return the sentence of a VM that waits for its node's CPU."""
    return (
        f"{name} waits for {share:.0%} of the CPU it wants, more than any other VM of {node}, "
        f"which has been {busy:.0%} busy for {seconds:.0f} s while {calm} has room: the node is "
        "overloaded."
    )

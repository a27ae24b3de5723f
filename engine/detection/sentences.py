"""Write one plain sentence per finding: subject, place, observation, how surprising it is."""

from flatline.engine.detection.cell import Vm
from flatline.engine.detection.evidence import Picture
from flatline.engine.detection.hypotheses import Verdict
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import counted_witnesses, may_be_reset

_CPU = {
    "idle": "has used no CPU",
    "one_core": "has kept one vCPU at 100 %",
    "all_cores": "has kept all vCPUs at 100 %",
    "mixed": "has kept some vCPUs busy",
    "unknown": "has been running",
}


def name_of(vm: Vm, text: str) -> str:
    """Return the VM's name, or its UUID in `text` while its definition is unknown."""
    return vm.name or text


def of_verdict(name: str, node: str, verdict: Verdict, seen: Picture, *, way: str = "") -> str:
    """Return the sentence of a VM's verdict.

    `name` and `node` are those of the VM. `way` names in words how to add a witness, as
    `coverage.ways` does; empty leaves the advice out.
    """
    meaning = verdict.kind.fault.meaning
    if verdict.kind is Kind.BOOT_STUCK:
        return (
            f"{name} on {node} {_CPU[seen.shape]} for {seen.epoch_s:.0f} s with no disk or network "
            f"activity since it was started. Probable cause: {meaning}."
        )
    if verdict.kind.fault.family == "hang":
        return (
            f"{name} on {node} has had no disk I/O for {seen.disk_run_s:.0f} s. A silence this "
            f"long has a probability of {_odds(seen.disk_nats)} for this VM. Its CPU use fell from "
            f"{seen.cpu_before:.2f} to {seen.cpu or 0.0:.2f} cores. Probable cause: {meaning}."
        )
    longest = (
        f"All its earlier silences were shorter than {seen.longest_s:.0f} s"
        if 0 < seen.longest_s <= seen.run_s
        else f"A silence this long has a probability of {_odds(seen.silence_nats)} for this VM"
    )
    parts = [
        f"{name} on {node} {_CPU[seen.shape]} for {seen.run_s:.0f} s with no disk I/O and no "
        "network output",
        longest,
    ]
    parts += [
        item.text
        for item in verdict.evidence
        if item.witness not in {"", "activity"} and item.nats and item.text
    ]
    if not verdict.firing:
        return f"{'. '.join(parts)}. Waiting for confirmation."
    fact = f"{'. '.join(parts)}. Probable cause: {meaning}."
    if may_be_reset(counted_witnesses(verdict.evidence)):
        return fact
    if any(
        item.witness not in {"", "activity"} and (item.nats or 0) > 0 for item in verdict.evidence
    ):
        return (
            f"{fact} A guest that computes without I/O looks the same, and the second witness is "
            "still too weak. A person must inspect the VM."
        )
    advice = f" To add a second witness, enable {way}." if way else ""
    return (
        f"{fact} A guest that computes without I/O looks the same, and there is no second witness. "
        f"A person must inspect the VM.{advice}"
    )


def _odds(nats: float) -> str:
    """Return in words how often a silence this surprising occurs."""
    one_in = round(2.718281828 ** min(nats, 16.0))
    return f"1 in {one_in:,}" if one_in > 1 else "nearly 1"


def of_common_cause(
    *, scope: str, subject: str, signal: str, count: int, active: int, cell: str
) -> str:
    """Return the sentence of a silence that many VMs share.

    `scope` is "pool", "network", "host" or "cell", and `signal` is "disk", "tx" or "life". `count`
    of the `active` VMs of the subject fell silent.
    """
    what = {
        "disk": "lost disk I/O together",
        "tx": "stopped sending together",
        "life": "fell silent together",
    }[signal]
    thing = {
        "pool": f"storage pool {subject}",
        "network": f"network {subject}",
        "host": f"node {subject}",
        "cell": f"cell {subject}",
    }[scope]
    return (
        f"{thing[0].upper()}{thing[1:]}: {count} of {active} active VMs {what}. This is one "
        f"incident of the {thing.split()[-2] if scope == 'pool' else thing.split()[0]}, and it "
        f"inhibits verdicts on the VMs of cell {cell}."
    )


def of_silent_node(*, node: str, silent_s: float, count: int) -> str:
    """Return the sentence of a node that no longer reports; `count` is the number of its VMs."""
    return (
        f"Node {node} has not reported for {silent_s:.0f} s. Its {count} VMs are not visible and "
        "not judged."
    )


def of_silent_cell(*, cell: str, nodes: int, silent_s: float) -> str:
    """Return the sentence of a cell of which this number of nodes fell silent together."""
    return (
        f"{nodes} nodes of cell {cell} have not reported for {silent_s:.0f} s. Telemetry is "
        "unavailable, so their VMs are not judged."
    )


def of_contention(
    *, name: str, node: str, share: float, busy: float, seconds: float, calm: str
) -> str:
    """Return the sentence of a VM that waits for its node's CPU.

    `share` (0 to 1) is what it waits for of the CPU that it requests, `busy` (0 to 1) the load of
    the node for `seconds`, and `calm` the name of a node with room.
    """
    return (
        f"{name} waits for {share:.0%} of the CPU it requests, more than any other VM of {node}. "
        f"The node has been {busy:.0%} busy for {seconds:.0f} s, while {calm} has room. The node "
        "is overloaded."
    )

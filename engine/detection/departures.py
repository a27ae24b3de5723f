"""End the alerts of removed subjects, by time or by an owner's command.

A node that was taken out of service looks like one that died. Its alerts end after a day, in
which every responsible person has reacted. They end after an hour where no VM is missing with it:
all its VMs run elsewhere or were stopped before. `flatline forget` ends them immediately. A
subject that reports again is registered again.
"""

from collections.abc import Iterator
from typing import Final

from flatline.engine.detection.cell import Cell, Incident, Node
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.outcomes import Ended, key_of, notice_key, text_of
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import Resolution

# Subjects that an owner may forget, by the scope of their alerts.
FORGETTABLE: Final = {"node": "host", "vm": "vm", "pool": "pool", "network": "network"}


def end_departed(cell: Cell, now: Now) -> Iterator[Ended]:
    """Forget the subjects that an owner named or that are long absent, and end their alerts."""
    configuration = now.configuration
    for scope, name in cell.forgets:
        yield from _forget(cell, scope, name, "an owner reported that it was removed")
    cell.forgets.clear()
    for node in [node for node in cell.nodes.values() if node.key == node.name and node.silent]:
        away_s = (cell.passed_ms - node.seen_ms) / 1000
        if away_s >= configuration.forget_empty_s and away_s >= _patience_s(
            cell, node, configuration
        ):
            why = f"no report for {away_s / 3600:.0f} h, so it counts as removed"
            yield from _forget(cell, "host", node.name, why)


def end_of_vms(cell: Cell, uuids: list[bytes], why: str) -> Iterator[Ended]:
    """Forget VMs and end their alerts; `why` is the reason in words that the alerts state.

    The VMs are forgotten only when the iterator is exhausted.
    """
    for uuid in uuids:
        for key in (key_of("vm", text_of(uuid)), notice_key(Kind.DUPLICATE_VM, text_of(uuid))):
            yield from _ended(cell.incidents.get(key), why)
    cell.forget_vms(uuids)


def _patience_s(cell: Cell, node: Node, configuration: Configuration) -> float:
    """Return how long a silent node is awaited: less where no VM is missing with it."""
    keys = {key for key, one in cell.nodes.items() if one.name == node.name}
    missing = any(vm.node in keys and not vm.left_by_command for vm in cell.vms.values())
    return configuration.forget_s if missing else configuration.forget_empty_s


def _forget(cell: Cell, scope: str, name: str, why: str) -> Iterator[Ended]:
    if scope == "vm":
        known = [uuid for uuid in cell.vms if text_of(uuid) == name]
        yield from end_of_vms(cell, known, why)
        return
    if scope == "host":
        keys = [key for key, node in cell.nodes.items() if node.name == name]
        here = sorted(uuid for uuid, vm in cell.vms.items() if vm.node in keys)
        yield from end_of_vms(cell, here, why)
        for key in keys:
            cell.drop_node(key)
        for kind in (Kind.DUPLICATE_COLLECTOR, Kind.CLOCK_STEP):
            yield from _ended(cell.incidents.get(notice_key(kind, name)), why)
    key = key_of(scope, name)
    cell.common_causes.pop(key, None)
    yield from _ended(cell.incidents.get(key), why)


def _ended(incident: Incident | None, why: str) -> Iterator[Ended]:
    if incident is not None and incident.alert.state != "resolved":
        name = incident.alert.name or incident.alert.subject
        yield Ended(incident, Resolution(reason=why), f"{name}: {why}.")

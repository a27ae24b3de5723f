"""End the alerts of removed subjects, by time or by an owner's command.

A node that was taken out of service looks like one that died. Its alerts end after a day, in
which every responsible person has reacted. They end after an hour where no VM is missing with it:
all its VMs run elsewhere or were stopped before. `flatline forget` ends them immediately. A
subject that reports again is registered again.
"""

from typing import Final

from engine.detection.cell import Cell, Incident, Node
from engine.detection.configuration import Configuration
from engine.detection.incidents import key_of, resolve, text_of
from engine.detection.notices import notice_key
from engine.wire.alert import Alert, Resolution

# Subjects that an owner may forget, by the scope of their alerts.
FORGETTABLE: Final = {"node": "host", "vm": "vm", "pool": "pool", "network": "network"}


def end_departed(cell: Cell, *, time_ms: int, configuration: Configuration) -> list[Alert]:
    """Forget the subjects that an owner named or that are long absent; return the ended alerts."""
    alerts: list[Alert] = []
    for scope, name in cell.forgets:
        alerts += _forget(
            cell, scope, name, ("an owner reported that it was removed"), time_ms=time_ms
        )
    cell.forgets.clear()
    for node in [node for node in cell.nodes.values() if node.key == node.name and node.silent]:
        away_s = (cell.passed_ms - node.seen_ms) / 1000
        if away_s >= configuration.forget_empty_s and away_s >= _patience_s(
            cell, node, configuration
        ):
            why = f"no report for {away_s / 3600:.0f} h, so it counts as removed"
            alerts += _forget(cell, "host", node.name, why, time_ms=time_ms)
    return alerts


def end_of_vms(cell: Cell, uuids: list[bytes], why: str, *, time_ms: int) -> list[Alert]:
    """Forget VMs and end their alerts."""
    alerts: list[Alert] = []
    for uuid in uuids:
        for key in (key_of("vm", text_of(uuid)), notice_key("duplicate_vm", text_of(uuid))):
            alerts += _ended(cell, cell.incidents.get(key), why, time_ms=time_ms)
    cell.forget_vms(uuids)
    return alerts


def _patience_s(cell: Cell, node: Node, configuration: Configuration) -> float:
    """Return how long a silent node is awaited: less where no VM is missing with it."""
    keys = {key for key, one in cell.nodes.items() if one.name == node.name}
    missing = any(vm.node in keys and not vm.left_by_word for vm in cell.vms.values())
    return configuration.forget_s if missing else configuration.forget_empty_s


def _forget(cell: Cell, scope: str, name: str, why: str, *, time_ms: int) -> list[Alert]:
    if scope == "vm":
        known = [uuid for uuid in cell.vms if text_of(uuid) == name]
        return end_of_vms(cell, known, why, time_ms=time_ms)
    alerts: list[Alert] = []
    if scope == "host":
        keys = [key for key, node in cell.nodes.items() if node.name == name]
        here = sorted(uuid for uuid, vm in cell.vms.items() if vm.node in keys)
        alerts += end_of_vms(cell, here, why, time_ms=time_ms)
        for key in keys:
            cell.drop_node(key)
        for kind in ("duplicate_collector", "clock_step"):
            incident = cell.incidents.get(notice_key(kind, name))
            alerts += _ended(cell, incident, why, time_ms=time_ms)
    key = key_of(scope, name)
    cell.latches.pop(key, None)
    return [*alerts, *_ended(cell, cell.incidents.get(key), why, time_ms=time_ms)]


def _ended(cell: Cell, incident: Incident | None, why: str, *, time_ms: int) -> list[Alert]:
    if incident is None or incident.alert.state == "resolved":
        return []
    name = incident.alert.name or incident.alert.subject
    sentence = f"{name}: {why}."
    return resolve(cell, incident, Resolution(reason=why), time_ms=time_ms, sentence=sentence)

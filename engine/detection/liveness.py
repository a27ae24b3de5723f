"""Detect faults that do not show as a guest's own silence.

These are nodes that no longer report, VMs that vanish or whose monitor does not answer, guests that
reboot without an announcement, and VMs that wait for the CPU of an overloaded node.
"""

from collections.abc import Iterator

import numpy as np

from flatline.engine.detection import sentences
from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.incidents import news_ms
from flatline.engine.detection.outcomes import Ended, Explained, Finding, Outcome, key_of, text_of
from flatline.engine.detection.sample_gaps import check_sample_gaps, returned, silence_of
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import EvidenceItem, Resolution, SamplePosition
from flatline.models.kernels import screening

_LISTED = 64


def check_nodes(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Yield nodes that fell silent or report again; several together are one incident."""
    configuration = now.configuration
    for node in cell.nodes.values():
        silent_ms = cell.passed_ms - node.seen_ms - cell.out_of_order.late_ms
        is_silent = silent_ms >= configuration.node_silent_intervals * node.interval_ms
        if is_silent != node.silent:
            node.silent = is_silent
            cell.nodes_changed()
    whole_nodes = [node for node in cell.nodes.values() if node.key == node.name]
    alert_ms = configuration.node_alert_s * 1000 + cell.out_of_order.late_ms
    silent = [
        node
        for node in whole_nodes
        if node.silent
        and cell.passed_ms - node.seen_ms >= alert_ms
        and not _is_disturbed(cell, node, now)
    ]
    reported = {node.name for node in silent}
    correlated = len(silent) >= max(2, len(whole_nodes) / 2)
    if correlated:
        yield _silent_cell(cell, silent)
    for node in sorted(whole_nodes, key=lambda node: node.name):
        incident = cell.incidents.get(key_of("host", node.name))
        is_open = incident is not None and incident.alert.state == "firing"
        if node.name in reported and (is_open or not correlated):
            yield _silent_node(cell, node)
        elif (
            incident is not None
            and is_open
            and not node.silent
            and not _members(cell, node, now)
            and incident.alert.kind == Kind.HOST_SILENCE
        ):
            yield returned(node, incident)
    yield from check_sample_gaps(cell, whole_nodes, now)
    whole = cell.incidents.get(key_of("fleet", cell.name))
    if whole is not None and whole.alert.state == "firing" and not silent:
        what = "report again" if whole_nodes else "were removed"
        yield Ended(
            whole,
            Resolution(reason=f"its nodes {what}"),
            f"The nodes of cell {cell.name} {what}.",
        )


def _is_disturbed(cell: Cell, node: Node, now: Now) -> bool:
    """Return whether disturbed collectors may be the cause of a node's silence."""
    return now.time_ms < cell.disturbed_ms and not _is_long_silent(cell, node, now.configuration)


def _is_long_silent(cell: Cell, node: Node, configuration: Configuration) -> bool:
    """Return whether a node has been silent for longer than disturbed collectors are."""
    silent_ms = cell.passed_ms - node.seen_ms - cell.out_of_order.late_ms
    return silent_ms >= 2 * configuration.node_silent_intervals * node.interval_ms


def check_members(cell: Cell, now: Now) -> Iterator[Finding]:
    """Yield nodes with several missing VMs although others still report.

    A host on which the monitors of several VMs fail one after the other is one incident. In
    recorded data these VMs fell silent up to two hours apart.
    """
    undisturbed = now.time_ms >= cell.disturbed_ms
    for name in sorted(cell.nodes):
        node, table = cell.nodes[name], cell.tables[name]
        if undisturbed and table.found[screening.ABSENT]:
            for index in np.flatnonzero(table.which(screening.ABSENT)):
                vm = cell.vms[table.vm(int(index))]
                vm.missed_ms = now.time_ms
                cell.watched.add(vm.uuid)
        members = _members(cell, node, now)
        if not node.silent and len(members) >= 2:
            yield _lost_members(node, members)


def _members(cell: Cell, node: Node, now: Now) -> list[tuple[bytes, Vm]]:
    """Return the VMs of a node that were missing recently, none if it was only one."""
    since_ms = now.time_ms - now.configuration.host_member_s * 1000
    found = [
        (uuid, cell.vms[uuid])
        for uuid in sorted(cell.watched)
        if cell.vms[uuid].node == node.key and cell.vms[uuid].missed_ms > max(0, since_ms)
    ]
    return found if len(found) >= 2 else []


def _lost_members(node: Node, members: list[tuple[bytes, Vm]]) -> Finding:
    onset_ms = min(vm.monitor_hung_ms or vm.missed_ms for _, vm in members)
    return Finding(
        scope="host",
        subject=node.name,
        kind=Kind.HOST_SILENCE,
        firing=True,
        severity=Kind.HOST_SILENCE.fault.severity,
        suggestion=Kind.HOST_SILENCE.fault.suggestion,
        confidence=0.9,
        onset_ms=onset_ms,
        position=node.position(),
        sentence=(
            f"{len(members)} VMs of node {node.name} are no longer visible, one after the other, "
            "while other VMs still report. The node or its collector is failing. No VM of the node "
            "is judged."
        ),
        evidence=(EvidenceItem(signal="unseen", value=float(len(members)), limit=2.0),),
        vms=tuple(text_of(uuid) for uuid, _ in members[:_LISTED]),
        node=node.name,
    )


def _silent_node(cell: Cell, node: Node) -> Finding:
    return silence_of(
        cell,
        node,
        position=node.position(),
        onset_ms=node.event_ms,
        silent_s=(cell.passed_ms - node.seen_ms) / 1000,
    )


def _silent_cell(cell: Cell, silent: list[Node]) -> Finding:
    # The newest sample of these nodes is the position of the alert, so that its id does not depend
    # on the order of arrival.
    last = max(silent, key=lambda node: (node.event_ms, node.name))
    silent_s = (cell.passed_ms - max(node.seen_ms for node in silent)) / 1000
    return Finding(
        scope="fleet",
        subject=cell.name,
        kind=Kind.FLEET_SILENCE,
        firing=True,
        severity=Kind.FLEET_SILENCE.fault.severity,
        suggestion=Kind.FLEET_SILENCE.fault.suggestion,
        confidence=0.99,
        onset_ms=last.event_ms,
        position=last.position(),
        sentence=sentences.of_silent_cell(cell=cell.name, nodes=len(silent), silent_s=silent_s),
        evidence=(EvidenceItem(signal="frames", value=silent_s, text="no frame arrived"),),
    )


def check_sight(cell: Cell, now: Now) -> None:
    """Record disturbed collectors: samples of many VMs are missing on several nodes.

    Samples of the other VMs may be incomplete in such a window, so it forbids suggestions. A node
    that has been silent for long does not count: it has its own alert, and the samples of other
    nodes are complete.
    """
    configuration = now.configuration
    unseen, total, nodes = 0, 0, 0
    for name, table in cell.tables.items():
        if _is_long_silent(cell, cell.nodes[name], configuration):
            continue
        size = len(table)
        missing = size
        if name in cell.reported or name in cell.beyond:
            missing = int(table.found[screening.UNSEEN])
        unseen += missing
        total += size
        nodes += missing > 0
    if total and nodes >= 2 and unseen >= configuration.unseen_ratio * total:
        inhibition_ms = configuration.unseen_hold_samples * cell.interval_ms()
        cell.disturbed_ms = max(cell.disturbed_ms, now.time_ms + inhibition_ms)


def check_absent(cell: Cell, vm: Vm, now: Now) -> Outcome | None:
    """Return the outcome of a VM that left its node without an event or whose monitor hangs."""
    configuration = now.configuration
    text = text_of(vm.uuid)
    node = cell.nodes.get(vm.node)
    if node is None or node.silent:
        return None
    since_ms = vm.gone_ms or vm.monitor_hung_ms
    if not since_ms or (vm.gone_ms and vm.left_by_command):
        return None
    patient_ms = max(
        configuration.vm_silence_s * 1000, configuration.vm_silence_samples * node.interval_ms
    )
    # After a migration another node reports the VM, and the frame of that node may be late.
    patient_ms += cell.out_of_order.late_ms
    if now.time_ms - since_ms < patient_ms or now.time_ms < cell.disturbed_ms:
        return None
    host = cell.incidents.get(key_of("host", node.name))
    if host is not None and host.alert.state == "firing" and host.alert.kind == Kind.HOST_SILENCE:
        own = cell.incidents.get(key_of("vm", text))
        if own is None or own.alert.kind != Kind.VM_SILENCE:
            return None
        return Explained(own, vetoes=(f"host:{node.name}",), explained_by=host.alert.id)
    name = sentences.name_of(vm, text)
    what = (
        "is no longer listed by its node, and no event explains it"
        if vm.gone_ms
        else "is listed, but its QEMU monitor does not answer"
    )
    kind = Kind.VM_SILENCE
    return Finding(
        scope="vm",
        subject=text,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion=kind.fault.suggestion,
        confidence=0.95,
        onset_ms=since_ms,
        position=vm.gone_position or node.position(),
        sentence=f"{name} on {node.name} {what}. The VM is not visible and not judged.",
        node=node.name,
    )


def check_reboots(cell: Cell, now: Now) -> Iterator[Finding]:
    """Yield guests that rebooted without an announcement by an owner, agent or node."""
    time_ms, configuration = now
    window_ms = configuration.reboot_window_s * 1000
    by_node: dict[str, int] = {}
    for uuid in cell.watched:
        vm = cell.vms[uuid]
        if vm.rebooted_ms and time_ms - vm.rebooted_ms < window_ms:
            by_node[vm.node] = by_node.get(vm.node, 0) + 1
    for uuid in sorted(cell.watched):
        vm = cell.vms[uuid]
        if not vm.reboot_pending:
            continue
        if time_ms - vm.rebooted_ms < configuration.reboot_wait_s * 1000:
            continue
        vm.reboot_pending = False
        table = cell.tables.get(vm.node)
        many = max(configuration.gate_members, configuration.gate_share * len(table or ()))
        if by_node.get(vm.node, 0) >= many or _announced(cell, vm):
            continue
        node = cell.nodes.get(vm.node)
        if node is not None and vm.reboot_position is not None:
            yield _crash_reboot(node, vm, vm.reboot_position)


def _announced(cell: Cell, vm: Vm) -> bool:
    """Return whether a command, an action or a recent incident explains the reboot."""
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    if incident is not None and vm.rebooted_ms - news_ms(incident) < 600_000:
        return True
    if vm.reported_action is not None and abs(vm.rebooted_ms - vm.reported_action.time_ms) < 60_000:
        return True
    held = {"owner_reboot", "maintenance", "shutdown", "stopped"}
    return bool(held & set(vm.inhibited_by(vm.rebooted_ms)))


def _crash_reboot(node: Node, vm: Vm, position: SamplePosition) -> Finding:
    kind = Kind.CRASH_REBOOT
    text = text_of(vm.uuid)
    name = sentences.name_of(vm, text)
    fell = "after it fell silent" if vm.silent_at_reboot else "while it was active"
    return Finding(
        scope="vm",
        subject=text,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion=kind.fault.suggestion,
        confidence=0.6,
        onset_ms=vm.reboot_event_ms,
        position=position,
        sentence=(
            f"{name} on {node.name} rebooted {fell}, and nothing announced a reboot. Either the "
            "guest crashed, or its owner rebooted it."
        ),
        node=node.name,
    )


def check_contention(cell: Cell, now: Now) -> Iterator[Finding]:
    """Yield on each overloaded node the most affected VM, if another node has room."""
    time_ms, configuration = now
    for node in sorted(cell.nodes.values(), key=lambda node: node.key):
        if node.silent:
            continue
        if not _is_overloaded(node, configuration):
            node.busy_since_ms = 0
            continue
        node.busy_since_ms = node.busy_since_ms or time_ms
        busy_s = (time_ms - node.busy_since_ms) / 1000
        calm = _calmest(cell, node, configuration)
        if busy_s < configuration.contention_s or calm is None:
            continue
        table = cell.tables[node.key]
        index = _sufferer(cell, node, table, configuration)
        if index is not None:
            vm = cell.vms[table.vm(index)]
            yield _contention(cell, node, vm, index, calm, busy_s, now)


def _is_overloaded(node: Node, configuration: Configuration) -> bool:
    busy = node.gauges.get("cpu_busy_ratio", 0.0)
    waiting = node.gauges.get("psi_cpu_some_ratio", 0.0)
    return busy >= configuration.node_busy_ratio or waiting >= configuration.node_psi_ratio


def _calmest(cell: Cell, node: Node, configuration: Configuration) -> Node | None:
    """Return the least busy node, None if no other node has room."""
    room = [
        (other.gauges["cpu_busy_ratio"], other.name, other)
        for other in cell.nodes.values()
        if other is not node
        and not other.silent
        and other.gauges.get("cpu_busy_ratio", 1.0) < configuration.node_calm_ratio
        and not _is_overloaded(other, configuration)
    ]
    return min(room, key=lambda one: one[:2])[2] if room else None


def _sufferer(cell: Cell, node: Node, table: VmTable, configuration: Configuration) -> int | None:
    """Return the row of the VM with an open contention alert, else of the VM that waits most."""
    share = table.row("contention")[: len(table)]
    delay = table.row("delay")[: len(table)]
    suffers = (share >= configuration.contention_share) & (delay >= configuration.contention_cores)
    for row in np.flatnonzero(share >= configuration.contention_share / 2):
        incident = cell.incidents.get(key_of("vm", text_of(table.vm(int(row)))))
        if incident is None or incident.alert.state != "firing":
            continue
        if incident.alert.kind == Kind.NODE_CONTENTION and incident.alert.node == node.name:
            return int(row)
        suffers[row] = False
    indices_found = np.flatnonzero(suffers)
    if not len(indices_found):
        return None
    return int(max(indices_found, key=lambda index: (delay[index], table.vm(int(index)))))


def _contention(
    cell: Cell,
    node: Node,
    vm: Vm,
    index: int,
    calm: Node,
    busy_s: float,
    now: Now,
) -> Finding:
    configuration, kind = now.configuration, Kind.NODE_CONTENTION
    table = cell.tables[node.key]
    text = text_of(vm.uuid)
    share = table.figure("contention", index)
    busy = node.gauges.get("cpu_busy_ratio", 0.0)
    held = tuple(vm.inhibited_by(now.time_ms))
    return Finding(
        scope="vm",
        subject=text,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion="alert" if held or node.stale else kind.fault.suggestion,
        confidence=round(min(0.99, share + busy / 2), 4),
        onset_ms=node.event_ms - round(busy_s * 1000),
        position=node.position(),
        sentence=sentences.of_contention(
            name=sentences.name_of(vm, text),
            node=node.name,
            share=share,
            busy=busy,
            seconds=busy_s,
            calm=calm.name,
        ),
        evidence=(
            EvidenceItem(
                signal="delay", value=round(share, 4), limit=configuration.contention_share
            ),
            EvidenceItem(signal="node_busy", value=busy, limit=configuration.node_busy_ratio),
        ),
        vetoes=held,
        node=node.name,
        instance=table.number("instance", index),
        history_s=table.figure("history_s", index),
        cpu_shape="mixed",
    )

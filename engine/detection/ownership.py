"""Decide which node may report on a VM: the node that runs it, until a move is accepted.

A move is accepted when its source reported it, or when the source no longer runs the VM (it left
the roster, it is not running there, the node is silent) and another node does. Until then, reports
of another node are only stored, and apply when that node takes the VM over.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from flatline.engine.detection import sentences
from flatline.engine.detection.bounds import MAX_PLACES_OF_VM
from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.outcomes import Finding, notice_key, text_of
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import SamplePosition
from flatline.engine.wire.frame import Event, InventoryItem
from flatline.engine.wire.metrics import VM_STATES

_RUNNING: Final = VM_STATES.index("running")
# Number of other nodes whose reports on a VM are stored: a migration involves fewer.
_OFFERS_KEPT: Final = 4
# At the end of a live migration both nodes may show it running for one sample, not longer.
_TWICE_S: Final = 60.0
_TWICE_INTERVALS: Final = 3
# Longest time from the sample that showed a step until its window closes.
_STEP_NOTICE_MS: Final = 60_000
# Smallest step that is reported. Orders accept clocks that differ by this much (`CLOCK_SLACK_MS`).
# Recorded rows have times in whole seconds, so smaller steps may be rounding.
_STEP_REPORTED_MS: Final = 5_000
_ARRIVALS: Final = frozenset({"started", "migrated_in"})


def may_speak(cell: Cell, vm: Vm, name: str) -> bool:
    """Return whether the collector of the node `name` may report on a VM now."""
    owner = cell.nodes.get(vm.node)
    return owner is None or owner.name == name or is_absent(vm, owner)


def is_absent(vm: Vm, owner: Node) -> bool:
    """Return whether a VM's node no longer runs it, by its own report or by its silence."""
    return owner.silent or vm.gone_ms > 0 or vm.left_by_command


def may_mark(cell: Cell, vm: Vm, name: str) -> bool:
    """Return whether the agent of node `name` may have acted on a VM, which runs or ran there."""
    return name == vm.former or may_speak(cell, vm, name)


def may_hear(cell: Cell, vm: Vm, name: str, *, time_ms: int) -> bool:
    """Return whether the agent of the node `name` may have received an answer of a guest.

    The VM runs on this node, a roster of the node lists it, or it is moving away from the node.
    `time_ms` is append time.
    """
    home = cell.nodes.get(vm.node)
    moves = vm.gone_ms > 0 or vm.left_by_command or "migration" in vm.inhibited_by(time_ms)
    return (
        (home is not None and home.name == name)
        or (moves and name == vm.former)
        or any(
            one.name == name and vm.uuid in cell.tables[key].indices
            for key, one in cell.nodes.items()
        )
    )


def remember_item(vm: Vm, name: str, item: InventoryItem) -> None:
    """Store an inventory item of a VM from another node, `name`, until that node takes the VM over.

    At most a few nodes are remembered for each VM; the items of further ones are ignored.
    """
    if max(len(item.disks), len(item.nics)) > MAX_PLACES_OF_VM:
        disks, nics = _some(item.disks), _some(item.nics)
        item = msgspec.structs.replace(item, disks=disks, nics=nics)
    if name in vm.offers or len(vm.offers) < _OFFERS_KEPT:
        vm.offers = {**vm.offers, name: item}


def _some(devices: dict[str, str]) -> dict[str, str]:
    """Return the first `MAX_PLACES_OF_VM` devices."""
    return dict(islice(devices.items(), MAX_PLACES_OF_VM))


def remember_event(vm: Vm, name: str, event: Event) -> None:
    """Store how a VM came to another node, `name`, until that node takes it over.

    Events of other kinds are ignored, and so are further nodes beyond a few for each VM.
    """
    known = name in vm.arrivals or len(vm.arrivals) < _OFFERS_KEPT
    if event.kind in _ARRIVALS and known:
        vm.arrivals = {**vm.arrivals, name: event.kind}


def moves_to(cell: Cell, vm: Vm, node: Node, *, here: bool) -> bool:
    """Return whether a node that lists a VM of another node takes it over now.

    `here` states whether this sample of the node shows the VM as running.
    """
    located = cell.locate(vm.uuid)
    if located is None:
        return True
    owner, theirs, index = located
    if owner.name == node.name or owner.silent or vm.gone_ms:
        return True
    there = theirs.number("state", index) == _RUNNING
    return here and (vm.left_by_command or not there)


def note_twice(cell: Cell, vm: Vm, node: Node, *, time_ms: int) -> None:
    """Record that a node runs a VM that another node runs too, since the append time `time_ms`."""
    if not vm.twice:
        vm.twice, vm.twice_ms = node.key, time_ms
    cell.watched.add(vm.uuid)


def check_identities(cell: Cell, *, time_ms: int) -> Iterator[Finding]:
    """Yield VMs that run on two nodes, nodes with two collectors, and clocks that step."""
    for uuid in sorted(cell.watched):
        vm = cell.vms[uuid]
        if not vm.twice:
            continue
        if not _runs_there(cell, vm):
            vm.twice, vm.twice_ms = "", 0
            continue
        least_s = max(_TWICE_S, _TWICE_INTERVALS * cell.interval_ms() / 1000)
        if time_ms - vm.twice_ms >= least_s * 1000:
            yield _twice(cell, vm, time_ms=time_ms)
    for key in sorted(cell.nodes):
        node = cell.nodes[key]
        now_ms, interval_ms = cell.passed_ms, node.interval_ms
        if key == node.name and node.runs.are_several(now_ms=now_ms, interval_ms=interval_ms):
            yield _several(cell, node)
        if key == node.name and _has_stepped(node, time_ms=time_ms):
            yield _stepped(node)


def _has_stepped(node: Node, *, time_ms: int) -> bool:
    """Return whether a node's wall clock stepped recently, by a relevant amount."""
    is_recent = node.stepped_ms > 0 and time_ms - node.stepped_ms <= _STEP_NOTICE_MS
    return is_recent and abs(node.step_ms) >= _STEP_REPORTED_MS


def _runs_there(cell: Cell, vm: Vm) -> bool:
    """Return whether the other node (`vm.twice`) still shows a VM as running."""
    other, table = cell.nodes.get(vm.twice), cell.tables.get(vm.twice)
    if other is None or table is None or other.silent or vm.uuid not in table.foreign:
        return False
    return table.number("state", table.indices[vm.uuid]) == _RUNNING


def _twice(cell: Cell, vm: Vm, *, time_ms: int) -> Finding:
    text = text_of(vm.uuid)
    here, other = cell.nodes[vm.node], cell.nodes[vm.twice]
    seconds = (time_ms - vm.twice_ms) / 1000
    return Finding(
        scope="vm",
        subject=text,
        kind=Kind.DUPLICATE_VM,
        firing=True,
        severity=Kind.DUPLICATE_VM.fault.severity,
        suggestion=Kind.DUPLICATE_VM.fault.suggestion,
        confidence=0.99,
        onset_ms=vm.twice_ms,
        position=other.position(),
        sentence=(
            f"{sentences.name_of(vm, text)} has run on {here.name} and on {other.name} for "
            f"{seconds:.0f} s. Two copies may write to the same disks. Only the copy on "
            f"{here.name} is judged. Stop the copy that should not run."
        ),
        node=here.name,
        key=notice_key(Kind.DUPLICATE_VM, text),
    )


def _several(cell: Cell, node: Node) -> Finding:
    others = node.runs.rivals(now_ms=cell.passed_ms, interval_ms=node.interval_ms)
    return Finding(
        scope="host",
        subject=node.name,
        kind=Kind.DUPLICATE_COLLECTOR,
        firing=True,
        severity=Kind.DUPLICATE_COLLECTOR.fault.severity,
        suggestion=Kind.DUPLICATE_COLLECTOR.fault.suggestion,
        confidence=0.99,
        onset_ms=node.event_ms,
        position=node.position(),
        sentence=(
            f"Several collectors report as node {node.name} of cell {cell.name}. Frames of run "
            f"{node.run} are used, those of run {', '.join(others)} are not. Either two machines "
            "have the same hostname, or a second collector runs. Give each node its own name, or "
            "stop one collector."
        ),
        node=node.name,
        key=notice_key(Kind.DUPLICATE_COLLECTOR, node.name),
    )


def _stepped(node: Node) -> Finding:
    way = "forward" if node.step_ms > 0 else "back"
    return Finding(
        scope="host",
        subject=node.name,
        kind=Kind.CLOCK_STEP,
        firing=True,
        severity=Kind.CLOCK_STEP.fault.severity,
        suggestion=Kind.CLOCK_STEP.fault.suggestion,
        confidence=0.99,
        onset_ms=node.stepped_ms,
        position=node.position(),
        sentence=(
            f"The wall clock of node {node.name} stepped {way} by {abs(node.step_ms) / 1000:.0f} "
            "s. Its samples are still judged, by its monotonic clock. The history dates them by "
            "the wall clock. Check the time service of the node."
        ),
        node=node.name,
        key=notice_key(Kind.CLOCK_STEP, node.name),
    )


def log_stepped(cell: Cell, by_ms: int, *, time_ms: int) -> Finding:
    """Return that the log's clock was ahead by `by_ms` and is correct again since `time_ms`."""
    return Finding(
        scope="cell",
        subject=cell.name,
        kind=Kind.CLOCK_STEP,
        firing=True,
        severity=Kind.CLOCK_STEP.fault.severity,
        suggestion=Kind.CLOCK_STEP.fault.suggestion,
        confidence=0.99,
        onset_ms=time_ms,
        position=SamplePosition(node="-", role="shell", run="-", sequence=time_ms),
        sentence=(
            f"The clock of the log, by which cell {cell.name} is judged, went back by "
            f"{by_ms / 1000:.0f} s, because a broker or writer was ahead. Records that were dated "
            "later count as of now. Check the time service of the brokers."
        ),
        key=notice_key(Kind.CLOCK_STEP, f"log of {cell.name}"),
    )

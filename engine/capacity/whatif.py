"""What-if analysis: VMs are added, a node is lost, a cell is drained; where VMs would fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from flatline.engine.capacity.report import CellRow, cell_row
from flatline.engine.capacity.usage_snapshot import (
    NodeUse,
    Size,
    UsageSnapshot,
    VmUse,
    flavor_size,
    free,
)
from flatline.engine.errors import SettingsError

# The most VMs that may be added: enough for any question. The cost grows with each VM.
MOST_VMS: Final = 100_000


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a change.

    Attributes
    ----------
    question
        The change, in words.
    asked, placed
        Number of VMs that need a node, and of those that fit on one.
    placements
        Number of VMs placed on each node.
    unplaced
        Names of the VMs that do not fit. An added VM has no name; `new-` and a number stand for it.
    cells
        The affected cells, as they are after the change.
    """

    question: str
    asked: int
    placed: int
    placements: dict[str, int]
    unplaced: tuple[str, ...]
    cells: tuple[CellRow, ...]


def vms_come(usage: UsageSnapshot, *, count: int, flavor: str, scope: str | None = None) -> Answer:
    """Return the effect of adding `count` VMs of a flavor, anywhere or in one cell or zone.

    `scope` is `cell:NAME` or `zone:NAME`; None is anywhere.

    Raises
    ------
    SettingsError
        No VM of that flavor is known, there is no such cell or zone, the count is not in 1 to
        `MOST_VMS`, or the sizes of the nodes are unknown.
    """
    if not 1 <= count <= MOST_VMS:
        raise SettingsError(f"The number of VMs is {count}, must be 1 to {MOST_VMS}.")
    size = flavor_size(usage.vms, flavor)
    if size is None:
        known = ", ".join(sorted({vm.flavor for vm in usage.vms if vm.flavor})) or "none"
        raise SettingsError(f"There is no VM of flavor {flavor!r}. Known flavors: {known}.")
    nodes = _chosen(usage, scope)
    comers = [
        VmUse(
            vm=f"new-{number}",
            node="",
            flavor=flavor,
            vcpus=size.cores,
            memory_bytes=size.memory_bytes,
            cpu_p95_cores=size.cores,
        )
        for number in range(count)
    ]
    where = f" to {scope}" if scope else ""
    query = f"{count} VMs of flavor {flavor} are added{where}"
    return _answer(usage, query, comers, nodes, gone=())


def node_lost(usage: UsageSnapshot, node: str) -> Answer:
    """Return the effect of losing a node: its VMs must fit on the other nodes of the cell.

    Raises
    ------
    SettingsError
        There is no such node, or the size of the others is unknown.
    """
    lost = next((one for one in usage.nodes if one.node == node), None)
    if lost is None:
        raise SettingsError(f"There is no node {node!r}. Known nodes: {_some(usage, 'node')}.")
    rest = [one for one in usage.nodes if one.cell == lost.cell and one.node != node]
    return _answer(usage, f"node {node} fails", usage.on([lost]), rest, gone=(lost,))


def cell_drained(usage: UsageSnapshot, cell: str) -> Answer:
    """Return the effect of draining a cell: its VMs must fit in the other cells of the zone.

    Raises
    ------
    SettingsError
        There is no such cell, or the size of the other cells' nodes is unknown.
    """
    gone = [one for one in usage.nodes if one.cell == cell]
    if not gone:
        raise SettingsError(f"There is no cell {cell!r}. Known cells: {_some(usage, 'cell')}.")
    zones = {one.zone for one in gone}
    rest = [one for one in usage.nodes if one.cell != cell and one.zone in zones]
    return _answer(usage, f"cell {cell} is drained", usage.on(gone), rest, gone=gone)


def _answer(
    usage: UsageSnapshot,
    query: str,
    vms: Sequence[VmUse],
    nodes: Sequence[NodeUse],
    *,
    gone: Sequence[NodeUse],
) -> Answer:
    """Place VMs, the largest first, each on the node that has the most room left."""
    if nodes and all(node.cores is None or node.memory_bytes is None for node in nodes):
        raise SettingsError(
            "Placement requires the capacity of the nodes, which a dataset does not contain. Use "
            "frames of a real log, or the history."
        )
    rooms: dict[str, Size] = {node.node: free(node, usage.on([node])) for node in nodes}
    most = {node.node: (node.cores or 1.0, node.memory_bytes or 1.0) for node in nodes}
    placements: dict[str, int] = {}
    moved: list[VmUse] = []
    unplaced: list[str] = []
    for vm in sorted(vms, key=lambda vm: (vm.needs.memory_bytes, vm.needs.cores), reverse=True):
        able = [name for name, room in rooms.items() if vm.needs.fits(room)]
        if not able:
            unplaced.append(vm.name or vm.vm)
            continue

        def room_left(name: str, needs: Size = vm.needs) -> float:
            left, (cores, memory) = rooms[name].plus(needs, -1.0), most[name]
            return min(left.cores / cores, left.memory_bytes / memory)

        target = max(able, key=room_left)
        rooms[target] = rooms[target].plus(vm.needs, -1.0)
        placements[target] = placements.get(target, 0) + 1
        moved.append(replace(vm, node=target))
    away = {node.node for node in gone}
    touched = {vm.vm for vm in vms}
    stayed = [vm for vm in usage.vms if vm.vm not in touched]
    # The measured use of a node includes its own VMs; VMs that move to it add their needs.
    left = [node for node in usage.nodes if node.node not in away]
    grown = [_with(node, [vm for vm in moved if vm.node == node.node]) for node in left]
    after = UsageSnapshot(nodes=grown, vms=[*stayed, *moved], pools=usage.pools, days=usage.days)
    cells = sorted({node.cell for node in (*nodes, *gone)} & {node.cell for node in left})
    return Answer(
        question=query,
        asked=len(vms),
        placed=len(moved),
        placements=dict(sorted(placements.items())),
        unplaced=tuple(sorted(unplaced)),
        cells=tuple(cell_row(after, cell) for cell in cells),
    )


def _with(node: NodeUse, vms: Sequence[VmUse]) -> NodeUse:
    """Return a node that also holds some VMs."""
    cores = sum(vm.needs.cores for vm in vms)
    memory = sum(vm.needs.memory_bytes for vm in vms)
    return replace(
        node,
        cpu_p95_cores=None if node.cpu_p95_cores is None else node.cpu_p95_cores + cores,
        memory_p99_bytes=(
            None if node.memory_p99_bytes is None else node.memory_p99_bytes + memory
        ),
    )


def _chosen(usage: UsageSnapshot, scope: str | None) -> list[NodeUse]:
    if scope is None:
        return list(usage.nodes)
    kind, _, name = scope.partition(":")
    if kind not in ("cell", "zone") or not name:
        raise SettingsError(f"--in {scope}: use cell:NAME or zone:NAME.")
    found = [node for node in usage.nodes if (node.cell if kind == "cell" else node.zone) == name]
    if not found:
        raise SettingsError(f"There is no {kind} {name!r}. Known {kind}s: {_some(usage, kind)}.")
    return found


def _some(usage: UsageSnapshot, kind: str) -> str:
    """Return the known names, as many as a message can contain."""
    names = sorted({str(getattr(node, kind)) for node in usage.nodes})
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

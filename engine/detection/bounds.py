"""Limit the state that one partition keeps; a frame beyond a limit is rejected as `too_many`.

The holder of a node's key can invent VMs and runs without end. Where frames without a MAC are
accepted, every writer can invent nodes and cells. Each limit lies far above the tested sizes, so
that no honest site reaches it, and the limit times the size of one object fits into memory.
"""

from collections.abc import Mapping
from typing import Final

from flatline.engine.detection.cell import Cell
from flatline.engine.wire.frame import Frame, uuids_of

# A partition has about ten cells. The forest of a cell alone takes 62 KB.
MAX_CELLS: Final = 1_024
# A cell has up to 64 nodes. A node too large for one frame counts once for each part.
MAX_NODES: Final = 1_024
# The largest tested cell has 16,640 VMs. A VM takes about 5 KB.
MAX_VMS: Final = 65_536
# No known node runs more VMs. The limit keeps one node from using up `MAX_VMS` of its cell.
MAX_VMS_OF_NODE: Final = 8_192
# Maximum number of pools of a VM, and of networks. It also bounds incidents: a VM, node, pool or
# network has at most one, and at most one more for each kind of notice (`outcomes.key_of`).
MAX_PLACES_OF_VM: Final = 64
# Runs of all writers. A run that ended is dropped after ten minutes. A run without waiting frames
# takes about 500 bytes.
MAX_SOURCES: Final = 65_536
# Runs of one writer. Each command of an owner is a run of its own, and a script may send one
# command for each VM of a node.
MAX_RUNS: Final = 4_096
# Total size of the frames that wait for an earlier missing frame: 64 frames of 1 MB from each of
# four nodes. Above this limit waiting frames are folded at once; none is dropped.
MAX_WAITING_BYTES: Final = 256 << 20


def excess_of(cells: Mapping[str, Cell], frame: Frame) -> str | None:
    """Return why a frame exceeds a limit of its cell, None if it does not."""
    header = frame.header
    cell = cells.get(header.cell)
    if cell is None:
        if len(cells) >= MAX_CELLS:
            return f"cell {header.cell} would be number {len(cells) + 1} in this partition"
    elif (
        header.role == "collector"
        and len(cell.nodes) >= MAX_NODES
        and (header.node not in cell.nodes or not frame.node)
    ):
        return f"node {header.node} would be number {len(cell.nodes) + 1} in cell {header.cell}"
    return _excess_of_vms(cell, frame)


def _excess_of_vms(cell: Cell | None, frame: Frame) -> str | None:
    """Return why a frame names too many VMs, None if it does not; most name no new VM."""
    header = frame.header
    table = None if cell is None else cell.tables.get(header.node)
    is_known = table is not None and frame.rows.uuids == table.roster
    if is_known and not frame.inventory and not frame.events:
        return None
    named = set() if is_known else set(uuids_of(frame.rows.uuids))
    named.update(item.vm for item in frame.inventory)
    named.update(event.vm for event in frame.events if event.vm is not None)
    vms = {} if cell is None else cell.vms
    added = sum(vm not in vms for vm in named)
    if not added:
        return None
    if len(vms) + added > MAX_VMS:
        return f"with {added} more VMs cell {header.cell} would have more than {MAX_VMS}"
    if len(vms) + added <= MAX_VMS_OF_NODE:
        return None
    # A VM that no node has reported yet may belong to this node.
    mine = sum(vm.node.partition("#")[0] in {"", header.node} for vm in vms.values())
    if mine + added > MAX_VMS_OF_NODE:
        return f"with {added} more VMs node {header.node} would have more than {MAX_VMS_OF_NODE}"
    return None

"""How much one partition keeps of what writers say: what would pass a bound is rejected `too_many`.

The holder of one node's key may invent VMs and runs without end. Where frames without a MAC are
accepted, anyone may invent nodes and cells. Each bound lies far above what is tested, so that
it never meets an honest site, and its product with the size of one thing fits a machine's memory.
"""

from collections.abc import Mapping
from typing import Final

from engine.detection.cell import Cell
from engine.wire.frame import UUID_BYTES, Frame

# A partition has some ten cells; each keeps 62 KB for its forest alone.
MAX_CELLS: Final = 1_024
# A cell has up to 64 nodes; each node that is too large for a frame counts once for each part.
MAX_NODES: Final = 1_024
# The largest cell that is tested has 16,640 VMs. A VM keeps some 5 KB.
MAX_VMS: Final = 65_536
# Nobody runs more on one machine, and a node that claims more must leave room for the others.
MAX_VMS_OF_NODE: Final = 8_192
# Pools and networks of a VM: each may have an incident. Incidents need no bound of their own: a VM,
# node, pool or network has one, and one for each kind of notice (`incidents.key_of`).
MAX_PLACES_OF_VM: Final = 64
# Runs of all writers. A run that ended is forgotten after ten minutes; one that waits for
# nothing keeps some 500 bytes.
MAX_SOURCES: Final = 65_536
# Each command of an owner is a run of its own, and a script may give one for each VM of a node.
MAX_RUNS: Final = 4_096
# Frames that wait for a gap before them: 64 of 1 MB from each of four nodes. Beyond it nothing
# waits any longer, and nothing is lost.
MAX_WAITING_BYTES: Final = 256 << 20


def excess_of(cells: Mapping[str, Cell], frame: Frame) -> str | None:
    """Return why a frame names more than its cell may have, None where it does not."""
    header = frame.header
    cell = cells.get(header.cell)
    if cell is None:
        if len(cells) >= MAX_CELLS:
            return f"cell {header.cell} would be the {len(cells) + 1}th of this partition"
    elif (
        header.role == "collector"
        and len(cell.nodes) >= MAX_NODES
        and (header.node not in cell.nodes or not frame.node)
    ):
        return f"node {header.node} would be the {len(cell.nodes) + 1}th of cell {header.cell}"
    return _excess_of_vms(cell, frame)


def _excess_of_vms(cell: Cell | None, frame: Frame) -> str | None:
    """Return why the VMs that a frame names are too many; most frames name no new one."""
    header = frame.header
    lanes = None if cell is None else cell.lanes.get(header.node)
    is_known = lanes is not None and frame.rows.uuids == lanes.roster
    if is_known and not frame.inventory and not frame.events:
        return None
    uuids = b"" if is_known else frame.rows.uuids
    named = {uuids[at : at + UUID_BYTES] for at in range(0, len(uuids), UUID_BYTES)}
    named.update(item.vm for item in frame.inventory)
    named.update(event.vm for event in frame.events if event.vm is not None)
    vms = {} if cell is None else cell.vms
    added = sum(vm not in vms for vm in named)
    if not added:
        return None
    if len(vms) + added > MAX_VMS:
        return f"with {added} VMs more cell {header.cell} would have more than {MAX_VMS}"
    if len(vms) + added <= MAX_VMS_OF_NODE:
        return None
    # One that no node has shown yet may be of this one.
    mine = sum(vm.node.partition("#")[0] in {"", header.node} for vm in vms.values())
    if mine + added > MAX_VMS_OF_NODE:
        return f"with {added} VMs more node {header.node} would have more than {MAX_VMS_OF_NODE}"
    return None

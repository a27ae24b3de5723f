"""Form windows: samples of a cell's nodes that are judged together.

Where frames arrive in order, a window has all samples since the last window. Where they arrive out
of order, they come in bursts, and some nodes of a cell are ahead of others. There a sample waits
for its window, so that it is judged together with the samples that were taken at the same time. The
waiting time follows from the recent lateness of frames.
"""

import numpy as np

from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.sources import Sample
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.wire.frame import VmRows, decode_frame, uuids_of
from flatline.engine.wire.metrics import INTEGER_ROW
from flatline.models.kernels.baseline import NO_PREVIOUS

# Counters that only a live guest moves, in the order of rows 1 to 3 of `VmTable.previous`.
_LIFE = [INTEGER_ROW[name] for name in ("block_rd_bytes", "block_wr_bytes", "net_tx_bytes")]


def is_due(cell: Cell, now: Now) -> bool:
    """Return whether the window closes now.

    It closes when every live node has reported since the last closing, or when the allowed lateness
    has passed since the first report. With frames in order, the allowed lateness is shorter than
    the interval, so that a window does not wait until the next sample of a node. Without any report
    it closes after two intervals plus the lateness of frames, so that silence is judged too.
    """
    if not cell.round_ms:
        return now.time_ms - cell.closed_ms >= 2 * cell.interval_ms() + cell.out_of_order.late_ms
    waited_ms = now.time_ms - cell.round_ms
    return cell.all_reported() or waited_ms >= allowed_lateness_ms(cell, now.configuration)


def allowed_lateness_ms(cell: Cell, configuration: Configuration) -> float:
    """Return how long in ms a window waits for late nodes."""
    return configuration.slot_grace_share * cell.interval_ms() + cell.out_of_order.late_ms


def is_early(cell: Cell, name: str, sample: Sample, now: Now, *, since_ms: int) -> bool:
    """Return whether a sample of the node `name`, received at `since_ms`, must wait for its window.

    If the sample waits for a later window, its node has none for the open one; the cell records
    this in `beyond`. No sample waits where all recent frames arrived in order, and none waits for
    longer than `reorder_s` plus the allowed lateness. Nor does a sample wait if its time differs by
    as much from those of other nodes: one of them has a backlog or a wrong clock. `since_ms` is
    append time.
    """
    configuration = now.configuration
    node = cell.nodes.get(name)
    if node is None or not sample.mono_ns or not (cell.out_of_order.late_ms and cell.round_ms):
        return False
    apart_ms = configuration.reorder_s * 1000 + allowed_lateness_ms(cell, configuration)
    # A node that has just returned is marked silent until the window closes, but has reported.
    newest_ms = max(
        (
            other.event_ms
            for other in cell.nodes.values()
            if not other.silent or other.key in cell.reported
        ),
        default=node.event_ms,
    )
    if now.time_ms - since_ms >= apart_ms or newest_ms - sample.event_ms >= apart_ms:
        return False
    return _is_beyond(cell, node, sample, apart_ms, configuration)


def _is_beyond(
    cell: Cell, node: Node, sample: Sample, apart_ms: float, configuration: Configuration
) -> bool:
    """Return whether a sample belongs to a later window than the open one."""
    opened_ms = min((cell.nodes[key].event_ms for key in cell.reported), default=node.event_ms)
    later_ms = configuration.slot_grace_share * cell.interval_ms()
    if node.key not in cell.reported:
        if not later_ms <= sample.event_ms - opened_ms < apart_ms:
            return False
        cell.beyond.add(node.key)
        return True
    if node.mono_ns == sample.mono_ns:
        # Further rows of the same moment belong to the same sample.
        return False
    # Nodes whose newest sample is already past this window have none for it, so a node that catches
    # up need not wait for them.
    cell.beyond |= {
        key
        for key, other in cell.nodes.items()
        if key not in cell.reported and other.event_ms - opened_ms >= later_ms
    }
    return True


def moves_ahead(cell: Cell, node: Node, table: VmTable, index: int) -> bool:
    """Return whether a VM moved in a sample that has arrived and waits for its window.

    A delayed verdict must not suggest an action that is known to be wrong.
    """
    # All waiting frames are checked: the newest may hold only some VMs of the node, or none.
    return any(
        _moved(decode_frame(value).rows, table, index) for value in cell.ahead.get(node.name, ())
    )


def _moved(rows: VmRows, table: VmTable, index: int) -> bool:
    """Return whether a VM's counters in the rows differ from those of its last sample."""
    uuids = uuids_of(rows.uuids)
    if table.vm(index) not in uuids:
        return False
    column = uuids.index(table.vm(index))
    known = np.ones(len(_LIFE), bool) if rows.missing is None else ~rows.missing[_LIFE, column]
    now, before = rows.integers[_LIFE, column], table.previous[1 : 1 + len(_LIFE), index]
    return bool((known & (now != before) & (before != NO_PREVIOUS)).any())

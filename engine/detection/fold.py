"""Fold a frame into its cell on arrival; verdicts follow once per window in `judge`."""

import numpy as np

from flatline.engine.detection.cell import Cell, Node, SampleGap, Vm
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.lifecycle import (
    arrived,
    forget_hung_monitor,
    take_events,
    take_inventory,
)
from flatline.engine.detection.ownership import moves_to, note_twice
from flatline.engine.detection.rates import fold_rows
from flatline.engine.detection.sources import Counters
from flatline.engine.detection.vm_table import VmTable, follow_roster, without
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.metrics import INTEGER_ROW, VM_STATES

_RUNNING = VM_STATES.index("running")
# In this time the usual lag adapts to a node's clock that was set back. A backlog of minutes is
# shorter and changes it little.
_LAG_TAU_S = 300.0
# A run may begin with a backlog, so its first frame does not raise the usual lag. For the first
# frame of a new node, the lag is limited to the usual transport time through a log.
_FIRST_LAG_MS = 1_000
# NTP slews smaller offsets; larger ones are steps.
_STEP_MS = 1_000


def fold_frame(
    cell: Cell,
    frame: Frame,
    now: Now,
    *,
    arrived_ms: int,
    counters: Counters,
    missing: int = 0,
) -> None:
    """Fold one frame in the order of its source; a tick only advances time.

    `arrived_ms` is the append time of the frame, which may have waited since. `missing` is the
    number of frames directly before it that never arrived.
    """
    header = frame.header
    if header.role == "shell":
        return
    known = cell.nodes.get(header.node)
    if header.role == "collector" and known is not None and not _hears(cell, known, frame):
        counters.rival += 1
        return
    if frame.inventory and header.role == "collector":
        counters.foreign += take_inventory(cell, frame, time_ms=now.time_ms)
    if frame.events:
        counters.foreign += take_events(cell, frame, now, arrived_ms=arrived_ms)
    # A collector that cannot reach its hypervisor reports this. Such a frame is no sample of VMs.
    is_sight = frame.node.get("hypervisor_reachable", 1.0) > 0.0
    is_report = len(frame.rows) > 0 or bool(frame.node)
    if header.role != "collector" or not (is_report and is_sight):
        return
    node = _part(cell, frame)
    _take_clock_step(cell, node, frame, time_ms=now.time_ms)
    if not node.runs.run:
        _hears(cell, node, frame)
    if node.interval_ms != header.interval_ms:
        cell.samples_every(node, header.interval_ms)
    node.gap = None if missing else _gap_before(node, frame, now.configuration)
    if header.run != node.run:
        _forget_hung_monitors(cell, node)
    dt_s = _take_header(node, frame, time_ms=now.time_ms, counters=counters)
    _take_lag(cell, node, now, dt_s=dt_s)
    node.seen_ms = cell.passed_ms
    node.data_ms = arrived_ms
    node.gauges = frame.node
    node.pools = frame.pools
    table = cell.tables[node.key]
    if frame.rows.uuids != table.roster:
        table = _follow(cell, node, table, frame, now)
    if table.foreign:
        counters.foreign += _claim(cell, node, table, frame, now)
    fold_rows(
        table,
        frame.rows,
        dt_s=dt_s,
        **_first_reported(node, missing, dt_s),
        configuration=now.configuration,
    )
    cell.reported.add(node.key)
    if not cell.round_ms:
        cell.round_ms = now.time_ms


def _hears(cell: Cell, node: Node, frame: Frame) -> bool:
    """Return whether a frame is from the collector that is accepted for its node."""
    header = frame.header
    return node.runs.hears(
        header.run,
        sequence=header.sequence,
        event_ms=header.event_time_ns // 1_000_000,
        now_ms=cell.passed_ms,
        interval_ms=header.interval_ms,
    )


def _part(cell: Cell, frame: Frame) -> Node:
    """Return the node of a frame, or the part of the node whose rows the frame has."""
    # Node data is in the first frame. Frames with further rows of the same moment have none.
    name = frame.header.node
    key, number = name, 0
    first = cell.nodes.get(name)
    if not frame.node and first is not None and first.run == frame.header.run:
        while key in cell.nodes and cell.nodes[key].mono_ns == frame.header.mono_ns:
            number += 1
            key = f"{name}#{number}"
    node = cell.nodes.get(key)
    if node is None:
        node = cell.nodes[key] = Node(name=name, key=key)
        cell.samples_every(node, node.interval_ms)
        cell.tables[key] = VmTable(b"")
    return node


def _take_header(node: Node, frame: Frame, *, time_ms: int, counters: Counters) -> float | None:
    """Store the header of the frame; return the time since the last frame, None if unknown."""
    header = frame.header
    dt_s: float | None = None
    if header.run == node.run:
        dt_s = (header.mono_ns - node.mono_ns) / 1e9
        if dt_s <= 0:
            counters.clock_backwards += 1
            dt_s = None
    else:
        if not node.run:
            node.lag_ms = min(_FIRST_LAG_MS, time_ms - header.event_time_ns // 1_000_000)
        node.former_run, node.run = node.run, header.run
    node.sequence = header.sequence
    node.mono_ns = header.mono_ns
    node.event_ms = header.event_time_ns // 1_000_000
    node.interval_ms = header.interval_ms
    node.dt_s = header.interval_ms / 1000 if dt_s is None else dt_s
    return dt_s


def _forget_hung_monitors(cell: Cell, node: Node) -> None:
    """Clear the node's hung monitors: a new run reports only those that still hang."""
    for uuid in cell.watched:
        vm = cell.vms[uuid]
        if vm.node == node.key and vm.monitor_hung_ms:
            forget_hung_monitor(vm)


def _take_clock_step(cell: Cell, node: Node, frame: Frame, *, time_ms: int) -> None:
    """Record a step of the node's wall clock; a late frame is not one."""
    # The collector reads wall clock and monotonic clock with the sample, so in a late frame both
    # still agree. A step of the wall clock is subtracted from the node's usual lag at once, so that
    # later frames do not count as old.
    header = frame.header
    if cell.is_unsure or header.run != node.run or header.mono_ns <= node.mono_ns:
        return
    event_ms = header.event_time_ns // 1_000_000
    step_ms = event_ms - node.event_ms - (header.mono_ns - node.mono_ns) // 1_000_000
    lag_ms = time_ms - event_ms
    # If the log clock advanced like the wall clock, the wall clock did not step: the monotonic
    # clock stood still, because the node was suspended.
    is_nearer = abs(lag_ms - (node.lag_ms - step_ms)) < abs(lag_ms - node.lag_ms)
    if abs(step_ms) >= _STEP_MS and is_nearer:
        node.lag_ms -= step_ms
        node.stepped_ms, node.step_ms = time_ms, step_ms


def _gap_before(node: Node, frame: Frame, configuration: Configuration) -> SampleGap | None:
    """Return the sample gap before this frame, None where it is not unusual."""
    header = frame.header
    lasted_ms = (header.mono_ns - node.mono_ns) / 1e6
    usual_ms = max(node.interval_ms, header.interval_ms)
    if header.run != node.run or lasted_ms <= configuration.node_silent_intervals * usual_ms:
        return None
    return SampleGap(node.position(), node.event_ms, lasted_ms / 1000)


def _first_reported(node: Node, missing: int, dt_s: float | None) -> dict[str, int]:
    """Return sequence and time of the first sample that a frame covers, lost samples included."""
    # Counters continue over a gap: a VM that has not moved since the frame before the gap was
    # silent in the lost samples. A lost frame without a sample leaves no gap in time, so the time
    # since the last frame limits the number of lost samples.
    lost = 0 if dt_s is None else min(missing, round(1000 * dt_s / node.interval_ms) - 1)
    if dt_s is None or lost <= 0:
        return {"sequence": node.sequence, "event_ms": node.event_ms}
    since_ms = round(1000 * dt_s * lost / (lost + 1))
    return {"sequence": node.sequence - lost, "event_ms": node.event_ms - since_ms}


def _take_lag(cell: Cell, node: Node, now: Now, *, dt_s: float | None) -> None:
    """Update the usual lag; mark the node as stale if its frame took much longer."""
    if cell.is_unsure:
        # The lag of the frame is unknown while the log's own clock is not accepted.
        return
    lag_ms = now.time_ms - node.event_ms
    allowed_ms = max(now.configuration.stale_s * 1000, 3 * node.interval_ms)
    node.stale = lag_ms - node.lag_ms > allowed_ms
    if lag_ms <= node.lag_ms:
        node.lag_ms = lag_ms
    else:
        share = min(1.0, (dt_s or 0.0) / _LAG_TAU_S)
        node.lag_ms += round(share * (lag_ms - node.lag_ms))


def _follow(
    cell: Cell,
    node: Node,
    table: VmTable,
    frame: Frame,
    now: Now,
) -> VmTable:
    """Return rows in the order of the frame, and record VMs that came or left."""
    moved = follow_roster(table, frame.rows.uuids)
    cell.tables[node.key] = moved
    for vm in moved.indices:
        known = cell.vms.get(vm)
        if known is None:
            known = cell.vms[vm] = Vm(uuid=vm, node=node.key)
        if known.node != node.key:
            moved.foreign.add(vm)
        elif known.gone_ms:
            known.gone_ms = 0
            if vm in cell.departed.indices:
                moved.adopt(moved.indices[vm], cell.departed, cell.departed.indices[vm])
    left = [
        vm
        for vm in table.indices
        if vm not in moved.indices and vm in cell.vms and cell.vms[vm].node == node.key
    ]
    for vm in left:
        known = cell.vms[vm]
        known.gone_ms = now.time_ms
        known.gone_position = node.position()
        cell.watched.add(vm)
    if left:
        _keep_departed(cell, table, left)
    for vm in left:
        _hand_over(cell, vm, now)
    return moved


def _hand_over(cell: Cell, vm: bytes, now: Now) -> None:
    """Move a VM that left its node to a node that already runs it, as after a live migration."""
    known = cell.vms[vm]
    for key in sorted(cell.tables):
        node, table = cell.nodes[key], cell.tables[key]
        if vm not in table.foreign or node.silent:
            continue
        if table.number("state", table.indices[vm]) == _RUNNING:
            _take_over(cell, known, node, table, now)
            return


def _keep_departed(cell: Cell, table: VmTable, left: list[bytes]) -> None:
    """Store the learned state of VMs that left, and drop the state that is no longer needed."""
    kept = [vm for vm in cell.departed.indices if vm in cell.vms and cell.vms[vm].gone_ms]
    kept = [vm for vm in kept if vm not in left]
    departed = follow_roster(cell.departed, b"".join([*kept, *left]))
    indices = np.array([departed.indices[vm] for vm in left], np.intp)
    departed.take(indices, table, np.array([table.indices[vm] for vm in left], np.intp))
    cell.departed = departed


def _claim(
    cell: Cell,
    node: Node,
    table: VmTable,
    frame: Frame,
    now: Now,
) -> int:
    """Take over VMs of other nodes; return how many run here but are not taken over."""
    # During a live migration both nodes list the VM; it is paused on the target.
    states = frame.rows.integers[INTEGER_ROW["state"]]
    refused = 0
    for vm in sorted(table.foreign):
        known = cell.vms[vm]
        here = bool(states[table.indices[vm]] == _RUNNING)
        if moves_to(cell, known, node, here=here):
            _take_over(cell, known, node, table, now)
        elif here:
            refused += 1
            note_twice(cell, known, node, time_ms=now.time_ms)
    return refused


def _take_over(
    cell: Cell,
    known: Vm,
    node: Node,
    table: VmTable,
    now: Now,
) -> None:
    """Make a node the owner of a VM, with the state that was learned elsewhere."""
    vm, before = known.uuid, cell.locate(known.uuid)
    index = table.indices[vm]
    if before is not None:
        former, other, origin = before
        table.adopt(index, other, origin)
        _disown(cell, former, other, vm)
        known.former = former.name
    elif vm in cell.departed.indices:
        table.adopt(index, cell.departed, cell.departed.indices[vm])
        owner = cell.nodes.get(known.node)
        known.former = "" if owner is None else owner.name
    known.node = node.key
    known.gone_ms = 0
    known.twice, known.twice_ms = "", 0
    table.foreign.discard(vm)
    arrived(cell, known, node.name, now)


def _disown(cell: Cell, former: Node, table: VmTable, vm: bytes) -> None:
    """Remove a VM from its former node, after another node took it over."""
    # A silent node may never report again, so its roster would keep the VM.
    if former.silent:
        cell.tables[former.key] = without(table, {vm})
    else:
        table.foreign.add(vm)


def set_inhibitions(cell: Cell, held: dict[bytes, bool]) -> None:
    """Mark the rows with an explained silence, so that it is not learned as usual.

    `held` states for each VM, by its UUID, whether its silence is explained. All rows that it does
    not name as explained are unmarked.
    """
    for table in cell.tables.values():
        table.hold[...] = 0
    for vm, is_held in held.items():
        located = cell.locate(vm)
        if is_held and located is not None:
            located[1].hold[located[2]] = np.uint8(1)

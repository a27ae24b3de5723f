"""Take events, inventory and owners' commands, and derive which silences they explain.

An explained silence is neither judged nor learned as usual.
"""

import numpy as np

from flatline.engine.detection.bounds import MAX_PLACES_OF_VM
from flatline.engine.detection.cell import Cell, ReportedAction, Vm
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.departures import FORGETTABLE
from flatline.engine.detection.ownership import (
    may_hear,
    may_mark,
    may_speak,
    remember_event,
    remember_item,
)
from flatline.engine.wire.alert import SamplePosition
from flatline.engine.wire.frame import Event, Frame, InventoryItem
from flatline.engine.wire.limits import small_int

_FOR_EVER = -1
# Maximum number of subjects to forget in one window: a person does not send more at a time.
_FORGETS_KEPT = 1_024
# Event → the inhibition that it starts. It has no fixed duration; an event of `_ENDS` ends it.
_BEGINS = {
    "paused": "paused",
    "job_started": "job_active",
    "stopped": "stopped",
    "shutdown": "shutdown",
    "monitor_hung": "monitor_hung",
}
_ENDS = {
    "resumed": ("paused",),
    "started": ("paused", "stopped", "shutdown", "job_active", "monitor_hung"),
    "job_ended": ("job_active",),
    "monitor_back": ("monitor_hung",),
    "migrated_in": ("stopped", "paused", "migration", "monitor_hung"),
}
_LEFT = frozenset({"stopped", "shutdown", "migrated_out", "crashed"})
_CRASH_REPORTS = frozenset({"panicked", "crashed"})
# Reports of the node's agent about a guest that it probed or whose console it read.
_SIGNS = frozenset(
    {"probe_answered", "probe_silent", "agent_answered", "agent_silent", "console_panic"}
)


def take_inventory(cell: Cell, frame: Frame, *, time_ms: int) -> int:
    """Store each item as the definition of its VM; return how many are for other nodes' VMs.

    An item of another node's VM is kept until that node takes the VM over. `time_ms` is append
    time.
    """
    name, foreign = frame.header.node, 0
    for item in frame.inventory:
        vm = _known(cell, item.vm, time_ms=time_ms)
        if may_speak(cell, vm, name):
            _describe(vm, item)
        else:
            remember_item(vm, name, item)
            foreign += 1
    return foreign


def _known(cell: Cell, uuid: bytes, *, time_ms: int) -> Vm:
    """Return a VM, new if unknown; until its first sample it has no node and may be dropped."""
    vm = cell.vms.get(uuid)
    if vm is None:
        vm = cell.vms[uuid] = Vm(uuid=uuid, node="", known_ms=time_ms)
    return vm


def _describe(vm: Vm, item: InventoryItem) -> None:
    """Store an inventory item; a VM without tenant or group is not actionable."""
    vm.name = item.name
    vm.tenant = item.tenant
    vm.group = item.group
    vm.actionable = item.actionable and item.tenant is not None and item.group is not None
    vm.pools = tuple(sorted(set(item.disks.values())))[:MAX_PLACES_OF_VM]
    vm.networks = tuple(sorted(set(item.nics.values())))[:MAX_PLACES_OF_VM]
    vm.panic_device = item.panic_device
    vm.watchdog = item.watchdog
    vm.guest_agent = item.guest_agent
    vm.balloon_period_s = item.balloon_period_s
    vm.memory_bytes = item.memory_bytes
    vm.vcpus = item.vcpus


def arrived(cell: Cell, vm: Vm, name: str, now: Now) -> None:
    """Apply what the node `name` reported about a VM before it took the VM over."""
    time_ms, configuration = now
    item, kind = vm.offers.get(name), vm.arrivals.get(name)
    vm.offers, vm.arrivals = {}, {}
    if item is not None:
        _describe(vm, item)
    vm.left_by_command = False
    inhibition_ms = _inhibition_ms(cell, vm, configuration.lifecycle_hold_s, configuration)
    if kind == "migrated_in":
        _end_inhibitions(vm, kind, time_ms=time_ms, inhibition_ms=inhibition_ms)
        vm.inhibitions["migration"] = time_ms + inhibition_ms
    if kind == "started":
        _end_inhibitions(vm, kind, time_ms=time_ms, inhibition_ms=inhibition_ms)
        _enter_boot(cell, vm, now)
    if kind is not None:
        cell.watched.add(vm.uuid)


def _end_inhibitions(vm: Vm, kind: str, *, time_ms: int, inhibition_ms: int) -> None:
    """Let the inhibitions that event `kind` ends expire after a third of `inhibition_ms`.

    The effects of the event have settled by then.
    """
    ends = _ENDS.get(kind, ())
    for reason in ends:
        if reason in vm.inhibitions:
            vm.inhibitions[reason] = time_ms + inhibition_ms // 3
    if "monitor_hung" in ends:
        vm.monitor_hung_ms = 0


def forget_hung_monitor(vm: Vm) -> None:
    """Clear the hung monitor of a VM, since the event that ends it may have been lost."""
    vm.monitor_hung_ms = 0
    vm.inhibitions.pop("monitor_hung", None)


def _inhibition_ms(cell: Cell, vm: Vm, seconds: float, configuration: Configuration) -> int:
    """Return for how many ms an event explains a silence: at least `hold_samples` samples."""
    node = cell.nodes.get(vm.node)
    interval_ms = 0 if node is None else node.interval_ms
    return max(round(seconds * 1000), configuration.hold_samples * interval_ms)


def take_events(cell: Cell, frame: Frame, now: Now, *, arrived_ms: int) -> int:
    """Fold a frame's events; return how many are about VMs of other nodes and so not used.

    The log appended the frame at `arrived_ms`, so no event in it was later. Kinds that this release
    does not know are ignored.
    """
    time_ms, configuration = now
    header, foreign = frame.header, 0
    for event in frame.events:
        if event.vm is None:
            if header.role == "owner" and event.kind == "owner_forget":
                _take_forget(cell, event)
            continue
        vm = _known(cell, event.vm, time_ms=time_ms)
        if header.role == "owner":
            _take_owner(cell, vm, event, now)
        elif header.role == "agent" and event.kind in _SIGNS:
            if not may_hear(cell, vm, header.node, time_ms=time_ms):
                foreign += 1
                continue
            heard_ms = _said_ms(cell, vm, event, arrived_ms)
            _take_sign(cell, vm, event, header.node, heard_ms, configuration)
        elif header.role == "agent":
            if not may_mark(cell, vm, header.node):
                foreign += 1
                continue
            _take_action(vm, event, time_ms=time_ms)
        elif may_speak(cell, vm, header.node):
            position = SamplePosition(
                node=header.node, role=header.role, run=header.run, sequence=header.sequence
            )
            said_ms = _said_ms(cell, vm, event, arrived_ms)
            _take_lifecycle(cell, vm, event, position, said_ms, now)
        else:
            remember_event(vm, header.node, event)
            foreign += 1
            continue
        cell.watched.add(event.vm)
    return foreign


def _take_forget(cell: Cell, event: Event) -> None:
    """Store, until the window closes, a subject that an owner wants forgotten."""
    scope = FORGETTABLE.get(event.detail.get("scope", ""))
    if scope is not None and len(cell.forgets) < _FORGETS_KEPT:
        cell.forgets.append((scope, event.detail.get("name", "")))


def _take_owner(cell: Cell, vm: Vm, event: Event, now: Now) -> None:
    if event.kind == "owner_reboot":
        vm.inhibitions["owner_reboot"] = now.time_ms + _inhibition_ms(
            cell, vm, now.configuration.owner_reboot_hold_s, now.configuration
        )
    elif event.kind == "owner_maintenance":
        _take_maintenance(vm, event)


def _take_maintenance(vm: Vm, event: Event) -> None:
    """Store the end of a maintenance; only a later command may end it earlier."""
    event_ms = event.time_ns // 1_000_000
    reported_ms = small_int(event.detail.get("until_ms", ""))
    until_ms = _FOR_EVER if reported_ms is None else reported_ms
    if event_ms < vm.maintenance_ms:
        both = (until_ms, vm.inhibitions.get("maintenance", until_ms))
        until_ms = _FOR_EVER if _FOR_EVER in both else max(both)
    vm.inhibitions["maintenance"] = until_ms
    vm.maintenance_ms = max(vm.maintenance_ms, event_ms)


def _take_action(vm: Vm, event: Event, *, time_ms: int) -> None:
    phase = {"action_sent": "sent", "action_returned": "returned", "action_unknown": "unknown"}
    # A call that was refused or expired had no effect: there is nothing to verify.
    if event.kind not in phase or event.detail.get("outcome") in ("refused", "expired"):
        return
    vm.reported_action = ReportedAction(
        incident=event.detail.get("incident", ""),
        step=small_int(event.detail.get("step", "")) or 0,
        action=event.detail.get("action", ""),
        phase=phase[event.kind],
        time_ms=time_ms,
        dry_run=event.detail.get("dry_run", "").lower() in {"true", "1"},
    )


def _said_ms(cell: Cell, vm: Vm, event: Event, arrived_ms: int) -> int:
    """Return the time of an event by the clock of the VM's node, at most the append time."""
    # A date in the future would be after the onset of all silences until then: an answer with this
    # date would hide each death, and a missing answer would be evidence for each.
    home = cell.nodes.get(vm.node)
    ahead_ms = 0 if home is None else max(0, -home.lag_ms)
    return min(event.time_ns // 1_000_000, arrived_ms + ahead_ms)


def _take_sign(
    cell: Cell, vm: Vm, event: Event, node: str, event_ms: int, configuration: Configuration
) -> None:
    """Record an answer of a guest, or a missing one."""
    # An answer counts from every node that `may_hear` it, and cancels a missing answer before it. A
    # missing answer counts only from the VM's own node, and only if no later answer was recorded.
    if event.kind == "probe_answered":
        vm.probe_answered_ms = event_ms
        vm.probe_silent_ms = 0
        return
    if event.kind == "agent_answered":
        vm.agent_answered_ms = event_ms
        vm.said.pop("agent_silent", None)
        return
    home = cell.nodes.get(vm.node)
    if home is None or home.name != node:
        return
    if event.kind == "probe_silent":
        reported_ms = small_int(event.detail.get("last_answer_ms", ""))
        answered_ms = vm.probe_answered_ms if reported_ms is None else reported_ms
        is_fresh = 0 <= event_ms - answered_ms <= configuration.probe_fresh_s * 1000
        if is_fresh and event_ms >= vm.probe_answered_ms:
            vm.probe_silent_ms = event_ms
    elif event.kind == "console_panic" or event_ms >= vm.agent_answered_ms:
        vm.said[event.kind] = event_ms


def _take_lifecycle(
    cell: Cell,
    vm: Vm,
    event: Event,
    position: SamplePosition,
    said_ms: int,
    now: Now,
) -> None:
    time_ms, configuration = now
    kind = event.kind
    inhibition_ms = _inhibition_ms(cell, vm, configuration.lifecycle_hold_s, configuration)
    if kind in _BEGINS:
        vm.inhibitions[_BEGINS[kind]] = _FOR_EVER
    if kind == "monitor_hung":
        vm.monitor_hung_ms = time_ms
        vm.gone_position = position
    _end_inhibitions(vm, kind, time_ms=time_ms, inhibition_ms=inhibition_ms)
    if kind in {"migrated_in", "migrated_out"}:
        vm.inhibitions["migration"] = time_ms + inhibition_ms
    if kind == "crash_dump":
        vm.inhibitions["crash_dump"] = time_ms + round(configuration.crash_dump_hold_s * 1000)
    if kind in _LEFT:
        vm.left_by_command = True
    elif kind in {"started", "migrated_in", "resumed"}:
        vm.left_by_command = False
    _take_command(cell, vm, event, said_ms)
    if kind in {"rebooted", "started"}:
        _begin_boot(cell, vm, event, position, said_ms, now)


def _take_command(cell: Cell, vm: Vm, event: Event, said_ms: int) -> None:
    """Record a report of a VM's panic device or watchdog."""
    if event.kind in _CRASH_REPORTS:
        vm.reported, vm.reported_ms = event.kind, cell.passed_ms
    elif event.kind == "watchdog":
        vm.said[event.kind] = said_ms


def _begin_boot(
    cell: Cell,
    vm: Vm,
    event: Event,
    position: SamplePosition,
    said_ms: int,
    now: Now,
) -> None:
    """Begin a boot epoch, and record a reboot; `check_reboots` judges it later."""
    _enter_boot(cell, vm, now)
    if event.kind != "rebooted":
        return
    # libvirt 9 reports one reset twice.
    since_ms = now.time_ms - vm.rebooted_ms
    repeated = vm.rebooted_ms > 0 and since_ms < now.configuration.reboot_wait_s * 1000
    vm.rebooted_ms = now.time_ms
    if not repeated:
        vm.reboot_pending = True
        vm.reboot_position = position
        vm.reboot_event_ms = said_ms


def _enter_boot(cell: Cell, vm: Vm, now: Now) -> None:
    time_ms, configuration = now
    vm.reported = ""
    vm.said = {}
    vm.probe_silent_ms = 0
    vm.inhibitions["boot"] = time_ms + _inhibition_ms(
        cell, vm, configuration.boot_hold_s, configuration
    )
    located = cell.locate(vm.uuid)
    if located is not None:
        _, table, index = located
        vm.silent_at_reboot = table.number("run_samples", index) > 0
        table.begin_boot(np.array([index], np.intp))

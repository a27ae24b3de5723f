"""Limit times in a cell's state to the present after its clock was set back."""

import msgspec

from flatline.engine.detection import cell as cells
from flatline.engine.detection.cell import Cell
from flatline.engine.wire.alert import Alert


def step_back(cell: Cell, *, from_ms: int, to_ms: int) -> None:
    """Limit past times to `to_ms`; a time in the future keeps its distance from the present.

    The log's clock went back from `from_ms` to `to_ms`. Only append times of the cell are changed.
    """

    def ends(until_ms: int) -> int:
        left_ms = until_ms - from_ms
        return to_ms + left_ms if left_ms > 0 else min(until_ms, to_ms)

    for vm in cell.vms.values():
        vm.inhibitions = {reason: ends(until) for reason, until in vm.inhibitions.items()}
        _earlier(vm, to_ms, "rebooted_ms", "gone_ms", "monitor_hung_ms", "missed_ms")
        _earlier(vm, to_ms, "twice_ms", "known_ms")
        vm.reported_action = _marked(vm.reported_action, to_ms)
    for incident in cell.incidents.values():
        _earlier(incident, to_ms, "published_ms", "well_ms", "other_ms")
        incident.reported_action = _marked(incident.reported_action, to_ms)
        incident.alert = _dated(incident.alert, to_ms)
    for node in cell.nodes.values():
        _earlier(node, to_ms, "data_ms", "busy_since_ms", "stepped_ms")
    for cause in cell.common_causes.values():
        _earlier(cause, to_ms, "since_ms", "released_ms")
    _earlier(cell.out_of_order, to_ms, "since_ms")
    _earlier(cell.counts, to_ms, "minute_ms")
    _earlier(cell, to_ms, "round_ms", "closed_ms")
    cell.outage_ms, cell.disturbed_ms = ends(cell.outage_ms), ends(cell.disturbed_ms)


def _earlier(holder: object, to_ms: int, *names: str) -> None:
    for name in names:
        setattr(holder, name, min(getattr(holder, name), to_ms))


def _marked(
    reported_action: cells.ReportedAction | None, to_ms: int
) -> cells.ReportedAction | None:
    if reported_action is None or reported_action.time_ms <= to_ms:
        return reported_action
    return msgspec.structs.replace(reported_action, time_ms=to_ms)


def _dated(alert: Alert, to_ms: int) -> Alert:
    """Return the alert with opening and decision at `to_ms` at the latest."""
    return msgspec.structs.replace(
        alert,
        opened_ms=min(alert.opened_ms, to_ms),
        decided_ms=min(alert.decided_ms, to_ms),
        data_ms=None if alert.data_ms is None else min(alert.data_ms, to_ms),
    )

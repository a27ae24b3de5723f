"""End incidents of VMs: verified after an action, or because the VM recovered by itself."""

import math
from typing import Final, NamedTuple, assert_never

from flatline.engine.detection import sentences
from flatline.engine.detection.cell import Cell, Incident, ReportedAction, Vm
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.evidence import Picture, picture
from flatline.engine.detection.outcomes import Calmed, Continued, Ended, Outcome
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.detection.witnesses import signs_of_life, witness_items
from flatline.engine.faults import Kind, Recovery, kind_of
from flatline.engine.wire.alert import Resolution
from flatline.models.kernels import trends

# The collector reports the boot and the agent reports the action, in separate frames: either may
# be first.
_BOOT_SLACK_MS = 30_000
# Recoveries seen in slow trends. They become unknown without samples, as in a VM paused for days.
_TRENDS: Final[frozenset[Recovery]] = frozenset({"memory", "cores", "signal"})
_UNSEEN: Final = "no sample was received for an hour, so it is unknown whether the fault continues"


class _Examined(NamedTuple):
    """An incident, and the evidence of this window on its VM."""

    incident: Incident
    kind: Kind | None
    vm: Vm
    seen: Picture
    table: VmTable
    row: int
    time_ms: int

    @property
    def recovery(self) -> Recovery:
        """How the end of the fault is seen; for an unknown kind, by activity of the guest."""
        return "moves" if self.kind is None else self.kind.fault.recovery

    def shown(self, name: str) -> float:
        """Return a result of the slow trends by its name in `trends.OUT`; NaN is unknown."""
        return float(self.table.shows[self.row, trends.OUT[name]])

    def is_unseen(self) -> bool:
        """Return whether the VM was unknown for `trends.UNKNOWN_S`."""
        return math.isnan(self.shown("closed"))


def follow_vm(cell: Cell, incident: Incident, vm: Vm, now: Now) -> Outcome:
    """End a VM's incident that was not found again in this window, or let it go on.

    The outcome is `Ended`, `Calmed` or `Continued`. `incident` is changed in place: since when the
    VM is healthy, and the reported action.
    """
    configuration = now.configuration
    _take_action(incident, vm)
    located = cell.locate(vm.uuid)
    if vm.left_by_command and (located is None or vm.gone_ms):
        return _end(incident, vm, "it was shut down")
    if located is None or vm.gone_ms or located[0].silent:
        return Calmed(incident)
    node, table, index = located
    seen = picture(node, table, index, vm, configuration)
    checked = _Examined(incident, kind_of(incident.alert.kind), vm, seen, table, index, now.time_ms)
    if not _is_well(checked, configuration):
        incident.well_ms = 0
        return Continued(incident)
    if not incident.well_ms:
        incident.well_ms = now.time_ms
    well_s = (now.time_ms - incident.well_ms) / 1000
    action = incident.reported_action
    if action is not None and not action.dry_run and _explains(incident, vm, node.name):
        if well_s < configuration.verify_stable_s:
            return Calmed(incident)
        return _verified(checked, action, node.name, well_s)
    if well_s < configuration.clear_s:
        return Calmed(incident)
    return _end(incident, vm, _reason(checked, configuration))


def _reason(checked: _Examined, configuration: Configuration) -> str:
    """Return why the VM counts as healthy."""
    kind, vm = checked.kind, checked.vm
    if kind is not None and kind.fault.recovered:
        is_unknown = checked.recovery in _TRENDS and checked.is_unseen()
        return _UNSEEN if is_unknown else kind.fault.recovered
    if checked.recovery == "writes":
        if _writes_again(checked, configuration):
            return "its disk writes are normal again"
        if math.isnan(checked.shown("write_share")):
            return (
                "the alert is a day old, and it is unknown whether its present disk writes are "
                "normal"
            )
        return "its disk writes have not exceeded this level for a day, so this level is now normal"
    if checked.seen.run_samples > 0 and not checked.seen.crashed:
        return "it does no I/O, but its kernel is alive"
    booted = vm.rebooted_ms >= checked.incident.alert.opened_ms - _BOOT_SLACK_MS
    return "it rebooted by itself" if booted and vm.rebooted_ms else "it is active again by itself"


def _take_action(incident: Incident, vm: Vm) -> None:
    if vm.reported_action is not None and vm.reported_action.incident == incident.alert.id:
        incident.reported_action = vm.reported_action


def _is_well(checked: _Examined, configuration: Configuration) -> bool:
    """Return whether the VM now shows what the fault had stopped."""
    match checked.recovery:
        case "cpu":
            return (
                checked.table.figure("contention", checked.row) < configuration.contention_share / 2
            )
        case "visible":
            return not checked.vm.monitor_hung_ms
        case "writes":
            lasted_ms = checked.time_ms - checked.incident.alert.opened_ms
            is_usual = lasted_ms > configuration.degraded_most_s * 1000
            return is_usual or _writes_again(checked, configuration)
        case "memory":
            return checked.is_unseen() or checked.shown("rises") < configuration.leak_calm_rises
        case "cores":
            return checked.is_unseen() or _released_cores(checked)
        case "signal":
            return (
                checked.is_unseen()
                or checked.kind is None
                or checked.shown(checked.kind.fault.signal) == 0
            )
        case "disks":
            since_well = checked.incident.well_ms > 0 and checked.seen.disk_run_s <= 6.0
            return checked.seen.disk_samples == 0 or since_well
        case "moves" | "detector" | "time":
            return _moves(checked, configuration)
        case _:
            assert_never(checked.recovery)


def _moves(checked: _Examined, configuration: Configuration) -> bool:
    seen = checked.seen
    patient_s = max(configuration.clear_s, 3 * seen.dt_s)
    if seen.run_samples > 0:
        # A silence with signs of life is no fault. A short silence after the VM moved again is no
        # relapse.
        signs = signs_of_life(witness_items(seen, configuration))
        lives = bool(signs) or seen.lived is not None
        return lives or (checked.incident.well_ms > 0 and seen.run_s <= patient_s)
    return seen.moved >= configuration.clear_samples and seen.epoch_s > 0


def _writes_again(checked: _Examined, configuration: Configuration) -> bool:
    return checked.shown("write_share") >= configuration.degraded_calm_share


def _released_cores(checked: _Examined) -> bool:
    cores = checked.incident.alert.evidence[0].value or 0.0
    return checked.seen.cpu is not None and checked.seen.cpu < 0.7 * cores


def _explains(incident: Incident, vm: Vm, node: str) -> bool:
    """Return whether the recorded action can have repaired the VM: it booted or moved."""
    action = incident.reported_action
    if action is None:
        return False
    if action.action == "migrate":
        return node != incident.alert.node
    return vm.rebooted_ms >= action.time_ms - _BOOT_SLACK_MS


def _verified(
    checked: _Examined, reported_action: ReportedAction, node: str, stable_s: float
) -> Ended:
    incident = checked.incident
    name = sentences.name_of(checked.vm, incident.alert.subject)
    if reported_action.action == "migrate":
        reason = f"it runs on {node} and gets the CPU it requests"
    else:
        reason = "it booted, and its disks and network are active again"
    resolution = Resolution(
        reason=reason,
        verified=True,
        action=reported_action.action,
        order_step=reported_action.step,
        stable_s=round(stable_s, 3),
        node=node,
        instance=checked.table.number("instance", checked.row),
    )
    return Ended(
        incident,
        resolution,
        f"{name} recovered after the {reported_action.action}: {reason}. It was observed for "
        f"{stable_s:.0f} s.",
    )


def _end(incident: Incident, vm: Vm, reason: str) -> Ended:
    name = sentences.name_of(vm, incident.alert.subject)
    return Ended(incident, Resolution(reason=reason), f"{name}: {reason}.")

"""End incidents: verified after an action, by themselves, or explained later."""

import math
from typing import Final, NamedTuple, assert_never

from engine.detection import sentences
from engine.detection.cell import Cell, Incident, ReportedAction, Vm
from engine.detection.configuration import Configuration, Now
from engine.detection.evidence import Picture, picture
from engine.detection.outcomes import Calmed, Continued, Ended, Outcome
from engine.detection.vm_table import VmTable
from engine.detection.witnesses import signs_of_life, witness_items
from engine.faults import Kind, Recovery, kind_of
from engine.wire.alert import Resolution
from models.kernels import trends

# The node's frame carries the event, another frame the agent's action: either may be first.
_BOOT_SLACK_MS = 30_000
# These become unknown without samples: a VM paused for days shows nothing.
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
        """How the end is seen; a kind of another release ends when its guest moves."""
        return "moves" if self.kind is None else self.kind.fault.recovery

    def shown(self, name: str) -> float:
        """Return a result of the slow trends by its name in `trends.OUT`; NaN is unknown."""
        return float(self.table.shows[self.row, trends.OUT[name]])

    def is_unseen(self) -> bool:
        """Return whether the VM was unknown for `trends.UNKNOWN_S`."""
        return math.isnan(self.shown("closed"))


def follow_vm(cell: Cell, incident: Incident, vm: Vm, now: Now) -> Outcome:
    """End a VM's incident that was not found again in this window, or let it go on."""
    configuration = now.configuration
    _take_action(incident, vm)
    located = cell.locate(vm.uuid)
    if vm.left_by_command and (located is None or vm.gone_ms):
        return _end(incident, vm, "it was shut down")
    if located is None or vm.gone_ms or located[0].silent:
        return Calmed(incident)
    node, table, index = located
    seen = picture(node, table, index, vm, configuration)
    sample = _Examined(incident, kind_of(incident.alert.kind), vm, seen, table, index, now.time_ms)
    if not _is_well(sample, configuration):
        incident.well_ms = 0
        return Continued(incident)
    if not incident.well_ms:
        incident.well_ms = now.time_ms
    well_s = (now.time_ms - incident.well_ms) / 1000
    position = incident.reported_action
    if position is not None and not position.dry_run and _explains(incident, vm, node.name):
        if well_s < configuration.verify_stable_s:
            return Calmed(incident)
        return _verified(sample, position, node.name, well_s)
    if well_s < configuration.clear_s:
        return Calmed(incident)
    return _end(incident, vm, _reason(sample, configuration))


def _reason(sample: _Examined, configuration: Configuration) -> str:
    """Return why the VM counts as healthy."""
    kind, vm = sample.kind, sample.vm
    if kind is not None and kind.fault.recovered:
        is_unknown = sample.recovery in _TRENDS and sample.is_unseen()
        return _UNSEEN if is_unknown else kind.fault.recovered
    if sample.recovery == "writes":
        if _writes_again(sample, configuration):
            return "its disk writes are normal again"
        if math.isnan(sample.shown("write_share")):
            return (
                "the alert is a day old, and it is unknown whether its present disk writes are "
                "normal"
            )
        return "its disk writes have not exceeded this level for a day, so this level is now normal"
    if sample.seen.run_samples > 0 and not sample.seen.crashed:
        return "it does no I/O, but its kernel is alive"
    booted = vm.rebooted_ms >= sample.incident.alert.opened_ms - _BOOT_SLACK_MS
    return "it rebooted by itself" if booted and vm.rebooted_ms else "it is active again by itself"


def _take_action(incident: Incident, vm: Vm) -> None:
    if vm.reported_action is not None and vm.reported_action.incident == incident.alert.id:
        incident.reported_action = vm.reported_action


def _is_well(sample: _Examined, configuration: Configuration) -> bool:
    """Return whether the VM now shows what the fault had stopped."""
    match sample.recovery:
        case "cpu":
            return (
                sample.table.figure("contention", sample.row) < configuration.contention_share / 2
            )
        case "visible":
            return not sample.vm.monitor_hung_ms
        case "writes":
            lasted_ms = sample.time_ms - sample.incident.alert.opened_ms
            is_usual = lasted_ms > configuration.degraded_most_s * 1000
            return is_usual or _writes_again(sample, configuration)
        case "memory":
            return sample.is_unseen() or sample.shown("rises") < configuration.leak_calm_rises
        case "cores":
            return sample.is_unseen() or _released_cores(sample)
        case "signal":
            return (
                sample.is_unseen()
                or sample.kind is None
                or sample.shown(sample.kind.fault.signal) == 0
            )
        case "disks":
            since_well = sample.incident.well_ms > 0 and sample.seen.disk_run_s <= 6.0
            return sample.seen.disk_samples == 0 or since_well
        case "moves" | "detector" | "time":
            return _moves(sample, configuration)
        case _:
            assert_never(sample.recovery)


def _moves(sample: _Examined, configuration: Configuration) -> bool:
    seen = sample.seen
    patient_s = max(configuration.clear_s, 3 * seen.dt_s)
    if seen.run_samples > 0:
        # After it moved again, a short silence or one with signs of life is no relapse.
        signs = signs_of_life(witness_items(seen, configuration))
        lives = bool(signs) or seen.lived is not None
        return lives or (sample.incident.well_ms > 0 and seen.run_s <= patient_s)
    return seen.moved >= configuration.clear_samples and seen.epoch_s > 0


def _writes_again(sample: _Examined, configuration: Configuration) -> bool:
    return sample.shown("write_share") >= configuration.degraded_calm_share


def _released_cores(sample: _Examined) -> bool:
    cores = sample.incident.alert.evidence[0].value or 0.0
    return sample.seen.cpu is not None and sample.seen.cpu < 0.7 * cores


def _explains(incident: Incident, vm: Vm, node: str) -> bool:
    """Return whether the recorded action can have repaired the VM: a boot, or another node."""
    position = incident.reported_action
    if position is None:
        return False
    if position.action == "migrate":
        return node != incident.alert.node
    return vm.rebooted_ms >= position.time_ms - _BOOT_SLACK_MS


def _verified(
    sample: _Examined, reported_action: ReportedAction, node: str, stable_s: float
) -> Ended:
    incident = sample.incident
    name = sentences.name_of(sample.vm, incident.alert.subject)
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
        instance=sample.table.number("instance", sample.row),
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

"""End incidents: verified after an action, by themselves, or explained later."""

import math
from typing import Final, NamedTuple

from engine.detection import sentences
from engine.detection.cell import Cell, Incident, Vm
from engine.detection.configuration import Configuration
from engine.detection.evidence import Picture, picture
from engine.detection.incidents import calmed, republished, resolve
from engine.detection.lanes import Lanes
from engine.detection.witnesses import signs_of_life, witness_items
from engine.wire.alert import Alert, Resolution
from models.kernels import trends

# The node's frame carries the event, another frame the agent's action: either may be first.
_BOOT_SLACK_MS = 30_000
# These kinds become unknown without samples: a VM paused for days shows nothing.
_TRENDS: Final = frozenset({"mem_leak", "cpu_runaway", "noisy_neighbour"})
_UNSEEN: Final = "no sample was received for an hour, so it is unknown whether the fault continues"
_REASONS: Final = {
    "hung_io": "its disks are active again",
    "hung_userland": "its disks are active again",
    "node_contention": "it gets the CPU it requests again",
    "boot_stuck": "it has booted",
    "vm_silence": "it reports again",
    "mem_leak": "its memory no longer grows",
    "cpu_runaway": "it has released the extra cores",
    "noisy_neighbour": "it no longer overloads its node",
}


class _Look(NamedTuple):
    """An incident, and the evidence of this slot on its VM."""

    incident: Incident
    vm: Vm
    seen: Picture
    lanes: Lanes
    lane: int
    time_ms: int

    def shown(self, name: str) -> float:
        """Return a result of the slow trends by its name in `trends.OUT`; NaN is unknown."""
        return float(self.lanes.shows[self.lane, trends.OUT[name]])

    def is_unseen(self) -> bool:
        """Return whether the VM was unknown for `trends.UNKNOWN_S`."""
        return math.isnan(self.shown("closed"))


def follow_vm(
    cell: Cell, incident: Incident, vm: Vm, *, time_ms: int, configuration: Configuration
) -> list[Alert]:
    """Resolve a VM's incident that was not found again in this slot, or keep it firing."""
    _take_mark(incident, vm)
    place = cell.place(vm.uuid)
    if vm.left_by_word and (place is None or vm.gone_ms):
        return _end(cell, incident, vm, "it was shut down", time_ms=time_ms)
    if place is None or vm.gone_ms or place[0].silent:
        return calmed(incident, time_ms=time_ms, configuration=configuration)
    node, lanes, lane = place
    seen = picture(node, lanes, lane, vm, configuration)
    look = _Look(incident, vm, seen, lanes, lane, time_ms)
    if not _is_well(look, configuration):
        incident.well_ms = 0
        return republished(incident, time_ms=time_ms, configuration=configuration)
    if not incident.well_ms:
        incident.well_ms = time_ms
    well_s = (time_ms - incident.well_ms) / 1000
    mark = incident.mark
    if mark is not None and not mark.dry_run and _explains(incident, vm, node.name):
        if well_s < configuration.verify_stable_s:
            return calmed(incident, time_ms=time_ms, configuration=configuration)
        instance = lanes.number("instance", lane)
        return _verified(cell, incident, vm, node.name, instance, well_s, time_ms=time_ms)
    if well_s < configuration.clear_s:
        return calmed(incident, time_ms=time_ms, configuration=configuration)
    return _end(cell, incident, vm, _reason(look, configuration), time_ms=time_ms)


def _reason(look: _Look, configuration: Configuration) -> str:
    """Return why the VM counts as healthy."""
    kind, vm = look.incident.alert.kind, look.vm
    if kind in _REASONS:
        return _UNSEEN if kind in _TRENDS and look.is_unseen() else _REASONS[kind]
    if kind == "degrading_storage":
        if _writes_again(look, configuration):
            return "its disk writes are normal again"
        if math.isnan(look.shown("write_share")):
            return (
                "the alert is a day old, and it is unknown whether its present disk writes are "
                "normal"
            )
        return "its disk writes have not exceeded this level for a day, so this level is now normal"
    if look.seen.run_samples > 0 and not look.seen.crashed:
        return "it does no I/O, but its kernel is alive"
    booted = vm.rebooted_ms >= look.incident.alert.opened_ms - _BOOT_SLACK_MS
    return "it rebooted by itself" if booted and vm.rebooted_ms else "it is active again by itself"


def _take_mark(incident: Incident, vm: Vm) -> None:
    if vm.mark is not None and vm.mark.incident == incident.alert.id:
        incident.mark = vm.mark


def _is_well(look: _Look, configuration: Configuration) -> bool:
    """Return whether the VM now shows what the fault had stopped."""
    incident, seen = look.incident, look.seen
    kind = incident.alert.kind
    if kind == "node_contention":
        return look.lanes.figure("contention", look.lane) < configuration.contention_share / 2
    if kind == "vm_silence":
        return not look.vm.monitor_hung_ms
    if kind == "degrading_storage":
        lasted_ms = look.time_ms - incident.alert.opened_ms
        is_usual = lasted_ms > configuration.degraded_most_s * 1000
        return is_usual or _writes_again(look, configuration)
    if kind in _TRENDS:
        return look.is_unseen() or _has_calmed(look, configuration)
    if kind in {"hung_io", "hung_userland"}:
        return seen.disk_samples == 0 or (incident.well_ms > 0 and seen.disk_run_s <= 6.0)
    patient_s = max(configuration.clear_s, 3 * seen.dt_s)
    if seen.run_samples > 0:
        # After it moved again, a short silence or one with signs of life is no relapse.
        signs = signs_of_life(witness_items(seen, configuration))
        lives = bool(signs) or seen.lived is not None
        return lives or (incident.well_ms > 0 and seen.run_s <= patient_s)
    return seen.moved >= configuration.clear_samples and seen.epoch_s > 0


def _writes_again(look: _Look, configuration: Configuration) -> bool:
    return look.shown("write_share") >= configuration.degraded_calm_share


def _has_calmed(look: _Look, configuration: Configuration) -> bool:
    """Return whether a slow fault has ended."""
    alert, seen = look.incident.alert, look.seen
    if alert.kind == "mem_leak":
        return look.shown("rises") < configuration.leak_calm_rises
    if alert.kind == "noisy_neighbour":
        return look.shown("flood") == 0.0
    cores = alert.evidence[0].value or 0.0
    return seen.cpu is not None and seen.cpu < 0.7 * cores


def _explains(incident: Incident, vm: Vm, node: str) -> bool:
    """Return whether the recorded action can have repaired the VM: a boot, or another node."""
    mark = incident.mark
    if mark is None:
        return False
    if mark.action == "migrate":
        return node != incident.alert.node
    return vm.rebooted_ms >= mark.time_ms - _BOOT_SLACK_MS


def _verified(
    cell: Cell,
    incident: Incident,
    vm: Vm,
    node: str,
    instance: int | None,
    stable_s: float,
    *,
    time_ms: int,
) -> list[Alert]:
    mark = incident.mark
    if mark is None:
        raise ValueError("an incident without a result cannot be verified")
    name = sentences.name_of(vm, incident.alert.subject)
    if mark.action == "migrate":
        reason = f"it runs on {node} and gets the CPU it requests"
    else:
        reason = "it booted, and its disks and network are active again"
    return resolve(
        cell,
        incident,
        Resolution(
            reason=reason,
            verified=True,
            action=mark.action,
            order_step=mark.step,
            stable_s=round(stable_s, 3),
            node=node,
            instance=instance,
        ),
        time_ms=time_ms,
        sentence=(
            f"{name} recovered after the {mark.action}: {reason}. It was observed for "
            f"{stable_s:.0f} s."
        ),
    )


def _end(cell: Cell, incident: Incident, vm: Vm, reason: str, *, time_ms: int) -> list[Alert]:
    name = sentences.name_of(vm, incident.alert.subject)
    return resolve(
        cell,
        incident,
        Resolution(reason=reason),
        time_ms=time_ms,
        sentence=f"{name}: {reason}.",
    )

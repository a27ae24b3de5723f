"""Publish notices to people about the data itself, not about a guest; they lead to no action.

A notice is an incident separate from that of its subject. It ends by itself after a time without
a new cause, `calm_s` of its kind.
"""

from typing import Final

from engine.detection.cell import Cell, Incident, Vm
from engine.detection.configuration import Configuration
from engine.detection.incidents import Finding, report, republished, resolve
from engine.wire.alert import Alert, Resolution

_PREFIX: Final = "notice/"
# Time in s without a new cause, and its wording.
_ENDS: Final = {
    "record_skipped": (900.0, "no further record was skipped for 15 minutes"),
    "clock_step": (120.0, "the clock has not stepped for two minutes"),
    "duplicate_collector": (60.0, "only one collector reports as this node again"),
    "duplicate_vm": (60.0, "it runs on only one node again"),
}
NOTICE_KINDS: Final = frozenset(_ENDS)


def notice_key(kind: str, subject: str) -> str:
    """Return the key of a notice in its cell."""
    return f"{_PREFIX}{kind}/{subject}"


def is_notice(key: str) -> bool:
    """Return whether an incident's key is that of a notice."""
    return key.startswith(_PREFIX)


def give_notice(
    cell: Cell,
    finding: Finding,
    *,
    time_ms: int,
    configuration: Configuration,
    vm: Vm | None = None,
) -> list[Alert]:
    """Open or continue a notice; return the alerts to publish."""
    alerts = report(cell, finding, time_ms=time_ms, configuration=configuration, vm=vm)
    # For a notice this is the time of its last cause, not of recovery.
    cell.incidents[finding.key].well_ms = time_ms
    return alerts


def follow_notices(cell: Cell, *, time_ms: int, configuration: Configuration) -> list[Alert]:
    """End notices without a recent cause, and publish the others again each minute."""
    alerts: list[Alert] = []
    for key, incident in sorted(cell.incidents.items()):
        if is_notice(key) and incident.alert.state == "firing":
            alerts += _followed(cell, incident, time_ms=time_ms, configuration=configuration)
    return alerts


def _followed(
    cell: Cell, incident: Incident, *, time_ms: int, configuration: Configuration
) -> list[Alert]:
    calm_s, words = _ENDS[incident.alert.kind]
    calm_s = max(calm_s, 3 * cell.interval_ms() / 1000)
    if time_ms - incident.well_ms < calm_s * 1000:
        return republished(incident, time_ms=time_ms, configuration=configuration)
    name = incident.alert.name or incident.alert.subject
    return resolve(
        cell, incident, Resolution(reason=words), time_ms=time_ms, sentence=f"{name}: {words}."
    )

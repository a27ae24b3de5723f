"""Publish notices to people about the data itself, not about a guest; they lead to no action.

A notice is a separate incident, beside the one that its subject may have. It ends by itself after
`Fault.calm_s` of its kind without a new cause.
"""

from collections.abc import Iterator

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Now
from flatline.engine.detection.outcomes import Continued, Ended, Outcome, is_notice
from flatline.engine.faults import kind_of
from flatline.engine.wire.alert import Resolution


def follow_notices(cell: Cell, now: Now) -> Iterator[Outcome]:
    """End notices without a recent cause; the others go on."""
    for key, incident in sorted(cell.incidents.items()):
        kind = kind_of(incident.alert.kind)
        if kind is None or not is_notice(key) or incident.alert.state != "firing":
            continue
        calm_s = max(kind.fault.calm_s, 3 * cell.interval_ms() / 1000)
        if now.time_ms - incident.well_ms < calm_s * 1000:
            yield Continued(incident)
            continue
        name = incident.alert.name or incident.alert.subject
        reason = kind.fault.recovered
        yield Ended(incident, Resolution(reason=reason), f"{name}: {reason}.")

"""Silence by totals that many VMs of a cell share: one incident of the cell, not of each.

Members need not begin in the same sample: in recorded fleets they were seen to begin hours
apart. So whoever begins a silence close to others is explained by it for as long as it lasts.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.detection.cell import Cell, Node
from engine.detection.configuration import Configuration
from engine.detection.incidents import Finding, key_of, report, republished, resolve, text_of
from engine.detection.lanes import Lanes
from engine.wire.alert import Alert, EvidenceItem, Resolution
from models.kernels import glance, vitals_layout

_LISTED = 64
_SHARED = vitals_layout.FIELD["shared"]
# Of a silence that began with others' and goes on without them.
OUTLASTED = -1.0


class _Young(NamedTuple):
    """The lanes of one node whose silence has just begun and surprises."""

    node: Node
    lanes: Lanes
    silent: int

    def places(self) -> NDArray[np.intp]:
        """Return which lanes."""
        return np.flatnonzero(self.lanes.which(glance.YOUNG))


def judge_shared(cell: Cell, *, time_ms: int, configuration: Configuration) -> list[Alert]:
    """Mark silences that began together; open or end the incident of the cell."""
    young = [
        _Young(cell.nodes[name], lanes, int(lanes.found[glance.YOUNG]))
        for name, lanes in sorted(cell.lanes.items())
    ]
    count = sum(each.silent for each in young)
    moving = sum(int(each.lanes.found[glance.MOVING]) for each in young)
    active = count + moving
    nodes = sum(each.silent > 0 for each in young)
    needed = max(configuration.totals_shared_members, configuration.totals_shared_ratio * active)
    _release(cell, configuration)
    if count >= needed and nodes >= 2:
        for each in young:
            each.lanes.vitals[each.places(), _SHARED] = 1.0
        wide = max(
            configuration.totals_shared_members, configuration.totals_shared_alert_ratio * active
        )
        if count >= wide:
            return _opened(cell, young, count, active, time_ms, configuration)
    return _followed(cell, time_ms, configuration)


def _release(cell: Cell, configuration: Configuration) -> None:
    """Let those be judged alone again whose silence outlasts that of all they shared it with.

    Else whoever dies in a silence of many would never be told, and that silence never end. It
    is told to people alone: its storage may have gone with the others' and not come back.
    """
    lasting = [
        (lanes, int(lane))
        for lanes in cell.lanes.values()
        if lanes.found[glance.SUSPECT]
        for lane in np.flatnonzero(lanes.which(glance.SUSPECT))
        if lanes.vitals[lane, _SHARED] > 0.0
        and lanes.sign("run_s", int(lane)) >= configuration.totals_shared_alone_s
    ]
    if lasting and _silent_together(cell, configuration)[0] < configuration.totals_shared_members:
        for lanes, lane in lasting:
            lanes.vitals[lane, _SHARED] = OUTLASTED


def _silent_together(cell: Cell, configuration: Configuration) -> tuple[int, bool]:
    """Return how many are in a silence that is shared, and whether one of them is so of late."""
    silent, of_late = 0, False
    for lanes in cell.lanes.values():
        shared = lanes.vitals[: len(lanes), _SHARED] > 0.0
        run_s = lanes.signs[: len(lanes), vitals_layout.OUT["run_s"]]
        silent += int(shared.sum())
        of_late |= bool((shared & (run_s < configuration.totals_shared_alone_s)).any())
    return silent, of_late


def _opened(
    cell: Cell,
    young: list[_Young],
    count: int,
    active: int,
    time_ms: int,
    configuration: Configuration,
) -> list[Alert]:
    members = sorted(
        (int(each.lanes.numbers("onset_ms")[lane]), each.lanes.vm(int(lane)), each)
        for each in young
        for lane in each.places()
    )
    onset_ms, vm, first = members[0]
    sequence = first.lanes.number("run_sequence", first.lanes.places[vm])
    finding = Finding(
        scope="cell",
        subject=cell.name,
        kind="fleet_silence",
        firing=True,
        severity="critical",
        suggestion="fleet_alert",
        confidence=round(min(0.99, count / max(active, 1) + 0.5), 4),
        onset_ms=onset_ms,
        position=first.node.position(sequence),
        sentence=f"{count} of {active} active VMs of cell {cell.name} fell silent within "
        f"{configuration.totals_shared_samples} samples: one incident of the cell, none of them "
        "is judged by it.",
        evidence=(
            EvidenceItem(
                signal="life",
                value=float(count),
                limit=configuration.totals_shared_alert_ratio * active,
                text=f"{count} of {active} active VMs fell silent",
            ),
        ),
        vms=tuple(text_of(member) for _, member, _ in members[:_LISTED]),
    )
    return report(cell, finding, time_ms=time_ms, configuration=configuration)


def _followed(cell: Cell, time_ms: int, configuration: Configuration) -> list[Alert]:
    """Keep the incident open while members may still join; then say that it is over."""
    key = key_of("cell", cell.name)
    incident = cell.incidents.get(key)
    if incident is None or incident.alert.state != "firing" or key in cell.latches:
        return []
    silent, of_late = _silent_together(cell, configuration)
    still = of_late or silent >= configuration.totals_shared_members
    if still or not incident.well_ms:
        incident.well_ms = time_ms
    if time_ms - incident.well_ms < configuration.totals_shared_open_s * 1000:
        return republished(incident, time_ms=time_ms, configuration=configuration)
    return resolve(
        cell,
        incident,
        Resolution(reason="its VMs move again"),
        time_ms=time_ms,
        sentence=f"The VMs of cell {cell.name} move again.",
    )

"""Detect by totals a silence that many VMs of a cell share: one incident of the cell.

Members need not begin in the same sample: in recorded fleets they began hours apart. A shared
silence therefore explains each VM that falls silent close to others, for as long as it is silent.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.detection.cell import Cell, Node
from engine.detection.configuration import Configuration, Now
from engine.detection.lanes import Lanes
from engine.detection.outcomes import Continued, Ended, Finding, Outcome, key_of, text_of
from engine.detection.totals import is_shared
from engine.faults import Kind
from engine.wire.alert import EvidenceItem, Resolution
from models.kernels import glance, vitals_layout

_LISTED = 64
_SHARED = vitals_layout.FIELD["shared"]
_KNOWN, _RUN_S = vitals_layout.OUT["known"], vitals_layout.OUT["run_s"]


class _Young(NamedTuple):
    """The lanes of one node whose silence has just begun and is surprising."""

    node: Node
    lanes: Lanes
    silent: int

    def places(self) -> NDArray[np.intp]:
        """Return the indices of these lanes."""
        return np.flatnonzero(self.lanes.which(glance.YOUNG))


def judge_shared(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Mark silences that began together; open or end the incident of the cell."""
    configuration = now.configuration
    young = [
        _Young(cell.nodes[name], lanes, int(lanes.found[glance.YOUNG]))
        for name, lanes in sorted(cell.lanes.items())
    ]
    count = sum(each.silent for each in young)
    moving = sum(int(each.lanes.found[glance.MOVING]) for each in young)
    active = count + moving
    nodes = sum(each.silent > 0 for each in young)
    needed = max(configuration.totals_shared_members, configuration.totals_shared_ratio * active)
    _release(cell, moving, configuration)
    if count >= needed and nodes >= 2:
        for each in young:
            each.lanes.vitals[each.places(), _SHARED] = 1.0
        if count >= _wide(active, configuration):
            yield _opened(cell, young, count, active, configuration)
            return
    yield from _followed(cell, moving, now)


def _wide(active: int, configuration: Configuration) -> float:
    """Return the number of silent VMs of `active` ones that make an incident of the cell."""
    return max(
        configuration.totals_shared_members, configuration.totals_shared_alert_ratio * active
    )


def _release(cell: Cell, moving: int, configuration: Configuration) -> None:
    """Judge members of a long shared silence individually again, unless it still has many."""
    # Otherwise a VM that dies in a shared silence would never be reported. It is reported to people
    # only: its storage may have failed with that of the others and not returned.
    lasting = [
        (lanes, int(lane))
        for lanes in cell.lanes.values()
        if lanes.found[glance.SUSPECT]
        for lane in np.flatnonzero(lanes.which(glance.SUSPECT))
        if is_shared(lanes, int(lane))
        and lanes.sign("run_s", int(lane)) >= configuration.totals_shared_alone_s
    ]
    if not lasting or _silent_together(cell, moving, configuration):
        return
    for lanes, lane in lasting:
        lanes.vitals[lane, _SHARED] = vitals_layout.OUTLASTED


def _silent_together(cell: Cell, moving: int, configuration: Configuration) -> bool:
    """Return whether the VMs still in a shared silence are enough for an incident."""
    silent = sum(int(_sharing(cell, name).sum()) for name in cell.lanes)
    return silent >= _wide(silent + moving, configuration)


def _sharing(cell: Cell, name: str) -> NDArray[np.bool_]:
    """Return, per lane in use of a node, whether its samples show a shared silence."""
    lanes = cell.lanes[name]
    size = len(lanes)
    # The mark of a VM without samples (stopped by its owner, node dead) never ends.
    sharing: NDArray[np.bool_] = lanes.signs[:size, _KNOWN] > 0.0
    sharing &= (lanes.vitals[:size, _SHARED] > 0.0) & (not cell.nodes[name].silent)
    return sharing


def _opened(
    cell: Cell,
    young: list[_Young],
    count: int,
    active: int,
    configuration: Configuration,
) -> Finding:
    members = sorted(
        (int(each.lanes.numbers("onset_ms")[lane]), each.lanes.vm(int(lane)), each)
        for each in young
        for lane in each.places()
    )
    onset_ms, vm, first = members[0]
    sequence = first.lanes.number("run_sequence", first.lanes.places[vm])
    return Finding(
        scope="cell",
        subject=cell.name,
        kind=Kind.FLEET_SILENCE,
        firing=True,
        severity=Kind.FLEET_SILENCE.fault.severity,
        suggestion=Kind.FLEET_SILENCE.fault.suggestion,
        confidence=round(min(0.99, count / max(active, 1) + 0.5), 4),
        onset_ms=onset_ms,
        position=first.node.position(sequence),
        sentence=(
            f"{count} of {active} active VMs of cell {cell.name} fell silent within "
            f"{configuration.totals_shared_samples} samples. This is one incident of the cell, and "
            "it inhibits verdicts on these VMs."
        ),
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


def _followed(cell: Cell, moving: int, now: Now) -> Iterator[Outcome]:
    """Keep the incident open while members may join; then report that it is over."""
    key = key_of("cell", cell.name)
    incident = cell.incidents.get(key)
    if incident is None or incident.alert.state != "firing" or key in cell.latches:
        return
    alone_s = now.configuration.totals_shared_alone_s
    still = _silent_together(cell, moving, now.configuration) or any(
        bool((cell.lanes[name].signs[: len(each), _RUN_S][each] < alone_s).any())
        for name, each in ((name, _sharing(cell, name)) for name in cell.lanes)
    )
    if still or not incident.well_ms:
        incident.well_ms = now.time_ms
    if now.time_ms - incident.well_ms < now.configuration.totals_shared_open_s * 1000:
        yield Continued(incident)
        return
    reason = Kind.FLEET_SILENCE.fault.recovered
    yield Ended(
        incident, Resolution(reason=reason), f"The VMs of cell {cell.name} are active again."
    )

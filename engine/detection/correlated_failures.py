"""Detect by totals a silence that many VMs of a cell share: one incident of the cell.

Members need not begin in the same sample: in recorded fleets they began hours apart. A shared
silence therefore explains each VM that falls silent at about the time of others, until it moves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.aggregate_evidence import is_correlated
from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.outcomes import Continued, Ended, Finding, Outcome, key_of, text_of
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import EvidenceItem, Resolution
from flatline.models.kernels import aggregates_layout, screening

_LISTED = 64
_SHARED = aggregates_layout.FIELD["shared"]
_KNOWN, _RUN_S = aggregates_layout.OUT["known"], aggregates_layout.OUT["run_s"]


class _Young(NamedTuple):
    """Rows of one node with VMs whose surprising silence has just begun; `silent` counts them."""

    node: Node
    table: VmTable
    silent: int

    def indices(self) -> NDArray[np.intp]:
        """Return the indices of these rows."""
        return np.flatnonzero(self.table.which(screening.YOUNG))


def judge_correlated_failures(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Mark silences that began together; open or end the incident of the cell."""
    configuration = now.configuration
    young = [
        _Young(cell.nodes[name], table, int(table.found[screening.YOUNG]))
        for name, table in sorted(cell.tables.items())
    ]
    count = sum(each.silent for each in young)
    moving = sum(int(each.table.found[screening.MOVING]) for each in young)
    active = count + moving
    nodes = sum(each.silent > 0 for each in young)
    needed = max(configuration.totals_shared_members, configuration.totals_shared_ratio * active)
    _release(cell, moving, configuration)
    if count >= needed and nodes >= 2:
        for each in young:
            each.table.vitals[each.indices(), _SHARED] = 1.0
        if count >= _wide(active, configuration):
            yield _opened(cell, young, count, active, configuration)
            return
    yield from _followed(cell, moving, now)


def _wide(active: int, configuration: Configuration) -> float:
    """Return how many of `active` VMs must be silent for an incident of the cell."""
    return max(
        configuration.totals_shared_members, configuration.totals_shared_alert_ratio * active
    )


def _release(cell: Cell, moving: int, configuration: Configuration) -> None:
    """Judge members of a long shared silence individually again, unless many still share it."""
    # Otherwise a VM that dies in a shared silence would never be reported. It is reported to people
    # only: its storage may have failed with that of the others and not returned.
    lasting = [
        (table, int(index))
        for table in cell.tables.values()
        if table.found[screening.SUSPECT]
        for index in np.flatnonzero(table.which(screening.SUSPECT))
        if is_correlated(table, int(index))
        and table.sign("run_s", int(index)) >= configuration.totals_shared_alone_s
    ]
    if not lasting or _silent_together(cell, moving, configuration):
        return
    for table, index in lasting:
        table.vitals[index, _SHARED] = aggregates_layout.OUTLASTED


def _silent_together(cell: Cell, moving: int, configuration: Configuration) -> bool:
    """Return whether the VMs still in a shared silence are enough for an incident."""
    silent = sum(int(_sharing(cell, name).sum()) for name in cell.tables)
    return silent >= _wide(silent + moving, configuration)


def _sharing(cell: Cell, name: str) -> NDArray[np.bool_]:
    """Return, per row in use of a node, whether its samples show a shared silence."""
    table = cell.tables[name]
    size = len(table)
    # The `shared` flag of a VM without samples (stopped by its owner, node dead) is never reset,
    # so such a VM does not count.
    sharing: NDArray[np.bool_] = table.signs[:size, _KNOWN] > 0.0
    sharing &= (table.vitals[:size, _SHARED] > 0.0) & (not cell.nodes[name].silent)
    return sharing


def _opened(
    cell: Cell,
    young: list[_Young],
    count: int,
    active: int,
    configuration: Configuration,
) -> Finding:
    members = sorted(
        (int(each.table.numbers("onset_ms")[index]), each.table.vm(int(index)), each)
        for each in young
        for index in each.indices()
    )
    onset_ms, vm, first = members[0]
    sequence = first.table.number("run_sequence", first.table.indices[vm])
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
    if incident is None or incident.alert.state != "firing" or key in cell.common_causes:
        return
    alone_s = now.configuration.totals_shared_alone_s
    still = _silent_together(cell, moving, now.configuration) or any(
        bool((cell.tables[name].signs[: len(each), _RUN_S][each] < alone_s).any())
        for name, each in ((name, _sharing(cell, name)) for name in cell.tables)
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

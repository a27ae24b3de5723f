"""Report silences of nodes that are only visible after they end.

Where frames arrive out of order, the next frame of a node may take longer than the silence lasts,
so the silence cannot be reported while it goes on. It is found later in the samples: a time gap
although no frame is missing. The alert has the same id as with frames in order.
"""

from collections.abc import Iterator

from flatline.engine.detection import sentences
from flatline.engine.detection.cell import Cell, Incident, Node, SampleGap
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.outcomes import Ended, Finding, Outcome, key_of, text_of
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import EvidenceItem, Resolution, SamplePosition

# Maximum number of VMs in an alert of a node.
_LISTED = 64


def silence_of(
    cell: Cell, node: Node, *, position: SamplePosition, onset_ms: int, silent_s: float
) -> Finding:
    """Return the finding of a node that took no sample after `position`.

    `onset_ms` is the time of that sample by the node's clock, `silent_s` the length of the silence.
    """
    table = cell.tables[node.key]
    return Finding(
        scope="host",
        subject=node.name,
        kind=Kind.HOST_SILENCE,
        firing=True,
        severity=Kind.HOST_SILENCE.fault.severity,
        suggestion=Kind.HOST_SILENCE.fault.suggestion,
        confidence=0.99,
        onset_ms=onset_ms,
        position=position,
        sentence=sentences.of_silent_node(node=node.name, silent_s=silent_s, count=len(table)),
        evidence=(EvidenceItem(signal="frames", value=silent_s, text="no frame arrived"),),
        vms=tuple(text_of(table.vm(index)) for index in range(min(len(table), _LISTED))),
        node=node.name,
    )


def check_sample_gaps(cell: Cell, nodes: list[Node], now: Now) -> Iterator[Outcome]:
    """Yield ended silences of single nodes; simultaneous ones have another cause."""
    gaps = [(node, node.gap) for node in nodes if _was_silent(node, now.configuration)]
    for node in nodes:
        node.gap = None
    if not cell.out_of_order.late_ms or len(gaps) >= max(2, len(nodes) / 2):
        return
    for node, gap in sorted(gaps, key=lambda one: one[0].name):
        if gap is not None:
            yield from _reported(cell, node, gap)


def _reported(cell: Cell, node: Node, gap: SampleGap) -> Iterator[Outcome]:
    """Open and end the incident of a node's gap, unless it was reported in time."""
    key = key_of("host", node.name)
    known = cell.incidents.get(key)
    if known is not None and known.alert.state == "firing":
        return
    if known is not None and known.alert.position == gap.position:
        return
    yield silence_of(
        cell, node, position=gap.position, onset_ms=gap.event_ms, silent_s=gap.lasted_s
    )
    # The caller has applied the finding by now, so its incident is in the cell.
    yield returned(node, cell.incidents[key])


def returned(node: Node, incident: Incident) -> Ended:
    """Return the end of the silence of a node."""
    reason = Kind.HOST_SILENCE.fault.recovered
    return Ended(incident, Resolution(reason=reason), f"Node {node.name} reports again.")


def _was_silent(node: Node, configuration: Configuration) -> bool:
    """Return whether a node's gap would have been reported in time with frames in order."""
    if node.gap is None:
        return False
    interval_s = node.interval_ms / 1000
    least_s = max(configuration.node_alert_s, configuration.node_silent_intervals * interval_s)
    # Half an interval more: a silence that ends sooner might not have been reported in time either,
    # because it is reported when a window closes.
    return node.gap.lasted_s >= least_s + 0.5 * interval_s

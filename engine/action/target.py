"""Where a VM may be moved to, by what the nodes of its cell carried in the last minute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.action.catalogue import Limits

# Scores come once a minute; after five the picture is no longer the cell's.
_FRESH_MS: Final = 300_000

SENTENCES: Final = {
    "no_load": "The load of the nodes in cell {cell} is not known, so no target can be chosen.",
    "no_source_load": "The load of node {node} is not known, so no target can be compared.",
    "no_target_node": "No node of cell {cell} has room: below {limit:.0%}, and {margin:.0%}"
    " below {node}, which carries {load:.0%}.",
}


@dataclass(frozen=True, slots=True)
class CellLoad:
    """What a cell's nodes carried (busy share by node) and how many VMs it has."""

    minute_ms: int
    nodes: Mapping[str, float]
    vm_count: int = 0


class Choice(NamedTuple):
    """The target, or None with the rule and the sentence why there is none."""

    target: str | None
    rule: str = ""
    sentence: str = ""


def choose_target(
    load: CellLoad | None,
    *,
    cell: str,
    source: str,
    limits: Limits,
    now_ms: int,
    avoid: frozenset[str] = frozenset(),
) -> Choice:
    """Return the least loaded other node of the cell, if it is clearly better.

    Ties go to the first name, so that every planner chooses the same. NaN is unknown and
    never chosen.
    """
    if load is None or now_ms - load.minute_ms > _FRESH_MS:
        return Choice(None, "no_load", SENTENCES["no_load"].format(cell=cell))
    here = load.nodes.get(source)
    if here is None or here != here:
        return Choice(None, "no_source_load", SENTENCES["no_source_load"].format(node=source))
    best = min(limits.target_load_max_ratio, here - limits.target_margin_ratio)
    fit = [
        (carried, node)
        for node, carried in load.nodes.items()
        if node != source and node not in avoid and carried <= best
    ]
    if fit:
        return Choice(min(fit)[1])
    sentence = SENTENCES["no_target_node"].format(
        cell=cell,
        node=source,
        limit=limits.target_load_max_ratio,
        margin=limits.target_margin_ratio,
        load=here,
    )
    return Choice(None, "no_target_node", sentence)

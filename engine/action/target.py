"""Choice of a migration target, by the load of the nodes of the cell in the last minute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from flatline.engine.action.catalogue import Limits
from flatline.engine.action.request_context import CLOCK_SLACK_MS
from flatline.engine.wire.limits import MAX_INTERVAL_MS

# Scores come once a minute; after five minutes they no longer describe the cell.
_FRESH_MS: Final = 300_000
# Scores of a cell whose VMs are sampled once an hour arrive up to an hour late. For this long their
# numbers of VMs still determine the budgets.
_REPORTED_MS: Final = 2 * MAX_INTERVAL_MS
# A site has some hundred cells of up to 64 nodes.
MAX_CELLS: Final = 4_096

SENTENCES: Final = {
    "no_load": "The load of the nodes in cell {cell} is unknown, so no target can be chosen.",
    "no_source_load": "The load of node {node} is unknown, so no target can be compared.",
    "no_target_node": "No node of cell {cell} qualifies as target: load below {limit:.0%} with "
    "the VM and {margin:.0%} below {node} ({load:.0%}), enough memory, no member of its group, "
    "not its former node.",
}


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """The capacity of a node, None if unknown, and the groups of its VMs, as `tenant/group`."""

    cores: float | None = None
    memory_available_bytes: float | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CellLoad:
    """Load (busy share by node) and capacity of the nodes of a cell, and its number of VMs.

    `vm_cores` is the CPU use of each VM in cores, by UUID text. `pools` and `networks` are the
    number of VMs of each pool and network, by its name.
    """

    minute_ms: int
    nodes: Mapping[str, float]
    vm_count: int = 0
    rooms: Mapping[str, NodeRoom] = field(default_factory=dict)
    vm_cores: Mapping[str, float] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)

    def with_part(self, other: "CellLoad | None") -> "CellLoad":
        """Return the load with the content of another record of the same minute.

        The minute of a large cell takes several records; a repeated record changes nothing.
        """
        if other is None or other.minute_ms != self.minute_ms:
            return self
        return CellLoad(
            minute_ms=self.minute_ms,
            nodes={**other.nodes, **self.nodes},
            vm_count=max(other.vm_count, self.vm_count),
            rooms={**other.rooms, **self.rooms},
            vm_cores={**other.vm_cores, **self.vm_cores},
            pools={**other.pools, **self.pools},
            networks={**other.networks, **self.networks},
        )

    def fresh(self, *, now_ms: int) -> bool:
        """Return whether the load is recent enough to describe the cell."""
        return -CLOCK_SLACK_MS <= now_ms - self.minute_ms <= _FRESH_MS


def with_load(
    loads: Mapping[str, CellLoad], cell: str, load: CellLoad, *, now_ms: int
) -> Mapping[str, CellLoad]:
    """Return the loads by cell with one more; an older minute never replaces a newer one.

    A load older than `_REPORTED_MS` may come from a copied record and changes nothing. With
    `MAX_CELLS` cells, those that were not reported lately make room for a new cell. If all of them
    were, the new cell is left out; see `has_room`. `now_ms` is the wall clock.
    """
    held = loads.get(cell)
    newer = held is not None and load.minute_ms < held.minute_ms <= now_ms + CLOCK_SLACK_MS
    if newer or now_ms - load.minute_ms > _REPORTED_MS:
        return loads
    if held is None and len(loads) >= MAX_CELLS:
        loads = _reported_lately(loads, now_ms=now_ms)
        if len(loads) >= MAX_CELLS:
            return loads
    return {**loads, cell: load.with_part(held)}


def has_room(loads: Mapping[str, CellLoad], cell: str, *, now_ms: int) -> bool:
    """Return whether `with_load` can add this cell within `MAX_CELLS`."""
    if cell in loads or len(loads) < MAX_CELLS:
        return True
    return len(_reported_lately(loads, now_ms=now_ms)) < MAX_CELLS


def _reported_lately(loads: Mapping[str, CellLoad], *, now_ms: int) -> dict[str, CellLoad]:
    return {name: one for name, one in loads.items() if now_ms - one.minute_ms <= _REPORTED_MS}


@dataclass(frozen=True, slots=True)
class Mover:
    """The VM to be moved: UUID text, memory (None: unknown), group as `tenant/group` or empty."""

    vm: str
    memory_bytes: int | None = None
    group: str = ""


class Choice(NamedTuple):
    """The target and both loads; else None, with the rule and the sentence that explain why."""

    target: str | None
    rule: str = ""
    sentence: str = ""
    source_load: float | None = None
    target_load: float | None = None


def choose_target(
    load: CellLoad | None,
    *,
    cell: str,
    source: str,
    mover: Mover,
    limits: Limits,
    now_ms: int,
    avoid: frozenset[str] = frozenset(),
) -> Choice:
    """Return the node that would be least loaded with the VM, if it is clearly below the source.

    Ties go to the first name, so that every planner chooses the same. A node with unknown (NaN)
    load, or with free memory not known to be enough, is never chosen.

    Parameters
    ----------
    load
        Load of the cell; None or one that is not recent leads to no choice.
    source
        The node on which the VM runs now.
    avoid
        Nodes that must not be chosen.
    """
    if load is None or not load.fresh(now_ms=now_ms):
        return Choice(None, "no_load", SENTENCES["no_load"].format(cell=cell))
    here = load.nodes.get(source)
    if here is None or here != here:
        return Choice(None, "no_source_load", SENTENCES["no_source_load"].format(node=source))
    best = min(limits.target_load_max_ratio, here - limits.target_margin_ratio)
    fit = [
        (foreseen, node)
        for node, carried in load.nodes.items()
        if node != source
        and node not in avoid
        and _takes(load.rooms.get(node, NodeRoom()), mover)
        and (foreseen := carried + _share(load, node, mover)) <= best
    ]
    if fit:
        foreseen, node = min(fit)
        return Choice(node, source_load=here, target_load=foreseen)
    sentence = SENTENCES["no_target_node"].format(
        cell=cell,
        node=source,
        limit=limits.target_load_max_ratio,
        margin=limits.target_margin_ratio,
        load=here,
    )
    return Choice(None, "no_target_node", sentence)


def worsened(load: CellLoad | None, *, target: str, limits: Limits, since_ms: int) -> bool | None:
    """Return whether a migration at `since_ms` overloaded its target; None if not known yet.

    The result is known once the load of a whole minute since then was read. It stays None while the
    load of the target is unknown. A target is chosen only if its load stays within the limit, so a
    load above limit plus margin is an overload.
    """
    if load is None or load.minute_ms < since_ms + 60_000:
        return None
    carried = load.nodes.get(target)
    if carried is None or carried != carried:
        return None
    return carried > min(1.0, limits.target_load_max_ratio + limits.target_margin_ratio)


def _takes(room: NodeRoom, mover: Mover) -> bool:
    if mover.group and mover.group in room.groups:
        return False
    free = room.memory_available_bytes
    return mover.memory_bytes is None or (free is not None and free >= mover.memory_bytes)


def _share(load: CellLoad, node: str, mover: Mover) -> float:
    """Return the VM's addition to the node's busy share, 0 if unknown."""
    cores, used = load.rooms.get(node, NodeRoom()).cores, load.vm_cores.get(mover.vm)
    return used / cores if cores and used is not None and used == used else 0.0

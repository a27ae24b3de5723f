"""Building blocks of incidents: changes to guests that can be reverted."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flatline.connectors.simulator.plan import Incident, Scope
from flatline.connectors.simulator.world import NS_PER_S, Action, World

# Begins an incident on these VMs and returns the function that ends it. None: there is nothing to
# end, or only a repair ends it.
Begin = Callable[[World, Incident, list[int]], Action | None]


class Played(NamedTuple):
    """How the simulator plays one kind of incident.

    Attributes
    ----------
    begin
        Begins an incident of this kind.
    usual_s
        Duration in s if the incident has none of its own; None: it does not end by itself.
    scope
        Kind of object that the incident affects.
    """

    begin: Begin
    usual_s: float | None = None
    scope: Scope = "vm"


def set_guests(world: World, indices: list[int], **values: float) -> None:
    """Set attributes of `Guests` by name for these VMs, after their counters were settled."""
    with world.changing(indices):
        for name, value in values.items():
            getattr(world.guests, name)[indices] = value


def modifier(**values: float) -> Begin:
    """Return the `Begin` of incidents that set attributes of `Guests`; the end restores them."""

    def begin(world: World, incident: Incident, indices: list[int]) -> Action:
        before = {name: getattr(world.guests, name)[indices].copy() for name in values}
        set_guests(world, indices, **values)

        def end() -> None:
            with world.changing(indices):
                for name, old in before.items():
                    getattr(world.guests, name)[indices] = old

        return end

    return begin


def silence(*, absent: bool) -> Begin:
    """Return the `Begin` of incidents in which monitors do not answer, or rows are missing.

    Rows are missing if `absent`, or if the incident's parameter `absent` is not 0.
    """

    def begin(world: World, incident: Incident, indices: list[int]) -> Action:
        guests = world.guests
        gone = absent or bool(incident.params.get("absent", 0.0))
        if gone:
            guests.row_absent[indices] = True
        else:
            guests.silent_since_s[indices] = world.now_ns / NS_PER_S
            report(world, indices, "monitor_hung")

        def end() -> None:
            if gone:
                guests.row_absent[indices] = False
            else:
                guests.silent_since_s[indices] = np.inf
                report(world, indices, "monitor_back")

        return end

    return begin


def report(world: World, indices: list[int], kind: str) -> None:
    """Emit an event of this kind (`engine.wire.metrics.EVENT_KINDS`) about each VM on its node."""
    for index in indices:
        world.emit(int(world.guests.node[index]), kind, index)

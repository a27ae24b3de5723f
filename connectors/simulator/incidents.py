"""Play a plan's incidents: start, affected VMs, and the end of those that end by themselves."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flatline.connectors.simulator.changes import Played
from flatline.connectors.simulator.confounders import CONFOUNDERS
from flatline.connectors.simulator.faults import FAULTS
from flatline.connectors.simulator.plan import Incident
from flatline.connectors.simulator.truth import Happening
from flatline.connectors.simulator.world import NS_PER_S, SHARES, World

KINDS: Final[Mapping[str, Played]] = {**FAULTS, **CONFOUNDERS}


def schedule(world: World, incident: Incident) -> None:
    """Schedule an incident in the world.

    Raises
    ------
    ValueError
        The incident's kind is not known, it has no target, or the world has no such VM, node, pool
        or network.
    """
    _check(world, incident)
    at_ns = round(incident.at_s * NS_PER_S)
    if incident.at_s == 0:
        _begin(world, incident)
    else:
        world.at(at_ns, lambda: _begin(world, incident))


def _begin(world: World, incident: Incident) -> None:
    indices = _indices(world, incident)
    happening = Happening(incident, tuple(indices), world.now_ns)
    world.truth.happenings.append(happening)
    played = KINDS[incident.kind]
    end = played.begin(world, incident, indices)
    lasts_s = incident.duration_s or played.usual_s
    if end is None or lasts_s is None:
        return

    def finish() -> None:
        end()
        happening.ended_ns = world.now_ns

    world.after(lasts_s, finish)


def _check(world: World, incident: Incident) -> None:
    if incident.kind not in KINDS:
        raise ValueError(f"{incident.kind!r} is not an incident. Known: {sorted(KINDS)}")
    named = {
        "vm": incident.vms,
        "node": incident.node,
        "pool": incident.pool,
        "network": incident.network,
        "fleet": True,
    }
    needed = KINDS[incident.kind].scope
    if not named[needed]:
        raise ValueError(f"{incident.kind} requires the name of a {needed}")
    known = {
        "node": (incident.node, world.topology.nodes),
        "pool": (incident.pool, world.topology.pools),
        "network": (incident.network, world.topology.networks),
    }
    for scope, (name, names) in known.items():
        if name and name not in names:
            raise ValueError(f"{incident.kind}: no {scope} {name!r} among {names[:8]}")
    beyond = [vm for vm in incident.vms if not 0 <= vm < world.plan.vms]
    if beyond:
        raise ValueError(f"{incident.kind}: no VM {beyond} among {world.plan.vms}")


def _indices(world: World, incident: Incident) -> list[int]:
    """Return the VMs that an incident affects at its start."""
    topology, guests = world.topology, world.guests
    if incident.vms:
        return list(incident.vms)
    if incident.node:
        here = guests.node == topology.node_index[incident.node]
    elif incident.pool:
        here = topology.pool == topology.pools.index(incident.pool)
    elif incident.network:
        here = topology.network == topology.networks.index(incident.network)
    else:
        share = incident.params.get("share", 0.9)
        drawn = world.stream(SHARES, round(incident.at_s * 1000)).random(world.plan.vms)
        here = drawn < share
    return [int(index) for index in np.flatnonzero(here)]

"""Play a plan's incidents: their start, the affected VMs, and the end of those that end alone."""

from typing import Final

import numpy as np

from connectors.simulator.confounders import CONFOUNDER_KINDS
from connectors.simulator.faults import FAULT_KINDS
from connectors.simulator.plan import Incident
from connectors.simulator.truth import Happening
from connectors.simulator.world import NS_PER_S, SHARES, World

_KINDS: Final = {**FAULT_KINDS, **CONFOUNDER_KINDS}

# Default duration of each kind; kinds that only a repair ends are missing.
_USUAL_S: Final = {
    "crash_reboot": 2.0,
    "self_heal": 10.0,
    "kdump": 60.0,
    "degrading_storage": 3600.0,
    "mem_leak": 7200.0,
    "noisy_neighbour": 1200.0,
    "vm_silence": 300.0,
    "host_silence": 300.0,
    "pool_stall": 120.0,
    "network_stall": 120.0,
    "pause": 60.0,
    "snapshot_freeze": 20.0,
    "backup_window": 1800.0,
    "batch_compute": 1200.0,
    "one_thread": 1200.0,
    "gc_pause": 40.0,
    "batch_end_idle": 1800.0,
    "power_off": 900.0,
    "counter_glitch": 2.0,
    "short_gap": 30.0,
    "boot_storm": 30.0,
    "fleet_io_silence": 900.0,
}


def schedule(world: World, incident: Incident) -> None:
    """Schedule an incident in the world.

    Raises
    ------
    ValueError
        It names a VM, node, pool or network that the world does not have.
    """
    _check(world, incident)
    at_ns = round(incident.at_s * NS_PER_S)
    if incident.at_s == 0:
        _begin(world, incident)
    else:
        world.at(at_ns, lambda: _begin(world, incident))


def _begin(world: World, incident: Incident) -> None:
    lanes = _lanes(world, incident)
    happening = Happening(incident, tuple(lanes), world.now_ns)
    world.truth.happenings.append(happening)
    end = _KINDS[incident.kind](world, incident, lanes)
    lasts_s = incident.duration_s or _USUAL_S.get(incident.kind)
    if end is None or lasts_s is None:
        return

    def finish() -> None:
        end()
        happening.ended_ns = world.now_ns

    world.after(lasts_s, finish)


def _check(world: World, incident: Incident) -> None:
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


def _lanes(world: World, incident: Incident) -> list[int]:
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
    return [int(lane) for lane in np.flatnonzero(here)]

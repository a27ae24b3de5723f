"""Draw random incidents from a seed; each seed gives another scenario."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flatline.connectors.simulator.incidents import KINDS
from flatline.connectors.simulator.plan import (
    Incident,
    WorldPlan,
    network_name,
    node_name,
    pool_name,
)

# One incident of each kind: the shortest scenario that contains every kind.
EVERYTHING_ONCE: Final[Mapping[str, int]] = dict.fromkeys(KINDS, 1)


def draw_incidents(
    plan: WorldPlan, *, seed: int, counts: Mapping[str, int], from_s: float, span_s: float
) -> tuple[Incident, ...]:
    """Return incidents of the requested kinds, uniformly distributed over a span, in order of time.

    No VM is the target of two incidents with scope `vm`. An incident of a whole node, pool or
    network may affect such a VM as well.

    Parameters
    ----------
    counts
        Number of incidents of each kind.
    from_s, span_s
        Start of the span, in seconds after the world began, and its length.

    Raises
    ------
    ValueError
        The incidents need more VMs than the plan has.
    """
    rng = np.random.Generator(np.random.SFC64([seed, plan.seed]))
    kinds = [kind for kind in sorted(counts) for _ in range(counts[kind])]
    needed = sum(KINDS[kind].scope == "vm" for kind in kinds)
    if needed > plan.vms:
        raise ValueError(f"{needed} incidents need one VM each, but the plan has {plan.vms} VMs")
    vms = iter(rng.permutation(plan.vms)[:needed].tolist())
    drawn = []
    for kind in kinds:
        at_s = round(from_s + span_s * float(rng.random()), 3)
        scope = KINDS[kind].scope
        index = _place(plan, scope, rng)
        drawn.append(
            Incident(
                kind=kind,
                at_s=at_s,
                vms=(next(vms),) if scope == "vm" else (),
                node=index if scope == "node" else "",
                pool=index if scope == "pool" else "",
                network=index if scope == "network" else "",
                params=_vary(kind, rng),
            )
        )
    return tuple(sorted(drawn, key=lambda incident: (incident.at_s, incident.kind)))


def _place(plan: WorldPlan, scope: str, rng: np.random.Generator) -> str:
    """Return the name of a node, pool or network; empty for other scopes."""
    cell = int(rng.integers(plan.cells))
    match scope:
        case "node":
            node = int(rng.integers(plan.nodes_per_cell))
            return node_name(cell=cell, node=node)
        case "pool":
            if plan.site_pools and (not plan.pools_per_cell or rng.random() < 0.5):
                return pool_name(cell=None, pool=int(rng.integers(plan.site_pools)))
            return pool_name(cell=cell, pool=int(rng.integers(plan.pools_per_cell)))
        case "network":
            if not plan.networks_per_cell:
                return network_name(cell=None, network=0)
            network = int(rng.integers(plan.networks_per_cell))
            return network_name(cell=cell, network=network)
        case _:
            return ""


def _vary(kind: str, rng: np.random.Generator) -> dict[str, float]:
    """Return random parameters for kinds with variants."""
    match kind:
        case "panic_spin" | "self_heal":
            # One vCPU spins, or all of them.
            return {"vcpus": float(rng.integers(2))}
        case "one_thread":
            return {"writes_s": float(rng.choice((0.0, 240.0)))}
        case "boot_prompt":
            return {"spins": float(rng.integers(2))}
        case _:
            return {}

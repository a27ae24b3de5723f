"""Speed of a simulated site, which limits the simulations and the demo."""

import time
from dataclasses import dataclass, replace

from benchmarks.report import report
from flatline.connectors.simulator.draw import EVERYTHING_ONCE, draw_incidents
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.errors import HypervisorUnreachable

INTERVAL_S = 2.0
GOAL = 100.0


@dataclass(frozen=True)
class Case:
    """A site and its sampling."""

    cells: int
    nodes_per_cell: int
    vms_per_node: int
    staggered: bool
    rounds: int


CASES = (
    Case(cells=1, nodes_per_cell=4, vms_per_node=50, staggered=False, rounds=200),
    Case(cells=10, nodes_per_cell=20, vms_per_node=50, staggered=False, rounds=60),
    # Each node samples at a different time, like collectors started by hand.
    Case(cells=10, nodes_per_cell=20, vms_per_node=50, staggered=True, rounds=60),
    Case(cells=10, nodes_per_cell=5, vms_per_node=200, staggered=True, rounds=60),
)


def build(case: Case) -> Fleet:
    """Return a site in which every kind of incident happens once."""
    shape = WorldPlan(
        seed=1,
        cells=case.cells,
        nodes_per_cell=case.nodes_per_cell,
        vms_per_node=case.vms_per_node,
    )
    span_s = INTERVAL_S * case.rounds
    incidents = draw_incidents(shape, seed=1, counts=EVERYTHING_ONCE, from_s=2.0, span_s=span_s)
    return build_world(replace(shape, incidents=incidents))


def run(case: Case) -> dict[str, str | int | float | bool | None]:
    """Run the site for some rounds, sampling every node once in each."""
    fleet = build(case)
    nodes = [fleet.hypervisor(node) for node in fleet.nodes]
    gap_s = INTERVAL_S / len(nodes) if case.staggered else 0.0
    rows = 0
    world_s = sample_s = 0.0
    for _ in range(case.rounds):
        if not case.staggered:
            started = time.process_time()
            fleet.advance(INTERVAL_S)
            world_s += time.process_time() - started
        started = time.process_time()
        for node in nodes:
            if case.staggered:
                fleet.advance(gap_s)
            try:
                rows += len(node.observe().rows)
            except HypervisorUnreachable:
                continue  # one of the drawn incidents
        sample_s += time.process_time() - started
    total_s = world_s + sample_s
    return {
        "vms": len(nodes) * case.vms_per_node,
        "nodes": len(nodes),
        "samples": "each at its own moment" if case.staggered else "all at once",
        "ms_per_round": round(total_s / case.rounds * 1e3, 3),
        "ns_per_vm_sample": round(total_s / rows * 1e9),
        "times_real_time": round(case.rounds * INTERVAL_S / total_s, 1),
    }


def main() -> None:
    """Measure every case and report."""
    rows = [run(case) for case in CASES]
    at_goal = [row for row in rows if row["vms"] == 10_000 and row["samples"] == "all at once"]
    report(
        "simulator",
        claim=f"A site sampled every {INTERVAL_S:.0f} s with one of each incident, one core; "
        f"goal: 10,000 VMs faster than {GOAL:.0f} times real time",
        rows=rows,
        goals_met=all(float(row["times_real_time"] or 0) > GOAL for row in at_goal),
    )


if __name__ == "__main__":
    main()

import pytest

from flatline.connectors.simulator.plan import Incident, WorldPlan, node_name, pool_name


def test_an_incident_before_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="before the begin of the simulation"):
        Incident(kind="panic_halt", at_s=-1.0, vms=(0,))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"workloads": {"weather": 1.0}}, "unknown workloads"),
        ({"pinned": {0: "weather"}}, "unknown workloads"),
        ({"vms_per_node": 0}, "at least one"),
        ({"pools_per_cell": 0}, "VMs need a pool"),
        ({"networks_per_cell": 0}, "VMs need a network"),
        ({"step_s": 0.0}, "step_s"),
    ],
)
def test_a_site_that_cannot_be_built_is_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        WorldPlan(seed=1, **changes)  # type: ignore[arg-type]


def test_vms_are_counted_cell_by_cell_and_node_by_node() -> None:
    plan = WorldPlan(seed=1, cells=2, nodes_per_cell=3, vms_per_node=4)
    assert plan.vms == 24
    assert node_name(cell=1, node=2) == "c1-n2"
    assert pool_name(cell=None, pool=0) == "site-pool0"

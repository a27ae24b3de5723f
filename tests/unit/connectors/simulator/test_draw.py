import pytest

from flatline.connectors.simulator.draw import EVERYTHING_ONCE, draw_incidents
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.incidents import KINDS
from flatline.connectors.simulator.plan import Incident, WorldPlan

PLAN = WorldPlan(seed=2, cells=2, vms_per_node=20, pools_per_cell=2, site_pools=1)


def draw(seed: int, counts: dict[str, int] | None = None) -> tuple[Incident, ...]:
    wanted = dict(EVERYTHING_ONCE) if counts is None else counts
    return draw_incidents(PLAN, seed=seed, counts=wanted, from_s=100, span_s=500)


def test_every_kind_is_drawn_as_often_as_asked_for() -> None:
    kinds = [incident.kind for incident in draw(1)]
    assert sorted(kinds) == sorted(KINDS)
    assert len(draw(1, {"panic_spin": 7, "pool_stall": 2})) == 9


def test_incidents_lie_in_the_span_and_in_order() -> None:
    times = [incident.at_s for incident in draw(1, {"panic_halt": 50})]
    assert times == sorted(times)
    assert 100 <= times[0] < times[-1] <= 600


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_no_vm_is_struck_twice() -> None:
    struck = [incident.vms for incident in draw(1, {"panic_halt": 40, "pause": 40})]
    assert len(set(struck)) == 80


def test_more_victims_than_vms_are_refused() -> None:
    with pytest.raises(ValueError, match="81 incidents need one VM each, but the plan has 80 VMs"):
        draw(1, {"panic_halt": 81})


def test_whatever_is_drawn_can_be_played() -> None:
    for seed in range(3):
        incidents = draw(seed)
        fleet = build_world(
            WorldPlan(
                seed=2,
                cells=2,
                vms_per_node=20,
                pools_per_cell=2,
                site_pools=1,
                incidents=incidents,
            )
        )
        fleet.advance(700)
        assert len(fleet.truth.happenings) == len(incidents)


def test_a_panic_spins_on_one_vcpu_or_on_all() -> None:
    faces = {incident.params["vcpus"] for incident in draw(1, {"panic_spin": 30})}
    assert faces == {0.0, 1.0}

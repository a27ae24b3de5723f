import pytest

from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.incidents import KINDS, schedule
from flatline.connectors.simulator.plan import Incident, WorldPlan
from tests.unit.connectors.simulator.screening_plan import incident, site


def test_every_kind_plays_and_the_time_bound_ones_end() -> None:
    for kind in KINDS:
        fleet = site(incident(kind, lasts_s=5.0))
        fleet.advance(60)
        (happening,) = fleet.truth.happenings
        assert happening.began_ns == 11_000_000_000, kind
        ends = kind not in {
            "panic_spin", "panic_halt", "hung_userland", "owner_reboot", "live_migration",
            "counter_reset", "boot_prompt",
        }  # fmt: skip
        assert (happening.ended_ns is not None) == ends, kind


@pytest.mark.parametrize(
    "wrong",
    [
        Incident(kind="sick_node", at_s=1, node="c9-n9"),
        Incident(kind="pool_stall", at_s=1, pool="attic"),
        Incident(kind="network_stall", at_s=1, network="dmz"),
        Incident(kind="panic_halt", at_s=1, vms=(10_000,)),
    ],
    ids=lambda wrong: wrong.kind,
)
def test_an_incident_that_names_nothing_of_this_site_is_refused(wrong: Incident) -> None:
    with pytest.raises(ValueError, match=rf"{wrong.kind}: no "):
        build_world(WorldPlan(seed=1, incidents=(wrong,)))


def test_an_unknown_kind_of_incident_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'panick' is not an incident. Known: .*panic_spin"):
        site(Incident(kind="panick", at_s=1.0, vms=(0,)))


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        ("panic_spin", "vm"),
        ("sick_node", "node"),
        ("pool_stall", "pool"),
        ("network_stall", "network"),
    ],
)
def test_an_incident_without_a_subject_is_refused(kind: str, scope: str) -> None:
    with pytest.raises(ValueError, match=f"requires the name of a {scope}"):
        site(Incident(kind=kind, at_s=1.0))


def test_an_incident_may_be_added_to_a_living_world() -> None:
    fleet = site()
    fleet.advance(100)
    schedule(fleet.world, incident("panic_halt", at_s=110))
    fleet.advance(20)
    assert fleet.truth.dead_since_ns(3) == 110_000_000_000

"""The signals of one VM, and their value as evidence."""

import math

import pytest

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.evidence import cpu_shape
from flatline.engine.wire.alert import CpuShape, EvidenceItem
from tests.unit.engine.detection.frames_by_hand import cell

CONFIGURATION = Configuration()
NAN = math.nan


@pytest.mark.parametrize(
    ("cpu", "vcpus", "busy", "busiest", "shape"),
    [
        (None, 2, -1, NAN, "unknown"),
        (0.0, 2, 0, 0.0, "idle"),
        (0.03, 1, 0, 0.03, "idle"),
        (1.02, 4, 1, 1.0, "one_core"),
        (1.0, 4, -1, NAN, "one_core"),
        (1.0, 1, 1, 1.0, "all_cores"),
        (2.0, 2, 2, 1.0, "all_cores"),
        (1.0, 4, 0, 0.26, "mixed"),
        (2.0, 4, 2, 1.0, "mixed"),
        (0.5, 4, 0, 0.2, "mixed"),
    ],
)
def test_the_shape_of_the_vcpus(
    cpu: float | None, vcpus: int, busy: int, busiest: float, shape: CpuShape
) -> None:
    seen = cpu_shape(
        cpu=cpu,
        vcpus=vcpus,
        busy=busy,
        busiest=busiest,
        configuration=CONFIGURATION,
    )
    assert seen == shape


def test_a_panic_is_found_on_a_node_that_gives_a_guest_a_seventh_of_a_core() -> None:
    bench, guests = cell(3)
    bench.run(240.0)
    guests[0].panics(cores=0.14)
    guests[0].busiest, guests[0].delay = 1.0, 0.86
    bench.run(60.0)
    alert = bench.of(guests[0])[-1]
    assert (alert.kind, alert.suggested_action) == ("panic_spin", "reboot")
    assert (
        "Requested one vCPU at 100 %" in {item.signal: item for item in alert.evidence}["cpu"].text
    )


def test_a_job_that_gets_its_core_at_last_has_not_stepped() -> None:
    bench, guests = cell(3)
    guests[0].cores, guests[0].busiest, guests[0].delay = 0.14, 1.0, 0.86
    bench.run(240.0)
    guests[0].panics()
    guests[0].delay = 0.0
    bench.run(60.0)
    assert "cpu_constant" in bench.of(guests[0])[-1].vetoes


def test_an_idle_guest_whose_neighbours_stop_has_not_fallen() -> None:
    bench, guests = cell(3)
    guests[0].cores, guests[0].delay = 0.03, 0.5
    guests[0].balloon_period_s = 0
    bench.run(240.0)
    guests[0].panics(cores=0.03)
    guests[0].delay = 0.0
    bench.run(300.0)
    assert not bench.of(guests[0])


def test_a_guest_whose_neighbours_start_has_not_fallen() -> None:
    bench, guests = cell(3)
    guests[0].cores = 0.05
    bench.run(240.0)
    guests[0].panics(cores=0.01)
    guests[0].delay = 0.04
    bench.run(300.0)
    assert "cpu_constant" in bench.of(guests[0])[-1].vetoes


def test_a_guest_that_halts_on_a_node_with_too_few_cores_is_found() -> None:
    bench, guests = cell(3)
    guests[0].cores, guests[0].delay = 0.03, 0.5
    bench.run(240.0)
    guests[0].panics(cores=0.0)
    guests[0].delay = 0.0
    bench.run(60.0)
    assert bench.of(guests[0])[-1].kind == "panic_halt"


def test_a_halt_in_a_silence_that_an_earlier_release_began_is_found() -> None:
    bench, guests = cell(3)
    bench.run(240.0)
    guests[0].panics(cores=0.004)
    bench.run(4.0)
    bench.partition.cells["cell"].tables["node-0"].row("used_before")[:] = 0.0
    bench.run(56.0)
    assert bench.of(guests[0])[-1].suggested_action == "reboot"


def items_of(cores: float, seconds: float = 30.0) -> dict[str, EvidenceItem]:
    bench, guests = cell(3)
    bench.run(240.0)
    guests[0].panics(cores=cores)
    bench.run(seconds)
    return {item.signal: item for item in bench.of(guests[0])[-1].evidence}


def test_every_nat_of_a_score_stands_in_the_evidence_with_its_text() -> None:
    items = items_of(1.0)
    assert set(items) >= {"silence", "cpu", "balloon"}
    assert all(item.text for item in items.values())
    total = sum(item.nats or 0.0 for item in items.values())
    assert total >= CONFIGURATION.order_nats("one_core")


def test_silence_is_worth_what_the_vms_own_past_makes_of_it_up_to_a_cap() -> None:
    nats = items_of(0.0)["silence"].nats or 0.0
    assert math.log(240 / 2) <= nats <= CONFIGURATION.silence_cap_nats


def test_a_living_balloon_outweighs_everything_else() -> None:
    most = (
        CONFIGURATION.silence_cap_nats
        + CONFIGURATION.cpu_cap_nats
        + CONFIGURATION.balloon_fresh_nats
    )
    assert most < CONFIGURATION.alert_nats


def test_a_longer_silence_cannot_overrule_a_living_balloon() -> None:
    bench, guests = cell(3)
    bench.run(240.0)
    guests[0].panics()
    guests[0].balloon = True
    bench.run(1200.0)
    assert not [alert for alert in bench.of(guests[0]) if alert.kind.startswith("panic")]

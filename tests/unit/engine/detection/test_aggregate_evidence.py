"""VMs with totals only: alerts, suggestions, and waiting times."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import INTEGER_ROW
from tests.unit.engine.detection.frames_by_hand import Bench, Guest, Place


def memory_of(guest: Guest, rng: np.random.Generator) -> float:
    """Vary a guest's memory figure by its activity."""
    assert isinstance(guest, Plain)
    guest.memory *= 1 + guest.moves * rng.uniform(-1, 1)
    guest.memory = min(max(guest.memory, 100_000.0), 900_000.0)
    return guest.memory


@dataclass
class Plain(Guest):
    """A guest that reports only totals and a memory figure."""

    memory: float = 500_000.0
    moves: float = 0.3
    seen: bool = True


class Coarse(Place):
    """A collector that reads totals."""

    rng = np.random.default_rng(5)

    def rows(self) -> VmRows:
        rows = super().rows()
        assert rows.missing is not None
        for name in ("vcpus_busy", "balloon_last_update_s"):
            rows.integers[INTEGER_ROW[name]] = 0
            rows.missing[INTEGER_ROW[name]] = True
        rows.gauges[...] = np.nan
        for column, guest in enumerate(self.guests):
            row = INTEGER_ROW["balloon_rss_kib"]
            rows.integers[row, column] = round(memory_of(guest, self.rng))
            rows.missing[row, column] = False
            assert isinstance(guest, Plain)
            if not guest.seen:
                rows.missing[:, column] = True
                rows.integers[:, column] = 0
        return rows


def fleet(interval_s: float, *, vms: int = 12) -> tuple[Bench, list[Plain]]:
    guests: list[Plain] = [
        Plain(f"vm-{index}", vcpus=4, balloon=False, pool=f"pool-{index}", network=f"net-{index}")
        for index in range(vms)
    ]
    rng = np.random.default_rng(7)
    places: list[Place] = [Coarse(f"node-{at}", list[Guest](guests[at::2])) for at in range(2)]
    bench = Bench(places, interval_s=interval_s)

    def each(_: float) -> None:
        for guest in guests:
            if guest.sends:
                guest.cores = rng.uniform(0.2, 0.6)

    bench.run(300 * interval_s, each)
    assert not bench.alerts
    return bench, guests


def dies(guest: Plain, cores: float) -> None:
    guest.panics(cores=cores)
    guest.moves = 0.0


@pytest.mark.parametrize(("interval_s", "within_s"), [(10.0, 60.0), (300.0, 900.0)])
@pytest.mark.parametrize(("cores", "kind"), [(1.02, "panic_spin"), (0.004, "panic_halt")])
def test_a_dead_guest_is_found_and_somebody_is_to_look_at_it(
    interval_s: float, within_s: float, cores: float, kind: str
) -> None:
    bench, guests = fleet(interval_s)
    dies(guests[3], cores)
    bench.run(within_s)
    last = bench.of(guests[3])[-1]
    assert (last.kind, last.suggested_action) == (kind, "inspect")
    assert last.witnesses == ("activity",)
    assert {alert.subject for alert in bench.alerts} == {guests[3].text}


def test_ten_seconds_after_the_onset_nothing_is_suggested_yet() -> None:
    bench, guests = fleet(10.0)
    dies(guests[3], 1.02)
    bench.run(40.0)
    assert bench.suggestions(guests[3]) == {"alert"}


@pytest.mark.parametrize("cores", [0.004, 1.02, 3.95])
def test_a_silence_in_which_the_memory_creeps_on_as_in_life_is_left_alone(cores: float) -> None:
    bench, guests = fleet(300.0)
    job = guests[2]
    job.panics(cores=cores)
    job.moves = 0.01
    bench.run(8 * 300.0)
    assert bench.suggestions(job) <= {"alert"}


def test_silence_that_many_begin_within_samples_of_each_other_is_one_incident() -> None:
    bench, guests = fleet(300.0)
    for guest in guests[:6]:
        guest.writes = guest.reads = guest.sends = 0.0
    bench.run(300.0)
    for guest in guests[6:9]:
        dies(guest, 0.004)
    bench.run(5 * 300.0)
    firing = [alert for alert in bench.alerts if alert.state == "firing"]
    assert {(alert.scope, alert.kind) for alert in firing} == {("cell", "fleet_silence")}
    assert len({alert.id for alert in firing}) == 1


def stalls(guests: list[Plain]) -> None:
    for guest in guests:
        guest.writes = guest.reads = guest.sends = 0.0


def test_a_silence_of_many_is_not_over_before_they_move() -> None:
    bench, guests = fleet(300.0, vms=40)
    stalls(guests[1:10])
    bench.run(5 * 3600.0)
    assert {(alert.scope, alert.state) for alert in bench.alerts} == {("cell", "firing")}
    assert bench.alerts[-1].state == "firing"


def test_a_few_that_die_together_are_reported_after_an_hour_and_not_ordered() -> None:
    bench, guests = fleet(300.0, vms=40)
    dead = guests[1:6]
    for guest in dead:
        dies(guest, 0.004)
    bench.run(3000.0)
    assert not bench.alerts
    bench.run(1500.0)
    assert {alert.subject for alert in bench.alerts} == {guest.text for guest in dead}
    assert {alert.suggested_action for alert in bench.alerts} == {"alert"}


def test_a_silence_of_many_is_over_when_the_rest_of_them_gives_no_samples() -> None:
    bench, guests = fleet(300.0, vms=40)
    stalls(guests[1:10])
    bench.run(1500.0)
    for guest in guests[1:6]:
        guest.seen = False
    for guest in guests[6:10]:
        guest.writes, guest.sends = 50_000.0, 3000.0
    bench.run(9000.0)
    assert [alert.state for alert in bench.alerts if alert.scope == "cell"][-1] == "resolved"


def test_who_stays_silent_when_all_others_move_again_is_reported_and_not_ordered() -> None:
    bench, guests = fleet(300.0)
    for guest in guests[:6]:
        guest.writes = guest.reads = guest.sends = 0.0
    dies(guests[6], 0.004)
    bench.run(900.0)
    for guest in guests[:6]:
        guest.writes, guest.sends = 50_000.0, 3000.0
    bench.run(4000.0)
    assert {alert.scope for alert in bench.alerts} == {"cell", "vm"}
    assert {alert.subject for alert in bench.alerts if alert.scope == "vm"} == {guests[6].text}
    assert bench.suggestions(guests[6]) == {"alert"}
    bench.run(7500.0)
    assert [alert.state for alert in bench.alerts if alert.scope == "cell"][-1] == "resolved"


def test_a_vm_switched_off_by_its_owner_is_not_dead() -> None:
    bench, guests = fleet(300.0)
    bench.places[1].tell("stopped", guests[3])
    dies(guests[3], 0.0)
    bench.run(6 * 300.0)
    assert not bench.of(guests[3])


def test_samples_missing_on_several_nodes_are_the_collectors_trouble() -> None:
    bench, guests = fleet(300.0)
    for guest in guests[:4]:
        guest.seen = False
    dies(guests[5], 1.02)
    bench.run(900.0)
    assert bench.suggestions(guests[5]) <= {"alert"}
    vetoes = {veto for alert in bench.of(guests[5]) for veto in alert.vetoes}
    assert "collectors_disturbed" in vetoes


def test_a_disk_that_hangs_under_a_guest_that_still_answers_suggests_a_migration() -> None:
    bench, guests = fleet(300.0)
    guests[3].writes, guests[3].sends, guests[3].cores = 0.0, 3000.0, 0.05
    rng = np.random.default_rng(2)

    def each(_: float) -> None:
        guests[3].cores = rng.uniform(0.04, 0.06)

    bench.run(4 * 300.0, each)
    last = bench.of(guests[3])[-1]
    assert (last.kind, last.suggested_action) == ("hung_io", "migrate")


def leaks(bench: Bench, guest: Plain) -> None:
    guest.memory, guest.moves = 110_000.0, 0.0

    def each(_: float) -> None:
        guest.memory *= 1.02

    bench.run(40 * 300.0, each)


def test_an_idle_guest_whose_disks_rest_is_reported_as_hung_and_not_moved() -> None:
    bench, guests = fleet(60.0)
    idle = guests[3]

    def rests(_: float) -> None:
        idle.cores = 0.01

    bench.run(300 * 60.0, rests)
    idle.writes, idle.sends = 0.0, 1500.0

    def stops(_: float) -> None:
        idle.cores = 0.002

    bench.run(600.0, stops)
    assert bench.suggestions(idle) == {"alert"}


def test_memory_that_only_grows_is_reported_as_a_leak_once() -> None:
    bench, guests = fleet(300.0)
    leaky = guests[4]
    leaks(bench, leaky)
    reported = [alert for alert in bench.of(leaky) if alert.state == "firing"]
    assert {alert.kind for alert in reported} == {"mem_leak"}
    assert {alert.suggested_action for alert in reported} == {"alert"}
    assert len({alert.id for alert in reported}) == 1


def degrades(bench: Bench, guest: Plain, *, hours: int) -> None:
    """Run four ordinary days, then hours in each of which the disk gets slower."""
    usual = guest.writes = 20_000.0
    bench.run(4 * 86_400.0)
    for _ in range(hours):
        guest.writes *= 0.88
        bench.run(3600.0)
    assert guest.writes < 0.5 * usual


@pytest.mark.parametrize(
    ("hours", "then", "reason"),
    [(1, 20_000.0, "are normal again"), (26, 7_000.0, "now normal")],
    ids=["a disk that works again", "a level that stays"],
)
def test_a_slowing_disk_is_reported_once_and_ends(hours: int, then: float, reason: str) -> None:
    bench, guests = fleet(300.0)
    slow = guests[4]
    degrades(bench, slow, hours=8)
    fired = bench.of(slow)[-1]
    assert (fired.kind, fired.state, fired.suggested_action) == (
        "degrading_storage",
        "firing",
        "alert",
    )
    slow.writes = then
    bench.run(hours * 3600.0 + 900.0)
    reported = bench.of(slow)
    assert {alert.kind for alert in reported} == {"degrading_storage"}
    assert len({alert.id for alert in reported}) == 1
    assert reported[-1].state == "resolved"
    assert reported[-1].resolution is not None
    assert reason in reported[-1].resolution.reason


def runs_away(bench: Bench, guest: Plain) -> None:
    bench.run(86_400.0)
    guest.cores += 2.0
    bench.run(20 * 300.0)


SLOW = pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("mem_leak", leaks),
        ("cpu_runaway", runs_away),
        ("degrading_storage", lambda bench, guest: degrades(bench, guest, hours=8)),
    ],
    ids=["a leak", "a runaway", "a slow disk"],
)


@SLOW
@pytest.mark.parametrize("by_event", [True, False], ids=["an owner's event", "its state alone"])
def test_what_showed_over_hours_ends_while_the_vm_is_paused_for_days(
    kind: str, begins: Callable[[Bench, Plain], None], by_event: bool
) -> None:
    bench, guests = fleet(300.0)
    guest = guests[4]
    begins(bench, guest)
    fired = bench.of(guest)[-1]
    assert (fired.kind, fired.state) == (kind, "firing")
    guest.state = "paused"
    guest.cores = guest.writes = guest.sends = guest.moves = 0.0
    if by_event:
        bench.places[0].tell("paused", guest)
    bench.run(3 * 86_400.0)
    last = bench.of(guest)[-1]
    assert (last.id, last.kind, last.state) == (fired.id, kind, "resolved")
    hours, reason = {
        "mem_leak": (3, "is unknown"),
        "cpu_runaway": (3, "it has released the extra cores"),
        "degrading_storage": (26, "is unknown"),
    }[kind]
    assert (last.decided_ms - fired.opened_ms) / 3.6e6 < hours
    assert last.resolution is not None
    assert reason in last.resolution.reason


@SLOW
def test_what_shows_over_hours_outlasts_a_short_sample_gap_in_what_is_seen(
    kind: str, begins: Callable[[Bench, Plain], None]
) -> None:
    bench, guests = fleet(300.0)
    guest = guests[4]
    begins(bench, guest)
    guest.seen = False
    bench.run(600.0)
    guest.seen = True
    bench.run(900.0)
    reported = bench.of(guest)
    assert {(alert.kind, alert.state) for alert in reported} == {(kind, "firing")}


def test_a_crash_in_a_slow_disks_incident_is_reported() -> None:
    bench, guests = fleet(300.0)
    slow = guests[4]
    degrades(bench, slow, hours=8)
    bench.run(3600.0)
    assert {alert.kind for alert in bench.of(slow)} == {"degrading_storage"}
    bench.places[0].tell("rebooted", slow)
    reported = [alert.kind for alert in bench.run(900.0) if alert.subject == slow.text]
    assert "crash_reboot" in reported


def test_vms_of_one_node_that_vanish_one_after_the_other_are_one_incident_of_it() -> None:
    bench, guests = fleet(300.0, vms=40)
    hidden = guests[1:5:2]
    for guest in hidden:
        guest.seen = False
        bench.places[1].tell("monitor_hung", guest)
        bench.run(6 * 300.0)
    wide = [alert for alert in bench.alerts if alert.scope == "host" and alert.state == "firing"]
    assert {alert.subject for alert in wide} == {"node-1"}
    assert {alert.kind for alert in wide} == {"host_silence"}
    assert len({alert.id for alert in wide}) == 1


def test_a_gap_of_three_samples_is_not_reported() -> None:
    bench, guests = fleet(300.0, vms=40)
    guests[1].seen = False
    bench.run(300.0)
    bench.places[1].tell("monitor_hung", guests[1])
    bench.run(600.0)
    guests[1].seen = True
    bench.places[1].tell("monitor_back", guests[1])
    bench.run(1200.0)
    assert not bench.alerts

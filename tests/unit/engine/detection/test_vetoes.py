"""Each guard separately: the same guest that looks dead gets a reboot only without it."""

from collections.abc import Callable

import pytest

from flatline.engine.wire.alert import Alert
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, FAST, Bench, Guest, cell

Guard = Callable[[Bench, Guest], None]


def explained_by_owner(bench: Bench, guest: Guest) -> None:
    bench.said("owner", "owner_reboot", guest)


def under_maintenance(bench: Bench, guest: Guest) -> None:
    until_ms = EPOCH_MS + round((bench.now_s + 600) * 1000)
    bench.said("owner", "owner_maintenance", guest, until_ms=str(until_ms))


def with_a_job(bench: Bench, guest: Guest) -> None:
    guest.job = True


def with_a_job_reported(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("job_started", guest)


def paused(bench: Bench, guest: Guest) -> None:
    guest.state = "paused"


def paused_by_event(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("paused", guest)


def dumping(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("crash_dump", guest)


def migrating(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("migrated_out", guest)


def hung_monitor(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("monitor_hung", guest)


def blind(bench: Bench, guest: Guest) -> None:
    guest.measured = False


def rebooting(bench: Bench, guest: Guest) -> None:
    bench.places[0].tell("rebooted", guest)


def living_balloon(bench: Bench, guest: Guest) -> None:
    guest.balloon = True


GUARDS = [
    explained_by_owner,
    under_maintenance,
    with_a_job,
    with_a_job_reported,
    paused,
    paused_by_event,
    dumping,
    migrating,
    hung_monitor,
    blind,
    rebooting,
    living_balloon,
]


def dead_looking(guard: Guard | None, *, warm_s: float = 120.0) -> tuple[Bench, Guest]:
    bench, guests = cell(4)
    bench.run(warm_s)
    guests[0].panics()
    if guard is not None:
        guard(bench, guests[0])
    # Enough for a reboot, and before the shortest inhibition, that of a migration, ends.
    bench.run(FAST.self_reboot_s + 1.0)
    return bench, guests[0]


def test_without_a_guard_the_guest_is_to_be_rebooted() -> None:
    bench, guest = dead_looking(None)
    assert "reboot" in bench.suggestions(guest)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_a_guard_keeps_a_dead_looking_guest_from_being_rebooted(guard: Guard) -> None:
    bench, guest = dead_looking(guard)
    assert "reboot" not in bench.suggestions(guest)


def test_a_guest_that_dies_while_it_boots_is_rebooted_only_when_the_boot_should_be_over() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    bench.places[0].tell("rebooted", guests[0])
    bench.run(12.0)
    guests[0].panics()
    bench.run(FAST.self_reboot_s + 1.0)
    assert bench.suggestions(guests[0]) == {"alert"}
    bench.run(30.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_maintenance_ends_when_it_was_said_to_end() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    until_ms = EPOCH_MS + round((bench.now_s + 60) * 1000)
    bench.said("owner", "owner_maintenance", guests[0], until_ms=str(until_ms))
    guests[0].panics()
    bench.run(56.0)
    assert not bench.of(guests[0])
    bench.run(20.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_an_owner_s_event_that_comes_late_suppresses_the_alert_and_is_named() -> None:
    bench, guest = dead_looking(None)
    bench.said("owner", "owner_reboot", guest)
    bench.run(4.0)
    last = bench.of(guest)[-1]
    assert last.state == "suppressed"
    assert last.vetoes == ("owner_reboot",)
    assert last.suggested_action == "none"
    assert "explains it: owner_reboot" in last.sentence


def test_a_suppressed_fault_fires_again_under_its_id_when_the_veto_ends() -> None:
    bench, guest = dead_looking(None)
    with_a_job_reported(bench, guest)
    bench.run(4.0)
    assert bench.of(guest)[-1].state == "suppressed"
    bench.places[0].tell("job_ended", guest)
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert last.state == "firing"
    assert last.id == bench.of(guest)[0].id


def test_frames_that_show_the_past_lead_to_an_alert_and_no_order() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    guests[0].panics()
    # A backlog: samples from 100 s ago are appended only now.
    late = [_delayed(bench, seconds=2.0 * index) for index in range(15)]
    assert "alert" in {alert.suggested_action for alerts in late for alert in alerts}
    refused = [alert for alerts in late for alert in alerts if "log_outage" in alert.vetoes]
    assert refused
    assert "reboot" not in bench.suggestions(guests[0])


def _delayed(bench: Bench, *, seconds: float) -> list[Alert]:
    bench.now_s += 2.0
    bench.delay_ms = 100_000 + round(seconds)
    try:
        return bench.sample(bench.places[0])
    finally:
        bench.delay_ms = 0


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_begins_with_a_backlog_does_not_make_it_usual(known: bool) -> None:
    bench, guests = cell(4)
    place = bench.places[0]
    bench.delay_ms = 0 if known else 100_000
    bench.run(120.0)
    place.run, place.sequence, bench.delay_ms = "run-2", 0, 100_000
    guests[0].panics()
    bench.run(60.0)
    assert bench.suggestions(guests[0]) == {"alert"}


def test_cpu_that_was_there_before_is_no_reason_for_an_order() -> None:
    bench, guests = cell(4)
    guests[0].cores, guests[0].busiest = 1.0, 1.0
    bench.run(120.0)
    guests[0].panics()
    bench.run(60.0)
    assert "reboot" not in bench.suggestions(guests[0])
    assert any("cpu_constant" in alert.vetoes for alert in bench.of(guests[0]))


@pytest.mark.parametrize("cores", [1.0, 2.0], ids=["one core", "all cores"])
def test_no_silence_and_no_cpu_shape_is_enough_without_a_second_witness(cores: float) -> None:
    bench, guests = cell(4)
    guests[0].balloon_period_s = 0
    bench.run(240.0)
    guests[0].panics(cores=cores)
    bench.run(120.0)
    assert bench.suggestions(guests[0]) <= {"alert", "inspect"}
    assert {alert.witnesses for alert in bench.of(guests[0])} == {("activity",)}


def test_some_cores_spinning_is_alerted_at_most() -> None:
    bench, guests = cell(4)
    guests[0].vcpus = 4
    bench.run(120.0)
    guests[0].panics(cores=2.0)
    bench.run(60.0)
    assert bench.suggestions(guests[0]) == {"alert"}
    assert any("shape_mixed" in alert.vetoes for alert in bench.of(guests[0]))


def test_a_short_past_does_not_add_up_to_an_order() -> None:
    bench, guests = cell(4)
    guests[0].vcpus, guests[0].balloon_period_s = 4, 0
    bench.run(50.0)
    guests[0].panics()
    bench.run(90.0)
    assert bench.suggestions(guests[0]) == {"alert"}
    assert bench.of(guests[0])[-1].vetoes == ("score_low",)


def test_a_balloon_that_reports_seldom_is_waited_for_before_an_order() -> None:
    bench, guests = cell(4)
    guests[0].vcpus, guests[0].balloon_period_s = 4, 60
    bench.run(600.0)
    guests[0].panics()
    bench.run(50.0)
    assert bench.suggestions(guests[0]) == {"alert"}
    bench.run(150.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_a_silence_that_is_usual_for_the_vm_leads_to_no_order_whatever_else_agrees() -> None:
    bench, guests = cell(4)

    def on_and_off(now_s: float) -> None:
        working = now_s % 80 < 20
        guests[0].writes = 50_000.0 if working else 0.0
        guests[0].sends = 20_000.0 if working else 0.0

    bench.run(1610.0, each=on_and_off)
    guests[0].panics(cores=2.0)
    bench.run(30.0)
    assert bench.suggestions(guests[0]) == {"alert"}


def test_a_newborn_vm_cannot_surprise() -> None:
    bench, guest = dead_looking(None, warm_s=8.0)
    assert "reboot" not in bench.suggestions(guest)


def test_a_guest_that_is_often_silent_is_not_judged_by_silence() -> None:
    bench, guests = cell(4)

    def on_and_off(now_s: float) -> None:
        working = now_s % 56 < 6
        guests[0].writes = 50_000.0 if working else 0.0
        guests[0].sends = 20_000.0 if working else 0.0

    bench.run(1200.0, each=on_and_off)
    bench.alerts.clear()
    guests[0].panics(cores=0.0)
    bench.run(24.0)
    assert "reboot" not in bench.suggestions(guests[0])


def test_a_missing_counter_is_unknown_and_not_silence() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    guests[0].measured = False
    bench.run(60.0)
    assert not [alert for alert in bench.of(guests[0]) if alert.kind.startswith("panic")]
    guests[0].measured = True
    bench.run(20.0)
    assert not [alert for alert in bench.of(guests[0]) if alert.kind.startswith("panic")]


def test_a_gate_that_opens_late_takes_the_suggestion_back() -> None:
    bench, guests = cell(12)
    for guest in guests:
        guest.pool = "pool-a"
    bench.run(120.0)
    for index, guest in enumerate(guests):
        if index < 2:
            guest.panics()
    bench.run(6.0)
    for guest in guests:
        guest.panics()
    bench.run(60.0)
    pool = [alert for alert in bench.alerts if alert.scope == "pool"]
    assert pool
    assert all("reboot" not in bench.suggestions(guest) for guest in guests)
    suppressed = [alert for alert in bench.alerts if alert.state == "suppressed"]
    assert all(alert.incident == pool[0].id for alert in suppressed)
    assert all("pool:pool-a" in alert.vetoes for alert in suppressed)


def test_a_panic_before_a_stall_began_is_not_taken_back_by_it() -> None:
    bench, guests = cell(12)
    for guest in guests:
        guest.pool = "pool-a"
    bench.run(120.0)
    guests[0].panics()
    bench.run(60.0)
    for guest in guests[1:]:
        guest.writes = guest.sends = 0.0
        guest.cores = 0.01
    bench.run(30.0)
    assert [alert for alert in bench.alerts if alert.scope == "pool"]
    assert bench.of(guests[0])[-1].state == "firing"

"""Unobservable VMs are reported once, and open incidents survive a restart unchanged."""

from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, cell


def test_a_monitor_that_hangs_is_reported_once_also_where_nothing_ever_moved() -> None:
    bench, (burner, *_) = cell()
    burner.computes()
    burner.balloon = False
    bench.run(20)
    bench.places[0].tell("monitor_hung", burner)
    burner.measured = False
    bench.run(300)

    reported = [(alert.kind, alert.state, alert.transition) for alert in bench.of(burner)]
    assert set(reported) == {("vm_silence", "firing", 0)}


def test_a_monitor_that_hangs_is_reported_by_the_sample_in_which_it_did() -> None:
    bench, (guest, *_) = cell()
    bench.run(20)
    sequence = bench.places[0].sequence
    bench.places[0].tell("monitor_hung", guest)
    guest.measured = False
    bench.run(60)
    first = bench.of(guest)[0]
    assert first.position is not None
    assert first.position.sequence == sequence


def test_what_is_reported_before_any_silence_begins_when_it_is_reported() -> None:
    bench, (guest, *_) = cell(interval_s=10.0)
    bench.run(600.0)
    reported_ms, sequence = bench.time_ms, bench.places[0].sequence
    bench.places[0].tell("panicked", guest)
    bench.run(10.0)
    first = bench.of(guest)[0]
    assert reported_ms < first.onset_ms <= reported_ms + 10_000
    assert first.position is not None
    assert first.position.sequence == sequence


def test_a_stall_that_is_open_has_the_same_digest_after_a_restart() -> None:
    bench, guests = cell(8)
    for guest in guests:
        guest.pool = "shared"
    bench.run(120)
    for guest in guests:
        guest.writes = guest.reads = 0.0
    stalled = bench.run(60)
    assert {alert.kind for alert in stalled if alert.state == "firing"} == {"pool_stall"}

    chunks, manifest = take_snapshot(bench.partition)
    assert digest(restore(chunks, manifest, FAST)) == digest(bench.partition)


def hung() -> tuple[Bench, Guest]:
    """Return a guest that worked for a while and whose monitor hangs now."""
    bench, (guest, *_) = cell()
    bench.run(120)
    bench.places[0].tell("monitor_hung", guest)
    guest.measured = False
    bench.run(60)
    assert bench.of(guest)[-1].kind == "vm_silence"
    return bench, guest


def test_a_monitor_that_answers_again_hangs_no_longer_where_the_event_was_lost() -> None:
    bench, guest = hung()
    guest.measured = True
    bench.run(20)
    assert bench.of(guest)[-1].state == "resolved"
    guest.panics()
    bench.run(40)
    assert "reboot" in bench.suggestions(guest)


def test_a_new_run_of_the_collector_knows_of_no_monitor_that_hung_before_it() -> None:
    bench, guest = hung()
    guest.panics()
    bench.run(20)
    bench.places[0].run, bench.places[0].sequence = "run-2", 0
    guest.measured = True
    bench.run(60)
    assert "reboot" in bench.suggestions(guest)


def test_who_is_started_anew_has_another_monitor_than_the_one_that_hung() -> None:
    bench, guest = hung()
    bench.places[0].tell("started", guest)
    guest.instance += 1
    guest.panics()
    bench.run(20)
    assert bench.of(guest)[-1].state == "resolved"


def test_nodes_that_died_long_ago_hold_back_no_order_on_the_others() -> None:
    bench, (guest, *_) = cell(12, nodes=4)
    bench.run(120)
    for place in bench.places[2:]:
        place.reachable = False
    bench.run(120)
    guest.panics()
    bench.run(40)
    assert "reboot" in bench.suggestions(guest)


def test_nodes_that_fall_silent_together_hold_back_orders_on_the_others_for_a_while() -> None:
    bench, (guest, *_) = cell(12, nodes=4)
    bench.run(120)
    guest.panics()
    bench.run(26)
    for place in bench.places[2:]:
        place.reachable = False
    bench.run(10)
    assert bench.suggestions(guest) == {"alert"}

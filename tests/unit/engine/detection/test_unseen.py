"""Unobservable VMs are reported once, and open incidents survive a restart unchanged."""

from engine.detection.snapshot import digest, restore, take_snapshot
from tests.unit.engine.detection.frames_by_hand import FAST, cell


def test_a_monitor_that_hangs_is_told_once_also_where_nothing_ever_moved() -> None:
    bench, (burner, *_) = cell()
    burner.computes()
    burner.balloon = False
    bench.run(20)
    bench.places[0].tell("monitor_hung", burner)
    burner.measured = False
    bench.run(300)

    told = [(alert.kind, alert.state, alert.transition) for alert in bench.of(burner)]
    assert set(told) == {("vm_silence", "firing", 0)}


def test_a_monitor_that_hangs_is_told_by_the_sample_in_which_it_did() -> None:
    bench, (guest, *_) = cell()
    bench.run(20)
    sequence = bench.places[0].sequence
    bench.places[0].tell("monitor_hung", guest)
    guest.measured = False
    bench.run(60)
    first = bench.of(guest)[0]
    assert first.position is not None
    assert first.position.sequence == sequence


def test_what_is_told_before_any_silence_begins_when_it_is_told() -> None:
    bench, (guest, *_) = cell(interval_s=10.0)
    bench.run(600.0)
    told_ms, sequence = bench.time_ms, bench.places[0].sequence
    bench.places[0].tell("panicked", guest)
    bench.run(10.0)
    first = bench.of(guest)[0]
    assert told_ms < first.onset_ms <= told_ms + 10_000
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

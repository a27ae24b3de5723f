"""A node reports the VMs that it runs, and one collector reports a node."""

from flatline.engine.wire.frame import Event, Frame, VmRows, encode_frame
from flatline.engine.wire.runs import Runs
from tests.unit.engine.detection.frames_by_hand import Bench, Guest, Place, cell, item


def copy_of(guest: Guest, *, instance: int = 99) -> Guest:
    """Return a second running copy of a guest, with restarted counters."""
    twin = Guest(guest.name, instance=instance, pool=guest.pool)
    twin.passes(0.0, 0.0)
    return twin


def owner_of(bench: Bench, guest: Guest) -> str:
    return bench.partition.cells["cell"].vms[guest.uuid].node


def kinds(bench: Bench, kind: str) -> list[tuple[str, str]]:
    """Return the subjects and states of all alerts of one kind."""
    return [(alert.subject, alert.state) for alert in bench.alerts if alert.kind == kind]


def test_a_running_copy_does_not_take_the_vm_over_and_is_reported_with_both_nodes() -> None:
    bench, guests = cell(6, nodes=2)
    bench.run(120.0)
    first, second = bench.places
    second.guests.append(copy_of(guests[0]))
    bench.run(40.0)
    assert owner_of(bench, guests[0]) == first.name
    assert not kinds(bench, "duplicate_vm")
    bench.run(60.0)
    (reported, *_) = [alert for alert in bench.alerts if alert.kind == "duplicate_vm"]
    assert reported.subject == guests[0].text
    assert first.name in reported.sentence
    assert second.name in reported.sentence
    assert reported.suggested_action == "alert"
    assert bench.partition.counters.foreign > 0
    # The first copy's panic is detected, and no action is suggested for a VM that runs twice.
    guests[0].panics()
    bench.run(60.0)
    assert ("panic_spin", "firing") in {(a.kind, a.state) for a in bench.of(guests[0])}
    assert "reboot" not in bench.suggestions(guests[0])
    second.guests.pop()
    bench.run(120.0)
    assert kinds(bench, "duplicate_vm")[-1] == (guests[0].text, "resolved")


def test_a_live_migration_is_followed_without_an_alert() -> None:
    bench, guests = cell(6, nodes=2)
    bench.run(120.0)
    source, target = bench.places
    moving = copy_of(guests[0])
    moving.state = "paused"
    source.tell("job_started", guests[0])
    target.guests.append(moving)
    bench.run(30.0)
    assert owner_of(bench, guests[0]) == source.name
    moving.state = "running"
    source.guests.remove(guests[0])
    bench.run(4.0)
    assert owner_of(bench, guests[0]) == target.name
    history_s = (
        bench.partition.cells["cell"]
        .tables[target.name]
        .figure("history_s", target.guests.index(moving))
    )
    assert history_s > 100.0
    bench.run(120.0)
    assert not bench.of(guests[0])


def test_a_copy_whose_source_is_paused_takes_over_and_a_paused_target_does_not() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(60.0)
    source, target = bench.places
    moving = copy_of(guests[0])
    moving.state = "paused"
    target.guests.append(moving)
    bench.run(10.0)
    assert owner_of(bench, guests[0]) == source.name
    guests[0].state, moving.state = "paused", "running"
    bench.run(6.0)
    assert owner_of(bench, guests[0]) == target.name
    # The migration failed after all, and the source continues.
    target.guests.remove(moving)
    guests[0].state = "running"
    bench.run(6.0)
    assert owner_of(bench, guests[0]) == source.name


def test_a_restart_on_another_node_is_believed_once_the_first_is_silent() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(60.0)
    dead, alive = bench.places
    dead.reachable = False
    again = copy_of(guests[0])
    alive.guests.append(again)
    alive.tell("started", again)
    bench.run(4.0)
    assert owner_of(bench, guests[0]) == dead.name
    bench.run(20.0)
    assert owner_of(bench, guests[0]) == alive.name
    vm = bench.partition.cells["cell"].vms[guests[0].uuid]
    # Its start event applies from the moment it counts there.
    assert "boot" in vm.inhibitions


def test_events_and_items_about_a_vm_of_another_node_change_nothing() -> None:
    bench, guests = cell(6, nodes=2)
    bench.run(60.0)
    stranger = bench.places[1]
    forged = item(guests[0])
    event = Event(id="e", kind="panicked", time_ns=1, vm=guests[0].uuid)
    for name in (stranger.name, "node-that-is-not"):
        header = bench.header(name, "collector", "run-x", 10**6, 1)
        frame = Frame(
            header=header, rows=VmRows.empty(), events=(event,), inventory=(forged,), node={}
        )
        bench.fold(bench.record(encode_frame(frame)))
    header = bench.header(stranger.name, "agent", "run-y", 0, 1)
    mark = Event(id="m", kind="action_sent", time_ns=1, vm=guests[0].uuid, detail={"incident": "i"})
    bench.fold(
        bench.record(encode_frame(Frame(header=header, rows=VmRows.empty(), events=(mark,))))
    )
    vm = bench.partition.cells["cell"].vms[guests[0].uuid]
    assert not vm.reported
    assert vm.reported_action is None
    bench.run(60.0)
    assert not bench.alerts
    assert bench.partition.counters.foreign >= 3


def test_what_a_target_says_of_a_vm_holds_when_it_takes_it_over() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(60.0)
    source, target = bench.places
    moving = copy_of(guests[0])
    moving.state, moving.pool = "paused", "pool-of-the-target"
    target.guests.append(moving)
    header = bench.header(target.name, "collector", target.run, target.sequence, target.mono_ns)
    target.sequence += 1
    frame = Frame(header=header, rows=VmRows.empty(), inventory=(item(moving),))
    bench.fold(bench.record(encode_frame(frame)))
    bench.run(2.0)
    vm = bench.partition.cells["cell"].vms[guests[0].uuid]
    assert vm.pools == (guests[0].pool,)
    source.guests.remove(guests[0])
    moving.state = "running"
    bench.run(4.0)
    vm = bench.partition.cells["cell"].vms[guests[0].uuid]
    assert vm.pools == ("pool-of-the-target",)


def test_vms_that_are_only_named_are_forgotten() -> None:
    bench, _ = cell(2)
    bench.run(10.0)
    named = tuple(item(Guest(f"stranger-{number}")) for number in range(50))
    header = bench.header("node-0", "collector", "run-1", bench.places[0].sequence, 1)
    bench.places[0].sequence += 1
    frame = Frame(header=header, rows=VmRows.empty(), inventory=named)
    bench.fold(bench.record(encode_frame(frame)))
    assert len(bench.partition.cells["cell"].vms) == 52
    bench.run(1100.0)
    assert len(bench.partition.cells["cell"].vms) == 2


def second_collector(bench: Bench, place: Place, seconds: float) -> None:
    """Let another collector report as a place, half an interval after the first, for a while."""
    shadow = Place(place.name, place.guests, run="run-2", mono_ns=place.mono_ns)
    steps = round(seconds / bench.interval_s)
    for _ in range(steps):
        bench.run(bench.interval_s)
        shadow.mono_ns = place.mono_ns + 10**9
        header = bench.header(shadow.name, "collector", shadow.run, shadow.sequence, shadow.mono_ns)
        shadow.sequence += 1
        bench.now_s += 0.5
        frame = Frame(header=header, rows=shadow.rows(), node={"cpu_busy_ratio": 0.3})
        bench.fold(bench.record(encode_frame(frame)))


def test_a_second_collector_is_reported_and_never_silences_the_first() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(120.0)
    second_collector(bench, bench.places[0], 30.0)
    (reported, *_) = [alert for alert in bench.alerts if alert.kind == "duplicate_collector"]
    assert reported.subject == "node-0"
    assert "run-1" in reported.sentence
    assert "run-2" in reported.sentence
    assert bench.partition.counters.rival > 10
    assert bench.partition.cells["cell"].nodes["node-0"].run == "run-1"
    bench.run(120.0)
    assert kinds(bench, "duplicate_collector")[-1] == ("node-0", "resolved")
    assert not kinds(bench, "host_silence")
    guests[0].panics()
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_the_second_is_heard_once_the_first_has_ended() -> None:
    runs = Runs()
    for number in range(10):
        now_ms = 10_000 * number
        assert runs.hears("a", sequence=number, event_ms=now_ms, now_ms=now_ms, interval_ms=10_000)
    for number in range(2):
        now_ms = 100_000 + 10_000 * number
        runs.hears("b", sequence=number, event_ms=now_ms, now_ms=now_ms, interval_ms=10_000)
        runs.hears(
            "a",
            sequence=10 + number,
            event_ms=now_ms + 5_000,
            now_ms=now_ms + 5_000,
            interval_ms=10_000,
        )
    assert runs.run == "a"
    heard = [
        runs.hears(
            "b",
            sequence=2 + number,
            event_ms=120_000 + 10_000 * number,
            now_ms=120_000 + 10_000 * number,
            interval_ms=10_000,
        )
        for number in range(5)
    ]
    assert heard == [False, False, False, True, True]


def test_a_late_frame_of_the_run_before_is_no_second_collector() -> None:
    runs = Runs()
    runs.hears("a", sequence=0, event_ms=0, now_ms=0, interval_ms=10_000)
    assert runs.hears("b", sequence=0, event_ms=10_000, now_ms=10_000, interval_ms=10_000)
    assert not runs.hears("a", sequence=1, event_ms=9_000, now_ms=11_000, interval_ms=10_000)
    assert runs.run == "b"
    assert not runs.are_several(now_ms=11_000, interval_ms=10_000)

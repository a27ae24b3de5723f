"""Frames that are lost, duplicated and out of order: the alerts stay the same."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec
import pytest

from benchmarks.disturbed import Disturbance, disturb
from flatline.engine.detection.cell import OutOfOrder
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.detection.windows import moves_ahead
from flatline.engine.ports import Record, RecordedFrame
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import decode_frame, encode_frame
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, cell

LATE = Disturbance(late_s=30.0)
DISTURBED = Disturbance(doubled=0.05, late_s=30.0)


def travelled(records: Iterable[Record], how: Disturbance, *, seed: int = 7) -> list[Record]:
    """Return the records as a network delivers them; the engine's ticks do not use it."""
    recorded_frames = (RecordedFrame(r.time_ms, decode_frame(r.value), 0, r.value) for r in records)
    return [
        Record("flatline.frames.v1", 0, offset, recorded.time_ms, b"cell", recorded.value)
        for offset, recorded in enumerate(disturb(recorded_frames, how, seed=seed))
    ]


def without(records: Iterable[Record], node: str, sequences: set[int]) -> list[Record]:
    """Return the records without some frames of one node."""

    def is_lost(record: Record) -> bool:
        header = decode_frame(record.value).header
        return header.node == node and header.sequence in sequences

    return [record for record in records if not is_lost(record)]


def said(alerts: Iterable[Alert]) -> set[tuple[str, str, str]]:
    """Return the kind and suggestion under each alert id."""
    return {
        (alert.id, alert.kind, alert.suggested_action)
        for alert in alerts
        if alert.state == "firing" and not alert.vetoes
    }


def site(interval_s: float, *, nodes: int = 3) -> tuple[Bench, list[Guest]]:
    """Return guests that have worked undisturbed for a hundred samples."""
    bench, guests = cell(4 * nodes, nodes=nodes, interval_s=interval_s)
    for guest in guests:
        guest.pool = f"pool-{guests.index(guest) % 2}"
    bench.run(100 * interval_s)
    return bench, guests


def guests_die(bench: Bench, guests: list[Guest]) -> None:
    guests[0].panics()
    bench.run(25 * bench.interval_s)
    guests[5].panics(cores=0.0)


def a_pool_stalls(bench: Bench, guests: list[Guest]) -> None:
    for guest in guests[1::2]:
        guest.writes = guest.sends = 0.0
    bench.run(20 * bench.interval_s)
    for guest in guests[1::2]:
        guest.works()


def a_network_stalls(bench: Bench, guests: list[Guest]) -> None:
    for guest in guests:
        guest.sends = 0.0
    bench.run(20 * bench.interval_s)


def disks_hang(bench: Bench, guests: list[Guest]) -> None:
    guests[3].cores, guests[3].writes, guests[3].sends = 0.002, 0.0, 98.0
    bench.run(30 * bench.interval_s)
    guests[3].works()


def a_node_is_away(bench: Bench, guests: list[Guest]) -> None:
    bench.places[1].reachable = False
    bench.run(max(24.0, 5 * bench.interval_s))
    bench.places[1].reachable = True


def a_guest_moves(bench: Bench, guests: list[Guest]) -> None:
    moved = bench.places[0].guests.pop(0)
    moved.instance, moved.counters = 99, {}
    bench.places[1].guests.append(moved)
    bench.places[1].tell("migrated_in", moved)


def nothing(bench: Bench, guests: list[Guest]) -> None:
    bench.run(200 * bench.interval_s)


@pytest.mark.parametrize("interval_s", [2.0, 10.0])
@pytest.mark.parametrize(
    "happens",
    [
        nothing,
        guests_die,
        a_pool_stalls,
        a_network_stalls,
        disks_hang,
        a_node_is_away,
        a_guest_moves,
    ],
)
def test_frames_that_overtake_each_other_within_thirty_seconds_change_nothing_that_is_reported(
    happens: Callable[[Bench, list[Guest]], None], interval_s: float
) -> None:
    bench, guests = site(interval_s)
    happens(bench, guests)
    bench.run(100.0 + 10 * interval_s)
    foul = run_records(travelled(bench.records, DISTURBED), FAST)
    assert {alert.id for alert in foul.alerts} == {alert.id for alert in bench.alerts}
    assert {one[:2] for one in said(foul.alerts)} == {one[:2] for one in said(bench.alerts)}


@pytest.mark.parametrize("interval_s", [2.0, 10.0])
def test_a_death_among_frames_out_of_order_asks_for_the_same_reboot(interval_s: float) -> None:
    bench, guests = site(interval_s)
    guests_die(bench, guests)
    bench.run(200.0)
    foul = run_records(travelled(bench.records, DISTURBED), FAST)
    fair = {one for one in said(bench.alerts) if one[2] == "reboot"}
    assert len(fair) == 2
    assert {one for one in said(foul.alerts) if one[2] == "reboot"} == fair


@pytest.mark.parametrize("interval_s", [2.0, 10.0])
@pytest.mark.parametrize("lost", [1, 2])
def test_losing_the_frames_that_open_a_silence_keeps_its_id_and_its_onset(
    interval_s: float, lost: int
) -> None:
    bench, guests = site(interval_s)
    first = bench.places[0].sequence
    guests[0].panics()
    bench.run(150.0)
    holed = without(bench.records, "node-0", set(range(first, first + lost)))
    foul = run_records(holed, FAST)
    fair = bench.of(guests[0])
    reported = [alert for alert in foul.alerts if alert.subject == guests[0].text]
    assert {alert.id for alert in reported} == {alert.id for alert in fair}
    assert fair[0].position.sequence == first
    assert reported[0].onset_ms == fair[0].onset_ms


def test_losing_frames_long_before_a_silence_does_not_date_it_back() -> None:
    bench, guests = site(2.0)
    first = bench.places[0].sequence
    bench.run(4.0)
    guests[0].panics()
    bench.run(100.0)
    foul = run_records(without(bench.records, "node-0", {first}), FAST)
    assert {alert.id for alert in foul.alerts} == {alert.id for alert in bench.alerts}


@pytest.mark.parametrize(
    ("interval_s", "untold_s", "reported_s"), [(2.0, 36.0, 120.0), (10.0, 50.0, 180.0)]
)
def test_silence_is_held_against_how_late_frames_come(
    interval_s: float, untold_s: float, reported_s: float
) -> None:
    bench, _ = site(interval_s)
    bench.partition.cells["cell"].out_of_order.now_ms = 25_000
    bench.places[1].reachable = False
    bench.run(untold_s)
    assert not bench.alerts
    bench.run(reported_s - untold_s)
    assert {alert.kind for alert in bench.alerts} == {"host_silence"}


def test_a_vm_that_left_is_waited_for_as_long_as_the_frames_of_where_it_may_be() -> None:
    bench, _ = site(2.0)
    bench.partition.cells["cell"].out_of_order.now_ms = 25_000
    bench.places[0].guests.pop(0)
    bench.run(50.0)
    assert not bench.alerts
    bench.run(30.0)
    assert {alert.kind for alert in bench.alerts} == {"vm_silence"}


def test_a_node_that_stays_away_is_reported_while_it_is_away_though_frames_are_late() -> None:
    bench, _ = site(2.0)
    bench.places[1].reachable = False
    bench.run(100.0)
    foul = run_records(travelled(bench.records, LATE), FAST)
    assert {alert.state for alert in foul.alerts} == {"firing"}
    assert {alert.id for alert in foul.alerts} == {alert.id for alert in bench.alerts}


def test_nothing_waits_for_a_window_where_nothing_was_out_of_order() -> None:
    bench, _ = site(2.0)
    for _ in range(5):
        bench.sample(bench.places[0])
        assert bench.partition.waiting() == 0


def test_a_backlog_that_only_one_node_has_is_worked_off() -> None:
    bench, _ = site(2.0)
    first = bench.places[1].sequence
    bench.run(400.0)
    end_ms = bench.time_ms
    backlog = [
        record
        for record in bench.records
        if decode_frame(record.value).header.node == "node-1"
        and decode_frame(record.value).header.sequence >= first
    ]
    others = without(bench.records, "node-1", set(range(first, first + 1000)))
    bench.records.clear()
    bench.run(240.0)
    came = [
        *travelled(others, LATE),
        *(Record("flatline.frames.v1", 0, 0, end_ms, b"cell", record.value) for record in backlog),
    ]
    ordered = sorted(came, key=lambda record: record.time_ms) + bench.records
    partition = Partition(FAST)
    for offset, record in enumerate(ordered):
        partition.fold(Record(record.topic, 0, offset, record.time_ms, record.key, record.value))
        assert partition.counters.balanced(partition.waiting())
    assert partition.waiting() == 0
    assert partition.counters.missing == 0


def test_a_restored_snapshot_goes_on_bit_for_bit_while_samples_wait() -> None:
    bench, guests = site(2.0)
    a_pool_stalls(bench, guests)
    records = travelled(bench.records, Disturbance(lost=0.02, doubled=0.02, late_s=30.0))
    whole = run_records(records, FAST)
    partition = Partition(FAST)
    alerts: list[Alert] = []
    waited = 0
    for index, record in enumerate(records):
        if index % 60 == 59:
            waited += partition.waiting() > 0
            partition = restore(*take_snapshot(partition), FAST)
        alerts += [out.alert for out in partition.fold(record) if out.alert is not None]
    assert waited > 5
    assert alerts == whole.alerts
    assert digest(partition) == whole.digest


def test_how_late_frames_come_is_forgotten_after_two_windows_without_one_out_of_order() -> None:
    out_of_order = OutOfOrder()
    out_of_order.turn(1_000_000, 300_000)
    for gap_ms in (9_000, 4_000, 9_000):
        out_of_order.take(gap_ms)
    assert out_of_order.late_ms == 9_000
    out_of_order.turn(1_299_999, 300_000)
    out_of_order.turn(1_300_000, 300_000)
    for gap_ms in (2_000, 2_000):
        out_of_order.take(gap_ms)
    assert out_of_order.late_ms == 9_000
    out_of_order.turn(1_600_000, 300_000)
    assert out_of_order.late_ms == 2_000
    out_of_order.turn(1_900_000, 300_000)
    assert out_of_order.late_ms == 0


@pytest.mark.parametrize(("lost", "most_s"), [(0.0, 35.0), (0.005, 70.0)])
def test_samples_are_judged_no_later_than_the_slowest_frames_and_gaps_ask_for(
    lost: float, most_s: float
) -> None:
    bench, _ = site(2.0)
    bench.run(400.0)
    partition = Partition(FAST)
    behind_s = []
    for record in travelled(bench.records, Disturbance(lost=lost, late_s=30.0)):
        partition.fold(record)
        if record.time_ms > bench.records[0].time_ms + 120_000 and record.time_ms <= bench.time_ms:
            nodes = partition.cells["cell"].nodes.values()
            behind_s.append((record.time_ms - min(node.event_ms for node in nodes)) / 1000)
    assert max(behind_s) < most_s


@pytest.mark.parametrize(("outage_ms", "is_out_of_order"), [(0, True), (600_000, False)])
def test_a_gap_that_an_outage_of_the_log_kept_open_is_no_lateness(
    outage_ms: int, is_out_of_order: bool
) -> None:
    bench, _ = site(2.0)
    held = [
        record
        for node in ("node-0", "node-1", "node-2")
        for record in [r for r in bench.records if decode_frame(r.value).header.node == node][-2:-1]
    ]
    there = [record for record in bench.records if record not in held]
    back_ms = bench.time_ms + 1_000 + outage_ms
    delivered = [*there, *(replace(record, time_ms=back_ms) for record in held)]
    partition = Partition(FAST)
    for offset, record in enumerate(delivered):
        partition.fold(replace(record, offset=offset))
    assert bool(partition.cells["cell"].out_of_order.late_ms) == is_out_of_order


def test_one_frame_that_is_sent_again_is_no_out_of_order_arrival_and_two_are() -> None:
    out_of_order = OutOfOrder()
    out_of_order.take(25_000)
    assert out_of_order.late_ms == 0
    out_of_order.take(3_000)
    assert out_of_order.late_ms == 3_000


@pytest.mark.parametrize("back_s", [34.0, 40.0, 46.0])
def test_who_works_again_by_a_sample_that_waits_is_not_ordered(back_s: float) -> None:
    bench, guests = site(2.0)
    guests[0].panics()
    bench.run(back_s)
    guests[0].works()
    bench.run(120.0)
    alerts = run_records(travelled(bench.records, DISTURBED), FAST).alerts
    of_it = [alert for alert in alerts if alert.subject == guests[0].text]
    assert of_it
    assert "reboot" not in {alert.suggested_action for alert in of_it}


@pytest.mark.parametrize("moves", [True, False])
def test_each_frame_that_waits_is_asked_also_before_one_that_holds_no_vm(moves: bool) -> None:
    bench, guests = site(2.0)
    guests[0].panics()
    bench.run(4.0)
    partition = Partition(FAST)
    for record in bench.records:
        partition.fold(record)
    if moves:
        guests[0].works()
    bench.run(4.0)
    frames = [decode_frame(record.value) for record in bench.records]
    newest = [frame for frame in frames if frame.header.node == "node-0"][-1]
    of_none = msgspec.structs.replace(
        newest, rows=next(f for f in frames if f.header.role == "shell").rows
    )
    here = partition.cells["cell"]
    here.ahead = {"node-0": [encode_frame(newest), encode_frame(of_none)]}
    located = here.locate(guests[0].uuid)
    assert located is not None
    assert moves_ahead(here, *located) is moves

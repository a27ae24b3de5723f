"""Accepted frames are not accepted again: a MAC stays valid, a time does not."""

from dataclasses import replace

import msgspec
import pytest

from flatline.engine.detection.snapshot import restore, take_snapshot
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Record
from flatline.engine.wire.frame import Frame, decode_frame, encode_frame
from flatline.engine.wire.rejected import Rejected, decode_rejected
from flatline.engine.wire.runs import is_replayed
from flatline.engine.wire.topics import REJECTED
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, FAST, Bench, Guest, cell

# By then an ended run is forgotten.
_LONG_S = 900.0


def refused(bench: Bench) -> list[Rejected]:
    """Return the rejections, in order."""
    return [decode_rejected(one.value) for one in bench.outputs if one.topic == REJECTED.name]


def repeated(bench: Bench, records: list[Record]) -> list[Record]:
    """Append records again, as any reader of the log can."""
    again = [replace(bench.record(record.value), key=record.key) for record in records]
    for record in again:
        bench.fold(record)
    return again


def after_a_restart() -> tuple[Bench, Guest, list[Record]]:
    """Return a cell whose guest panicked in an earlier run of its node's collector, and lives."""
    bench, guests = cell(4, interval_s=10.0)
    place, guest = bench.places[0], guests[0]
    bench.run(600.0)
    guest.panics()
    place.tell("panicked", guest)
    began = len(bench.records)
    bench.run(120.0)
    assert "reboot" in bench.suggestions(guest)
    old = [one for one in bench.records[began:] if decode_frame(one.value).header.node != "shell"]
    guest.works()
    place.tell("rebooted", guest)
    place.run, place.sequence = "run-2", 0
    bench.run(_LONG_S)
    return bench, guest, old


def test_frames_of_a_forgotten_run_of_a_node_are_rejected_and_tell_of_no_panic() -> None:
    bench, guest, old = after_a_restart()
    keys = [key for key in bench.partition.sources if "run-1" in key]
    assert not keys, "the engine still knows the run, so that its frames are repeats"
    # The node falls silent, so that no other frame reports its VMs.
    bench.places[0].reachable = False
    bench.run(60.0)
    before = len(bench.alerts)
    repeated(bench, old)
    vm = bench.partition.cells["cell"].vms[guest.uuid]
    assert not vm.reported
    assert {entry.reason for entry in refused(bench)} == {"replayed"}
    assert len(refused(bench)) == len(old)
    assert "run-1 of collector node-0 in cell cell" in refused(bench)[0].detail
    assert not [alert for alert in bench.alerts[before:] if alert.scope == "vm"]
    assert bench.partition.cells["cell"].nodes["node-0"].run == "run-2"


def test_a_restored_engine_rejects_them_as_well() -> None:
    bench, _, old = after_a_restart()
    chunks, manifest = take_snapshot(bench.partition)
    bench.partition = restore(chunks, manifest, FAST)
    repeated(bench, old)
    assert [entry.reason for entry in refused(bench)] == ["replayed"] * len(old)


def test_frames_from_before_a_node_left_its_cell_are_rejected() -> None:
    bench, guests = cell(4, nodes=2, interval_s=10.0)
    bench.run(300.0)
    old = [one for one in bench.records if decode_frame(one.value).header.node == "node-1"]
    bench.places[1].reachable = False
    bench.run(60.0)
    bench.said("owner", "owner_forget", guests[0])
    bench.partition.cells["cell"].forgets.append(("host", "node-1"))
    bench.run(_LONG_S)
    assert "node-1" not in bench.partition.cells["cell"].nodes
    # From a run before the last one it knows.
    old = [_of_run(one, "run-0") for one in old[:-10]]
    repeated(bench, old)
    assert [entry.reason for entry in refused(bench)] == ["replayed"] * len(old)
    assert "node-1" not in bench.partition.cells["cell"].nodes


def test_a_writer_that_nobody_knows_is_not_believed_for_longer_than_a_day() -> None:
    bench, guests = cell(2, interval_s=10.0)
    bench.run(60.0)
    old = list(bench.records)
    late = Bench([], interval_s=10.0, now_s=86_400.0 + 70.0)
    late.tick()
    repeated(late, [one for one in old if decode_frame(one.value).header.role == "collector"])
    assert {entry.reason for entry in refused(late)} == {"replayed"}
    assert guests[0].uuid not in {vm for one in late.partition.cells.values() for vm in one.vms}
    soon = Bench([], interval_s=10.0, now_s=86_400.0)
    soon.tick()
    repeated(soon, old[:1])
    assert soon.partition.cells["cell"].nodes
    assert not refused(soon)


def test_a_node_whose_clock_was_ahead_and_is_set_right_between_two_runs_goes_on() -> None:
    bench, _ = cell(2, interval_s=10.0)
    for _ in range(30):
        bench.now_s += 10.0
        _fold_ahead(bench, by_s=7_200.0)
    place = bench.places[0]
    place.run, place.sequence = "run-2", 0
    bench.run(60.0)
    assert not refused(bench)
    assert bench.partition.cells["cell"].nodes["node-0"].run == "run-2"


def test_a_run_that_ended_just_before_a_short_one_is_not_forgotten() -> None:
    bench, _ = cell(2, interval_s=10.0)
    place = bench.places[0]
    bench.run(300.0)
    old = [one for one in bench.records[-10:] if decode_frame(one.value).header.node == place.name]
    place.run, place.sequence = "run-2", 0
    bench.run(20.0)
    place.reachable = False
    bench.run(_LONG_S)
    before = bench.partition.counters.duplicate
    repeated(bench, old)
    assert bench.partition.counters.duplicate == before + len(old)
    assert bench.partition.cells["cell"].nodes[place.name].run == "run-2"


def test_a_node_is_out_of_sight_though_somebody_repeats_its_last_frames() -> None:
    """Otherwise its death would not be reported for as long as the frames are repeated."""
    bench, _ = cell(4, nodes=2, interval_s=10.0)
    bench.run(300.0)
    old = [one for one in bench.records if decode_frame(one.value).header.node == "node-1"][-3:]
    bench.places[1].reachable = False
    for _ in range(18):
        bench.run(10.0)
        repeated(bench, old)
    assert [one.subject for one in bench.alerts if one.kind == "host_silence"][:1] == ["node-1"]
    assert not refused(bench)


@pytest.mark.parametrize(
    ("event_s", "last_s", "now_s", "expected"),
    [
        (100, 90, 100, False),  # a restart
        (100, 130, 200, False),  # out of order by half a minute
        (100, 200, 5_000, True),  # an old run
        (5_000, 12_200, 5_005, False),  # the clock was ahead and is corrected
        (1_000, 12_200, 5_005, True),  # it was ahead, and this is still old
        (0, 5_000, 5_010, True),
    ],
)
def test_what_is_older_than_its_writers_last_frame_and_not_of_now_is_a_replay(
    event_s: int, last_s: int, now_s: int, *, expected: bool
) -> None:
    found = is_replayed(event_s * 1000, last_ms=last_s * 1000, now_ms=now_s * 1000)
    assert found is expected


def test_forecaster_and_historian_leave_old_frames_out_too() -> None:
    bench, _, old = after_a_restart()
    last = len(bench.records)
    repeated(bench, [_of_run(one, "run-0") for one in old])
    forecaster, historian = PartitionForecasts(), FrameFold()
    for record in bench.records:
        if record.offset == last:
            heard, rows = dict(forecaster.counts), historian.rivals
        forecaster.fold(record)
        historian.fold_record(record)
    frames = sum(decode_frame(one.value).header.role == "collector" for one in old)
    assert forecaster.counts["repeated"] - heard["repeated"] == frames
    assert forecaster.counts["folded"] == heard["folded"]
    assert historian.rivals - rows == frames


def _of_run(record: Record, run: str) -> Record:
    frame = decode_frame(record.value)
    header = msgspec.structs.replace(frame.header, run=run)
    return replace(record, value=encode_frame(msgspec.structs.replace(frame, header=header)))


def _fold_ahead(bench: Bench, *, by_s: float) -> None:
    """Fold a sample of the first place, dated by a clock that is ahead."""
    place, now_s = bench.places[0], bench.now_s
    for guest in place.guests:
        guest.passes(bench.interval_s, now_s)
    place.mono_ns += round(bench.interval_s * 1e9)
    header = bench.header(place.name, "collector", place.run, place.sequence, place.mono_ns)
    event_time_ns = (EPOCH_MS + round((now_s + by_s) * 1000)) * 1_000_000
    header = msgspec.structs.replace(header, event_time_ns=event_time_ns)
    frame = Frame(header=header, rows=place.rows(), node={"cpu_busy_ratio": 0.3})
    place.sequence += 1
    bench.fold(bench.record(encode_frame(frame)))
    bench.tick()

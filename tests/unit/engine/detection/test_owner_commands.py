"""A copy of an owner's old command neither ends a maintenance nor begins one."""

from dataclasses import replace

import pytest

from flatline.engine.detection.partition import Partition
from flatline.engine.detection.sources import OWNER_FRESH_MS
from flatline.engine.ports import Record
from flatline.engine.wire.frame import Event, Frame, VmRows, encode_frame
from flatline.engine.wire.rejected import Rejected, decode_rejected
from flatline.engine.wire.topics import REJECTED
from tests.unit.engine.detection.frames_by_hand import Bench, Guest, cell

_FRESH_S = OWNER_FRESH_MS / 1000


def refused(bench: Bench) -> list[Rejected]:
    return [decode_rejected(one.value) for one in bench.outputs if one.topic == REJECTED.name]


def until(bench: Bench, seconds: float) -> str:
    return str(bench.time_ms + round(1000 * seconds))


def held(bench: Bench, guest: Guest) -> list[str]:
    return bench.partition.cells["cell"].vms[guest.uuid].inhibited_by(bench.time_ms)


def ended_yesterday() -> tuple[Bench, Guest, Record]:
    """Return a cell that is 400 s older than an owner's command that ended a maintenance."""
    bench, guests = cell(4)
    bench.run(60.0)
    bench.said("owner", "owner_maintenance", guests[0], until_ms=until(bench, 0.1), node="bob")
    old = bench.records[-1]
    bench.run(_FRESH_S + 100.0)
    return bench, guests[0], old


@pytest.mark.parametrize("knows", [True, False], ids=["the run is known", "begun with the frames"])
def test_an_old_end_that_is_written_again_does_not_end_today_s_maintenance(knows: bool) -> None:
    bench, guest, old = ended_yesterday()
    if not knows:
        # Without a state no runs and no times of owners are known.
        bench.partition = Partition(bench.configuration)
        bench.run(10.0)
    bench.said("owner", "owner_maintenance", guest, until_ms=until(bench, 600.0), node="ann")
    bench.run(10.0)
    bench.fold(replace(bench.record(old.value), key=old.key))
    assert held(bench, guest) == ["maintenance"]
    guest.panics()
    bench.run(120.0)
    assert not bench.of(guest)
    (entry,) = refused(bench)
    assert entry.reason == "stale"
    assert "owner_maintenance by owner bob in cell cell reached the log" in entry.detail
    assert "(at most 300 s are allowed)" in entry.detail


@pytest.mark.parametrize("kind", ["owner_maintenance", "owner_reboot"])
def test_an_old_beginning_that_is_written_again_hides_no_death(kind: str) -> None:
    bench, guests = cell(4)
    bench.run(_FRESH_S + 120.0)
    later = until(bench, 3600.0)
    bench.said_ahead(-_FRESH_S - 1.0, "owner", kind, guests[0], until_ms=later)
    guests[0].panics()
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_what_an_owner_once_said_to_forget_is_not_forgotten_again() -> None:
    bench, _ = cell(4)
    bench.run(60.0)
    event = Event(
        id="f",
        kind="owner_forget",
        time_ns=round(bench.time_ms - 1000 * _FRESH_S - 1) * 1_000_000,
        detail={"scope": "node", "name": "node-0"},
    )
    header = bench.header("owner", "owner", "owner-1", 0, 0)
    frame = Frame(header=header, rows=VmRows.empty(), events=(event,))
    bench.fold(bench.record(encode_frame(frame)))
    assert [entry.reason for entry in refused(bench)] == ["stale"]
    assert not bench.partition.cells["cell"].forgets


@pytest.mark.parametrize("way", [-1, 1], ids=["late", "dated ahead"])
@pytest.mark.parametrize("beyond_s", [0.0, 0.001], ids=["at the limit", "beyond it"])
def test_five_minutes_between_a_command_and_its_record_are_the_limit(
    way: int, beyond_s: float
) -> None:
    bench, guests = cell(4)
    bench.run(60.0)
    ahead_s = way * (_FRESH_S + beyond_s)
    bench.said_ahead(ahead_s, "owner", "owner_maintenance", guests[0], until_ms=until(bench, 600.0))
    assert held(bench, guests[0]) == ([] if beyond_s else ["maintenance"])
    assert [entry.reason for entry in refused(bench)] == (["stale"] if beyond_s else [])
    assert bench.partition.counters.balanced(bench.partition.waiting())


def test_the_log_s_own_time_of_the_record_counts_and_not_the_time_that_is_believed() -> None:
    bench, guests = cell(4)
    bench.run(60.0)
    # No record for an hour, so the first one after it is not trusted yet.
    bench.said("owner", "owner_maintenance", guests[0], until_ms=until(bench, 9000.0))
    old = bench.records[-1]
    bench.partition = Partition(bench.configuration)
    bench.run(10.0)
    bench.now_s += 3600.0
    bench.fold(replace(bench.record(old.value), key=old.key))
    assert [entry.reason for entry in refused(bench)] == ["stale"]


def test_a_fresh_command_said_later_ends_a_maintenance_at_once() -> None:
    bench, guests = cell(4)
    bench.run(60.0)
    bench.said("owner", "owner_maintenance", guests[0], until_ms=until(bench, 600.0))
    bench.run(10.0)
    bench.said("owner", "owner_maintenance", guests[0], until_ms=until(bench, 0.1))
    bench.run(10.0)
    assert held(bench, guests[0]) == []


@pytest.mark.parametrize("lasting", ["600 s", "for ever"])
def test_a_command_said_before_the_one_that_holds_only_lengthens_the_maintenance(
    lasting: str,
) -> None:
    bench, guests = cell(4)
    bench.run(60.0)
    end = "" if lasting == "for ever" else until(bench, 600.0)
    bench.said("owner", "owner_maintenance", guests[0], until_ms=end)
    # Within five minutes it may still be a copy, or have arrived out of order.
    ended = until(bench, 0.1)
    bench.said_ahead(-60.0, "owner", "owner_maintenance", guests[0], until_ms=ended)
    bench.run(20.0)
    assert held(bench, guests[0]) == ["maintenance"]
    later = until(bench, 3600.0)
    bench.said_ahead(-90.0, "owner", "owner_maintenance", guests[0], until_ms=later)
    bench.run(900.0)
    assert held(bench, guests[0]) == ["maintenance"]

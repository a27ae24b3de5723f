"""Steps of a node's wall clock are reported and have no lasting effect."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import Header
from tests.unit.engine.detection.frames_by_hand import Bench, cell


def stepping(bench: Bench, node: str, steps_ms: list[int]) -> None:
    """Shift the wall clock of a node by the last of `steps_ms` from now on."""
    header = bench.header

    def shifted(name: str, *rest: Any) -> Header:
        made = header(name, *rest)
        shift_ns = (steps_ms[-1] if name == node else 0) * 1_000_000
        return msgspec.structs.replace(made, event_time_ns=made.event_time_ns + shift_ns)

    bench.header = shifted  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("step_s", [-86_400, -3_600, -60, 3_600])
def test_a_guest_that_dies_after_a_step_is_found_as_soon_as_before(step_s: int) -> None:
    bench, guests = cell(6, nodes=2)
    steps_ms = [0]
    stepping(bench, "node-0", steps_ms)
    bench.run(120.0)
    steps_ms.append(1000 * step_s)
    bench.run(30.0)
    (reported, *_) = [alert for alert in bench.alerts if alert.kind == "clock_step"]
    assert reported.subject == "node-0"
    assert f"{abs(step_s)} s" in reported.sentence
    assert not bench.partition.cells["cell"].nodes["node-0"].stale
    guests[0].panics()
    bench.run(50.0)
    assert "reboot" in bench.suggestions(guests[0])
    bench.run(240.0)
    assert [alert.state for alert in bench.alerts if alert.kind == "clock_step"][-1] == "resolved"


@pytest.mark.parametrize(("step_ms", "reported"), [(-4_900, False), (5_000, True)])
def test_a_step_is_reported_from_five_seconds_on(step_ms: int, reported: bool) -> None:
    bench, _ = cell(4, nodes=2)
    steps_ms = [0]
    stepping(bench, "node-0", steps_ms)
    bench.run(60.0)
    steps_ms.append(step_ms)
    bench.run(60.0)
    assert bool([alert for alert in bench.alerts if alert.kind == "clock_step"]) == reported


def test_frames_that_come_late_are_no_step() -> None:
    bench, _ = cell(4, nodes=2)
    bench.run(60.0)
    held: list[bytes] = []

    def hold(record: Record) -> list[Alert]:
        held.append(record.value)
        return []

    fold = bench.fold
    for _ in range(15):
        bench.now_s += bench.interval_s
        bench.fold = hold  # type: ignore[method-assign]
        bench.sample(bench.places[0])
        bench.fold = fold  # type: ignore[method-assign]
        bench.tick()
    for value in held[:3]:
        bench.fold(bench.record(value))
    assert bench.partition.cells["cell"].nodes["node-0"].stale
    bench.tick()
    assert not [alert for alert in bench.alerts if alert.kind == "clock_step"]


def shifted_log(bench: Bench, shift_ms: list[int]) -> None:
    """Shift the log's clock by the last of `shift_ms`."""
    record = bench.record

    def dated(value: bytes) -> Record:
        made = record(value)
        dated = replace(made, time_ms=made.time_ms + shift_ms[-1])
        bench.records[-1] = dated
        return dated

    bench.record = dated  # type: ignore[method-assign]


@pytest.mark.parametrize("ahead_s", [3_000, 86_400])
@pytest.mark.parametrize("lasts_s", [20.0, 200.0])
def test_a_log_whose_clock_ran_ahead_finds_the_next_dead_guest_and_node(
    ahead_s: int, lasts_s: float
) -> None:
    bench, guests = cell(6, nodes=2)
    shift_ms = [0]
    shifted_log(bench, shift_ms)
    bench.run(120.0)
    shift_ms.append(1000 * ahead_s)
    bench.run(lasts_s)
    shift_ms.append(0)
    bench.run(120.0)
    assert abs(bench.partition.time_ms - bench.time_ms) <= 2_500
    guests[0].panics()
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guests[0])
    bench.places[1].reachable = False
    bench.run(60.0)
    assert "host_silence" in {alert.kind for alert in bench.alerts}
    stepped = {alert.subject for alert in bench.alerts if alert.kind == "clock_step"}
    assert stepped == (set() if lasts_s < 60.0 else {"cell"})


def test_a_restored_engine_comes_out_of_an_excursion_as_the_other_does() -> None:
    bench, _ = cell(4, nodes=2)
    shift_ms = [0]
    shifted_log(bench, shift_ms)
    bench.run(60.0)
    shift_ms.append(3_000_000)
    bench.run(90.0)
    chunks, manifest = take_snapshot(bench.partition)
    again = restore(chunks, manifest, bench.configuration)
    offset = bench.offset
    shift_ms.append(0)
    bench.run(150.0)
    for one in bench.records[offset:]:
        again.fold(one)
    assert digest(again) == digest(bench.partition)

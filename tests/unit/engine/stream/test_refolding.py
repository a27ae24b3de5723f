"""A record that raises when folded is read once more, then rejected; on `virtual_time`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedLog
from flatline.engine.detection import partition as engine_partition
from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Now
from flatline.engine.detection.fold import fold_frame
from flatline.engine.detection.judge import judge
from flatline.engine.detection.snapshot import digest
from flatline.engine.forecasting import forecast_state
from flatline.engine.forecasting.demand import Demand
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.topics import FRAMES, REJECTED
from tests.unit.engine.detection.frames_by_hand import cell
from tests.unit.engine.roles import test_detect, test_forecast, test_record
from tests.unit.engine.roles.test_detect import Engine, append_all, panicked

POISON = ("node-1", 40)


def is_poison(frame: Frame) -> bool:
    """Return whether a frame is the one that cannot be folded here."""
    return (frame.header.node, frame.header.sequence) == POISON


def spoiling(fold: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """Return a fold of frames that leaves a partial change and raises for one of them."""

    def spoilt(one: Cell, frame: Frame, now: Now, **rest: Any) -> Any:
        if is_poison(frame):
            calls.append(frame.header.sequence)
            one.vms.clear()
            one.reported.add("nobody")
            raise KeyError("a field that nobody thought of")
        return fold(one, frame, now, **rest)

    return spoilt


async def rejected(log: EmbeddedLog) -> list[str]:
    """Return the reasons in `rejected`."""
    found: list[str] = []
    for number in range(log.partitions(REJECTED.name)):
        records = await log.read_to_end(REJECTED.name, number, offset=0)
        found += [decode_rejected(record.value).reason for record in records]
    return found


def test_the_engine_goes_on_without_a_frame_that_raises_twice_and_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, calls = panicked(), list[int]()
    spoilt = spoiling(fold_frame, calls)
    monkeypatch.setattr(engine_partition, "fold_frame", spoilt)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        first = Engine(log, clock)
        await append_all(log, records)
        await asyncio.sleep(20.0)
        state = first.detector.partitions[0]
        assert state.next_offset == len(records)
        assert calls == [POISON[1]] * 2
        assert await rejected(log) == ["poison"]
        assert state.counters.poison == 1
        assert state.counters.balanced(state.waiting())
        # The partial change is gone, and the dead guest is still detected.
        assert "nobody" not in state.cells["cell"].reported
        alerts = await test_detect.alerts_in(log)
        kinds = {alert.kind for alert in alerts}
        assert {"panic_spin", "record_skipped"} <= kinds
        (reported,) = {alert.sentence for alert in alerts if alert.kind == "record_skipped"}
        assert "node-1" in reported
        await first.kill()
        # A second engine that reads everything from the beginning gets the same state.
        second = Engine(log, clock, test_detect.TICKLESS)
        await asyncio.sleep(20.0)
        assert digest(second.detector.partitions[0]) == digest(state)
        await second.kill()

    test_detect.played(scene)


def test_a_cell_that_cannot_be_judged_begins_anew_and_other_cells_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = panicked()

    def spoilt(one: Cell, now: Now) -> list[Alert]:
        if one.nodes and max(node.sequence for node in one.nodes.values()) == 40:
            one.watched.add(b"nobody")
            raise ZeroDivisionError("a case that nobody thought of")
        return judge(one, now)

    monkeypatch.setattr(engine_partition, "judge", spoilt)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock)
        await append_all(log, records)
        await asyncio.sleep(20.0)
        state = engine.detector.partitions[0]
        assert state.next_offset == len(records)
        one = state.cells["cell"]
        assert b"nobody" not in one.watched
        assert set(one.nodes) == {"node-0", "node-1"}
        kinds = {alert.kind for alert in await test_detect.alerts_in(log)}
        assert "record_skipped" in kinds
        assert await rejected(log) == []
        await engine.kill()

    test_detect.played(scene)


def test_the_forecaster_goes_on_without_a_frame_that_raises_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take, calls = Demand.take, []

    def spoilt(self: Demand, frame: Frame) -> None:
        if frame.header.sequence == 30:
            calls.append(30)
            self.sequence = 10**9
            raise OverflowError("a number that nobody thought of")
        take(self, frame)

    monkeypatch.setattr(Demand, "take", spoilt)
    records = test_forecast.records_of(40)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        await test_forecast.append(log, records)
        first = test_forecast.Running(log, clock)
        await first.folded(len(records))
        state = first.role.partitions[0]
        assert len(calls) == 2
        assert state.counts["rejected"] == 1
        await first.kill()
        second = test_forecast.Running(log, clock)
        await second.folded(len(records))
        assert forecast_state.digest(second.role.partitions[0]) == forecast_state.digest(state)
        await second.kill()

    test_forecast.played(scene)


def test_the_historian_goes_on_without_a_frame_that_raises_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fold, calls = FrameFold.fold, []

    def spoilt(self: FrameFold, frame: Frame, *, time_ms: int) -> Any:
        if frame.header.sequence == 30 and frame.header.role == "collector":
            calls.append(frame.header.node)
            self.node_states.clear()
            raise IndexError("a roster that nobody thought of")
        return fold(self, frame, time_ms=time_ms)

    monkeypatch.setattr(FrameFold, "fold", spoilt)

    async def scene(log: EmbeddedLog, clock: LoopClock, store: test_record.Store) -> None:
        historian = test_record.Historian(log, clock, store)
        await asyncio.sleep(60.0)
        assert not historian.task.done()
        # Two nodes have such a frame, and each is tried at least twice.
        assert len(set(calls)) == 2
        assert len(calls) >= 4
        rows = test_record.written(store.acknowledged)
        last_ns = max(key[2] for key in rows if key[0] == "flatline_vm")
        assert last_ns >= (test_record.records()[-1].time_ms - 120_000) * 1_000_000
        await historian.kill()

    test_record.played(tmp_path, scene)


def test_a_second_failure_while_the_state_is_read_again_is_set_aside_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two records in the range of one snapshot: the second is read after the first was given up.
    bench, _ = cell(4, nodes=2)
    bench.run(100.0)

    def spoilt(one: Cell, frame: Frame, now: Now, **rest: Any) -> Any:
        if frame.header.sequence in (20, 22) and frame.header.node == "node-0":
            raise RuntimeError("twice over")
        return fold_frame(one, frame, now, **rest)

    monkeypatch.setattr(engine_partition, "fold_frame", spoilt)
    records: list[Record] = bench.records

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock)
        for record in records:
            await log.append(
                FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms
            )
        await asyncio.sleep(20.0)
        assert engine.detector.partitions[0].next_offset == len(records)
        assert await rejected(log) == ["poison", "poison"]
        await engine.kill()

    test_detect.played(scene)

"""The historian loses, duplicates and prematurely commits nothing; on `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.parquet.history import ParquetHistory
from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.errors import HistoryError, HistoryRefused, HistoryUnreachable
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import HistorySink, Record, RefusedRow
from flatline.engine.roles.health import Health
from flatline.engine.roles.record import RecordConfig, Recorder
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.points import Points
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.topics import FRAMES, REJECTED
from tests.contracts.history.remembered import RememberedRows
from tests.simulation.site_records import Site

PLAN = WorldPlan(seed=3, cells=1, nodes_per_cell=2, vms_per_node=4)
# Written with each poll, so that there are many points for a kill.
CONFIG = RecordConfig(gather_s=0.0, snapshot_every_s=60.0)
Key = tuple[str, tuple[str, ...], int]


@cache
def records() -> list[Record]:
    """Return 75 min of two nodes, so that an hour ends and its grace passes."""
    return list(Site(PLAN, interval_s=30.0).run(75 * 60.0))


def written(points: Sequence[Points]) -> dict[Key, dict[str, Any]]:
    """Return rows by measurement, tags and time, as in a store."""
    rows: dict[Key, dict[str, Any]] = {}
    for one in points:
        for row in range(len(one)):
            tags = tuple(f"{name}={texts[row]}" for name, texts in one.series.tags.items())
            key = (one.measurement, tags, int(one.time_ns[row]))
            values = {name: column[row] for name, column in one.fields.items()}
            rows.setdefault(key, {}).update(values)
    return rows


class Store(ParquetHistory):
    """A Parquet history that stores its acknowledged rows, and fails on demand."""

    def __init__(self, folder: Path, clock: LoopClock) -> None:
        super().__init__(folder, clock=clock)
        self.acknowledged: list[Points] = []
        self.failures: list[HistoryError] = []
        self.refuses: Callable[[Points, int], bool] = lambda points, row: False
        self.calls_s: list[float] = []

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        self.calls_s.append(asyncio.get_running_loop().time())
        if self.failures:
            raise self.failures.pop(0)
        refused = [
            RefusedRow(index, row, b"text of the row", "422 no room for this")
            for index, points in enumerate(batch)
            for row in range(len(points))
            if self.refuses(points, row)
        ]
        await super().write(batch)
        self.acknowledged += batch
        return tuple(refused)


Scene = Callable[[EmbeddedLog, LoopClock, Store], Coroutine[Any, Any, None]]


def played(folder: Path, scene: Scene) -> None:
    async def play() -> None:
        clock = LoopClock(epoch_ms=records()[0].time_ms)
        async with EmbeddedLog(EmbeddedConfig(), clock=clock) as log:
            for record in records():
                await log.append(
                    FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms
                )
            await scene(log, clock, Store(folder, clock))

    virtual_time.run(play())


class Historian:
    def __init__(self, log: EmbeddedLog, clock: LoopClock, store: HistorySink) -> None:
        self.health = Health(clock)
        self.recorder = Recorder(
            log=log,
            history=store,
            config=CONFIG,
            clock=clock,
            health=self.health,
        )
        self.task = asyncio.create_task(self.recorder.run())

    async def kill(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@cache
def expected() -> dict[Key, dict[str, Any]]:
    """Return the result of an uninterrupted fold of all records, without hours."""
    folds: dict[int, FrameFold] = {}
    points: list[Points] = []
    for record in records():
        fold = folds.setdefault(0 if record.key == b"-" else 1, FrameFold())
        points += fold.fold(decode_frame(record.value), time_ms=record.time_ms)
    return written(points)


def assert_complete(store: Store) -> None:
    found = written(store.acknowledged)
    rows = {key: row for key, row in found.items() if not key[0].endswith("_1h")}
    wanted = expected()
    assert set(wanted) <= set(rows)
    for key, row in wanted.items():
        for name, value in row.items():
            assert np.array_equal(rows[key][name], value, equal_nan=isinstance(value, float)), key


def test_every_row_of_every_frame_is_written(tmp_path: Path) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        historian = Historian(log, clock, store)
        await asyncio.sleep(60.0)
        await historian.kill()
        assert_complete(store)

    played(tmp_path, scene)


def test_rows_are_the_same_after_a_kill_at_any_write(tmp_path: Path) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        for _ in range(6):
            calls = len(store.calls_s)
            historian = Historian(log, clock, store)
            for _ in range(200):
                if len(store.calls_s) >= calls + 2:
                    break
                await asyncio.sleep(0.05)
            await historian.kill()
        historian = Historian(log, clock, store)
        await asyncio.sleep(60.0)
        await historian.kill()
        assert_complete(store)

    played(tmp_path, scene)


@pytest.mark.parametrize(
    "failure",
    [
        HistoryUnreachable("It gave no answer."),
        HistoryUnreachable("It asks for time.", retry_after_s=7.0),
        HistoryRefused("It does not know this token."),
    ],
    ids=["away", "retry-after", "refused"],
)
def test_a_store_that_fails_is_asked_until_it_has_every_row(
    tmp_path: Path, failure: HistoryError
) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        store.failures = [failure] * 12
        historian = Historian(log, clock, store)
        await asyncio.sleep(5.0)
        waiting = historian.health.ready()
        assert not waiting.ok
        assert str(failure).rstrip(".") in waiting.sentences[0]
        assert historian.health.live().ok
        await asyncio.sleep(400.0)
        await historian.kill()
        assert_complete(store)
        pauses = np.diff(store.calls_s[:12])
        if isinstance(failure, HistoryUnreachable) and failure.retry_after_s:
            assert (pauses >= failure.retry_after_s).all()
        else:
            assert pauses[-1] == pytest.approx(30.0, abs=0.5)

    played(tmp_path, scene)


def test_offsets_are_not_committed_while_the_store_is_away(tmp_path: Path) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        store.failures = [HistoryUnreachable("away")] * 1000
        historian = Historian(log, clock, store)
        await asyncio.sleep(300.0)
        await historian.kill()
        async with log.subscribe(FRAMES.name, group=CONFIG.group) as again:
            delivery = await again.poll(max_records=1, wait_s=0.1)
        assert delivery.records[0].offset == 0

    played(tmp_path, scene)


def test_refused_rows_stand_in_rejected_with_the_reason_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        store.refuses = lambda points, row: points.measurement == "libvirt_net" and row == 2
        historian = Historian(log, clock, store)
        await asyncio.sleep(60.0)
        await historian.kill()
        rejected = [
            decode_rejected(record.value)
            for partition in range(log.partitions(REJECTED.name))
            for record in await log.read_to_end(REJECTED.name, partition, offset=0)
        ]
        frames = sum(bool(decode_frame(record.value).rows.uuids) for record in records())
        assert len(rejected) == frames
        assert {(one.reason, one.detail) for one in rejected} == {
            ("unstorable", "422 no room for this")
        }
        assert {one.head for one in rejected} == {b"text of the row"}

    played(tmp_path, scene)


def test_an_hour_that_ended_is_rolled_up_from_its_samples(tmp_path: Path) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, store: Store) -> None:
        historian = Historian(log, clock, store)
        await asyncio.sleep(60.0)
        await historian.kill()
        samples: dict[tuple[tuple[str, ...], int], list[float]] = {}
        for (name, tags, at), row in written(store.acknowledged).items():
            if name == "flatline_vm" and not np.isnan(row["cpu_cores"]):
                hour = at // 3_600_000_000_000 * 3_600_000_000_000
                samples.setdefault((tags, hour), []).append(row["cpu_cores"])
        hours = {
            (tags, at): row
            for (name, tags, at), row in written(store.acknowledged).items()
            if name == "flatline_vm_1h"
        }
        assert len(hours) == PLAN.vms
        for key, row in hours.items():
            values = np.sort(samples[key])
            assert row["cpu_cores_count"] == len(values)
            assert row["cpu_cores_min"] == values[0]
            assert row["cpu_cores_max"] == values[-1]
            for rank in (50, 95, 99):
                place = int(len(values) * rank / 100 + 0.5) - 1
                assert row[f"cpu_cores_p{rank}"] == values[place]

    played(tmp_path, scene)


def test_a_store_that_answers_no_queries_gets_every_row_but_no_hours(tmp_path: Path) -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock, _store: Store) -> None:
        sink = RememberedRows(clock)
        historian = Historian(log, clock, sink)
        await asyncio.sleep(60.0)
        await historian.kill()
        found = {(name, at) for name, _tags, at in sink.rows}
        assert {(name, at) for name, _tags, at in expected()} == found
        assert not any(name.endswith("_1h") for name, _at in found)

    played(tmp_path, scene)

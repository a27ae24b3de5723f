"""The engine's loop in addition to the pure partition; on a loop of `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.detection.replayed import run_records
from flatline.engine.detection.snapshot import digest
from flatline.engine.errors import LogUnreachable, SnapshotTooNew
from flatline.engine.ports import Delivery, Headers, Position, Record
from flatline.engine.roles.detect import DetectConfig, Detector
from flatline.engine.roles.health import Health
from flatline.engine.stream.snapshot_format import FORMAT, decode_manifest, encode_manifest
from flatline.engine.stream.snapshot_store import CHUNK, MANIFEST
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.order import check_signature
from flatline.engine.wire.topics import ALERTS, FRAMES, REJECTED, SCORES, SNAPSHOTS
from tests.signing import ENGINE_KEY, TRUSTED
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, FAST, cell

TICKLESS = DetectConfig(
    site="site",
    node="engine-0",
    run="one",
    snapshot_every_s=30.0,
    tick_s=None,
    configuration=FAST,
)
TICKING = DetectConfig(site="site", node="engine-0", run="one", configuration=FAST)
Scene = Callable[[EmbeddedLog, LoopClock], Coroutine[Any, Any, None]]


def played(scene: Scene) -> None:
    """Play a scene on a log in memory."""

    async def play() -> None:
        clock = LoopClock(epoch_ms=EPOCH_MS)
        async with EmbeddedLog(EmbeddedConfig(), clock=clock) as log:
            await scene(log, clock)

    virtual_time.run(play())


class Engine:
    """A detector that runs in a task and can be killed."""

    def __init__(self, log: Any, clock: LoopClock, config: DetectConfig = TICKLESS) -> None:
        self.detector = Detector(log=log, config=config, clock=clock, health=Health(clock))
        self.task = asyncio.create_task(self.detector.run())

    async def kill(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@cache
def panicked() -> list[Record]:
    """Return the records of a cell in which a guest panics."""
    bench, guests = cell(4, nodes=2)
    bench.run(120.0)
    guests[0].panics()
    bench.run(40.0)
    return bench.records


async def append_all(log: EmbeddedLog, records: list[Record]) -> None:
    for record in records:
        await log.append(FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms)


async def alerts_in(log: EmbeddedLog) -> list[Alert]:
    records = await log.read_to_end(ALERTS.name, 0, offset=0)
    return [decode_alert(record.value) for record in records]


def test_the_log_and_a_bare_loop_give_the_same_alerts_and_digest() -> None:
    records = panicked()
    whole = run_records(records, FAST)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock)
        await append_all(log, records)
        await asyncio.sleep(5.0)
        assert await alerts_in(log) == whole.alerts
        assert digest(engine.detector.partitions[0]) == whole.digest
        await engine.kill()

    assert whole.alerts
    played(scene)


def test_what_an_engine_says_of_faults_and_loads_is_signed_with_its_key() -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        detector = Detector(
            log=log, config=TICKLESS, clock=clock, health=Health(clock), key=ENGINE_KEY
        )
        task = asyncio.create_task(detector.run())
        await append_all(log, panicked())
        await asyncio.sleep(5.0)
        task.cancel()
        alerts = await log.read_to_end(ALERTS.name, 0, offset=0)
        minutes = await log.read_to_end(SCORES.name, 0, offset=0)
        assert alerts
        assert minutes
        for record in (*alerts, *minutes):
            check_signature(record.value, record.headers, trusted=TRUSTED.engines)

    played(scene)


def test_an_engine_killed_at_any_point_loses_no_alert_and_ends_in_the_same_state() -> None:
    records = panicked()
    whole = run_records(records, FAST)
    step = len(records) // 20

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        for start in range(0, len(records), step):
            engine = Engine(log, clock)
            await append_all(log, records[start : start + step])
            await asyncio.sleep(1.0)
            await engine.kill()
        engine = Engine(log, clock)
        await asyncio.sleep(5.0)
        seen = await alerts_in(log)
        assert {(alert.id, alert.transition) for alert in seen} == {
            (alert.id, alert.transition) for alert in whole.alerts
        }
        assert digest(engine.detector.partitions[0]) == whole.digest
        await engine.kill()

    played(scene)


def test_an_idle_partition_gets_a_tick_each_second() -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock, TICKING)
        await asyncio.sleep(10.2)
        await engine.kill()
        records = await log.read_to_end(FRAMES.name, 0, offset=0)
        frames = [decode_frame(record.value) for record in records]
        assert 8 <= len(frames) <= 11
        assert {frame.header.role for frame in frames} == {"shell"}
        assert [frame.header.sequence for frame in frames] == list(range(len(frames)))

    played(scene)


def test_what_cannot_be_read_is_kept_with_its_reason_and_stops_nothing() -> None:
    records = panicked()

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock)
        for record in records:
            await log.append(FRAMES.name, key=b"cell", value=b"\xc1", time_ms=record.time_ms)
            await append_all(log, [record])
        await asyncio.sleep(5.0)
        counters = engine.detector.partitions[0].counters
        assert counters.rejected == counters.processed == len(records)
        assert len(await log.read_to_end(REJECTED.name, 0, offset=0)) == len(records)
        assert await alerts_in(log)
        await engine.kill()

    played(scene)


def test_the_older_of_two_generations_is_where_a_successor_starts() -> None:
    records = panicked()

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = Engine(log, clock)
        await append_all(log, records)
        await asyncio.sleep(5.0)
        await engine.kill()
        written = await log.read_to_end(SNAPSHOTS.name, 0, offset=0)
        manifests = [decode_manifest(record.value) for record in written if record.key == MANIFEST]
        async with log.subscribe(FRAMES.name, group="engine") as subscription:
            delivery = await subscription.poll(max_records=1, wait_s=1.0)
        assert len(manifests) >= 2
        assert delivery.records[0].offset == manifests[-2].next_offset

    played(scene)


async def copied(log: EmbeddedLog, clock: LoopClock, change: Callable[[Record], bytes]) -> Engine:
    """Copy an engine's records to a log, with changed snapshot records; return a successor."""
    async with EmbeddedLog(EmbeddedConfig(), clock=clock) as first:
        engine = Engine(first, clock)
        await append_all(first, panicked())
        await asyncio.sleep(5.0)
        await engine.kill()
        await append_all(log, await first.read_to_end(FRAMES.name, 0, offset=0))
        for record in await first.read_to_end(SNAPSHOTS.name, 0, offset=0):
            await log.append(
                SNAPSHOTS.name,
                key=record.key,
                value=change(record),
                headers=record.headers,
                partition=0,
            )
    return Engine(log, clock)


def test_a_damaged_generation_is_passed_over_for_an_older_one() -> None:
    damaged: list[int] = []

    def damage_last(record: Record) -> bytes:
        if record.key == CHUNK and record.offset >= 8:
            damaged.append(record.offset)
            return record.value[:-1] + bytes([record.value[-1] ^ 1])
        return record.value

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = await copied(log, clock, damage_last)
        await asyncio.sleep(5.0)
        assert damaged
        assert digest(engine.detector.partitions[0]) == run_records(panicked(), FAST).digest
        await engine.kill()

    played(scene)


def test_an_engine_without_a_whole_snapshot_says_that_it_learns_anew() -> None:
    def damage_all(record: Record) -> bytes:
        return record.value[:-1] if record.key == CHUNK else record.value

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        with capture_logs() as logs:
            engine = await copied(log, clock, damage_all)
            await asyncio.sleep(5.0)
        assert engine.detector.partitions[0].counters.received == len(panicked())
        said = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
        assert sum("chunks match the manifest" in sentence for sentence in said) == len(said) - 1
        assert said[-1].startswith(f"None of {len(said) - 1} snapshots can be used")
        await engine.kill()

    played(scene)


def test_a_snapshot_of_a_later_release_ends_the_engine_with_what_to_do() -> None:
    def of_tomorrow(record: Record) -> bytes:
        if record.key != MANIFEST:
            return record.value
        later = msgspec.structs.replace(
            decode_manifest(record.value), format=FORMAT + 1, release="9.0.0"
        )
        return encode_manifest(later)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = await copied(log, clock, of_tomorrow)
        with pytest.raises(SnapshotTooNew, match=r"release 9\.0\.0.*Start that release"):
            await engine.task

    played(scene)


def test_a_state_learned_under_other_constants_is_not_continued() -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        engine = await copied(log, clock, lambda record: record.value)
        await engine.kill()
        other = DetectConfig(site="site", node="engine-0", run="two", tick_s=None)
        engine = Engine(log, clock, other)
        await asyncio.sleep(5.0)
        assert engine.detector.partitions[0].counters.received == len(panicked())
        await engine.kill()

    played(scene)


def test_state_of_a_partition_that_was_away_meanwhile_is_loaded_anew() -> None:
    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        detector = Detector(log=log, config=TICKLESS, clock=clock, health=Health(clock))
        await detector._assign(Delivery((), frozenset({0}), generation=1))
        before = detector.partitions[0]
        await detector._assign(Delivery((), frozenset({0}), generation=1))
        assert detector.partitions[0] is before
        await detector._assign(Delivery((), frozenset({0}), generation=2))
        assert detector.partitions[0] is not before

    played(scene)


class Failing:
    """A log that becomes unreachable at the first alert."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(
        self, topic: str, *, key: bytes, value: bytes, headers: Headers = (), **more: Any
    ) -> Position:
        if topic == ALERTS.name:
            raise LogUnreachable("the broker is away")
        return await self._log.append(topic, key=key, value=value, headers=headers, **more)


def test_an_alert_that_cannot_be_written_is_not_taken_for_said() -> None:
    records = panicked()
    whole = run_records(records, FAST)

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        await append_all(log, records)
        engine = Engine(Failing(log), clock)
        with pytest.raises(LogUnreachable):
            await engine.task
        engine = Engine(log, clock)
        await asyncio.sleep(5.0)
        assert await alerts_in(log) == whole.alerts
        await engine.kill()

    played(scene)

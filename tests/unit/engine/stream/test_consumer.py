"""The consumer of engine, forecaster and historian, with a state that adds numbers."""

from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.ports import OpenFrame, Record, Subscription
from flatline.engine.stream.consumer import Consumer, Saving
from flatline.engine.stream.snapshot_format import (
    Manifest,
    Snapshot,
    decode_manifest,
    packed,
    unpacked,
)
from flatline.engine.stream.snapshot_store import MANIFEST
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.topics import FRAMES, SNAPSHOTS

GROUP = "adders"
EPOCH_MS = 1_790_000_000_000


def opened(record: Record) -> Frame:
    raise AssertionError("no frame is opened here")


class Total:
    """The sum of the numbers in all records of a partition."""

    open_frame: OpenFrame

    def __init__(self, total: int = 0, next_offset: int = 0, time_ms: int = 0) -> None:
        self.total, self.next_offset, self.time_ms = total, next_offset, time_ms

    def fold(self, record: Record, /, *, given_up: Collection[str] = ()) -> list[int]:
        self.next_offset, self.time_ms = record.offset + 1, record.time_ms
        self.total += int(record.value)
        return [self.total]


def take(state: Total) -> Snapshot:
    return packed(b"%d" % state.total, next_offset=state.next_offset, time_ms=state.time_ms)


def restore(chunks: Sequence[bytes], manifest: Manifest) -> Total:
    return Total(int(unpacked(chunks, manifest)), manifest.next_offset, manifest.time_ms)


def consumer(log: EmbeddedLog, *, saves_first: bool = False) -> Consumer[Total, list[int]]:
    saving = Saving(
        new=Total,
        take=take,
        restore=restore,
        group=GROUP,
        topic=SNAPSHOTS,
        every_s=10.0,
        saves_first=saves_first,
    )
    return Consumer(log, role="adder", saving=saving, step=Total.fold, open_frame=opened)


async def append(log: EmbeddedLog, seconds: Sequence[int], *, partition: int = 0) -> None:
    """Append the number 1 at each of these seconds."""
    for second in seconds:
        time_ms = EPOCH_MS + 1000 * second
        await log.append(FRAMES.name, key=b"cell", value=b"1", partition=partition, time_ms=time_ms)


async def fold_all(
    one: Consumer[Total, list[int]], subscription: Subscription
) -> tuple[list[list[int] | None], dict[int, int]]:
    """Read a poll, save after each record, and return the results and the bytes saved."""
    delivery = await subscription.poll(max_records=1000, wait_s=0.1)
    await one.assign(delivery)
    results, saved = [], dict[int, int]()
    for record in delivery.records:
        results.append(await one.fold(record))
        saved |= await one.save_due(subscription)
    return results, saved


def played(scene: Callable[[EmbeddedLog], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        clock = LoopClock(epoch_ms=EPOCH_MS)
        async with EmbeddedLog(EmbeddedConfig(partitions=2), clock=clock) as log:
            await scene(log)

    virtual_time.run(play())


async def saved_offsets(log: EmbeddedLog) -> list[int]:
    """Return the offsets at which reading resumes after each snapshot of partition 0."""
    records = await log.read_to_end(SNAPSHOTS.name, 0, offset=0)
    return [decode_manifest(one.value).next_offset for one in records if one.key == MANIFEST]


@pytest.mark.parametrize(
    ("saves_first", "expected"), [(False, [11, 21]), (True, [1, 11, 21])], ids=["later", "first"]
)
def test_a_state_is_saved_at_its_interval_of_append_time(
    saves_first: bool, expected: list[int]
) -> None:
    async def scene(log: EmbeddedLog) -> None:
        await append(log, range(25))
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            one = consumer(log, saves_first=saves_first)
            results, saved = await fold_all(one, subscription)
        assert results[-1] == [25]
        assert await saved_offsets(log) == expected
        # Partition 1 has no record, so its empty state is not saved.
        assert saved == {0: 2}
        assert set(one.states) == {0, 1}

    played(scene)


def test_a_successor_reads_from_the_older_of_two_snapshots_and_folds_nothing_twice() -> None:
    async def scene(log: EmbeddedLog) -> None:
        await append(log, range(25))
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            await fold_all(consumer(log), subscription)
        await append(log, [25])
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            with capture_logs() as logs:
                one = consumer(log)
                results, _ = await fold_all(one, subscription)
        # Read from offset 11, restored at 21.
        assert results == [None] * 10 + [[22], [23], [24], [25], [26]]
        assert [line["next_offset"] for line in logs if "snapshot" in line["event"]] == [21]
        assert one.states[0].open_frame is opened

    played(scene)


def test_the_first_snapshot_alone_commits_nothing() -> None:
    async def scene(log: EmbeddedLog) -> None:
        await append(log, range(15))
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            await fold_all(consumer(log), subscription)
        assert await saved_offsets(log) == [11]
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            delivery = await subscription.poll(max_records=1, wait_s=0.1)
        assert delivery.records[0].offset == 0

    played(scene)


def test_every_reassignment_restores_the_states_and_ends_those_of_lost_partitions() -> None:
    async def scene(log: EmbeddedLog) -> None:
        await append(log, range(15))
        async with log.subscribe(FRAMES.name, group=GROUP) as subscription:
            one = consumer(log)
            delivery = await subscription.poll(max_records=1000, wait_s=0.1)
            assert await one.assign(delivery) == [0, 1]
            for record in delivery.records:
                await one.fold(record)
                await one.save_due(subscription)
            before = one.states[0]
            assert await one.assign(delivery) == []
            assert one.states[0] is before
            # The group gives partition 1 to another process, and then this one all partitions.
            lost = replace(delivery, generation=delivery.generation + 1, assigned=frozenset({0}))
            assert await one.assign(lost) == [0]
            assert one.states[0].total == 11
            assert set(one.states) == {0}
            (record,) = await log.read_to_end(FRAMES.name, 0, offset=14)
            assert await one.fold(record) == [12]
            await append(log, [3], partition=1)
            (foreign,) = await log.read_to_end(FRAMES.name, 1, offset=0)
            assert await one.fold(foreign) is None

    played(scene)

"""The promises of `engine.ports.Log`, one test each, for every adapter.

An adapter's test module subclasses these classes and provides a fixture `log`: an entered empty log
with the topics of `declared`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from deploy.lab.kafka_jars import PATIENCE
from flatline.engine.errors import LogRefused, RecordTooLarge
from flatline.engine.ports import Bounds, Delivery, Log, Position, Record, Subscription
from flatline.engine.wire.envelope import MAX_APPEND_BYTES, MAX_RECORD_BYTES
from tests.contracts.log.declared import COMPACTED, KEYED, PARTITIONS, SINGLE

# Only ends a test that hangs; a real broker under load answers within a few seconds.
PATIENCE_S = 30.0 * PATIENCE


async def fill(log: Log, count: int, *, start: int = 0, key: bytes = b"cell-a") -> list[Position]:
    return [
        await log.append(KEYED.name, key=key, value=b"%d" % number)
        for number in range(start, start + count)
    ]


async def take(subscription: Subscription, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(records) < count:
            delivery = await subscription.poll(max_records=100, wait_s=1.0)
            records += delivery.records
    return records


async def settle(subscription: Subscription) -> Delivery:
    """Poll until partitions are assigned, which takes a broker a moment."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            delivery = await subscription.poll(max_records=100, wait_s=0.2)
            if delivery.assigned:
                return delivery


async def follow(batches: AsyncIterator[Sequence[Record]], count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(records) < count:
            records += await anext(batches)
    return records


def values(records: Sequence[Record]) -> list[int]:
    return [int(record.value) for record in records]


@pytest.mark.asyncio
class AppendContract:
    """Promises on writing, and on reading without a group."""

    async def test_an_append_returns_where_the_record_stands(self, log: Log) -> None:
        positions = await fill(log, 3)
        assert [position.offset for position in positions] == [0, 1, 2]
        (partition,) = {position.partition for position in positions}
        records = await log.read_to_end(KEYED.name, partition, offset=1)
        assert [(record.partition, record.offset) for record in records] == positions[1:]

    async def test_records_of_one_key_keep_their_order(self, log: Log) -> None:
        keys = [b"cell-%d" % number for number in range(12)]
        for number in range(60):
            await log.append(KEYED.name, key=keys[number % 12], value=b"%d" % number)
        seen: dict[bytes, list[int]] = {}
        for partition in range(PARTITIONS):
            for record in await log.read_to_end(KEYED.name, partition, offset=0):
                seen.setdefault(record.key, []).append(int(record.value))
        assert seen == {key: list(range(index, 60, 12)) for index, key in enumerate(keys)}

    async def test_keys_use_every_partition(self, log: Log) -> None:
        used = {(await fill(log, 1, key=b"cell-%d" % number))[0].partition for number in range(24)}
        assert used == set(range(PARTITIONS))

    async def test_keys_go_where_kafka_puts_them(self, log: Log) -> None:
        # The hashes of Kafka's own UtilsTest, without their sign, modulo three.
        expected = {b"21": 0, b"foobar": 0, b"a-little-bit-long-string": 2, b"abc": 0}
        placed = {
            key: (await log.append(KEYED.name, key=key, value=b"")).partition for key in expected
        }
        assert placed == expected

    async def test_a_named_partition_overrides_the_key(self, log: Log) -> None:
        for partition in range(PARTITIONS):
            position = await log.append(KEYED.name, key=b"tick", value=b"0", partition=partition)
            assert position == Position(partition, 0)

    async def test_every_byte_survives(self, log: Log) -> None:
        whole = bytes(range(256))
        headers = (("ce_id", whole), ("twice", b"1"), ("twice", b"2"), ("ключ", b""))
        await log.append(SINGLE.name, key=whole, value=whole, headers=headers)
        await log.append(SINGLE.name, key=b"", value=b"")
        first, second = await log.read_to_end(SINGLE.name, 0, offset=0)
        assert (first.topic, first.key, first.value) == (SINGLE.name, whole, whole)
        assert first.headers == headers
        assert (second.key, second.value, second.headers) == (b"", b"", ())

    async def test_the_largest_record_passes_and_a_larger_one_is_refused(self, log: Log) -> None:
        # Bytes that do not compress, so that they fit with no codec.
        noise = (b"".join(n.to_bytes(4, "little") for n in range(250_000)))[:MAX_RECORD_BYTES]
        await log.append(SINGLE.name, key=b"k", value=noise)
        with pytest.raises(RecordTooLarge, match="exceeds the limit"):
            await log.append(SINGLE.name, key=b"k", value=bytes(MAX_APPEND_BYTES + 1))
        await log.append(SINGLE.name, key=b"k", value=b"after")
        records = await log.read_to_end(SINGLE.name, 0, offset=0)
        assert [record.value for record in records] == [noise, b"after"]

    async def test_append_times_never_go_back(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 20)
        times = [
            record.time_ms for record in await log.read_to_end(KEYED.name, partition, offset=0)
        ]
        assert times == sorted(times)
        assert times[0] > 0

    async def test_an_unknown_topic_is_refused_by_name(self, log: Log) -> None:
        with pytest.raises(LogRefused, match=r"suite\.absent"):
            await log.append("suite.absent.v1", key=b"", value=b"")
        with pytest.raises(LogRefused, match=r"suite\.absent"):
            log.partitions("suite.absent.v1")

    async def test_an_unknown_partition_is_refused(self, log: Log) -> None:
        with pytest.raises(LogRefused, match="partition"):
            await log.append(KEYED.name, key=b"", value=b"", partition=PARTITIONS)
        with pytest.raises(LogRefused, match="partition"):
            await log.bounds(SINGLE.name, 1)

    async def test_partitions_are_those_of_the_topic_or_of_the_site(self, log: Log) -> None:
        assert log.partitions(KEYED.name) == PARTITIONS
        assert log.partitions(SINGLE.name) == 1

    async def test_bounds_of_an_empty_partition_are_equal(self, log: Log) -> None:
        assert await log.bounds(SINGLE.name, 0) == Bounds(earliest=0, end=0)

    async def test_bounds_count_every_append(self, log: Log) -> None:
        await log.append(SINGLE.name, key=b"", value=b"")
        await log.append(SINGLE.name, key=b"", value=b"")
        assert await log.bounds(SINGLE.name, 0) == Bounds(earliest=0, end=2)

    async def test_a_compacted_topic_keeps_the_last_record_of_each_key(self, log: Log) -> None:
        for number in range(6):
            await log.append(COMPACTED.name, key=b"vm-%d" % (number % 2), value=b"%d" % number)
        last: dict[bytes, bytes] = {}
        for record in await log.read_to_end(COMPACTED.name, 0, offset=0):
            last[record.key] = record.value
        assert last == {b"vm-0": b"4", b"vm-1": b"5"}
        assert (await log.bounds(COMPACTED.name, 0)).end == 6

    async def test_read_to_end_is_a_barrier(self, log: Log) -> None:
        """The result contains all records appended before the call, by any writer."""
        for number in range(5):
            await log.append(SINGLE.name, key=b"", value=b"%d" % number)
            records = await log.read_to_end(SINGLE.name, 0, offset=0)
            assert values(records) == list(range(number + 1))

    async def test_read_to_end_answers_while_others_go_on_appending(self, log: Log) -> None:
        async def append_for_ever() -> None:
            while True:
                await log.append(SINGLE.name, key=b"", value=b"0")

        async with asyncio.timeout(PATIENCE_S):
            writer = asyncio.create_task(append_for_ever())
            try:
                end = 0
                while end < 200:
                    end = (await log.bounds(SINGLE.name, 0)).end
                records = await log.read_to_end(SINGLE.name, 0, offset=0)
            finally:
                writer.cancel()
        assert len(records) >= end
        assert [record.offset for record in records] == list(range(len(records)))

    async def test_read_to_end_of_nothing_is_empty(self, log: Log) -> None:
        assert await log.read_to_end(SINGLE.name, 0, offset=0) == []
        await log.append(SINGLE.name, key=b"", value=b"")
        assert await log.read_to_end(SINGLE.name, 0, offset=1) == []

    async def test_offset_at_finds_the_first_record_of_a_moment(self, log: Log) -> None:
        for _ in range(10):
            await log.append(SINGLE.name, key=b"", value=b"")
        records = await log.read_to_end(SINGLE.name, 0, offset=0)
        for moment_ms in {record.time_ms for record in records}:
            first = next(record.offset for record in records if record.time_ms >= moment_ms)
            assert await log.offset_at(SINGLE.name, 0, time_ms=moment_ms) == first
        assert await log.offset_at(SINGLE.name, 0, time_ms=0) == 0
        assert await log.offset_at(SINGLE.name, 0, time_ms=records[-1].time_ms + 1) == 10

    async def test_the_identity_stays(self, log: Log) -> None:
        first = await log.identity()
        await log.append(SINGLE.name, key=b"", value=b"")
        assert await log.identity() == first
        assert first


@pytest.mark.asyncio
class TailContract:
    """Promises on following one partition."""

    async def test_a_tail_starts_at_the_offset_it_was_given(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 5)
        async with log.tail(KEYED.name, partition, offset=3) as batches:
            assert values(await follow(batches, 2)) == [3, 4]

    async def test_a_tail_from_before_the_earliest_starts_at_the_earliest(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 2)
        async with log.tail(KEYED.name, partition, offset=-5) as batches:
            assert values(await follow(batches, 2)) == [0, 1]

    async def test_a_tail_sees_what_is_appended_while_it_waits(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 1)
        async with log.tail(KEYED.name, partition, offset=1) as batches:
            waiting = asyncio.create_task(follow(batches, 3))
            await asyncio.sleep(0)
            await fill(log, 3, start=1)
            assert values(await waiting) == [1, 2, 3]

    async def test_tails_do_not_disturb_each_other(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 4)
        async with (
            log.tail(KEYED.name, partition, offset=0) as first,
            log.tail(KEYED.name, partition, offset=2) as second,
        ):
            assert values(await follow(first, 4)) == [0, 1, 2, 3]
            assert values(await follow(second, 2)) == [2, 3]
            await fill(log, 1, start=4)
            assert values(await follow(first, 1)) == [4]
            assert values(await follow(second, 1)) == [4]

    async def test_a_cancelled_wait_loses_nothing(self, log: Log) -> None:
        (partition, _), *_ = await fill(log, 1)
        async with log.tail(KEYED.name, partition, offset=0) as batches:
            assert values(await follow(batches, 1)) == [0]
            seen: list[int] = []
            for number in range(1, 9):
                waiting = asyncio.ensure_future(anext(batches))
                for _ in range(number):
                    await asyncio.sleep(0)
                await fill(log, 1, start=number)
                waiting.cancel()
                (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
                if not isinstance(outcome, BaseException):
                    seen += values(outcome)
            if len(seen) < 8:
                seen += values(await follow(batches, 8 - len(seen)))
            assert seen == list(range(1, 9))


@pytest.mark.asyncio
class SubscriptionContract:
    """Promises of a consumer group."""

    async def test_a_new_group_starts_at_the_beginning(self, log: Log) -> None:
        await fill(log, 3)
        async with log.subscribe(KEYED.name, group="new") as subscription:
            assert values(await take(subscription, 3)) == [0, 1, 2]

    async def test_a_group_reads_every_partition_in_order(self, log: Log) -> None:
        for number in range(30):
            await log.append(KEYED.name, key=b"", value=b"%d" % number, partition=number % 3)
        async with log.subscribe(KEYED.name, group="all") as subscription:
            records = await take(subscription, 30)
        for partition in range(PARTITIONS):
            own = [record for record in records if record.partition == partition]
            assert values(own) == list(range(partition, 30, 3))

    async def test_a_delivery_carries_whole_records(self, log: Log) -> None:
        headers = (("a", b"1"), ("a", b"2"))
        position = await log.append(KEYED.name, key=b"k", value=b"", headers=headers)
        async with log.subscribe(KEYED.name, group="whole") as subscription:
            (record,) = await take(subscription, 1)
        (expected,) = await log.read_to_end(KEYED.name, position.partition, offset=0)
        assert record == expected
        assert (record.key, record.value, record.headers) == (b"k", b"", headers)

    async def test_a_lone_member_holds_all_partitions(self, log: Log) -> None:
        async with log.subscribe(KEYED.name, group="lone") as subscription:
            delivery = await settle(subscription)
            again = await subscription.poll(max_records=1, wait_s=0.05)
        assert delivery.assigned == again.assigned == frozenset(range(PARTITIONS))
        assert delivery.generation == again.generation

    async def test_a_poll_for_nothing_keeps_the_membership_and_loses_nothing(
        self, log: Log
    ) -> None:
        await fill(log, 10)
        async with log.subscribe(KEYED.name, group="waiting") as subscription:
            seen: list[Record] = []
            async with asyncio.timeout(PATIENCE_S):
                while not seen:
                    held = await subscription.poll(max_records=2, wait_s=1.0)
                    seen += held.records
            for _ in range(3):
                delivery = await subscription.poll(max_records=0, wait_s=0.05)
                assert delivery.records == ()
                assert delivery.assigned == held.assigned
            seen += await take(subscription, 10 - len(seen))
        assert sorted(values(seen)) == list(range(10))

    async def test_a_poll_hands_over_at_most_what_was_asked_for(self, log: Log) -> None:
        await fill(log, 10)
        async with log.subscribe(KEYED.name, group="few") as subscription:
            seen: list[int] = []
            async with asyncio.timeout(PATIENCE_S):
                while len(seen) < 10:
                    delivery = await subscription.poll(max_records=3, wait_s=1.0)
                    assert len(delivery.records) <= 3
                    seen += values(delivery.records)
        assert seen == list(range(10))

    async def test_a_poll_without_records_ends_with_none(self, log: Log) -> None:
        async with log.subscribe(KEYED.name, group="idle") as subscription:
            await settle(subscription)
            delivery = await subscription.poll(max_records=10, wait_s=0.05)
        assert delivery.records == ()

    async def test_a_poll_sees_what_is_appended_while_it_waits(self, log: Log) -> None:
        async with log.subscribe(KEYED.name, group="live") as subscription:
            await settle(subscription)
            waiting = asyncio.create_task(take(subscription, 2))
            await asyncio.sleep(0)
            await fill(log, 2)
            assert values(await waiting) == [0, 1]

    async def test_a_successor_starts_where_the_group_committed(self, log: Log) -> None:
        positions = await fill(log, 6)
        async with log.subscribe(KEYED.name, group="relay") as subscription:
            await take(subscription, 6)
            await subscription.commit({positions[0].partition: 4})
        async with log.subscribe(KEYED.name, group="relay") as subscription:
            assert values(await take(subscription, 2)) == [4, 5]

    async def test_a_commit_may_trail_far_behind_what_was_read(self, log: Log) -> None:
        positions = await fill(log, 20)
        partition = positions[0].partition
        async with log.subscribe(KEYED.name, group="trail") as subscription:
            await take(subscription, 20)
            await subscription.commit({partition: 2})
            await subscription.commit({partition: 5})
            await fill(log, 1, start=20)
            assert values(await take(subscription, 1)) == [20]
        async with log.subscribe(KEYED.name, group="trail") as subscription:
            assert values(await take(subscription, 16)) == list(range(5, 21))

    async def test_nothing_committed_is_delivered_again(self, log: Log) -> None:
        await fill(log, 3)
        for _ in range(2):
            async with log.subscribe(KEYED.name, group="again") as subscription:
                assert values(await take(subscription, 3)) == [0, 1, 2]

    async def test_groups_do_not_share_progress(self, log: Log) -> None:
        positions = await fill(log, 3)
        async with log.subscribe(KEYED.name, group="first") as subscription:
            await take(subscription, 3)
            await subscription.commit({positions[0].partition: 3})
        async with log.subscribe(KEYED.name, group="second") as subscription:
            assert values(await take(subscription, 3)) == [0, 1, 2]

    async def test_a_cancelled_poll_loses_nothing(self, log: Log) -> None:
        async with log.subscribe(KEYED.name, group="patient") as subscription:
            await settle(subscription)
            seen: list[int] = []
            for number in range(10):
                waiting = asyncio.ensure_future(subscription.poll(max_records=10, wait_s=5.0))
                for _ in range(number):
                    await asyncio.sleep(0)
                await fill(log, 1, start=number)
                waiting.cancel()
                (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
                if isinstance(outcome, Delivery):
                    seen += values(outcome.records)
            if len(seen) < 10:
                seen += values(await take(subscription, 10 - len(seen)))
            assert seen == list(range(10))

    async def test_an_unknown_topic_cannot_be_subscribed_to(self, log: Log) -> None:
        with pytest.raises(LogRefused, match=r"suite\.absent"):
            async with log.subscribe("suite.absent.v1", group="lost"):
                pass

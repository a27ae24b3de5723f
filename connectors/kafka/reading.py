"""Read Kafka without a consumer group: barriers, tails, bounds and offsets by time."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.failures import named
from flatline.connectors.kafka.pacing import Reach
from flatline.connectors.kafka.security import client_settings
from flatline.connectors.kafka.topic_ids import topic_ids
from flatline.connectors.kafka.unpacking import install
from flatline.engine.errors import LogUnreachable
from flatline.engine.ports import Bounds, Record

# An agent allows 5 s for its barrier (reading the log to its end); a later answer is useless.
_ANSWER_TIMEOUT_MS: Final = 5_000

# A reader requests the next batch before it knows that it has reached the end of the log. The
# broker holds such a request for this long, and the reader's next request waits behind it.
_BARRIER_WAIT_MS: Final = 10

# Limit of one fetch from a partition: a record of the largest size, or a batch of small ones. A
# larger limit only uses memory.
FETCH_BYTES: Final = 4 << 20

_TAIL_RECORDS: Final = 1000
_TAIL_WAIT_S: Final = 1.0

_CLOSE_TIMEOUT_S: Final = 5.0

# Patch aiokafka before any consumer is made; the Faust worker's module imports this one as well.
install()


def make_consumer(config: KafkaConfig, **settings: object) -> AIOKafkaConsumer:
    """Return a consumer without automatic commits; without an offset it starts at the earliest.

    `settings` are further arguments of `AIOKafkaConsumer`.

    Raises
    ------
    SettingsError
        See `connectors.kafka.security.client_settings`.
    """
    return AIOKafkaConsumer(
        **client_settings(config),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        **settings,
    )


async def start_consumer(consumer: AIOKafkaConsumer, doing: str) -> None:
    """Connect, or close everything on failure.

    `doing` names the operation in the message.

    Raises
    ------
    LogUnreachable, LogRefused
        No broker answered, or it refused this principal.
    """
    try:
        with named(doing):
            await consumer.start()
    except BaseException:
        await stop_consumer(consumer)
        raise


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and disconnect, without waiting for an unreachable broker."""
    try:
        # A consumer started in this iteration of the loop has tasks that have not begun. aiokafka
        # cancels and awaits them, and their cancellation propagates.
        await asyncio.sleep(0)
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await consumer.stop()
    except (TimeoutError, KafkaError):
        await consumer._client.close()  # noqa: SLF001 - stop() closes it last
    except asyncio.CancelledError:
        # aiokafka cancels its own fetch. If the fetch was pausing after a failure, its cancellation
        # propagates here, although this task was not cancelled.
        await consumer._client.close()  # noqa: SLF001
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


def to_record(topic: str, raw: ConsumerRecord) -> Record:
    """Convert a record of aiokafka into one of the port; null keys and values become empty.

    `topic` is the name without the prefix.
    """
    return Record(
        topic=topic,
        partition=raw.partition,
        offset=raw.offset,
        time_ms=raw.timestamp,
        key=raw.key or b"",
        value=raw.value or b"",
        headers=tuple((name, value or b"") for name, value in raw.headers),
    )


class Reader:
    """Queries partitions on one shared connection, and opens one more for each tail.

    Callers use the declared names of topics; the reader adds the installation's prefix. Every call
    but `close` raises `LogUnreachable` if Kafka does not answer in time, and `LogRefused` if the
    topic does not exist or this principal may not read it.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._consumer: AIOKafkaConsumer = None
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Connect."""
        self._consumer = make_consumer(
            self._config,
            group_id=None,
            request_timeout_ms=_ANSWER_TIMEOUT_MS,
            fetch_max_wait_ms=_BARRIER_WAIT_MS,
        )
        Reach("reader").calm(self._consumer._client)  # noqa: SLF001
        await start_consumer(self._consumer, "connecting the reader")

    async def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await stop_consumer(self._consumer)

    def _at(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(self._config.topic_prefix + topic, partition)

    async def ids(self, topics: Sequence[str]) -> tuple[str, ...]:
        """Return the id of each topic, in the same order; empty for an invisible topic.

        Brokers before 2.8 have no topic ids: then all are empty.

        Raises
        ------
        LogUnreachable, LogRefused
            No broker answered in time, or the broker refused this principal.
        """
        names = [self._config.topic_prefix + topic for topic in topics]
        with named("reading the ids of topics"):
            async with asyncio.timeout(_ANSWER_TIMEOUT_MS / 1000):
                return await topic_ids(self._consumer._client, names)  # noqa: SLF001

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        asked = [self._at(topic, number) for number in partitions]
        with named(f"reading the end offsets of {topic}"):
            async with asyncio.timeout(_ANSWER_TIMEOUT_MS / 1000):
                found = await self._consumer.end_offsets(asked)
        return {at.partition: offset for at, offset in found.items()}

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """Return the earliest and the next offset."""
        at = self._at(topic, partition)
        with named(f"reading the first and last offset of {topic}/{partition}"):
            async with asyncio.timeout(_ANSWER_TIMEOUT_MS / 1000):
                earliest = await self._consumer.beginning_offsets([at])
                end = await self._consumer.end_offsets([at])
        return Bounds(earliest[at], end[at])

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        """Return the first offset whose append time is ≥ `time_ms`, else the end."""
        at = self._at(topic, partition)
        # Get the end first: records appended between the two requests must not be skipped.
        end = (await self.bounds(topic, partition)).end
        with named(f"reading an offset by time in {topic}/{partition}"):
            async with asyncio.timeout(_ANSWER_TIMEOUT_MS / 1000):
                found = (await self._consumer.offsets_for_times({at: max(0, time_ms)}))[at]
        return end if found is None else int(found.offset)

    async def committed(
        self, topic: str, *, group: str, partitions: Collection[int]
    ) -> Mapping[int, int]:
        """Return the committed offsets of a group; the earliest offset where it has no commit.

        `group` is with the prefix `topic_prefix`, unlike `topic`.
        """
        asked = [self._at(topic, number) for number in partitions]
        admin = AIOKafkaAdminClient(**client_settings(self._config))
        try:
            with named(f"reading the committed offsets of {group}"):
                await admin.start()
                found = await admin.list_consumer_group_offsets(group, partitions=asked)
        finally:
            await admin.close()
        starts = {at.partition: position.offset for at, position in found.items()}
        for number in partitions:
            if starts.get(number, -1) < 0:
                starts[number] = (await self.bounds(topic, number)).earliest
        return starts

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """Return every record from `offset` to the end at the time of the call.

        An `offset` below the earliest record starts at the earliest.

        Raises
        ------
        LogUnreachable
            Kafka did not answer in time, or delivered no further record before the end.
        LogRefused
            The topic does not exist, or this principal may not read it.
        """
        at = self._at(topic, partition)
        async with self._one_at_a_time:
            earliest, end = await self.bounds(topic, partition)
            start = max(offset, earliest)
            if start >= end:
                return []
            consumer = self._consumer
            consumer.assign([at])
            try:
                consumer.seek(at, start)
                return await self._collect(topic, at, end)
            finally:
                # Otherwise the idle consumer would request the next record a hundred times a
                # second.
                consumer.unsubscribe()

    async def _collect(self, topic: str, at: TopicPartition, end: int) -> list[Record]:
        records: list[Record] = []
        with named(f"reading {topic}/{at.partition} to its end"):
            while await self._consumer.position(at) < end:
                batches = await self._consumer.getmany(at, timeout_ms=_ANSWER_TIMEOUT_MS)
                if not batches and await self._consumer.position(at) < end:
                    raise LogUnreachable(
                        f"reading {topic}/{at.partition} to its end: no record arrived within "
                        f"{_ANSWER_TIMEOUT_MS} ms"
                    )
                records += [
                    to_record(topic, raw) for raw in batches.get(at, ()) if raw.offset < end
                ]
        return records

    @asynccontextmanager
    async def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Record]]]:
        """Follow one partition on a separate connection; yield an iterator over batches.

        An offset below the earliest record starts at the earliest, one beyond the end at the end.
        The iterator raises `LogUnreachable` when no broker has answered for `away_limit_s`.
        """
        earliest, end = await self.bounds(topic, partition)
        at = self._at(topic, partition)
        consumer = make_consumer(self._config, group_id=None)
        reach = Reach(f"tail of {topic}/{partition}")
        reach.calm(consumer._client)  # noqa: SLF001
        await start_consumer(consumer, f"following {topic}/{partition}")
        try:
            consumer.assign([at])
            # From an offset beyond the end, Kafka would go back to the earliest record.
            consumer.seek(at, min(max(offset, earliest), end))
            yield _Tail(topic, consumer, reach, self._config.away_limit_s)
        finally:
            await stop_consumer(consumer)


class _Tail:
    """Follow one partition. Not a generator, because a cancelled wait would end a generator."""

    def __init__(
        self, topic: str, consumer: AIOKafkaConsumer, reach: Reach, away_limit_s: float
    ) -> None:
        self._topic = topic
        self._consumer = consumer
        self._reach = reach
        self._away_limit_s = away_limit_s

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Record]:
        while True:
            raise_if_away(self._reach, self._away_limit_s)
            with named(f"following {self._topic}"):
                batches = await self._consumer.getmany(
                    timeout_ms=int(_TAIL_WAIT_S * 1000), max_records=_TAIL_RECORDS
                )
            for batch in batches.values():
                return [to_record(self._topic, raw) for raw in batch]


def raise_if_away(reach: Reach, limit_s: float) -> None:
    """Raise `LogUnreachable` when no broker has answered for longer than `limit_s`."""
    if reach.away_s > limit_s:
        raise LogUnreachable(f"Kafka has not answered for {reach.away_s:.0f} s")

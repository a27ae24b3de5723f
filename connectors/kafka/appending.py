"""Append to Kafka: idempotent, acknowledged by all in-sync replicas, each append checked."""

import asyncio
from typing import Final, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
)

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.failures import meaning, named
from flatline.connectors.kafka.pacing import Reach
from flatline.connectors.kafka.security import client_settings
from flatline.engine.errors import LogProducerBroken, LogRefused, LogUnreachable, RecordTooLarge
from flatline.engine.ports import Headers, Position

# Below the broker's message.max.bytes (1,048,588), with room for the batch header. A batch that
# grows past the limit after a stall breaks the producer for all later records (aiokafka #1017).
_BATCH_BYTES: Final = 1_000_000

# Records accumulate while a request is in flight, so a linger time only adds latency: 34,000
# records/s of 10 KB at 0 ms, 21,000 at 5 ms.
_LINGER_MS: Final = 0

# After a broker was killed, attempts to connect fail immediately; two a second are enough.
_RETRY_MS: Final = 500

# A broker rejects a batch with these errors, and the client a single record. A retry cannot help.
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)

# Time to close a producer. No caller waits for its pending records any more.
_CLOSE_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger()


class Appender:
    """A producer for compressed topics and one for the others.

    Each is made at the first append, and again after it broke.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._plain = frozenset(
            config.topic_prefix + topic.name for topic in config.topics if not topic.compressed
        )
        self._producers: dict[bool, AIOKafkaProducer] = {}
        self._starting = asyncio.Lock()

    async def append(
        self,
        topic: str,
        *,
        key: bytes,
        value: bytes,
        headers: Headers,
        partition: int | None,
        time_ms: int | None,
    ) -> Position:
        """Append a record, and return its position once it is durable.

        `topic` includes the prefix `topic_prefix`. For None as `partition` or `time_ms` see
        `engine.ports.Log`.

        Raises
        ------
        LogUnreachable
            No acknowledgement in time; the record may still appear.
        LogRefused
            This principal may not write there.
        RecordTooLarge
            The topic rejects a record of this size, even sent alone.
        LogProducerBroken
            A broker permanently rejected the batch, so the record is most likely not in the log;
            the next append gets a new producer. Seen once in ten outages of a loaded broker, as
            OutOfOrderSequenceNumber for the batch that the outage had interrupted.
        """
        doing = f"appending to {topic}"
        compressed = topic not in self._plain
        record = _Record(topic, key, value, headers, partition, time_ms)
        producer = await self._ready(compressed=compressed)
        try:
            return await self._send(producer, record, doing)
        except _TOO_LARGE as error:
            # The batch was too large. It also holds records of other callers, so this record alone
            # may be small enough.
            await self._discard(producer)
            _log.warning("A batch was too large. Its records are sent one by one.", topic=topic)
            return await self._append_alone(record, doing, compressed=compressed, why=repr(error))

    async def _append_alone(
        self, record: "_Record", doing: str, *, compressed: bool, why: str
    ) -> Position:
        """Append one record through a producer that sends nothing else."""
        producer = await self._started(compressed=compressed, batch_bytes=1)
        try:
            return await self._send(producer, record, doing)
        except _TOO_LARGE as error:
            size = len(record.key) + len(record.value)
            raise RecordTooLarge(
                f"{doing}: a record of {size} bytes exceeds the limit of the topic ({why}). Raise "
                "max.message.bytes of the topic, as `flatline doctor` describes"
            ) from error
        finally:
            await _close(producer)

    async def _send(self, producer: AIOKafkaProducer, record: "_Record", doing: str) -> Position:
        limit_s = self._config.append_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                acknowledged = await producer.send(
                    record.topic,
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    timestamp_ms=record.time_ms,
                    headers=list(record.headers),
                )
                metadata = await acknowledged
        except (TimeoutError, KafkaTimeoutError) as error:
            raise LogUnreachable(
                f"{doing}: no acknowledgement within {limit_s} s; the record may still appear in "
                "the log"
            ) from error
        except _TOO_LARGE:
            raise
        except KafkaError as error:
            # A failed batch of an idempotent producer has used up its sequence number: the broker
            # would reject all later ones as out of order.
            await self._discard(producer)
            refusal = meaning(error, doing)
            if isinstance(refusal, LogRefused):
                raise refusal from error
            raise LogProducerBroken(
                f"{doing}: the producer failed ({error!r}) and is replaced; append again"
            ) from error
        return Position(metadata.partition, metadata.offset)

    async def _ready(self, *, compressed: bool) -> AIOKafkaProducer:
        async with self._starting:
            if compressed not in self._producers:
                self._producers[compressed] = await self._started(
                    compressed=compressed, batch_bytes=_BATCH_BYTES
                )
            return self._producers[compressed]

    async def _started(self, *, compressed: bool, batch_bytes: int) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **client_settings(self._config),
            acks="all",
            enable_idempotence=True,
            compression_type="zstd" if compressed else None,
            max_batch_size=batch_bytes,
            linger_ms=_LINGER_MS,
            retry_backoff_ms=_RETRY_MS,
        )
        Reach("producer").calm(producer.client)
        try:
            with named("starting the producer"):
                async with asyncio.timeout(self._config.append_timeout_s):
                    await producer.start()
        except BaseException:
            await _close(producer)
            raise
        return producer

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        for compressed, held in tuple(self._producers.items()):
            if held is producer:
                del self._producers[compressed]
                _log.warning("The producer failed permanently and is replaced.")
                await _close(producer)

    async def close(self) -> None:
        """Close the producers; records that no caller awaits any more may be lost."""
        while self._producers:
            _, producer = self._producers.popitem()
            await _close(producer)


class _Record(NamedTuple):
    topic: str
    key: bytes
    value: bytes
    headers: Headers
    partition: int | None
    time_ms: int | None


async def _close(producer: AIOKafkaProducer) -> None:
    # Callers await their appends, so an append that is still pending was cancelled. aiokafka would
    # wait for it, and without limit if no broker returns.
    producer._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await producer.stop()
    except (TimeoutError, KafkaError):
        await producer.client.close()

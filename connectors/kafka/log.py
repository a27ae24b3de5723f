"""The log of a site on Kafka, with plain aiokafka only."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Self

import structlog

from flatline.connectors.kafka.appending import Appender
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.reading import Reader
from flatline.connectors.kafka.security import probe
from flatline.connectors.kafka.subscription import plain_subscription
from flatline.connectors.kafka.topics import create_topics, partition_counts
from flatline.engine.errors import LogRefused, LogUnreachable, RecordTooLarge
from flatline.engine.ports import Bounds, Headers, Position, Record, Subscription
from flatline.engine.stream.backoff import Backoff
from flatline.engine.wire.envelope import MAX_APPEND_BYTES

# Shortest and longest wait between attempts to connect at the start: short at first, as a broker
# may just be starting, and later long enough to keep the program's own log short.
_FIRST_WAIT_S: Final = 0.5
_LAST_WAIT_S: Final = 10.0

_log = structlog.get_logger()


class KafkaLog:
    """`engine.ports.Log` on a Kafka cluster.

    Entering it waits for a broker with back-off. A topic that this principal cannot see is rejected
    only when it is used: a node's collector, for example, may not see the orders.

    Raises
    ------
    LogRefused
        On entering: wrong password or certificate, or a topic that must have one partition has
        more.
    LogUnreachable
        On entering: no broker answered for `connect_timeout_s`.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self.config = config
        self.reader = Reader(config)
        self._appender = Appender(config)
        self._partitions: dict[str, int] = {}
        self._cluster_id = ""

    async def __aenter__(self) -> Self:
        await self._wait_for_broker()
        if self.config.create_topics:
            for name in await create_topics(self.config):
                _log.info("A topic was created.", topic=name)
        self._cluster_id, counts = await partition_counts(self.config)
        prefix = self.config.topic_prefix
        self._partitions = {name.removeprefix(prefix): count for name, count in counts.items()}
        for topic in self.config.topics:
            count = self._partitions.get(topic.name)
            if topic.partitions is not None and count not in (None, topic.partitions):
                raise LogRefused(
                    f"{prefix}{topic.name} has {count} partitions but must have "
                    f"{topic.partitions}, because the order of its records depends on it. Delete "
                    "the topic and create it again"
                )
        await self.reader.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._appender.close()
        await self.reader.close()

    async def _wait_for_broker(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.connect_timeout_s
        backoff = Backoff(_FIRST_WAIT_S, _LAST_WAIT_S)
        while True:
            try:
                return await probe(self.config)
            except LogUnreachable as error:
                wait_s = backoff.failed()
                if loop.time() + wait_s > deadline:
                    raise
                _log.warning(f"{error}. Check log.kafka.bootstrap. Retrying.", next_try_s=wait_s)
            await asyncio.sleep(wait_s)

    async def append(
        self,
        topic: str,
        *,
        key: bytes,
        value: bytes,
        headers: Headers = (),
        partition: int | None = None,
        time_ms: int | None = None,
    ) -> Position:
        """See `engine.ports.Log`; a topic with `LogAppendTime` stores the broker's time instead."""
        if partition is None:
            self.partitions(topic)
        else:
            self._check(topic, partition)
        size = len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)
        if size > MAX_APPEND_BYTES:
            raise RecordTooLarge(
                f"a record of {size} bytes for {topic} exceeds the limit of {MAX_APPEND_BYTES} "
                "bytes"
            )
        return await self._appender.append(
            self.config.topic_prefix + topic,
            key=key,
            value=value,
            headers=headers,
            partition=partition,
            time_ms=time_ms,
        )

    def subscribe(self, topic: str, *, group: str) -> AbstractAsyncContextManager[Subscription]:
        """See `engine.ports.Log`."""
        self.partitions(topic)
        return plain_subscription(self.config, self.reader, topic, group=group)

    def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Record]]]:
        """See `engine.ports.Log`."""
        self._check(topic, partition)
        return self.reader.tail(topic, partition, offset=offset)

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """See `engine.ports.Log`."""
        self._check(topic, partition)
        return await self.reader.read_to_end(topic, partition, offset=offset)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """See `engine.ports.Log`."""
        self._check(topic, partition)
        return await self.reader.bounds(topic, partition)

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        """See `engine.ports.Log`."""
        self._check(topic, partition)
        return await self.reader.offset_at(topic, partition, time_ms=time_ms)

    def partitions(self, topic: str) -> int:
        """See `engine.ports.Log`."""
        count = self._partitions.get(topic)
        if count is None:
            raise LogRefused(
                f"topic {self.config.topic_prefix}{topic} does not exist, or this principal may "
                "not see it. Create it (flatline doctor --create-topics), or grant DESCRIBE on it"
            )
        return count

    async def identity(self) -> str:
        """Query the ids of the cluster and of the topics with one partition, which limits count."""
        lines = [topic.name for topic in self.config.topics if topic.partitions == 1]
        ids = ",".join(await self.reader.ids(lines))
        return f"{self._cluster_id}/{self.config.topic_prefix}/{ids}"

    def _check(self, topic: str, partition: int) -> None:
        count = self.partitions(topic)
        if not 0 <= partition < count:
            raise LogRefused(f"{topic} has partitions 0 to {count - 1}, not {partition}")

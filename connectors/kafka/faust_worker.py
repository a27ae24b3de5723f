"""Read the engine's frames through a Faust worker, behind the same port as every other reader.

Only these parts of Faust are used: raw bytes and one agent with concurrency 1, without Faust's own
acknowledgements. Other parts lose records, duplicate them or hang. The group's offset moves only
when the engine commits after its snapshot, so records in memory are delivered again after a crash.

Faust is pinned to an exact version: the worker is controlled through a subclass of its transport
and its consumer's thread, which are not public API.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, cast

import faust
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.transport.drivers.aiokafka import (
    AIOKafkaConsumerThread,
    Consumer,
    Transport,
)
from faust.types import EventT, StreamT

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.log import KafkaLog
from flatline.connectors.kafka.pacing import Reach
from flatline.connectors.kafka.reading import FETCH_BYTES, Reader, raise_if_away
from flatline.connectors.kafka.security import ssl_context
from flatline.connectors.kafka.subscription import (
    HEARTBEATS_PER_SESSION,
    MAX_POLL_INTERVAL_S,
    commit_held,
    make_progress,
    watched,
)
from flatline.engine.errors import LogError, LogRefused
from flatline.engine.ports import Delivery, Record, Subscription
from flatline.engine.wire.topics import FRAMES

# Frames of up to 900 KB wait in two buffers, Faust's and the subscription's: at most 128 together.
_BUFFER_RECORDS: Final = 64

# Faust commits nothing here; this is the interval at which its idle tasks wake up.
_IDLE_INTERVAL_S: Final = 10.0

# Faust starts in 1.0 to 1.2 s; the start takes longer while the brokers elect a coordinator.
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 10.0

_log = structlog.get_logger()


class FaustKafkaLog(KafkaLog):
    """`KafkaLog` that reads some topics for groups through a Faust worker.

    Parameters
    ----------
    through
        Names of those topics. Their offsets must be consecutive, so they must not be compacted or
        written in transactions. Plain aiokafka reads all other topics.
    """

    def __init__(
        self, config: KafkaConfig, *, through: frozenset[str] = frozenset({FRAMES.name})
    ) -> None:
        super().__init__(config)
        self._through = through

    def subscribe(self, topic: str, *, group: str) -> AbstractAsyncContextManager[Subscription]:
        """See `engine.ports.Log`."""
        if topic not in self._through:
            return super().subscribe(topic, group=group)
        self.partitions(topic)
        return faust_subscription(self.config, self.reader, topic, group=group)


@asynccontextmanager
async def faust_subscription(
    config: KafkaConfig, reader: Reader, topic: str, *, group: str
) -> AsyncIterator["FaustSubscription"]:
    """Run a Faust worker for `group` on `topic` for the length of the block.

    The worker runs in the caller's event loop, with a separate thread for the consumer. It installs
    neither signal handlers nor logging.

    `topic` and `group` are without the prefix `config.topic_prefix`.

    Raises
    ------
    LogError
        On entering: the worker did not start within 60 s.
    SettingsError
        On entering: the TLS files cannot be used.
    """
    member = config.topic_prefix + group
    # Faust creates a folder for tables, although there are none.
    with tempfile.TemporaryDirectory(prefix="flatline-faust-") as folder:
        app = _make_app(config, member, folder)
        reach = Reach(f"group {group}")
        app.transport = _PacedTransport(
            app.conf.broker_consumer, app, loop=asyncio.get_running_loop(), reach=reach
        )
        subscription = FaustSubscription(config, app, reach, topic=topic, group=group)
        source = app.topic(config.topic_prefix + topic, key_type=bytes, value_type=bytes)
        app.agent(source, concurrency=1, name=f"{member}.frames")(subscription.take)
        # Faust declares narrower types for handlers than the arguments with which it calls them.
        app.on_partitions_revoked.connect(cast(Any, subscription.on_revoked), weak=False)
        app.on_partitions_assigned.connect(cast(Any, subscription.on_assigned), weak=False)
        try:
            await _start(app, group)
            async with watched(reader, subscription.progress, topic, group=member) as failure:
                subscription.failure = failure
                yield subscription
        finally:
            subscription.leave()
            await _stop(app)


def _make_app(config: KafkaConfig, member: str, folder: str) -> faust.App:
    heartbeat_s = config.session_timeout_s / HEARTBEATS_PER_SESSION
    return faust.App(
        member,
        autodiscover=False,
        broker=[f"kafka://{server}" for server in config.servers],
        broker_client_id=config.client_id,
        broker_credentials=_credentials(config),
        # Faust's default session of 60 s would leave the partitions of a killed engine unread for a
        # minute.
        broker_session_timeout=config.session_timeout_s,
        broker_heartbeat_interval=heartbeat_s,
        broker_rebalance_timeout=config.session_timeout_s,
        broker_request_timeout=max(40.0, config.session_timeout_s + heartbeat_s),
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        broker_commit_interval=_IDLE_INTERVAL_S,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=config.instance_id,
        consumer_max_fetch_size=FETCH_BYTES,
        datadir=folder,
        key_serializer="raw",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        reply_create_topic=False,
        store="memory://",
        stream_buffer_maxsize=_BUFFER_RECORDS,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )


def _credentials(config: KafkaConfig) -> faust.SASLCredentials | faust.SSLCredentials | None:
    security = config.security
    context = ssl_context(security) if security.protocol in ("ssl", "sasl_ssl") else None
    if security.protocol.startswith("sasl"):
        return faust.SASLCredentials(
            username=security.username,
            password=security.password,
            mechanism=security.mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context=context) if context else None


async def _start(app: faust.App, group: str) -> None:
    app.finalize()
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await app.start()
    except TimeoutError as error:
        raise LogError(f"the Faust worker of {group} did not start in {_START_TIMEOUT_S} s") from (
            error
        )


async def _stop(app: faust.App) -> None:
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await app.stop()
    except TimeoutError:
        _log.warning(
            "The Faust worker did not stop in time and is abandoned.", after_s=_STOP_TIMEOUT_S
        )


class FaustSubscription:
    """`engine.ports.Subscription` on one Faust worker."""

    def __init__(
        self, config: KafkaConfig, app: faust.App, reach: Reach, *, topic: str, group: str
    ) -> None:
        self.progress = make_progress(config, topic, group=group)
        self.failure: Callable[[], LogError | None] = lambda: None
        self._config = config
        self._app = app
        self._reach = reach
        self._topic = topic
        self._group = group
        self._assigned: frozenset[int] = frozenset()
        self._generation = 1
        self._expected: dict[int, int] = {}
        self._broken: LogError | None = None
        self._waiting: deque[Record] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._is_member = True

    def leave(self) -> None:
        """Refuse every later call, and let Faust's agent end."""
        self._is_member = False
        self._waiting.clear()
        self._room.set()

    async def take(self, stream: StreamT[bytes]) -> None:
        """Queue each event that Faust delivers; this is the body of the worker's only agent."""
        async for event in cast(faust.Stream[bytes], stream).noack().events():
            generation = self._generation
            record = self._decode(event)
            while len(self._waiting) >= _BUFFER_RECORDS and self._is_member:
                self._room.clear()
                await self._room.wait()
            # Records fetched before a rebalance belong to another member now, or are delivered
            # again.
            if generation == self._generation and record.partition in self._assigned:
                self._pass_on(record)

    def _pass_on(self, record: Record) -> None:
        """Queue the next record of its partition: drop a repeated one, stop at a gap."""
        expected = self._expected.get(record.partition, record.offset)
        if record.offset < expected:
            return
        if record.offset > expected:
            # Retention deleted records before they were read, or Faust lost some. In both cases
            # a restart continues at the committed offset, so no existing record is skipped.
            self._broken = LogError(
                f"the Faust worker of {self._group} skipped offsets {expected} to "
                f"{record.offset - 1} of {self._topic}/{record.partition}; this process must be "
                "restarted"
            )
        else:
            self._expected[record.partition] = record.offset + 1
            self._waiting.append(record)
        self._changed.set()

    def _decode(self, event: EventT[bytes]) -> Record:
        message = event.message
        record = Record(
            topic=self._topic,
            partition=message.partition,
            offset=message.offset,
            # Faust converted the broker's integer milliseconds into seconds.
            time_ms=round(message.timestamp * 1000),
            key=message.key or b"",
            value=message.value or b"",
            headers=_headers(message.headers),
        )
        # Faust keeps messages for a while after their event; this frees the second copy of the
        # payload.
        message.value = None
        event.value = None
        return record

    def on_revoked(self, app: faust.App, revoked: set[TopicPartition], **_: object) -> None:
        """Drop all buffered records: the group is about to rebalance."""
        if self._assigned:
            self._generation += 1
        self._assigned = frozenset()
        self.progress.assign(())
        self._waiting.clear()
        self._room.set()

    def on_assigned(self, app: faust.App, assigned: set[TopicPartition], **_: object) -> None:
        """Take over the partitions assigned by a rebalance."""
        self._assigned = frozenset(at.partition for at in assigned)
        self._expected.clear()
        self.progress.assign(self._assigned)
        self._changed.set()
        _log.info("Partitions are assigned.", group=self._group, partitions=sorted(self._assigned))

    async def poll(self, *, max_records: int, wait_s: float) -> Delivery:
        """See `engine.ports.Subscription`.

        Raises
        ------
        LogUnreachable
            No broker has answered for `away_limit_s`.
        LogRefused
            The group was left.
        LogError
            The worker stopped, stalled or skipped offsets; the process must be restarted.
        """
        self._check()
        # Yields to Faust's agent even if records are waiting, because it must refill the buffer.
        await asyncio.sleep(0)
        if not self._waiting and wait_s > 0:
            self._changed.clear()
            waiter = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait((waiter,), timeout=wait_s)
            finally:
                waiter.cancel()
        self._check()
        count = min(max_records, len(self._waiting))
        records = tuple(self._waiting.popleft() for _ in range(count))
        self._room.set()
        if max_records > 0:
            self.progress.polled(records)
        return Delivery(records, self._assigned, self._generation)

    async def commit(self, next_offsets: Mapping[int, int]) -> None:
        """See `engine.ports.Subscription`; partitions that are no longer assigned are ignored."""
        self._check()
        name = self._config.topic_prefix + self._topic
        held = {
            TopicPartition(name, partition): offset
            for partition, offset in next_offsets.items()
            if partition in self._assigned
        }
        if held:
            thread = self._app.consumer._thread  # type: ignore[attr-defined] # noqa: SLF001
            consumer = thread._consumer  # noqa: SLF001 - Faust's own commit knows only its acks
            await commit_held(thread.call_thread(consumer.commit, held), self._group)

    def _check(self) -> None:
        if not self._is_member:
            raise LogRefused(f"the consumer group {self._group!r} was left: subscribe again")
        if self._app.should_stop:
            raise LogError(
                f"the Faust worker of {self._group} stopped: {self._app.crash_reason!r}; this "
                "process must be restarted"
            )
        if (failure := self._broken or self.failure()) is not None:
            raise failure
        raise_if_away(self._reach, self._config.away_limit_s)


def _headers(raw: object) -> tuple[tuple[str, bytes], ...]:
    pairs = raw.items() if isinstance(raw, Mapping) else raw or ()
    return tuple((name, value or b"") for name, value in pairs)  # type: ignore[attr-defined]


class _PacedThread(AIOKafkaConsumerThread):
    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        consumer = super()._create_consumer(loop)
        transport: Any = self.transport
        transport.reach.calm(consumer._client)  # noqa: SLF001
        return consumer


class _PacedConsumer(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _PacedThread(self, loop=self.loop, beacon=self.beacon)


class _PacedTransport(Transport):
    """Faust's transport, with a consumer that paces its retries while no broker answers."""

    Consumer = _PacedConsumer

    def __init__(self, *arguments: Any, reach: Reach, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **settings)
        self.reach = reach

"""A member of a consumer group on plain aiokafka."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.failures import named
from flatline.connectors.kafka.pacing import Reach
from flatline.connectors.kafka.progress import Progress
from flatline.connectors.kafka.reading import (
    Reader,
    make_consumer,
    raise_if_away,
    start_consumer,
    stop_consumer,
    to_record,
)
from flatline.engine.errors import LogError, LogRefused
from flatline.engine.ports import Delivery, Record

# Interval of the stall check. A stall is detected at most 10 s after the limit, which is 60 s.
CHECK_EVERY_S: Final = 10.0

# Three heartbeats may be lost before the session ends.
HEARTBEATS_PER_SESSION: Final = 4

# A role that processes one batch for longer than this loses its partitions to another member. The
# limit is longer than any load of a snapshot, and short enough for an operator to wait.
MAX_POLL_INTERVAL_S: Final = 300.0

_log = structlog.get_logger()


@asynccontextmanager
async def plain_subscription(
    config: KafkaConfig, reader: Reader, topic: str, *, group: str
) -> AsyncIterator["PlainSubscription"]:
    """Join `group` on `topic` for the length of the block.

    `topic` and `group` are without the prefix `config.topic_prefix`.

    Raises
    ------
    SettingsError, LogUnreachable, LogRefused
        On entering: the TLS files or the password cannot be used, no broker answers, or it refuses
        this principal.
    """
    member = config.topic_prefix + group
    consumer = make_consumer(
        config,
        group_id=member,
        group_instance_id=config.instance_id,
        session_timeout_ms=int(config.session_timeout_s * 1000),
        heartbeat_interval_ms=int(config.session_timeout_s * 1000 / HEARTBEATS_PER_SESSION),
        max_poll_interval_ms=int(MAX_POLL_INTERVAL_S * 1000),
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )
    reach = Reach(f"group {group}")
    reach.calm(consumer._client)  # noqa: SLF001
    subscription = PlainSubscription(config, consumer, reach, topic=topic, group=group)
    await start_consumer(consumer, f"joining {group} on {topic}")
    try:
        consumer.subscribe([config.topic_prefix + topic], listener=subscription)
        async with watched(reader, subscription.progress, topic, group=member) as failure:
            subscription.failure = failure
            yield subscription
    finally:
        subscription.leave()
        await stop_consumer(consumer)


class PlainSubscription(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """`engine.ports.Subscription` on one aiokafka consumer."""

    def __init__(
        self,
        config: KafkaConfig,
        consumer: AIOKafkaConsumer,
        reach: Reach,
        *,
        topic: str,
        group: str,
    ) -> None:
        self.progress = make_progress(config, topic, group=group)
        self.failure: Callable[[], LogError | None] = lambda: None
        self._config = config
        self._consumer = consumer
        self._reach = reach
        self._topic = topic
        self._group = group
        self._assigned: frozenset[int] = frozenset()
        self._generation = 1
        self._early: tuple[Record, ...] = ()
        self._is_member = True

    def leave(self) -> None:
        """Refuse every later call."""
        self._is_member = False

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Drop all records: the group is about to rebalance."""
        if self._assigned:
            self._generation += 1
        self._assigned = frozenset()
        self._early = ()
        self.progress.assign(())

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Take over the partitions assigned by a rebalance."""
        self._assigned = frozenset(at.partition for at in assigned)
        self.progress.assign(self._assigned)
        _log.info("Partitions are assigned.", group=self._group, partitions=sorted(self._assigned))

    async def poll(self, *, max_records: int, wait_s: float) -> Delivery:
        """See `engine.ports.Subscription`.

        Raises
        ------
        LogUnreachable
            No broker has answered for `away_limit_s`.
        LogRefused
            The group was left, or this principal may not read the topic.
        LogError
            The reader is stalled; the process must be restarted.
        """
        self._check()
        if max_records == 0:
            return await self._wait_only(wait_s)
        records, self._early = self._early, ()
        if not records:
            records = await self._read(max_records=max_records, wait_s=wait_s)
        self.progress.polled(records)
        return Delivery(records, self._assigned, self._generation)

    async def _read(self, *, max_records: int, wait_s: float) -> tuple[Record, ...]:
        # During a rebalance, or while the coordinator is unreachable, `getmany` would wait beyond
        # its timeout. It has no await after it takes records, so a cancellation loses none.
        with suppress(TimeoutError):
            async with asyncio.timeout(max(wait_s, 0.01)):
                with named(f"reading {self._topic} for {self._group}"):
                    batches = await self._consumer.getmany(
                        timeout_ms=int(wait_s * 1000), max_records=max_records
                    )
                return tuple(
                    to_record(self._topic, raw)
                    for at, batch in batches.items()
                    if at.partition in self._assigned
                    for raw in batch
                )
        return ()

    async def _wait_only(self, wait_s: float) -> Delivery:
        """Stay a member for `wait_s` without reading on.

        The group expels a member that does not poll, so this polls with the partitions paused. A
        partition assigned meanwhile is not paused: its record waits for the next poll.
        """
        paused = self._consumer.assignment()
        self._consumer.pause(*paused)
        try:
            if self._early:
                await asyncio.sleep(wait_s)
            else:
                self._early = await self._read(max_records=1, wait_s=wait_s)
        finally:
            self._consumer.resume(*(paused & self._consumer.assignment()))
        return Delivery((), self._assigned, self._generation)

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
            await commit_held(self._consumer.commit(held), self._group)

    def _check(self) -> None:
        if not self._is_member:
            raise LogRefused(f"the consumer group {self._group!r} was left: subscribe again")
        if (failure := self.failure()) is not None:
            raise failure
        raise_if_away(self._reach, self._config.away_limit_s)


async def commit_held(commit: Awaitable[None], group: str) -> None:
    """Await a commit; one that a rebalance made invalid is only logged: records are read again.

    Raises
    ------
    LogUnreachable, LogRefused
        The commit failed for another reason; the message names `group`.
    """
    try:
        with named(f"committing for {group}"):
            await commit
    except LogError as error:
        if not isinstance(error.__cause__, CommitFailedError | IllegalStateError):
            raise
        _log.info(
            "A commit arrived after the partitions of the group were reassigned. Its records are "
            "read again.",
            group=group,
        )


def make_progress(config: KafkaConfig, topic: str, *, group: str) -> Progress:
    """Return the progress record of one subscription for the stall check."""
    checks = max(1, round(config.stall_limit_s / CHECK_EVERY_S))
    return Progress(f"{group} on {topic}", checks=checks)


@asynccontextmanager
async def watched(
    reader: Reader, progress: Progress, topic: str, *, group: str
) -> AsyncIterator[Callable[[], LogError | None]]:
    """Check every `CHECK_EVERY_S` for a stall; yield a function that returns the error or None.

    `topic` is without the prefix `topic_prefix`, `group` with it.
    """
    stalled: list[LogError] = []

    async def watch() -> None:
        while not stalled:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                if unknown := progress.unknown:
                    starts = await reader.committed(topic, group=group, partitions=unknown)
                    progress.start_at(starts)
                ends = await reader.ends(topic, progress.partitions)
            except LogError:
                # While the log is unreachable, a reader is not stalled; `Reach` reports the outage.
                continue
            try:
                progress.check(ends)
            except LogError as error:
                stalled.append(error)

    watcher = asyncio.create_task(watch())
    try:
        yield lambda: stalled[0] if stalled else None
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

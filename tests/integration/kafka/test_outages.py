"""A broker that stops and returns: no record is lost, and no client retries without pause.

The broker is stopped cleanly for 20 s here; `FLATLINE_LAB_AWAY_S=120` makes it the two minutes that
an installation must bridge.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

import pytest

from deploy.lab.kafka_broker import Cluster
from deploy.lab.kafka_jars import PATIENCE
from flatline.connectors.kafka import subscription as plain
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog, FaustSubscription
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.errors import LogError, LogProducerBroken, LogUnreachable
from flatline.engine.ports import Log, Record, Subscription
from tests.contracts.log.declared import KEYED, SINGLE
from tests.contracts.log.suite import settle, take, values

pytestmark = [pytest.mark.kafka, pytest.mark.outage]

AWAY_S = float(os.environ.get("FLATLINE_LAB_AWAY_S", "20"))
PATIENCE_S = 120.0 * PATIENCE

Configure = Callable[..., KafkaConfig]


class _Counter(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1


class Traffic:
    """A writer that never gives up, and readers of every kind that record what they received."""

    def __init__(self) -> None:
        self.written = 0
        self.seen: dict[str, list[int]] = {"plain": [], "faust": [], "tail": []}
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self, *jobs: Coroutine[None, None, None]) -> AsyncIterator[None]:
        self._tasks = [asyncio.create_task(job) for job in jobs]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def write(self, log: Log) -> None:
        while True:
            try:
                await log.append(KEYED.name, key=b"", value=b"%d" % self.written, partition=0)
            except (LogUnreachable, LogProducerBroken):
                continue
            self.written += 1
            await asyncio.sleep(0.02)

    async def read(self, name: str, subscription: Subscription) -> None:
        while True:
            self.note(name, (await subscription.poll(max_records=50, wait_s=0.5)).records)

    async def follow(self, log: Log) -> None:
        async with log.tail(KEYED.name, 0, offset=0) as batches:
            async for batch in batches:
                self.note("tail", batch)

    def note(self, name: str, records: Iterable[Record]) -> None:
        # An unacknowledged append may be duplicated, also when a producer broke over it; a member
        # that lost its session reads again from its commit. Both appear as repeated numbers.
        for number in values(list(records)):
            if number == len(self.seen[name]):
                self.seen[name].append(number)
            else:
                assert number < len(self.seen[name]), f"{name} lost records before {number}"

    async def all_came(self, count: int) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            for task in self._tasks:
                if task.done():
                    task.result()
            came = {name: len(numbers) for name, numbers in self.seen.items()}
            if min(came.values()) >= count:
                return
            assert time.monotonic() < deadline_s, f"{came} of {self.written}, {count} wanted"
            await asyncio.sleep(0.05)


async def poll_for_ever(subscription: Subscription) -> None:
    while True:
        await subscription.poll(max_records=1, wait_s=0.1)


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize(("how", "away_s"), [("kill", 0.0), ("stop", AWAY_S)])
async def test_all_go_on_when_the_broker_is_back(
    kafka_broker: Cluster, configure: Configure, how: str, away_s: float
) -> None:
    counter = _Counter()
    logging.getLogger().addHandler(counter)
    traffic = Traffic()
    async with (
        KafkaLog(configure(session_timeout_s=10.0)) as log,
        FaustKafkaLog(
            configure(session_timeout_s=10.0), through=frozenset({KEYED.name})
        ) as faust_log,
        log.subscribe(KEYED.name, group="plain") as plain_one,
        faust_log.subscribe(KEYED.name, group="faust") as faust_one,
        traffic.running(
            traffic.write(log),
            traffic.follow(log),
            traffic.read("plain", plain_one),
            traffic.read("faust", faust_one),
        ),
    ):
        await traffic.all_came(20)
        await asyncio.to_thread(kafka_broker.kill if how == "kill" else kafka_broker.stop)
        counter.lines, busy_s, began_s = 0, time.process_time(), time.monotonic()
        await asyncio.sleep(away_s)
        busy_s, idle_s = time.process_time() - busy_s, time.monotonic() - began_s
        lines = counter.lines
        await asyncio.to_thread(lambda: kafka_broker.start().wait())
        back_s = time.monotonic()
        await traffic.all_came(traffic.written + 20)
        moving_s = time.monotonic() - back_s
    logging.getLogger().removeHandler(counter)
    figures = f"{lines=} {busy_s=:.2f} {idle_s=:.1f} {moving_s=:.1f} {traffic.written=}"
    assert moving_s < 30.0, figures
    if away_s:
        # Without pacing 11,000 lines a second and a whole core were measured.
        assert lines < 20 * idle_s, figures
        assert busy_s < 0.2 * idle_s, figures
    logging.getLogger(__name__).info(figures)


@pytest.mark.asyncio
async def test_an_append_to_a_broker_that_is_frozen_is_unreachable_and_then_goes_on(
    kafka_broker: Cluster, configure: Configure
) -> None:
    async with KafkaLog(configure(append_timeout_s=1.0)) as log:
        await log.append(SINGLE.name, key=b"", value=b"0")
        kafka_broker.brokers[0].freeze()
        try:
            with pytest.raises(LogUnreachable, match="may still appear"):
                await log.append(SINGLE.name, key=b"", value=b"1")
        finally:
            kafka_broker.brokers[0].thaw()
        async with asyncio.timeout(PATIENCE_S):
            position = None
            while position is None:
                with contextlib.suppress(LogUnreachable):
                    position = await log.append(SINGLE.name, key=b"", value=b"2")
        numbers = values(await log.read_to_end(SINGLE.name, 0, offset=0))
    assert list(dict.fromkeys(numbers)) in ([0, 1, 2], [0, 2])


@pytest.mark.asyncio
async def test_a_barrier_on_a_frozen_broker_ends_in_time(
    kafka_broker: Cluster, configure: Configure
) -> None:
    async with KafkaLog(configure()) as log:
        await log.append(SINGLE.name, key=b"", value=b"0")
        kafka_broker.brokers[0].freeze()
        try:
            began_s = time.monotonic()
            with pytest.raises(LogUnreachable):
                await log.read_to_end(SINGLE.name, 0, offset=0)
            assert time.monotonic() - began_s < 7.0
        finally:
            kafka_broker.brokers[0].thaw()
        async with asyncio.timeout(PATIENCE_S):
            records: list[Record] = []
            while not records:
                with contextlib.suppress(LogUnreachable):
                    records = await log.read_to_end(SINGLE.name, 0, offset=0)
        assert values(records) == [0]


@pytest.mark.asyncio
async def test_a_reader_reports_when_the_broker_is_away_for_too_long(
    kafka_broker: Cluster, configure: Configure
) -> None:
    config = configure(away_limit_s=1.0)
    async with (
        KafkaLog(config) as log,
        FaustKafkaLog(config, through=frozenset({KEYED.name})) as faust_log,
        log.subscribe(KEYED.name, group="one") as one,
        faust_log.subscribe(KEYED.name, group="two") as two,
        log.tail(KEYED.name, 0, offset=0) as tail,
    ):
        await settle(one)
        await settle(two)
        await asyncio.to_thread(kafka_broker.kill)
        try:
            async with asyncio.timeout(PATIENCE_S):
                for subscription in (one, two):
                    with pytest.raises(LogUnreachable, match="has not answered for"):
                        await poll_for_ever(subscription)
                with pytest.raises(LogUnreachable, match="has not answered for"):
                    await anext(tail)
        finally:
            await asyncio.to_thread(lambda: kafka_broker.start().wait())


@pytest.mark.asyncio
async def test_a_worker_that_stops_fetching_ends_the_process(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "CHECK_EVERY_S", 0.2)
    config = configure(stall_limit_s=1.0)
    async with (
        FaustKafkaLog(config, through=frozenset({KEYED.name})) as log,
        log.subscribe(KEYED.name, group="stalled") as subscription,
    ):
        assert isinstance(subscription, FaustSubscription)
        await settle(subscription)
        # Faust's own switch, with the same effect as a fetcher that dies silently.
        subscription._app.consumer.stop_flow()
        position = await log.append(KEYED.name, key=b"", value=b"0")
        async with asyncio.timeout(PATIENCE_S):
            expected = f"partition {position.partition} stays at offset 0 although .* restarted"
            with pytest.raises(LogError, match=expected):
                await poll_for_ever(subscription)


@pytest.mark.asyncio
async def test_a_reader_that_is_up_to_date_is_never_stalled(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "CHECK_EVERY_S", 0.05)
    config = configure(stall_limit_s=0.2)
    async with FaustKafkaLog(config, through=frozenset({KEYED.name})) as log:
        position = await log.append(KEYED.name, key=b"", value=b"0")
        async with log.subscribe(KEYED.name, group="calm") as subscription:
            await take(subscription, 1)
            await subscription.commit({position.partition: 1})
        # The next member receives nothing, and nothing is missing.
        async with log.subscribe(KEYED.name, group="calm") as subscription:
            for _ in range(20):
                await subscription.poll(max_records=1, wait_s=0.1)


@pytest.mark.asyncio
async def test_faust_takes_over_neither_signals_nor_logging(configure: Configure) -> None:
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    async with (
        FaustKafkaLog(configure(), through=frozenset({KEYED.name})) as log,
        log.subscribe(KEYED.name, group="guest") as subscription,
    ):
        await settle(subscription)
        assert signals == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert before == (list(root.handlers), root.level)

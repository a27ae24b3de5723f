"""Behaviour of groups on Kafka only: members that die, fail, join and leave."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.lab.kafka_jars import PATIENCE
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.ports import Log, Record, Subscription
from tests.contracts.log.declared import KEYED, PARTITIONS
from tests.contracts.log.suite import settle, take, values

pytestmark = pytest.mark.kafka

PATIENCE_S = 60.0 * PATIENCE


@pytest.fixture(params=["plain", "faust"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def log(kind: str, configure: Callable[..., KafkaConfig]) -> AsyncIterator[Log]:
    async with make_log(kind, configure()) as made:
        yield made


def make_log(kind: str, config: KafkaConfig) -> KafkaLog:
    if kind == "plain":
        return KafkaLog(config)
    return FaustKafkaLog(config, through=frozenset({KEYED.name}))


async def spread(log: Log, start: int, stop: int) -> None:
    for number in range(start, stop):
        await log.append(KEYED.name, key=b"", value=b"%d" % number, partition=number % PARTITIONS)


def assert_in_order(records: list[Record]) -> None:
    for partition in range(PARTITIONS):
        offsets = [record.offset for record in records if record.partition == partition]
        assert offsets == sorted(set(offsets))


@asynccontextmanager
async def member(
    config: KafkaConfig, kind: str, group: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    script = Path(__file__).with_name("member.py")
    arguments = (config.bootstrap, config.topic_prefix, kind, group)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        *arguments,
        env={"PYTHONPATH": str(Path.cwd())},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.asyncio
async def test_nothing_is_lost_when_a_member_is_killed(
    log: KafkaLog, kind: str, configure: Callable[..., KafkaConfig]
) -> None:
    await spread(log, 0, 300)
    seen: list[set[int]] = []
    began: list[dict[int, int]] = []
    for until in (90, 180, None):
        numbers: set[int] = set()
        last: dict[int, int] = {}
        seen.append(numbers)
        began.append({})
        async with asyncio.timeout(PATIENCE_S), member(configure(), kind, "mortal") as process:
            assert process.stdout is not None
            while len(set.union(*seen)) < (until or 300):
                partition, offset, number = map(int, (await process.stdout.readline()).split())
                assert offset > last.get(partition, -1), "out of order within one life"
                last[partition] = offset
                began[-1].setdefault(partition, offset)
                numbers.add(number)
    assert set.union(*seen) == set(range(300))
    # The last run began at the commits of the earlier ones. A partition that was read less far than
    # a member's commit lags begins at its start; of 180 records at least one partition has 60.
    assert any(offset > 0 for offset in began[2].values())


@pytest.mark.asyncio
async def test_what_a_handler_failed_on_is_delivered_again(log: Log) -> None:
    await spread(log, 0, 9)

    async def handle_badly() -> None:
        async with log.subscribe(KEYED.name, group="failing") as subscription:
            records = await take(subscription, 9)
            await subscription.commit({0: 1})
            raise ZeroDivisionError(f"on {records[-1]}")

    with pytest.raises(ZeroDivisionError):
        await handle_badly()
    async with log.subscribe(KEYED.name, group="failing") as subscription:
        records = await take(subscription, 8)
    assert sorted(values(records)) == [1, 2, 3, 4, 5, 6, 7, 8]


async def share(first: Subscription, second: Subscription) -> tuple[set[int], set[int]]:
    """Poll both until they hold all partitions between them."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            one = await first.poll(max_records=1, wait_s=0.1)
            two = await second.poll(max_records=1, wait_s=0.1)
            assert not one.records
            assert not two.records
            shares = set(one.assigned), set(two.assigned)
            if all(shares) and sum(map(len, shares)) == PARTITIONS:
                return shares


@pytest.mark.asyncio
async def test_partitions_move_when_members_join_and_leave(
    kind: str, configure: Callable[..., KafkaConfig]
) -> None:
    async with (
        make_log(kind, configure()) as log,
        make_log(kind, configure()) as other,
        log.subscribe(KEYED.name, group="shared") as first,
    ):
        before = await settle(first)
        assert before.assigned == set(range(PARTITIONS))
        async with other.subscribe(KEYED.name, group="shared") as second:
            mine, theirs = await share(first, second)
            during = await first.poll(max_records=1, wait_s=0.0)
            assert during.generation > before.generation
            await spread(log, 0, 60)
            own = await take(first, 20 * len(mine))
            others = await take(second, 20 * len(theirs))
            assert {record.partition for record in own} == mine
            assert {record.partition for record in others} == theirs
            await first.commit(dict.fromkeys(mine, 20))
            await second.commit(dict.fromkeys(theirs, 20))
        async with asyncio.timeout(PATIENCE_S):
            after = during
            while after.assigned != before.assigned:
                after = await first.poll(max_records=1, wait_s=0.1)
                assert not after.records, "committed records came again"
        assert after.generation > during.generation
        await spread(log, 60, 90)
        assert_in_order(rest := await take(first, 30))
        assert sorted(values(rest)) == list(range(60, 90))


@pytest.mark.asyncio
async def test_a_commit_for_what_was_taken_away_changes_nothing(
    kind: str, configure: Callable[..., KafkaConfig]
) -> None:
    async with make_log(kind, configure()) as log, make_log(kind, configure()) as other:
        async with (
            log.subscribe(KEYED.name, group="late") as first,
            other.subscribe(KEYED.name, group="late") as second,
        ):
            mine, theirs = await share(first, second)
            await spread(log, 0, 30)
            await take(first, 10 * len(mine))
            # As if the first still had an uncommitted snapshot when it lost these.
            await first.commit(dict.fromkeys(theirs, 10))
        async with log.subscribe(KEYED.name, group="late") as successor:
            assert sorted(values(await take(successor, 30))) == list(range(30))

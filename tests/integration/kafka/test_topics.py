"""Topics on a broker are created from the declaration and compared with it."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.log import KafkaLog
from flatline.connectors.kafka.topic_ids import topic_ids
from flatline.connectors.kafka.topics import create_topics, describe_problems
from flatline.engine.errors import LogRefused, RecordTooLarge
from flatline.engine.wire.topics import TOPICS as DECLARED
from flatline.engine.wire.topics import Topic
from tests.contracts.log.declared import COMPACTED, KEYED, SINGLE
from tests.contracts.log.suite import PATIENCE_S

pytestmark = pytest.mark.kafka

Configure = Callable[..., KafkaConfig]


@pytest_asyncio.fixture
async def admin(configure: Configure) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=configure().bootstrap)
    await client.start()
    yield client
    await client.close()


async def make_topic(admin: AIOKafkaAdminClient, topic: NewTopic) -> None:
    await admin.create_topics([topic])
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (described,) = await admin.describe_topics([topic.name])
            if not described["error_code"]:
                return
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_the_declared_topics_are_made_once_and_as_declared(configure: Configure) -> None:
    config = configure(topics=DECLARED, partitions=2)
    assert len(await create_topics(config)) == len(DECLARED)
    assert await create_topics(config) == ()
    assert await describe_problems(config) == ()


@pytest.mark.asyncio
async def test_a_cluster_that_differs_is_described(
    configure: Configure, admin: AIOKafkaAdminClient
) -> None:
    config = configure()
    wrong = {"cleanup.policy": "compact", "message.timestamp.type": "CreateTime"}
    name = config.topic_prefix + KEYED.name
    await make_topic(admin, NewTopic(name, 5, 1, topic_configs=wrong))
    problems = await describe_problems(config)
    assert f"topic {name} has 5 partitions instead of 3" in problems
    assert f"topic {name} has cleanup.policy=compact instead of delete" in problems
    assert (
        f"topic {name} has message.timestamp.type=CreateTime instead of LogAppendTime" in problems
    )
    assert sum("is missing" in problem for problem in problems) == 2


@pytest.mark.asyncio
async def test_a_missing_topic_is_refused_where_it_is_used(configure: Configure) -> None:
    await create_topics(configure(topics=(KEYED,)))
    async with KafkaLog(configure(create_topics=False)) as log:
        await log.append(KEYED.name, key=b"", value=b"")
        with pytest.raises(LogRefused, match=r"suite\.single\.v1 does not exist.*--create-topics"):
            await log.append(SINGLE.name, key=b"", value=b"")


@pytest.mark.asyncio
async def test_a_topic_that_must_be_one_line_is_refused_with_two(
    configure: Configure, admin: AIOKafkaAdminClient
) -> None:
    config = configure(topics=(SINGLE,))
    await make_topic(admin, NewTopic(config.topic_prefix + SINGLE.name, 2, 1))
    with pytest.raises(LogRefused, match="has 2 partitions but must have 1"):
        async with KafkaLog(config):
            pass


@pytest.mark.asyncio
async def test_a_copy_keeps_its_times_where_the_topic_lets_it(
    configure: Configure, admin: AIOKafkaAdminClient
) -> None:
    config = configure(topics=(SINGLE, COMPACTED))
    own_times = {"message.timestamp.type": "CreateTime"}
    name = config.topic_prefix + SINGLE.name
    await make_topic(admin, NewTopic(name, 1, 1, topic_configs=own_times))
    async with KafkaLog(config) as log:
        for topic in (SINGLE, COMPACTED):
            await log.append(topic.name, key=b"", value=b"", time_ms=1_600_000_000_123)
        (copied,) = await log.read_to_end(SINGLE.name, 0, offset=0)
        (stamped,) = await log.read_to_end(COMPACTED.name, 0, offset=0)
    assert copied.time_ms == 1_600_000_000_123
    assert stamped.time_ms > 1_700_000_000_000


@pytest.mark.asyncio
@pytest.mark.parametrize("lost", [SINGLE, COMPACTED])
async def test_a_topic_made_anew_under_a_running_log_changes_its_identity(
    configure: Configure, admin: AIOKafkaAdminClient, lost: Topic
) -> None:
    config = configure()
    async with KafkaLog(config) as log:
        first = await log.identity()
        for topic in (SINGLE, COMPACTED):
            (printed,) = await topic_ids(admin._client, [config.topic_prefix + topic.name])
            assert len(base64.urlsafe_b64decode(f"{printed}==")) == 16
            assert printed in first
        await admin.delete_topics([config.topic_prefix + lost.name])
        await make_topic(admin, NewTopic(config.topic_prefix + lost.name, 1, 1))
        # The broker learns of both from its controller with a delay.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await log.identity() != first:
                    break
                await asyncio.sleep(0.02)
    async with KafkaLog(config) as log:
        assert await log.identity() != first


@pytest.mark.asyncio
async def test_a_topic_that_is_not_there_has_no_id(admin: AIOKafkaAdminClient) -> None:
    assert await topic_ids(admin._client, ["nowhere"]) == ("",)


@pytest.mark.asyncio
async def test_a_broken_producer_is_replaced(
    configure: Configure, admin: AIOKafkaAdminClient
) -> None:
    config = configure(topics=(KEYED, SINGLE))
    narrow = {"max.message.bytes": "1000"}
    name = config.topic_prefix + SINGLE.name
    await make_topic(admin, NewTopic(name, 1, 1, topic_configs=narrow))
    noise = random.Random(3).randbytes(10_000)
    async with KafkaLog(config) as log:
        for number in range(3):
            with pytest.raises(RecordTooLarge):
                await log.append(SINGLE.name, key=b"", value=noise + bytes(number))
            await log.append(SINGLE.name, key=b"", value=b"%d" % number)
            await log.append(KEYED.name, key=b"", value=b"%d" % number, partition=0)
        for topic in (SINGLE, KEYED):
            records = await log.read_to_end(topic.name, 0, offset=0)
            assert [record.value for record in records] == [b"0", b"1", b"2"]

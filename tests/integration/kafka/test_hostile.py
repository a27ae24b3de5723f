"""Records that the broker rejects, and records from it that no reader can trust."""

import asyncio
import resource
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.errors import RecordTooLarge
from tests.contracts.log.declared import KEYED, SINGLE
from tests.contracts.log.suite import PATIENCE_S

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]

Configure = Callable[..., KafkaConfig]
MAX_BYTES = 900


async def small_topic(config: KafkaConfig) -> None:
    """Create a topic that accepts less than declared."""
    admin = AIOKafkaAdminClient(bootstrap_servers=config.bootstrap)
    await admin.start()
    try:
        settings = {"max.message.bytes": str(MAX_BYTES), "message.timestamp.type": "LogAppendTime"}
        name = config.topic_prefix + SINGLE.name
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs=settings)])
    finally:
        await admin.close()


def noise(size: int, seed: int) -> bytes:
    """Return incompressible bytes."""
    return b"".join(hash((seed, n)).to_bytes(8, "big", signed=True) for n in range(size // 8 + 1))[
        :size
    ]


async def test_what_is_too_large_for_the_topic_is_reported_and_what_fits_goes_on(
    configure: Configure,
) -> None:
    config = configure()
    await small_topic(config)
    async with KafkaLog(config) as log, asyncio.timeout(PATIENCE_S):
        await log.append(SINGLE.name, key=b"k", value=b"before")
        with pytest.raises(RecordTooLarge, match=r"Raise max\.message\.bytes of the topic"):
            await log.append(SINGLE.name, key=b"k", value=noise(2000, 1))
        await log.append(SINGLE.name, key=b"k", value=b"after")
        records = await log.read_to_end(SINGLE.name, 0, offset=0)
        assert [record.value for record in records] == [b"before", b"after"]


async def test_records_that_fit_by_themselves_are_not_refused_for_their_batch(
    configure: Configure,
) -> None:
    config = configure()
    await small_topic(config)
    async with KafkaLog(config) as log, asyncio.timeout(PATIENCE_S):
        values = [noise(400, seed) for seed in range(12)]
        await asyncio.gather(*(log.append(SINGLE.name, key=b"k", value=value) for value in values))
        records = await log.read_to_end(SINGLE.name, 0, offset=0)
        assert sorted({record.value for record in records}) == sorted(values)


async def raw_batch(config: KafkaConfig, value: bytes, *, codec: str | None) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=config.bootstrap, compression_type=codec, max_request_size=1 << 31,
        max_batch_size=1 << 30,
    )  # fmt: skip
    await producer.start()
    try:
        await producer.send_and_wait(config.topic_prefix + KEYED.name, value, partition=0)
    finally:
        await producer.stop()


@pytest.mark.parametrize("through", [KafkaLog, FaustKafkaLog], ids=["plain", "faust"])
async def test_a_bomb_is_rejected_and_what_stands_around_it_is_delivered(
    configure: Configure, through: type[KafkaLog]
) -> None:
    config = configure()
    made = through(config, through=frozenset({KEYED.name})) if through is FaustKafkaLog else None
    async with made or KafkaLog(config) as log, asyncio.timeout(2 * PATIENCE_S):
        await log.append(KEYED.name, key=b"k", value=b"before", partition=0)
        await raw_batch(config, bytes(200 << 20), codec="zstd")
        await log.append(KEYED.name, key=b"k", value=b"after", partition=0)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        values: list[bytes] = []
        async with log.subscribe(KEYED.name, group="bomb") as subscription:
            while len(values) < 3:
                delivery = await subscription.poll(max_records=10, wait_s=0.5)
                values += [record.value for record in delivery.records]
        assert (values[0], values[2]) == (b"before", b"after")
        assert values[1].startswith(b"unreadable: ")
        if through is KafkaLog:
            barrier = await log.read_to_end(KEYED.name, 0, offset=0)
            assert [record.value for record in barrier] == values
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < 64 * 1024, "the bomb was unpacked"

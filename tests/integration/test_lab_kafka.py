"""The lab's brokers behave like a cluster's: they keep acknowledged records."""

import ssl
import uuid
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from deploy.lab.kafka_broker import Cluster

pytestmark = pytest.mark.kafka


def client_settings(cluster: Cluster, user: str = "flatline") -> dict[str, Any]:
    settings: dict[str, Any] = {"bootstrap_servers": cluster.bootstrap}
    if cluster.security != "plain":
        settings |= {
            "security_protocol": "SASL_SSL" if cluster.ca_file else "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-256",
            "sasl_plain_username": user,
            "sasl_plain_password": cluster.credentials[user],
        }
    if cluster.ca_file:
        settings["ssl_context"] = ssl.create_default_context(cafile=str(cluster.ca_file))
    return settings


async def new_topic(settings: dict[str, Any]) -> str:
    name = f"lab-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(**settings)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()
    return name


async def append(settings: dict[str, Any], topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **settings)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def values(settings: dict[str, Any], topic: str) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(**settings)
    await consumer.start()
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        found: list[bytes] = []
        while await consumer.position(partition) < end:
            found.append((await consumer.getone()).value or b"")
        return found
    finally:
        await consumer.stop()


@pytest.mark.asyncio
async def test_a_killed_broker_comes_back_with_what_it_acknowledged(kafka_broker: Cluster) -> None:
    settings = client_settings(kafka_broker)
    topic = await new_topic(settings)
    await append(settings, topic, b"before")
    kafka_broker.kill()
    assert not kafka_broker.brokers[0].answers()
    kafka_broker.start().wait()
    await append(settings, topic, b"after")
    assert await values(settings, topic) == [b"before", b"after"]


@pytest.mark.asyncio
async def test_a_frozen_broker_answers_again_when_it_is_thawed(kafka_broker: Cluster) -> None:
    [broker] = kafka_broker.brokers
    broker.freeze()
    assert not broker.answers()
    broker.thaw()
    broker.wait()


@pytest.mark.asyncio
async def test_a_sasl_broker_lets_in_who_knows_the_password(sasl_broker: Cluster) -> None:
    settings = client_settings(sasl_broker)
    topic = await new_topic(settings)
    await append(settings, topic, b"secret")
    assert await values(settings, topic) == [b"secret"]


@pytest.mark.asyncio
async def test_a_sasl_broker_refuses_a_wrong_password(sasl_broker: Cluster) -> None:
    settings = client_settings(sasl_broker) | {"sasl_plain_password": "wrong"}
    with pytest.raises(KafkaConnectionError):
        await new_topic(settings)


@pytest.mark.asyncio
async def test_a_tls_broker_is_trusted_through_its_own_authority(tls_broker: Cluster) -> None:
    settings = client_settings(tls_broker)
    topic = await new_topic(settings)
    await append(settings, topic, b"sealed")
    assert await values(settings, topic) == [b"sealed"]


def test_passwords_are_made_at_the_start_and_readable_by_their_owner_alone(
    sasl_broker: Cluster,
) -> None:
    state = sasl_broker.root / "cluster.json"
    assert state.stat().st_mode & 0o077 == 0
    assert len(set(sasl_broker.credentials.values())) == 2

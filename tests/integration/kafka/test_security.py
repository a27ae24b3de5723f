"""Logins, rejected logins, and the reported reasons."""

import socket
import uuid
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from deploy.lab.kafka_broker import Cluster
from flatline.connectors.kafka.config import KafkaConfig, KafkaSecurity
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.errors import LogRefused, LogUnreachable
from tests.contracts.log.declared import KEYED, SINGLE, TOPICS
from tests.contracts.log.suite import take, values

pytestmark = pytest.mark.kafka


def config_for(cluster: Cluster) -> KafkaConfig:
    security = KafkaSecurity(
        protocol="sasl_ssl" if cluster.ca_file else "sasl_plaintext",
        mechanism="SCRAM-SHA-256",
        username="flatline",
        password=cluster.credentials["flatline"],
        ca_file=cluster.ca_file,
    )
    return KafkaConfig(
        bootstrap=cluster.bootstrap,
        security=security,
        topic_prefix=f"{uuid.uuid4().hex[:8]}.",
        topics=TOPICS,
        create_topics=True,
        connect_timeout_s=1.0,
        session_timeout_s=3.0,
    )


def with_security(config: KafkaConfig, **changes: object) -> KafkaConfig:
    return replace(config, security=replace(config.security, **changes))  # type: ignore[arg-type]


async def refusal(config: KafkaConfig) -> str:
    with pytest.raises(LogRefused) as caught:
        async with KafkaLog(config):
            pass
    return str(caught.value)


@pytest.mark.asyncio
async def test_a_user_with_the_right_password_reads_and_writes(sasl_broker: Cluster) -> None:
    async with KafkaLog(config_for(sasl_broker)) as log:
        await log.append(KEYED.name, key=b"", value=b"7")
        async with log.subscribe(KEYED.name, group="scram") as subscription:
            assert values(await take(subscription, 1)) == [7]


@pytest.mark.asyncio
async def test_a_wrong_password_is_named_and_not_called_unreachable(sasl_broker: Cluster) -> None:
    config = with_security(config_for(sasl_broker), password="wrong")
    message = await refusal(config)
    assert "rejects user 'flatline': wrong password" in message
    assert "wrong'" not in message


@pytest.mark.asyncio
async def test_an_unknown_user_is_named(sasl_broker: Cluster) -> None:
    message = await refusal(with_security(config_for(sasl_broker), username="nobody"))
    assert "rejects user 'nobody'" in message


@pytest.mark.asyncio
async def test_a_mechanism_that_the_broker_lacks_is_named(sasl_broker: Cluster) -> None:
    message = await refusal(with_security(config_for(sasl_broker), mechanism="PLAIN"))
    assert "does not support PLAIN" in message


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["sasl_ssl", "ssl", "plaintext"])
async def test_another_protocol_than_the_brokers_is_hinted_at(
    sasl_broker: Cluster, protocol: str
) -> None:
    config = with_security(config_for(sasl_broker), protocol=protocol)
    with pytest.raises(LogUnreachable, match=f"this port does not use {protocol}"):
        async with KafkaLog(config):
            pass


@pytest.mark.asyncio
async def test_tls_and_scram_work_together_plain_and_through_faust(tls_broker: Cluster) -> None:
    config = config_for(tls_broker)
    async with KafkaLog(config) as log:
        await log.append(KEYED.name, key=b"", value=b"7")
        async with log.subscribe(KEYED.name, group="plain") as subscription:
            assert values(await take(subscription, 1)) == [7]
    async with (
        FaustKafkaLog(config, through=frozenset({KEYED.name})) as log,
        log.subscribe(KEYED.name, group="faust") as subscription,
    ):
        assert values(await take(subscription, 1)) == [7]


@pytest.mark.asyncio
async def test_a_broker_of_an_unknown_authority_is_not_trusted(tls_broker: Cluster) -> None:
    message = await refusal(with_security(config_for(tls_broker), ca_file=None))
    assert "is not trusted" in message
    assert "log.kafka.ca_file" in message


@pytest.mark.asyncio
async def test_a_password_is_in_no_representation(sasl_broker: Cluster) -> None:
    assert sasl_broker.credentials["flatline"] not in repr(config_for(sasl_broker))


@pytest.mark.asyncio
async def test_a_broker_that_is_away_is_waited_for_and_spoken_of() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        config = KafkaConfig(bootstrap=f"127.0.0.1:{port}", topics=(SINGLE,), connect_timeout_s=2.0)
        with capture_logs() as logs, pytest.raises(LogUnreachable, match=f":{port} is unavailable"):
            async with KafkaLog(config):
                pass
    waits = [entry["next_try_s"] for entry in logs if "Retrying" in entry["event"]]
    assert waits == [0.5, 1.0]
    assert ". Check log.kafka.bootstrap." in logs[0]["event"]

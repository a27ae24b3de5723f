"""The site's log according to the settings: the adapter, and its connection."""

import secrets
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatline.engine.ports import Clock, Log
from flatline.engine.roles.health import STUCK_AFTER_S, Health
from flatline.engine.settings import Settings
from flatline.engine.wire.topics import TOPICS

if TYPE_CHECKING:
    from flatline.connectors.kafka.config import KafkaConfig


@dataclass(frozen=True, slots=True)
class Process:
    """The shared objects of all roles of one process; `run` identifies this run of it."""

    settings: Settings
    clock: Clock
    health: Health
    run: str = field(default_factory=lambda: secrets.token_hex(8))


def open_log(process: Process, *, frames: bool = False) -> AbstractAsyncContextManager[Log]:
    """Return the site's log as a context manager; settings select the adapter.

    Parameters
    ----------
    frames
        Whether the caller reads frames in a consumer group. If so, and if the log is Kafka, the
        client is the one that `log.kafka.consumer` names.

    Raises
    ------
    SettingsError
        The file of Kafka's password cannot be read.
    LogUnreachable, LogRefused, StateUnwritable
        Raised on entering the context: Kafka does not answer or refuses, or the folder of the
        embedded log cannot be written.
    """
    settings = process.settings
    if settings.log.kind == "embedded":
        from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog

        config = EmbeddedConfig(
            folder=settings.log_folder,
            partitions=settings.log.partitions,
            max_bytes=settings.log.max_bytes,
        )
        return EmbeddedLog(config, clock=process.clock)
    kafka = kafka_config(settings, run=process.run)
    if frames and settings.log.kafka.consumer == "faust":
        from flatline.connectors.kafka.faust_worker import FaustKafkaLog

        return FaustKafkaLog(kafka)
    from flatline.connectors.kafka.log import KafkaLog

    return KafkaLog(kafka)


def kafka_config(settings: Settings, *, run: str = "") -> "KafkaConfig":
    """Return the configuration of the Kafka adapter.

    `run` becomes part of the client's id, so that runs are distinct in the broker's logs.

    Raises
    ------
    SettingsError
        The password's file cannot be read.
    """
    from flatline.connectors.kafka.config import KafkaConfig, KafkaSecurity

    kafka = settings.log.kafka
    return KafkaConfig(
        bootstrap=kafka.bootstrap,
        client_id=f"flatline-{settings.site.node}-{run}".rstrip("-"),
        partitions=settings.log.partitions,
        replication=kafka.replication,
        topic_prefix=kafka.topic_prefix,
        # The timeout must be shorter than `STUCK_AFTER_S`, so that a slow connection does not count
        # as a stuck process.
        connect_timeout_s=STUCK_AFTER_S / 3,
        security=KafkaSecurity(
            protocol=kafka.security,
            mechanism=kafka.mechanism,
            username=kafka.username,
            password=kafka.secret(),
            ca_file=kafka.ca_file,
            cert_file=kafka.cert_file,
            key_file=kafka.key_file,
        ),
    )


async def topic_problems(
    process: Process, *, topics: Collection[str] | None = None
) -> tuple[str, ...]:
    """Return one sentence for each difference between the log's topics and their declaration.

    Always empty for an embedded log.

    Parameters
    ----------
    topics
        Names of the topics that this principal must be able to see; None: all topics.

    Raises
    ------
    LogRefused, LogUnreachable
        The log refused or did not answer. The message distinguishes a wrong password from an
        unreachable broker.
    SettingsError
        The password's file cannot be read.
    """
    if process.settings.log.kind == "embedded":
        return ()  # it creates its topics itself
    from flatline.connectors.kafka.security import probe
    from flatline.connectors.kafka.topics import describe_problems

    config = kafka_config(process.settings)
    await probe(config)
    if topics is not None:
        config = replace(config, topics=tuple(one for one in config.topics if one.name in topics))
    return await describe_problems(config)


async def own_rights(process: Process) -> dict[str, frozenset[str]] | None:
    """Return the operations of this principal on each topic, None where they are unknown.

    Operations are named as in `engine.wire.rights`, topics without the prefix of the installation.
    They are unknown on an embedded log and on brokers before Kafka 2.8.

    Raises
    ------
    LogRefused, LogUnreachable
        The log refused or does not answer.
    SettingsError
        The password's file cannot be read.
    """
    if process.settings.log.kind == "embedded":
        return None
    from flatline.connectors.kafka.rights import own_rights

    return await own_rights(kafka_config(process.settings), [topic.name for topic in TOPICS])


async def create_topics(process: Process) -> tuple[str, ...]:
    """Create the topics that Kafka lacks, and return their names; none for an embedded log.

    Raises
    ------
    LogRefused, LogUnreachable
        Kafka refused or does not answer.
    SettingsError
        The password's file cannot be read.
    """
    if process.settings.log.kind == "embedded":
        return ()
    from flatline.connectors.kafka.security import probe
    from flatline.connectors.kafka.topics import create_topics

    config = kafka_config(process.settings)
    await probe(config)
    return await create_topics(config)

"""Create the declared topics on Kafka, and compare existing ones with the declaration."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.failures import meaning, named
from flatline.connectors.kafka.security import client_settings
from flatline.engine.wire.envelope import MAX_APPEND_BYTES
from flatline.engine.wire.topics import Topic, partition_count

# Kafka deletes whole segments only, so a topic may exceed its limit by one segment.
_SEGMENTS_PER_RETENTION: Final = 8
_SEGMENT_BYTES: Final = (16 << 20, 1 << 30)

# A compacted topic is read completely at each start and before each action. A low ratio makes Kafka
# compact it early and so keeps it short.
_COMPACT_WHEN_DIRTY_RATIO: Final = 0.1

# A record replaces the control command with the same key, even if Flatline rejects the record. The
# lag keeps that command in the log for a week: a planner that starts within it can restore it.
_COMPACTION_LAG_MS: Final = 7 * 86_400_000
# Settings that must equal the declaration, and those that may exceed it; -1 is unlimited.
_EXACT: Final = ("message.timestamp.type", "cleanup.policy")
_AT_LEAST: Final = (
    "min.insync.replicas", "retention.ms", "retention.bytes", "min.compaction.lag.ms",
)  # fmt: skip
# Overhead of a batch with one record (Kafka documentation, Message Format).
_BATCH_OVERHEAD_BYTES: Final = 512

# A broker learns of a new topic within milliseconds; a loaded one was measured to take a second.
_VISIBLE_TIMEOUT_S: Final = 10.0
_VISIBLE_PAUSE_S: Final = 0.02


def settings_of(topic: Topic, *, replication: int) -> dict[str, str]:
    """Return the broker's settings for one declared topic.

    Source: Kafka documentation, "Topic Configs".

    `replication` is the number of replicas.
    """
    smallest, largest = _SEGMENT_BYTES
    segment_bytes = min(max(topic.retention_bytes // _SEGMENTS_PER_RETENTION, smallest), largest)
    settings = {
        # The append time is the clock of every reader; a writer's own clock must not be used.
        "message.timestamp.type": "LogAppendTime",
        "segment.bytes": str(segment_bytes),
        "compression.type": "producer" if topic.compressed else "uncompressed",
        # With three replicas, two must have a record before it is acknowledged. With two, one is
        # enough, so that one replica can fail without stopping the log.
        "min.insync.replicas": "2" if replication >= 3 else "1",
    }
    if topic.compacted:
        return settings | {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": str(_COMPACT_WHEN_DIRTY_RATIO),
            "min.compaction.lag.ms": str(_COMPACTION_LAG_MS),
        }
    retention_ms = -1 if topic.retention_s is None else topic.retention_s * 1000
    return settings | {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "retention.bytes": str(topic.retention_bytes),
    }


async def create_topics(config: KafkaConfig) -> tuple[str, ...]:
    """Create the declared topics that are missing and return their names, with the prefix.

    Raises
    ------
    LogRefused
        This principal may not create topics.
    LogUnreachable
        No broker created them.
    SettingsError
        See `connectors.kafka.security.client_settings`.
    """
    wanted = {config.topic_prefix + topic.name: topic for topic in config.topics}
    async with _Admin(config) as admin:
        with named("creating topics"):
            existing = await _partition_counts(admin, wanted)
            missing = [
                NewTopic(
                    name=name,
                    num_partitions=partition_count(topic, config.partitions),
                    replication_factor=config.replication,
                    topic_configs=settings_of(topic, replication=config.replication),
                )
                for name, topic in wanted.items()
                if name not in existing
            ]
            if not missing:
                return ()
            answer = await admin.create_topics(missing)
        for name, code, *rest in answer.topic_errors:
            kind = for_code(code)
            # Another process that starts may have created it first.
            if code != 0 and kind is not TopicAlreadyExistsError:
                raise meaning(kind(*rest), f"creating topic {name}")
        await _wait_until_visible(admin, wanted)
    return tuple(topic.name for topic in missing)


async def partition_counts(config: KafkaConfig) -> tuple[str, dict[str, int]]:
    """Return the cluster's id, and the partition counts of the visible declared topics.

    A topic is missing in the result if it does not exist or this principal may not see it.

    Names are with the prefix.

    Raises
    ------
    LogUnreachable, LogRefused, SettingsError
        As for `create_topics`.
    """
    async with _Admin(config) as admin:
        with named("describing topics"):
            cluster = await admin.describe_cluster()
            names = [config.topic_prefix + topic.name for topic in config.topics]
            return str(cluster["cluster_id"]), await _partition_counts(admin, names)


async def describe_problems(config: KafkaConfig) -> tuple[str, ...]:
    """Return one sentence for each difference between the cluster and the declared topics.

    Settings that this principal may not read are not compared.

    Raises
    ------
    LogUnreachable, LogRefused, SettingsError
        As for `create_topics`.
    """
    wanted = {config.topic_prefix + topic.name: topic for topic in config.topics}
    problems: list[str] = []
    async with _Admin(config) as admin:
        with named("describing topics"):
            counts = await _partition_counts(admin, wanted)
            actual = await _settings(admin, counts)
    for name, topic in wanted.items():
        if name not in counts:
            problems.append(f"topic {name} is missing, or this principal may not see it")
            continue
        partitions = partition_count(topic, config.partitions)
        if counts[name] != partitions:
            problems.append(f"topic {name} has {counts[name]} partitions instead of {partitions}")
        declared = settings_of(topic, replication=config.replication)
        problems += [
            f"topic {name} has {setting}={found} instead of {expected}"
            for setting, found, expected in _differing(declared, actual.get(name, {}))
        ]
    return tuple(problems)


def _differing(
    declared: Mapping[str, str], actual: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield setting, actual and expected value, where a topic falls short of the declaration."""
    for setting in _EXACT:
        found = actual.get(setting)
        if found not in (declared[setting], None):
            yield setting, str(found), declared[setting]
    # Flatline compresses only the topics that are declared so. If the broker compresses others,
    # foreign readers, for instance of alerts, may be unable to decompress them.
    compression = actual.get("compression.type")
    if compression not in (declared["compression.type"], "producer", None):
        yield "compression.type", str(compression), declared["compression.type"]
    least = {name: int(declared[name]) for name in _AT_LEAST if name in declared}
    least["max.message.bytes"] = MAX_APPEND_BYTES + _BATCH_OVERHEAD_BYTES
    for setting, expected in least.items():
        text = actual.get(setting)
        if text is None or int(text) == -1:
            continue
        if expected == -1 or int(text) < expected:
            wanted = "no limit (-1)" if expected == -1 else f"at least {expected}"
            yield setting, text, wanted


class _Admin:
    """An admin client for the length of a block."""

    def __init__(self, config: KafkaConfig) -> None:
        self._client = AIOKafkaAdminClient(**client_settings(config))

    async def __aenter__(self) -> AIOKafkaAdminClient:
        with named("connecting to Kafka"):
            await self._client.start()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def _wait_until_visible(admin: AIOKafkaAdminClient, names: Collection[str]) -> None:
    """Return when the queried broker knows the topics, which can be later than their creation."""
    with named("waiting for the new topics"):
        async with asyncio.timeout(_VISIBLE_TIMEOUT_S):
            while True:
                if len(await _partition_counts(admin, names)) == len(names):
                    return
                await asyncio.sleep(_VISIBLE_PAUSE_S)


async def _partition_counts(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    described = await admin.describe_topics(list(names))
    return {
        topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]
    }


async def _settings(
    admin: AIOKafkaAdminClient, names: Iterable[str]
) -> Mapping[str, Mapping[str, str]]:
    """Return the settings of each topic; empty where this principal may not read them."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    try:
        answers = await admin.describe_configs(resources)
    except KafkaError:
        return {}
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for answer in answers
        for _, _, _, name, entries in answer.resources
    }

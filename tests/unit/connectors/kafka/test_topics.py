import pytest

from flatline.connectors.kafka.topics import _differing, settings_of
from flatline.engine.wire.topics import (
    ALERTS,
    CONTROL,
    FRAMES,
    JOURNAL,
    ORDERS,
    REJECTED,
    SNAPSHOTS,
    TOPICS,
    Topic,
)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_the_append_time_is_the_brokers_in_every_topic(topic: Topic) -> None:
    assert settings_of(topic, replication=1)["message.timestamp.type"] == "LogAppendTime"


def test_frames_are_dropped_by_age_and_size() -> None:
    settings = settings_of(FRAMES, replication=3)
    assert settings["cleanup.policy"] == "delete"
    assert settings["retention.ms"] == "172800000"
    assert settings["retention.bytes"] == str(4 << 30)
    assert settings["min.insync.replicas"] == "2"


def test_what_has_no_age_limit_is_kept_until_its_size() -> None:
    assert settings_of(SNAPSHOTS, replication=1)["retention.ms"] == "-1"


def test_control_is_compacted_and_never_dropped() -> None:
    settings = settings_of(CONTROL, replication=1)
    assert settings["cleanup.policy"] == "compact"
    assert not settings.keys() & {"retention.ms", "retention.bytes"}
    assert settings["min.insync.replicas"] == "1"


def test_a_small_topic_has_segments_that_can_be_dropped() -> None:
    for topic in TOPICS:
        segment_bytes = int(settings_of(topic, replication=1)["segment.bytes"])
        assert segment_bytes <= topic.retention_bytes / 4


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_topics_that_others_read_are_declared_without_compression(topic: Topic) -> None:
    small = {ALERTS, ORDERS, JOURNAL, CONTROL, REJECTED}
    declared = settings_of(topic, replication=1)["compression.type"]
    assert declared == ("uncompressed" if topic in small else "producer")
    assert topic.compressed == (topic not in small)


def differing(topic: Topic, **actual: str) -> dict[str, str]:
    declared = settings_of(topic, replication=3)
    return {setting: wanted for setting, _, wanted in _differing(declared, declared | actual)}


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_as_declared_differs_in_nothing(topic: Topic) -> None:
    assert differing(topic) == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max.message.bytes", "500000"),
        ("retention.ms", "1000"),
        ("retention.bytes", "1000"),
        ("min.insync.replicas", "1"),
        ("message.timestamp.type", "CreateTime"),
        ("cleanup.policy", "compact"),
        ("compression.type", "zstd"),
    ],
)
def test_a_setting_below_what_is_declared_is_named(setting: str, value: str) -> None:
    assert set(differing(ALERTS, **{setting: value})) == {setting}


def test_a_setting_beyond_what_is_declared_is_well() -> None:
    more = {
        "max.message.bytes": "10000000", "retention.ms": "-1", "retention.bytes": "-1",
        "min.insync.replicas": "3",
    }  # fmt: skip
    assert differing(ALERTS, **more) == {}


def test_control_commands_stay_for_a_week_though_others_displace_them() -> None:
    assert set(differing(CONTROL, **{"min.compaction.lag.ms": "0"})) == {"min.compaction.lag.ms"}

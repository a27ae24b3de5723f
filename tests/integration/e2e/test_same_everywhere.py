"""The same records lead to the same alerts and the same state, on every log and after crashes."""

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence

import pytest

from deploy.lab.kafka_broker import Cluster
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.detection.replayed import run_records
from flatline.engine.ports import Log, Record
from tests.integration.e2e.replayed import (
    Outcome,
    make_frames_topic,
    outcome,
    recorded,
)

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

KILLS = 20


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return recorded()


@pytest.fixture(scope="module")
def expected(records: list[Record]) -> Outcome:
    """Return the outcome of a plain loop."""
    replay = run_records(records)
    alerts = ((alert.id, alert.transition, alert.state) for alert in replay.alerts)
    return Outcome(tuple(dict.fromkeys(alerts)), replay.digest)


@pytest.fixture
def points(records: list[Record]) -> list[int]:
    """Return twenty points at which an engine is killed, in the order of the records."""
    return sorted(random.Random(5).sample(range(1, len(records)), KILLS))


@pytest.fixture(params=["embedded", "plain", "faust"])
def open_log(
    request: pytest.FixtureRequest, kafka_broker: Cluster
) -> Callable[[], EmbeddedLog | KafkaLog]:
    """Return a function that opens an empty log, new for this test."""
    if request.param == "embedded":
        return lambda: EmbeddedLog(EmbeddedConfig(), clock=SystemClock())
    config = new_installation(kafka_broker)
    return lambda: (KafkaLog if request.param == "plain" else FaustKafkaLog)(config)


def new_installation(cluster: Cluster) -> KafkaConfig:
    config = KafkaConfig(
        bootstrap=cluster.bootstrap,
        topic_prefix=f"{uuid.uuid4().hex[:8]}.",
        create_topics=True,
        session_timeout_s=6.0,
    )
    asyncio.run(make_frames_topic(config))
    return config


def test_every_log_gives_the_alerts_and_the_state_of_a_loop(
    open_log: Callable[[], EmbeddedLog | KafkaLog], records: list[Record], expected: Outcome
) -> None:
    assert "firing" in {state for _, _, state in expected.alerts}
    assert asyncio.run(outcome_on(open_log, records)) == expected


def test_an_engine_ended_at_twenty_points_gives_the_same(
    open_log: Callable[[], EmbeddedLog | KafkaLog],
    records: list[Record],
    points: list[int],
    expected: Outcome,
) -> None:
    assert asyncio.run(outcome_on(open_log, records, kills=points)) == expected


async def outcome_on(
    open_log: Callable[[], Log], records: Sequence[Record], *, kills: Sequence[int] = ()
) -> Outcome:
    async with open_log() as log:
        return await outcome(log, records, kills=kills)

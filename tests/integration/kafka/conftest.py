"""Shared by the Kafka tests: a separate installation for every test."""

import gc
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Generator

import pytest
import pytest_asyncio

from deploy.lab.kafka_broker import Cluster
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.log import KafkaLog
from tests.contracts.log.declared import PARTITIONS, TOPICS

# The suite's name is not a test module's; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.log.suite")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Collect connections that a broker's outage left half open.

    `AIOKafkaClient.bootstrap` does not close its connection when a timeout cancels it, and the
    garbage collector would warn about it in a later test.
    """
    try:
        return (yield)
    finally:
        if item.get_closest_marker("outage"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


@pytest.fixture
def configure(kafka_broker: Cluster) -> Callable[..., KafkaConfig]:
    """Return configurations that share this test's own topics."""
    prefix = f"{uuid.uuid4().hex[:8]}."

    def make(**settings: object) -> KafkaConfig:
        given: dict[str, object] = {
            "bootstrap": kafka_broker.bootstrap,
            "topic_prefix": prefix,
            "topics": TOPICS,
            "partitions": PARTITIONS,
            "create_topics": True,
            # A killed member expires soon; the lab's broker allows sessions from 1 s.
            "session_timeout_s": 3.0,
        }
        return KafkaConfig(**(given | settings))  # type: ignore[arg-type]

    return make


@pytest_asyncio.fixture
async def plain_log(configure: Callable[..., KafkaConfig]) -> AsyncIterator[KafkaLog]:
    async with KafkaLog(configure()) as log:
        yield log

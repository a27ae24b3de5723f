"""Kafka keeps every promise of the port: with plain aiokafka, and through Faust."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from tests.contracts.log.declared import KEYED
from tests.contracts.log.suite import AppendContract, SubscriptionContract, TailContract

pytestmark = pytest.mark.kafka


class TestPlain(AppendContract, TailContract, SubscriptionContract):
    @pytest_asyncio.fixture
    async def log(self, plain_log: KafkaLog) -> AsyncIterator[KafkaLog]:
        yield plain_log


class TestFaust(SubscriptionContract):
    @pytest_asyncio.fixture
    async def log(self, configure: Callable[..., KafkaConfig]) -> AsyncIterator[FaustKafkaLog]:
        async with FaustKafkaLog(configure(), through=frozenset({KEYED.name})) as log:
            yield log

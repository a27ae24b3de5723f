"""The embedded log keeps every promise of the port, in memory and on disk."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from tests.contracts.log.declared import PARTITIONS, TOPICS
from tests.contracts.log.suite import AppendContract, SubscriptionContract, TailContract


class _SteppingClock:
    """Advances by a millisecond at each reading, and goes back by ten at every seventh."""

    def __init__(self) -> None:
        self.readings = 0

    def now_ms(self) -> int:
        self.readings += 1
        return 1_700_000_000_000 + self.readings - (10 if self.readings % 7 == 0 else 0)

    def mono_ns(self) -> int:
        return self.readings * 1_000_000


class TestInMemory(AppendContract, TailContract, SubscriptionContract):
    @pytest_asyncio.fixture
    async def log(self) -> AsyncIterator[EmbeddedLog]:
        config = EmbeddedConfig(partitions=PARTITIONS, topics=TOPICS)
        async with EmbeddedLog(config, clock=_SteppingClock()) as log:
            yield log


class TestOnDisk(AppendContract, TailContract, SubscriptionContract):
    @pytest_asyncio.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
        config = EmbeddedConfig(folder=tmp_path / "log", partitions=PARTITIONS, topics=TOPICS)
        async with EmbeddedLog(config, clock=_SteppingClock()) as log:
            yield log

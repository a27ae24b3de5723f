import asyncio

import pytest
from aiokafka import TopicPartition

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.reading import Reader, stop_consumer


class _Client:
    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class _Consumer:
    """A consumer whose own cancelled fetch propagates from its stop, as aiokafka's does."""

    def __init__(self, *, hangs: bool = False) -> None:
        self._client = _Client()
        self._hangs = hangs

    async def stop(self) -> None:
        if self._hangs:
            await asyncio.get_running_loop().create_future()
        raise asyncio.CancelledError


@pytest.mark.asyncio
async def test_a_cancellation_of_aiokafkas_own_stays_inside() -> None:
    consumer = _Consumer()
    await stop_consumer(consumer)
    assert consumer._client.closed == 1


@pytest.mark.asyncio
async def test_a_cancellation_of_the_caller_passes_and_closes_the_connection() -> None:
    consumer = _Consumer(hangs=True)
    stopping = asyncio.create_task(stop_consumer(consumer))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert consumer._client.closed == 1


class _Growing:
    """A partition that gets its first record between two queries."""

    def __init__(self) -> None:
        self.end = 0

    async def beginning_offsets(self, asked: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(asked, 0)

    async def end_offsets(self, asked: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(asked, self.end)

    async def offsets_for_times(
        self, asked: dict[TopicPartition, int]
    ) -> dict[TopicPartition, None]:
        found = dict.fromkeys(asked)
        self.end += 1
        return found


@pytest.mark.asyncio
async def test_what_is_appended_while_a_moment_is_asked_for_is_not_passed_over() -> None:
    reader = Reader(KafkaConfig(bootstrap="nobody:9092"))
    reader._consumer = _Growing()
    assert await reader.offset_at("orders", 0, time_ms=1_000) == 0

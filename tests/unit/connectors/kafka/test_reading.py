import asyncio

import pytest

from connectors.kafka.reading import stop_consumer


class _Client:
    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class _Consumer:
    """A consumer whose own cancelled fetch comes out of its stop, as aiokafka's does."""

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

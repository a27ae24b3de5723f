import asyncio

import pytest

from flatline.connectors.kafka.pacing import Reach


class _Client:
    """Rejects a given number of attempts immediately."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.attempts = 0

    async def _metadata_update(self, *_: object) -> bool:
        return self._attempt()

    async def ready(self, node: object, **_: object) -> bool:
        return self._attempt()

    def _attempt(self) -> bool:
        self.attempts += 1
        self.refusals -= 1
        return self.refusals < 0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []

    async def pause(wait_s: float) -> None:
        taken.append(wait_s)

    monkeypatch.setattr(asyncio, "sleep", pause)
    return taken


def test_every_refused_metadata_attempt_is_followed_by_a_pause(pauses: list[float]) -> None:
    client = _Client(7)
    Reach("r").calm(client)
    for _ in range(8):
        asyncio.run(client._metadata_update())
    assert client.attempts == 8
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    client.refusals = 1
    asyncio.run(client._metadata_update())
    assert pauses[-1] == 0.1


def test_a_node_that_answers_again_is_asked_at_once_the_next_time(pauses: list[float]) -> None:
    client = _Client(2)
    Reach("r").calm(client)
    for _ in range(3):
        asyncio.run(client.ready(1))
    client.refusals = 1
    asyncio.run(client.ready(1))
    assert pauses == [0.1, 0.2, 0.1]


@pytest.mark.usefixtures("pauses")
def test_being_away_is_known_from_metadata_alone() -> None:
    client = _Client(100)
    reach = Reach("r")
    reach.calm(client)
    asyncio.run(client.ready(1))
    assert reach.away_s == 0.0
    asyncio.run(client._metadata_update())
    assert reach.away_s > 0.0
    client.refusals = 0
    asyncio.run(client._metadata_update())
    assert reach.away_s == 0.0

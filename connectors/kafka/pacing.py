"""Keeps clients calm while no broker answers, and knows how long that has lasted.

aiokafka 0.14 asks for metadata again the moment an attempt failed: with the only broker
stopped in good order its idempotent producer was seen to try 5,500 times a second, which
fills a core and the log. Its fetchers knock ten times a second each. A pause inside the
failing attempt ends that for every client.
"""

import asyncio
import time
from collections import Counter
from typing import Final

import structlog
from aiokafka.client import AIOKafkaClient

# The first failures cost little, so that a broker that restarts is noticed at once; a long
# absence costs one attempt every two seconds.
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 2.0

# An absence shorter than this is a restart, nothing to write about.
_TELL_AFTER_S: Final = 3.0
_TELL_AGAIN_S: Final = 30.0

_log = structlog.get_logger()


class Reach:
    """Whether a client's brokers answer. Safe to read from another thread than the client's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._away_since_s: float | None = None
        self._tell_at_s = 0.0
        self._failures = 0

    @property
    def away_s(self) -> float:
        """For how long no broker has answered; 0 while one does."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def calm(self, client: AIOKafkaClient) -> None:
        """Make every failed attempt of `client` last a while, and tell from them who is away.

        Only metadata tells that: it is asked of every broker in turn, while a node that cannot
        be reached may be one of three.
        """
        update, reach_node = client._metadata_update, client.ready  # noqa: SLF001
        failures: Counter[object] = Counter()

        async def paced_update(*arguments: object) -> bool:
            done = bool(await update(*arguments))
            if done:
                self._answered()
            else:
                await asyncio.sleep(self._failed())
            return done

        async def paced_ready(node: object, **settings: object) -> bool:
            done = bool(await reach_node(node, **settings))
            if done:
                failures.pop(node, None)
            else:
                await asyncio.sleep(pause_s(failures[node]))
                failures[node] += 1
            return done

        client._metadata_update = paced_update  # noqa: SLF001 - where all retries meet
        client.ready = paced_ready

    def _answered(self) -> None:
        if self._away_since_s is not None and self._tell_at_s > 0.0:
            _log.info("Kafka answers again.", client=self._name, away_s=round(self.away_s, 1))
        self._away_since_s = None
        self._tell_at_s = 0.0
        self._failures = 0

    def _failed(self) -> float:
        """Note one more failure and return how long to wait before the next attempt."""
        now_s = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now_s
        away_s = now_s - self._away_since_s
        next_try_s = pause_s(self._failures)
        self._failures += 1
        if away_s >= _TELL_AFTER_S and now_s >= self._tell_at_s:
            self._tell_at_s = now_s + _TELL_AGAIN_S
            _log.warning(
                "Kafka does not answer; trying on.",
                client=self._name,
                away_s=round(away_s, 1),
                next_try_s=next_try_s,
            )
        return next_try_s


def pause_s(failures: int) -> float:
    """Return how long to wait after one more failure: doubled each time, within bounds."""
    return float(min(_FIRST_PAUSE_S * 2 ** min(failures, 10), _LAST_PAUSE_S))

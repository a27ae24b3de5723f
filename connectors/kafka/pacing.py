"""Pace the retries of clients while no broker answers, and measure the length of the outage.

aiokafka 0.14 requests metadata again immediately after a failed attempt. With the only broker
stopped cleanly, its idempotent producer was measured to retry 5,500 times a second, which saturates
a core and fills the log. Its fetchers retry ten times a second each. A pause inside the failing
attempt slows every client.
"""

import asyncio
import time
from collections import defaultdict
from typing import Final

import structlog
from aiokafka.client import AIOKafkaClient

from flatline.engine.stream.backoff import Backoff

# Shortest and longest pause: the first ones are short, so that a restarted broker is detected
# quickly; in a long outage there is one attempt every two seconds.
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 2.0

# A shorter outage is a restart and is not logged.
_REPORT_AFTER_S: Final = 3.0
_REPORT_AGAIN_S: Final = 30.0

_log = structlog.get_logger()


class Reach:
    """Whether a client's brokers answer. Other threads may read it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._away_since_s: float | None = None
        self._report_at_s = 0.0
        self._backoff = _new_backoff()

    @property
    def away_s(self) -> float:
        """How long no broker has answered, in s; 0 while one does."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def calm(self, client: AIOKafkaClient) -> None:
        """Delay every failed attempt of `client`, and derive from them whether the brokers answer.

        Only metadata requests show whether the brokers answer, because they go to every broker in
        turn. A single unreachable broker may be one of three.
        """
        update, reach_node = client._metadata_update, client.ready  # noqa: SLF001
        nodes: defaultdict[object, Backoff] = defaultdict(_new_backoff)

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
                nodes.pop(node, None)
            else:
                await asyncio.sleep(nodes[node].failed())
            return done

        client._metadata_update = paced_update  # noqa: SLF001 - where all retries meet
        client.ready = paced_ready

    def _answered(self) -> None:
        if self._away_since_s is not None and self._report_at_s > 0.0:
            _log.info("Kafka answers again.", client=self._name, away_s=round(self.away_s, 1))
        self._away_since_s = None
        self._report_at_s = 0.0
        self._backoff.worked()

    def _failed(self) -> float:
        """Record one more failure and return how long to wait before the next attempt, in s."""
        now_s = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now_s
        away_s = now_s - self._away_since_s
        next_try_s = self._backoff.failed()
        if away_s >= _REPORT_AFTER_S and now_s >= self._report_at_s:
            self._report_at_s = now_s + _REPORT_AGAIN_S
            _log.warning(
                "Kafka does not answer. Retrying.",
                client=self._name,
                away_s=round(away_s, 1),
                next_try_s=next_try_s,
            )
        return next_try_s


def _new_backoff() -> Backoff:
    return Backoff(_FIRST_PAUSE_S, _LAST_PAUSE_S)

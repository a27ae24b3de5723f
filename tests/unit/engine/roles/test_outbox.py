"""No record of a planner or agent is lost without a report."""

import asyncio
from typing import cast

from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from flatline.engine.errors import LogUnreachable
from flatline.engine.ports import Log
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import Outbox


class SilentLog:
    """A log that is unreachable."""

    async def append(self, topic: str, **record: object) -> None:
        raise LogUnreachable(f"{topic} is away.")


class StandingClock:
    def mono_ns(self) -> int:
        return 0


def test_what_still_waits_when_the_role_ends_is_counted_and_logged() -> None:
    labels = {"topic": "topic"}
    before = REGISTRY.get_sample_value("flatline_outbox_unsaid_total", labels) or 0.0

    async def scene() -> None:
        outbox = Outbox(cast(Log, SilentLog()), health=Health(StandingClock()))
        running = asyncio.create_task(outbox.run())
        outbox.put("topic", key=b"one", value=b"1")
        outbox.put("topic", key=b"two", value=b"2")
        assert not await outbox.emptied(within_s=0.01)
        running.cancel()
        await asyncio.wait([running])

    with capture_logs() as lines:
        asyncio.run(scene())
    lost = [line["key"] for line in lines if line["log_level"] == "error"]
    assert lost == ["one", "two"]
    assert REGISTRY.get_sample_value("flatline_outbox_unsaid_total", labels) == before + 2.0

"""A real node with all four roles: only the guests' behaviour causes alerts and orders.

Collector, engine, planner and agent are separate processes on one embedded log.
"""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from deploy.lab.libvirt_lab import Lab, wait_until
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.order import Order
from flatline.engine.wire.score import decode_scores
from flatline.engine.wire.topics import ALERTS, FRAMES, SCORES
from tests.integration.e2e.process import Process
from tests.integration.libvirt.acting import CELL, NODE, PARTITIONS, ActingNode

# An engine without cached kernels compiles for a minute of a core; the limits for each step of a
# repair are those of the end-to-end tests.
ENGINE_S = 300.0
ORDER_S = 150.0

SAMPLED = """
[collect]
interval_s = {interval_s}
libvirt_uri = "{uri}"
"""


class WatchedNode(ActingNode):
    """An acting node with a collector, an engine and a planner; entering starts all of them.

    Parameters
    ----------
    past
        Append times in ms and frames that are in the log before any role starts.
    interval_s
        Interval between samples.
    """

    def __init__(
        self,
        folder: Path,
        lab: Lab,
        *,
        past: Iterable[tuple[int, bytes]] = (),
        interval_s: float = 2.0,
        **changes: Any,
    ) -> None:
        super().__init__(folder, lab, **changes)
        settings = self.agent.config.read_text() + SAMPLED.format(
            interval_s=interval_s, uri=lab.ro_uri(NODE)
        )
        self._watching = [
            Process(role, role, folder=folder / role, settings=settings)
            for role in ("engine", "collect")
        ]
        self._past = past

    def __enter__(self) -> Self:
        self._fill()
        try:
            super().__enter__()
            self.start_planner()
            for process in self._watching:
                process.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._watching:
            if exc is not None:
                exc.add_note(process.log[-3000:])
            process.end()
        super().__exit__(exc_type, exc, traceback)

    def knows(self, count: int) -> None:
        """Wait until `count` frames of guests have arrived since the engine has read its past."""
        wait_until(
            self._has_read_its_past, within_s=ENGINE_S, what="an engine that judges the present"
        )
        before = self._sampled()
        wait_until(
            lambda: self._sampled() >= before + count,
            within_s=ENGINE_S,
            what="a node that is known",
        )

    def alerts(self, vm: bytes) -> list[Alert]:
        """Return the engine's alerts on a guest, oldest first."""
        subject = str(UUID(bytes=vm))
        alerts = (decode_alert(record.value) for record in self._read(ALERTS.name))
        return [alert for alert in alerts if alert.subject == subject]

    def ordered(self, vm: bytes) -> Order:
        """Return the first order for a guest, once there is one."""
        subject = str(UUID(bytes=vm))

        def found() -> list[Order]:
            return [order for order in self.orders() if order.vm == subject]

        wait_until(lambda: bool(found()), within_s=ORDER_S, what=f"an order for {subject}")
        return found()[0]

    def check(self) -> None:
        """Raise AssertionError when a process has ended unexpectedly."""
        for process in (self.agent, self.planner, *self._watching):
            process.check()

    def _has_read_its_past(self) -> bool:
        self.check()
        # A minute is published when it is over; before the first one no VM is known.
        minutes = [decode_scores(record.value).minute_ms for record in self._read(SCORES.name)]
        return not self._has_past or (bool(minutes) and minutes[-1] >= self._began_ms - 120_000)

    def _sampled(self) -> int:
        self.check()
        frames = (decode_frame(record.value) for record in self._read(FRAMES.name)[-500:])
        return sum(frame.header.run != "past" and len(frame.rows) > 0 for frame in frames)

    def _fill(self) -> None:
        config = EmbeddedConfig(folder=self.agent.state / "log", partitions=PARTITIONS)
        past, key = list(self._past), CELL.encode()
        # All roles share the state folder of the agent, including keys.
        ring = FrameKeyring(self.agent.state / "keys", SystemClock(), making=True)
        sign = ring.signer("node", NODE)
        self._has_past, self._began_ms = bool(past), int(time.time() * 1000)

        async def filled() -> None:
            async with EmbeddedLog(config, clock=SystemClock()) as log:
                for time_ms, frame in past:
                    await log.append(
                        FRAMES.name, key=key, value=frame, headers=sign(key, frame), time_ms=time_ms
                    )

        if past:
            asyncio.run(filled())

"""An engine killed at any append repeats alerts without repeated actions; on `virtual_time`."""

import asyncio
from typing import Any

import msgspec
import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedLog
from flatline.engine.action.catalogue import Modes
from flatline.engine.action.events import AlertSeen, AppendOrder, CaughtUp, OrderSeen
from flatline.engine.action.planner import step
from flatline.engine.action.state import PlannerState
from flatline.engine.ports import Position
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.order import Order
from flatline.engine.wire.topics import ALERTS, SNAPSHOTS
from tests.simulation.acting_site import LAB
from tests.unit.engine.roles.test_detect import (
    Engine,
    alerts_in,
    append_all,
    panicked,
    played,
)

POLICY = msgspec.structs.replace(
    LAB,
    modes=Modes(default="auto"),
    # The guests of these frames are two minutes old.
    limits=msgspec.structs.replace(LAB.limits, newborn_s=0),
)


class DyingLog:
    """The log of an engine that is killed directly before or after its durable step `at`."""

    def __init__(self, log: EmbeddedLog, *, at: int | None, durable: bool) -> None:
        self._log = log
        self._at = at
        self._durable = durable
        self.steps: list[str] = []
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def _step(self, name: str) -> bool:
        """Return whether the step is still done; a killed engine does none."""
        self.steps.append(name)
        if self._at is None or len(self.steps) <= self._at:
            return True
        return self._durable and len(self.steps) == self._at + 1

    async def _die(self) -> None:
        if self._at is not None and len(self.steps) > self._at:
            self.dead.set()
            await asyncio.get_running_loop().create_future()

    async def append(self, topic: str, **record: Any) -> Position:
        if topic not in (ALERTS.name, SNAPSHOTS.name):
            return await self._log.append(topic, **record)
        position = Position(0, -1)
        if await self._step(topic):
            position = await self._log.append(topic, **record)
        await self._die()
        return position


def said(at: int | None, *, durable: bool) -> tuple[list[str], list[Alert]]:
    """Return the durable steps of an engine's first run, and all alerts of both its runs."""
    steps: list[str] = []
    alerts: list[Alert] = []

    async def scene(log: EmbeddedLog, clock: LoopClock) -> None:
        await append_all(log, panicked())
        dying = DyingLog(log, at=at, durable=durable)
        first = Engine(dying, clock)
        if at is None:
            await asyncio.sleep(40.0)
        else:
            async with asyncio.timeout(60.0):
                await dying.dead.wait()
        await first.kill()
        second = Engine(log, clock)
        await asyncio.sleep(5.0)
        await second.kill()
        steps.extend(dying.steps)
        alerts.extend(await alerts_in(log))

    played(scene)
    return steps, alerts


def orders_for(alerts: list[Alert]) -> list[Order]:
    """Return the orders of a planner that reads these alerts from the log."""
    state, orders, now_ms = PlannerState(name="p", site="site"), list[Order](), 0
    state, _ = step(state, CaughtUp(alerts[0].decided_ms), POLICY)
    for alert in alerts:
        now_ms = max(now_ms, alert.decided_ms)
        state, instructions = step(state, AlertSeen(alert, now_ms, now_ms), POLICY)
        for order in [i.order for i in instructions if isinstance(i, AppendOrder)]:
            seen = OrderSeen(order, len(orders), now_ms, now_ms)
            orders.append(order)
            state, _ = step(state, seen, POLICY)
    return orders


@pytest.mark.slow
def test_an_engine_killed_at_any_append_leads_to_one_order() -> None:
    steps, alerts = said(None, durable=True)
    assert set(steps) == {ALERTS.name, SNAPSHOTS.name}
    [first] = orders_for(alerts)
    repeated = 0
    for at in range(len(steps)):
        for durable in (False, True):
            _, again = said(at, durable=durable)
            given = [(order.incident, order.step, order.vm) for order in orders_for(again)]
            assert given == [(first.incident, 0, first.vm)], (steps[at], durable)
            repeated += any(again.count(alert) > 1 for alert in again)
    # The kill did make engines repeat themselves, or this would show nothing.
    assert repeated

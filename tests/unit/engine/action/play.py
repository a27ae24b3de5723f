"""A planner that receives the events of a test one by one."""

from typing import Any

import msgspec

from flatline.engine.action.catalogue import Policy
from flatline.engine.action.events import (
    AlertSeen,
    AppendControl,
    AppendOrder,
    CaughtUp,
    Instruction,
    OrderSeen,
    PlannerEvent,
    ResultSeen,
    Tick,
    WriteJournal,
)
from flatline.engine.action.incident import Phase
from flatline.engine.action.planner import step
from flatline.engine.action.state import PlannerState
from flatline.engine.faults import Step
from flatline.engine.wire.alert import Alert, Resolution
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Order, OrderResult
from tests.unit.engine.action.samples import NOW_MS, POLICY, alert, mark

ESCALATION = (Step(action="reset", deadline_s=300, stable_s=20),) * 2
TWO_RESETS = msgspec.structs.replace(POLICY, ladders={"panic_spin": ESCALATION})
INCIDENT = alert().id


class Play:
    """A planner that receives events one by one; `now_s` counts from its start."""

    def __init__(self, policy: Policy = TWO_RESETS, *, live: bool = True) -> None:
        self.policy = policy
        self.state = PlannerState(name="p", site="site")
        self.now_ms = NOW_MS
        self.offset = 0
        self.words: list[WriteJournal] = []
        self.given: list[Order] = []
        self.said: list[Control] = []
        if live:
            self.feed(CaughtUp(NOW_MS))

    def feed(self, event: PlannerEvent) -> tuple[Instruction, ...]:
        self.state, done = step(self.state, event, self.policy)
        self.words += [entry for entry in done if isinstance(entry, WriteJournal)]
        self.given += [one.order for one in done if isinstance(one, AppendOrder)]
        self.said += [one.control for one in done if isinstance(one, AppendControl)]
        return done

    def wait(self, seconds: float) -> None:
        self.now_ms += round(1000 * seconds)
        self.feed(Tick(self.now_ms))

    def fires(self, **changes: Any) -> Alert:
        said = alert(**({"decided_ms": self.now_ms} | changes))
        self.feed(AlertSeen(said, self.now_ms, self.now_ms))
        return said

    def stands(self, given: Order | None = None) -> Order:
        """Let the planner read the newest order, or another, back from the log."""
        given = given or self.given[-1]
        self.feed(OrderSeen(given, self.offset, self.now_ms, self.now_ms))
        self.offset += 1
        return given

    def ends(self, **changes: Any) -> None:
        closing: OrderResult = mark(self.given[-1], time_ms=self.now_ms, **changes)
        self.feed(ResultSeen(closing, self.now_ms, self.now_ms))

    def resolves(self, *, verified: bool = True, stable_s: float = 30.0, **changes: Any) -> None:
        resolution = Resolution(
            reason="it booted.", verified=verified, stable_s=stable_s, node="n1", instance=70
        )
        self.fires(**({"state": "resolved", "transition": 2, "resolution": resolution} | changes))

    @property
    def phase(self) -> Phase:
        return self.state.incidents[INCIDENT].phase

    @property
    def last(self) -> WriteJournal:
        return self.words[-1]

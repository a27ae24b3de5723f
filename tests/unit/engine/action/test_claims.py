"""Only the first claim in the log may execute a step."""

from typing import Any

import pytest

from flatline.engine.action.admit import claim_of, claimed
from flatline.engine.wire.order import Claim, Order
from tests.unit.engine.action.samples import NOW_MS, OTHER_VM, history, order


def claim(given: Order, **changes: Any) -> Claim:
    values: dict[str, Any] = {
        "incident": given.incident,
        "step": given.step,
        "vm": given.vm,
        "node": given.node,
        "agent": "n0/run",
        "dry_run": False,
        "time_ms": NOW_MS,
    }
    return Claim(**(values | changes))


def test_the_first_claim_of_a_step_wins() -> None:
    log = history(order(), ends=None)
    assert claim_of(log, order()) is None
    log = claimed(log, claim(order()), time_ms=NOW_MS + 5_000)
    log = claimed(log, claim(order(), agent="n0/other"), time_ms=NOW_MS + 5_001)
    found = claim_of(log, order())
    assert found is not None
    assert found.agent == "n0/run"


@pytest.mark.parametrize(
    ("changes", "at_ms"),
    [
        ({"node": "n1"}, 5_000),
        ({"vm": OTHER_VM}, 5_000),
        ({"step": 1}, 5_000),
        ({"incident": "b" * 32}, 5_000),
        ({}, 60_000),
    ],
    ids=["foreign node", "other VM", "other step", "other incident", "after the expiry"],
)
def test_a_claim_of_something_else_or_too_late_is_none(changes: dict[str, Any], at_ms: int) -> None:
    log = claimed(history(order(), ends=None), claim(order(), **changes), time_ms=NOW_MS + at_ms)
    assert claim_of(log, order()) is None


def test_a_step_that_ended_cannot_be_claimed_any_more() -> None:
    log = claimed(history(order()), claim(order()), time_ms=NOW_MS + 11_000)
    assert claim_of(log, order()) is None


def test_a_claim_before_its_order_is_none() -> None:
    log = claimed((), claim(order()), time_ms=NOW_MS)
    assert log == ()

"""Limits per VM and node again, from the actions that the node itself executed."""

from typing import Any

import pytest

from flatline.engine.action.ledger import Ledger, LedgerState, StepEntry, entered
from flatline.engine.action.ledger_rules import within_limits
from tests.unit.engine.action.samples import DEFAULT, NOW_MS, OTHER_VM, VM, order

LIMITS = DEFAULT.limits
HOUR_S = 3_600
RETURNED: tuple[LedgerState, ...] = ("accepted", "sent", "returned")


def carried_out(
    ledger: Ledger, incident: str, *, ago_s: float, states: tuple[LedgerState, ...] = RETURNED,
    **changes: Any,
) -> Ledger:  # fmt: skip
    """Return the ledger with one more step, accepted some time ago."""
    values: dict[str, Any] = {
        "incident": incident,
        "step": 0,
        "vm": VM,
        "action": "reset",
        "dry_run": False,
        "sentence": "s",
    }
    for number, state in enumerate(states):
        time_ms = NOW_MS - round(1000 * ago_s) + number
        entry = StepEntry(state=state, time_ms=time_ms, **(values | changes))
        ledger = entered(ledger, entry)
    return ledger


def rule(ledger: Ledger, **changes: Any) -> str:
    dry_run = changes.pop("rehearsed", False)
    given = order(DEFAULT, **changes)
    return within_limits(ledger, given, LIMITS, now_ms=NOW_MS, dry_run=dry_run).rule


def test_a_node_that_did_nothing_yet_may_act() -> None:
    assert rule(Ledger()) == "admitted"


@pytest.mark.parametrize(("ago_s", "expected"), [(1_700, "vm_spacing"), (1_741, "admitted")])
def test_one_vm_is_acted_on_once_in_half_an_hour(ago_s: float, expected: str) -> None:
    """Minus the minute that an order lives before it is accepted."""
    assert rule(carried_out(Ledger(), "b", ago_s=ago_s)) == expected


@pytest.mark.parametrize(("last_s", "expected"), [(20, "vm_day"), (24, "admitted")])
def test_one_vm_is_acted_on_three_times_a_day(last_s: float, expected: str) -> None:
    ledger = Ledger()
    for incident, hours in (("b", last_s), ("c", 10), ("d", 5)):
        ledger = carried_out(ledger, incident, ago_s=hours * HOUR_S)
    assert rule(ledger) == expected


def test_a_node_acts_twice_in_ten_minutes() -> None:
    ledger = carried_out(Ledger(), "b", ago_s=300, vm=OTHER_VM)
    assert rule(ledger) == "admitted"
    ledger = carried_out(ledger, "c", ago_s=200, vm=OTHER_VM)
    assert rule(ledger) == "node_budget"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("accepted", "refused"), "vm_spacing"),
        (("accepted", "sent", "unknown"), "vm_spacing"),
        (("accepted",), "vm_spacing"),
        (("accepted", "elsewhere"), "admitted"),
        (("accepted", "sent", "returned", "marked"), "vm_spacing"),
    ],
)
def test_what_was_accepted_is_spent_however_it_ended(
    states: tuple[LedgerState, ...], expected: str
) -> None:
    assert rule(carried_out(Ledger(), "b", ago_s=60, states=states)) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("accepted", "sent", "returned", "marked"), "admitted"),
        (("accepted", "sent", "unknown"), "vm_spacing"),
    ],
)
def test_the_next_step_of_an_incident_keeps_its_own_distance_where_the_last_was_tried(
    states: tuple[LedgerState, ...], expected: str
) -> None:
    ledger = carried_out(Ledger(), "a" * 32, ago_s=900, states=states)
    assert rule(ledger, step=1) == expected


def test_the_step_itself_does_not_stand_in_its_own_way() -> None:
    assert rule(carried_out(Ledger(), "a" * 32, ago_s=1, states=("accepted",))) == "admitted"


def test_a_rehearsal_spends_what_rehearsals_may_and_nothing_else() -> None:
    ledger = carried_out(Ledger(), "b", ago_s=60, dry_run=True)
    assert rule(ledger) == "admitted"
    assert rule(ledger, rehearsed=True) == "vm_spacing"


def test_saving_evidence_spends_nothing_and_needs_nothing() -> None:
    ledger = carried_out(Ledger(), "b", ago_s=60, action="save_evidence")
    assert rule(ledger) == "admitted"
    assert rule(carried_out(Ledger(), "b", ago_s=60), action="save_evidence") == "admitted"

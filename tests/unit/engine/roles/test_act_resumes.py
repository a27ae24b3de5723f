"""An agent that was killed between a reset and its resume only does the resume."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.engine.action.ledger import StepEntry, encode_ledger_entry
from flatline.engine.errors import ActionRefused
from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.roles.outbox import PAGE
from flatline.engine.wire.order import Order
from tests.simulation.acting_site import Site, acting_site, panic
from tests.unit.engine.action.samples import order as sample_order
from tests.unit.engine.action.samples import past
from tests.unit.engine.roles.test_act import only_result

LEFT = {"state": "paused", "state_reason": "crashed"}


class Paused(SimulatedActuator):
    """A hypervisor that shows VM 0 in a given state, and counts resumes."""

    def __init__(self, site: Site, shown: dict[str, Any], *, refuses: bool = False) -> None:
        super().__init__(site.fleet.world, "c0-n0")
        self._shown = shown
        self._refuses = refuses
        self.resumed: list[Permit] = []

    async def sample(self, vm: bytes) -> PreflightSample:
        return replace(await super().sample(vm), **self._shown)

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        if self._refuses:
            raise ActionRefused("the VM was restarted after the verdict")
        self.resumed.append(permit)


def cut_off(order: Order, **changes: Any) -> EmbeddedLedger:
    """Return the ledger of an agent that was killed during the call of `order`."""
    ledger = EmbeddedLedger(None)
    for state in ("accepted", "sent"):
        values: dict[str, Any] = {
            "state": state,
            "incident": order.incident,
            "step": order.step,
            "vm": order.vm,
            "action": order.action,
            "dry_run": False,
            "time_ms": order.issued_ms,
            "sentence": order.sentence,
            "deadline_ms": order.deadline_ms,
            "instance": order.instance,
        }
        ledger.append(encode_ledger_entry(StepEntry(**(values | changes))))
    return ledger


def killed_between(
    shown: dict[str, Any],
    *,
    away_s: float = 5.0,
    refuses: bool = False,
    command: Callable[[Site], Any] | None = None,
    **changes: Any,
) -> tuple[int, str, str, bool]:
    """Return the number of resumes of VM 0, outcome and sentence, and whether a page was sent."""
    reported: list[tuple[int, str, str, bool]] = []

    async def played() -> None:
        async with acting_site(panic()) as site:
            await asyncio.sleep(20.0)
            said = site.alert()
            given = sample_order(
                vm=said.subject,
                group=said.group,
                instance=said.instance,
                node="c0-n0",
                opened_ms=said.opened_ms,
            )
            order = past(given, ago_s=(given.issued_ms - site.clock.now_ms()) / 1000)
            await site.order(order)
            actuator = site.actuators["c0-n0"] = Paused(site, shown, refuses=refuses)
            site.ledgers["c0-n0"] = cut_off(order, **changes)
            if command is not None:
                await command(site)
            await asyncio.sleep(away_s)
            site.start_agent()
            mark = await only_result(site)
            assert isinstance(actuator, Paused)
            assert not site.resets()
            pages = [
                PAGE in entry.detail for entry in await site.journal() if entry.kind == "outcome"
            ]
            reported.append((len(actuator.resumed), mark.outcome, mark.sentence, pages == [True]))

    virtual_time.run(played())
    return reported[0]


def test_a_vm_that_its_reset_left_paused_is_resumed_and_nothing_is_reset_again() -> None:
    resumed, outcome, sentence, paged = killed_between(LEFT)
    assert (resumed, outcome, paged) == (1, "returned", False)
    assert sentence.startswith("The agent stopped between the reset of")


@pytest.mark.parametrize(
    "shown",
    [
        {"state": "paused", "state_reason": "other"},
        {"state": "crashed", "state_reason": "crashed"},
        {"state": "running"},
    ],
    ids=["a person paused it", "nobody reset it", "it runs"],
)
def test_any_other_state_proves_nothing_and_a_person_is_paged(shown: dict[str, Any]) -> None:
    resumed, outcome, sentence, paged = killed_between(shown)
    assert (resumed, outcome, paged) == (0, "unknown", True)
    assert f"state {shown['state']} of the VM does not show the result" in sentence


def test_another_run_of_the_vm_is_not_resumed() -> None:
    assert killed_between(LEFT | {"instance": 99})[:2] == (0, "unknown")


def test_a_vm_whose_owner_has_opted_out_since_is_not_resumed() -> None:
    assert killed_between(LEFT | {"opted_out": True})[:2] == (0, "unknown")


def test_a_ledger_that_does_not_know_the_run_leads_to_no_resume() -> None:
    assert killed_between(LEFT, instance=None)[:2] == (0, "unknown")


def test_a_rehearsal_that_was_cut_off_leads_to_no_resume() -> None:
    assert killed_between(LEFT, dry_run=True)[:2] == (0, "unknown")


def test_after_the_steps_deadline_no_call_follows() -> None:
    resumed, outcome, sentence, paged = killed_between(LEFT, away_s=3_600.0)
    assert (resumed, outcome, paged) == (0, "unknown", True)
    assert "stays paused. A person must resume it. The order is not in the log, was" in sentence


def test_a_site_that_was_paused_meanwhile_is_left_as_it_is() -> None:
    resumed, outcome, sentence, paged = killed_between(
        LEFT, command=lambda site: site.control(kind="pause", scope="site", subject="")
    )
    assert (resumed, outcome, paged) == (0, "unknown", True)
    assert sentence.endswith("A person must resume it. Site is paused by ann: work.")


def test_a_resume_that_is_refused_does_not_say_that_there_was_no_reset() -> None:
    resumed, outcome, sentence, _ = killed_between(LEFT, refuses=True)
    assert (resumed, outcome) == (0, "unknown")
    assert "the VM was restarted after the verdict" in sentence

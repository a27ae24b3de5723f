"""An open incident keeps earlier findings; some are revoked by a new one."""

from typing import Any

import pytest

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.forest import new_forest
from flatline.engine.detection.incidents import SLOW_KINDS, settle
from flatline.engine.detection.outcomes import Finding
from flatline.engine.faults import kind_of
from flatline.engine.wire.alert import Alert, SamplePosition

SUBJECT = "6e1a2b3c-0000-4000-8000-000000000001"


def finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "scope": "vm",
        "subject": SUBJECT,
        "kind": "panic_spin",
        "firing": True,
        "severity": "critical",
        "suggestion": "reboot",
        "confidence": 0.99,
        "onset_ms": 1_000,
        "position": SamplePosition(node="n0", role="collector", run="r", sequence=1),
        "sentence": "It spins.",
        "node": "n0",
        "instance": 7,
    }
    values |= changes
    return Finding(**(values | {"kind": kind_of(values["kind"])}))


def report(cell: Cell, reported: Finding, time_ms: int) -> list[Alert]:
    return settle(cell, [reported], Now(time_ms, Configuration()))


def after(suspicion: Finding) -> Alert:
    """Return the last alert on a VM to be rebooted that is then only suspected."""
    cell = Cell("cell", site="site", zone="zone", forest=new_forest())
    alerts = report(cell, finding(), 10_000)
    alerts += report(cell, suspicion, 80_000)
    assert alerts[-1].decided_ms == 80_000
    return alerts[-1]


def test_a_weaker_sign_of_the_same_fault_changes_nothing() -> None:
    last = after(finding(kind="panic_halt", firing=False, suggestion="alert"))
    assert (last.kind, last.state, last.suggested_action) == ("panic_spin", "firing", "reboot")


@pytest.mark.parametrize(
    "changes", [{"vetoes": ("log_outage",)}, {"instance": 8}], ids=["a veto", "another run"]
)
def test_what_was_asked_for_does_not_outlive_a_veto_or_the_run(changes: dict[str, Any]) -> None:
    last = after(finding(firing=False, suggestion="alert", **changes))
    assert (last.state, last.suggested_action, last.transition) == ("firing", "alert", 1)


HOUR_MS = 3_600_000


def with_slow(kind: str, *, sequence: int = 1) -> tuple[Cell, Alert]:
    """Return a cell with a finding over hours, and its alert."""
    cell = Cell("cell", site="site", zone="zone", forest=new_forest())
    position = SamplePosition(node="n0", role="collector", run="r", sequence=sequence)
    slow = finding(kind=kind, suggestion="alert", severity="warning", position=position)
    return cell, report(cell, slow, 10_000)[0]


@pytest.mark.parametrize("kind", sorted(SLOW_KINDS))
def test_a_panic_in_a_slow_incident_of_yesterday_is_an_incident_that_opens_now(kind: str) -> None:
    cell, slow = with_slow(kind)
    now_ms = 25 * HOUR_MS
    position = SamplePosition(node="n0", role="collector", run="r", sequence=9_000)
    panic = finding(position=position, onset_ms=now_ms - 30_000)
    ended, opened = report(cell, panic, now_ms)
    assert (ended.id, ended.state, ended.kind, ended.transition) == (slow.id, "resolved", kind, 1)
    assert ended.resolution is not None
    assert (ended.resolution.superseded_by, ended.resolution.verified) == (opened.id, False)
    assert opened.id != slow.id
    assert (opened.kind, opened.state, opened.transition) == ("panic_spin", "firing", 0)
    assert (opened.opened_ms, opened.onset_ms) == (now_ms, now_ms - 30_000)
    again = report(cell, panic, now_ms + 60_000)
    assert [(alert.id, alert.opened_ms) for alert in again] == [(opened.id, now_ms)]


def test_a_slow_incident_reported_anew_as_another_slow_kind_keeps_its_id() -> None:
    cell, slow = with_slow("mem_leak")
    other = finding(kind="cpu_runaway", suggestion="alert")
    (alert,) = report(cell, other, HOUR_MS)
    assert (alert.id, alert.kind, alert.opened_ms) == (slow.id, "cpu_runaway", slow.opened_ms)


def test_a_mere_suspicion_neither_ends_nor_rewrites_a_slow_incident() -> None:
    cell, slow = with_slow("cpu_runaway")
    suspicion = finding(firing=False, suggestion="alert", sentence="Watching.")
    (alert,) = report(cell, suspicion, HOUR_MS)
    assert (alert.id, alert.kind, alert.sentence) == (slow.id, "cpu_runaway", slow.sentence)


def test_a_panic_that_began_in_the_very_sample_of_a_slow_incident_opens_now_all_the_same() -> None:
    cell, slow = with_slow("mem_leak", sequence=1)
    panic = finding(onset_ms=9_000)
    (alert,) = report(cell, panic, 70_000)
    assert (alert.id, alert.kind, alert.transition) == (slow.id, "panic_spin", 1)
    assert (alert.opened_ms, alert.onset_ms) == (70_000, 9_000)


def test_a_death_that_is_to_be_ordered_is_reported_at_once_where_a_hang_was_reported_before() -> (
    None
):
    cell = Cell("cell", site="site", zone="zone", forest=new_forest())
    hang = finding(kind="hung_userland", suggestion="alert")
    report(cell, hang, 10_000)
    (last,) = report(cell, finding(kind="panic_halt"), 20_000)
    assert (last.kind, last.suggested_action) == ("panic_halt", "reboot")

"""What an open incident keeps of what was said before, and what a new finding takes back."""

from typing import Any

import pytest

from engine.detection.cell import Cell
from engine.detection.configuration import Configuration
from engine.detection.forest import new_forest
from engine.detection.incidents import Finding, report
from engine.wire.alert import Alert, SamplePosition

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
    return Finding(**(values | changes))


def after(suspicion: Finding) -> Alert:
    """Return what is published last about a VM to be rebooted that is then only suspected."""
    cell = Cell("cell", site="site", zone="zone", forest=new_forest())
    configuration = Configuration()
    alerts = report(cell, finding(), time_ms=10_000, configuration=configuration)
    alerts += report(cell, suspicion, time_ms=80_000, configuration=configuration)
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

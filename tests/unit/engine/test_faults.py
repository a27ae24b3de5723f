"""The row of each kind of fault is whole, and only one place applies what detectors find."""

import pytest

from flatline.engine.faults import Kind, kind_of
from flatline.models.kernels import trends
from tests.slices import ROOT


@pytest.mark.parametrize("kind", Kind)
def test_the_row_of_a_kind_fits_its_recovery(kind: Kind) -> None:
    fault = kind.fault
    assert kind.value == kind.name.lower()
    assert (fault.signal in trends.OUT) == (fault.recovery == "signal")
    assert (fault.calm_s > 0) == (fault.recovery == "time") == (fault.family == "notice")
    assert fault.meaning
    assert not fault.meaning.endswith(".")


def test_a_policy_answers_every_fault_of_a_vm_and_nothing_else() -> None:
    answered = {kind for kind in Kind if kind.fault.escalation.steps}
    of_vms = {kind for kind in Kind if "vm" in kind.fault.scopes and kind.fault.family != "notice"}
    assert answered == of_vms


def test_a_kind_that_only_a_monitor_knows_has_no_row() -> None:
    assert kind_of("panic_spin") is Kind.PANIC_SPIN
    assert kind_of("fan_failed") is None


def test_one_place_of_a_window_applies_what_detectors_find() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "engine/detection").glob("*.py")}
    calls = {name: text.count("settle(cell,") for name, text in sources.items()}
    assert {name: count for name, count in calls.items() if count} == {
        "judge.py": 1,
        "partition.py": 1,
    }

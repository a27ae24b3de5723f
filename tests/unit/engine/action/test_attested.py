"""Reports of a crash for which no day of history is required, by sender."""

import msgspec
import pytest

from flatline.engine.wire.alert import EvidenceItem
from tests.unit.engine.action.play import TWO_RESETS, Play
from tests.unit.engine.action.samples import POLICY


def test_a_newborn_vm_that_says_itself_that_it_crashed_is_ordered() -> None:
    limits = msgspec.structs.replace(POLICY.limits, newborn_s=86_400)
    reported = EvidenceItem(signal="told", text="The panic device reported a panic")
    play = Play(msgspec.structs.replace(TWO_RESETS, limits=limits))
    play.fires(history_s=60.0)
    assert play.last.rule == "newborn"
    heard = {"evidence": (reported,), "witnesses": ("activity", "guest")}
    play.fires(history_s=60.0, **heard)
    assert play.given[0].attested


@pytest.mark.parametrize(
    ("signal", "witnesses"),
    [
        ("console_panic", ("activity", "guest")),
        ("agent_silent", ("activity", "guest")),
        ("watchdog", ("activity", "balloon")),  # its evidence did not reach its minimum
        ("balloon", ("activity", "balloon")),
    ],
)
def test_a_newborn_vm_is_attested_by_its_devices_alone(
    signal: str, witnesses: tuple[str, ...]
) -> None:
    limits = msgspec.structs.replace(POLICY.limits, newborn_s=86_400)
    play = Play(msgspec.structs.replace(TWO_RESETS, limits=limits))
    said = (EvidenceItem(signal=signal, nats=9.0),)
    play.fires(history_s=60.0, evidence=said, witnesses=witnesses)
    assert play.last.rule == "newborn"


@pytest.mark.parametrize(("signal", "witness"), [("watchdog", "guest"), ("crashed", "hypervisor")])
def test_a_watchdog_and_the_hypervisor_attest_as_well(signal: str, witness: str) -> None:
    limits = msgspec.structs.replace(POLICY.limits, newborn_s=86_400)
    play = Play(msgspec.structs.replace(TWO_RESETS, limits=limits))
    said = (EvidenceItem(signal=signal, nats=9.0),)
    play.fires(history_s=60.0, evidence=said, witnesses=("activity", witness))
    assert play.given[0].attested

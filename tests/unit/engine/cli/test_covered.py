"""The doctor's report on VMs without a second witness."""

from typing import Any

import numpy as np

from flatline.engine.cli import covered
from flatline.engine.cli.covered import Covered, summary
from flatline.engine.detection.coverage import advice, witnesses_of
from flatline.engine.wire.alert import WITNESSES
from flatline.engine.wire.score import SET_UP
from tests.unit.engine.detection.frames_by_hand import cell
from tests.unit.engine.wire import samples


def bits(names: tuple[str, ...], of: tuple[str, ...]) -> int:
    return sum(1 << of.index(name) for name in names)


def test_bits_are_named_and_say_what_to_switch_on() -> None:
    heard = bits(("activity", "vcpus"), WITNESSES)
    assert witnesses_of(heard) == ("activity", "vcpus")
    assert advice(heard, 0) == ""
    reported = advice(bits(("activity",), WITNESSES), bits(("balloon", "guest_agent"), SET_UP))
    assert "panic device" in reported
    assert "balloon" not in reported
    assert "guest agent" not in reported
    assert "has enough samples" in advice(bits(("balloon",), WITNESSES), 0)


def test_the_newest_minute_says_who_is_alerted_only() -> None:
    (one,) = covered._of(samples.SCORES)
    assert one.witnesses == ("activity", "vcpus", "balloon")
    assert (one.orderable, one.actionable, one.cell) == (True, True, "cell-a")


def vm(number: int, *witnesses: str, actionable: bool = True) -> Covered:
    return Covered(f"vm-{number}", "c", witnesses, actionable, "switch on a thing")


def test_the_doctor_counts_vms_that_are_open_to_actions_and_names_some() -> None:
    well, sentence = summary([vm(0, "activity", "probe"), vm(1, "activity", actionable=False)])
    assert well
    assert "Each of the 1 actionable VMs" in sentence
    ill, sentence = summary([vm(number, "activity") for number in range(5)])
    assert not ill
    assert "5 of 5" in sentence
    assert "vm-2: switch on a thing; and 2 more" in sentence
    assert summary([])[0]


def test_the_engine_reports_each_minute_what_it_could_hear_of_each_vm() -> None:
    bench, guests = cell(3, interval_s=2.0)
    for guest in guests:
        guest.others = 0.006
    guests[1].balloon_period_s = 0
    guests[2].balloon_period_s, guests[2].vcpus, guests[2].others = 0, 1, 0.0

    def rest_now_and_then(now_s: float) -> None:
        """Stop writing and sending in every tenth sample: only then idle vCPUs can be measured."""
        share = 0.0 if round(now_s) % 20 == 0 else 1.0
        for guest in guests:
            guest.writes, guest.sends = share * 50_000.0, share * 20_000.0

    bench.run(240.0, rest_now_and_then)
    scores = [one.scores for one in bench.outputs if one.scores is not None][-1]
    reported: dict[str, Any] = {one.vm: one for one in covered._of(scores)}
    assert reported[guests[0].text].witnesses == ("activity", "vcpus", "balloon")
    assert reported[guests[1].text].witnesses == ("activity", "vcpus")
    assert reported[guests[2].text].witnesses == ("activity",)
    assert [reported[guest.text].orderable for guest in guests] == [True, True, False]
    assert "balloon statistics" in reported[guests[2].text].advice
    assert np.frombuffer(scores.coverage, np.uint8).size == 2 * len(guests)

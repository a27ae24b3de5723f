"""A VM that had recovered fails again, under the resolved alert."""

from flatline.engine.action.events import ControlSeen
from tests.unit.engine.action.play import Play
from tests.unit.engine.action.samples import NOW_MS, VM, control


def test_an_old_alert_published_twice_brings_no_order_for_a_vm_that_healed_by_itself() -> None:
    play = Play()
    for command in control().values():
        play.feed(ControlSeen(command, play.now_ms))
    play.fires()
    play.resolves(verified=False)
    for command in control(active=False).values():
        play.feed(ControlSeen(command, play.now_ms))
    play.fires(transition=1)
    play.wait(1)
    assert play.phase == "mended"
    assert not play.given


def test_a_vm_that_is_back_in_trouble_after_a_step_that_nobody_took_is_ordered_again() -> None:
    play = Play()
    play.fires()
    play.stands()
    play.ends(outcome="not_attempted")
    play.resolves(verified=False)
    while len(play.given) == 1 and play.now_ms < NOW_MS + 4_000_000:
        play.wait(30)
        play.fires(transition=3)
    assert [given.step for given in play.given] == [0, 1]
    assert play.given[1].issued_ms - NOW_MS >= 1_800_000


def test_a_vm_that_is_back_in_trouble_after_a_step_is_left_to_a_person_who_is_notified() -> None:
    play = Play()
    play.fires()
    play.stands()
    play.wait(10)
    play.ends()
    play.resolves(verified=False)
    for _ in range(100):
        play.wait(60)
        play.fires(transition=3)
    assert play.phase == "exhausted"
    assert [entry.rule for entry in play.words if entry.page] == ["again"]
    assert play.last.sentence == (
        f"The fault of {VM} returned after its recovery. The reset that was ordered before is not "
        "repeated. A person must inspect the VM."
    )
    assert len(play.given) == 1

"""A guest with signs of life in its silences: they determine the evidence of the next one."""

import numpy as np
import pytest

from flatline.engine.wire.alert import Alert
from tests.unit.engine.detection.frames_by_hand import Guest
from tests.unit.engine.detection.test_witnesses import IDLE, computes, dies, watched


def openings(alerts: list[Alert]) -> int:
    """Return how often an alert began to fire."""
    states = [alert.state for alert in alerts]
    return sum(
        now == "firing" and before != "firing"
        for before, now in zip(["", *states], states, strict=False)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sleep_s", [20.0, 40.0, 90.0, 300.0])
def test_a_tickless_guest_that_computes_for_an_hour_is_seldom_alerted_and_never_ordered(
    sleep_s: float, seed: int
) -> None:
    bench, guest = watched(4)
    rng = np.random.default_rng(seed)

    def sleeps(_now_s: float) -> None:
        guest.others = IDLE if rng.random() < 10.0 / sleep_s else 0.0

    def computes_on(now_s: float) -> None:
        sleeps(now_s)
        computes(guest, others=guest.others or 0.0)

    bench.run(1800.0, sleeps)
    bench.run(3600.0, computes_on)
    assert "reboot" not in bench.suggestions(guest)
    assert openings(bench.of(guest)) <= 5
    transitions = [alert.transition for alert in bench.of(guest) if alert.state == "resolved"]
    assert transitions == sorted(set(transitions))
    assert len({alert.id for alert in bench.of(guest)}) <= 1


def test_vcpus_that_stand_still_for_as_long_as_they_often_did_are_no_witness() -> None:
    bench, guest = watched(2)

    def sleeps(now_s: float) -> None:
        guest.others = 0.0 if round(now_s) % 40 else IDLE

    bench.run(3600.0, sleeps)
    dies(guest)
    bench.run(70.0)
    assert bench.suggestions(guest) == {"inspect"}
    # Four times as long exceeds its known idle times.
    bench.run(60.0)
    assert bench.of(guest)[-1].suggested_action == "reboot"


def test_vcpus_that_moved_within_a_silence_that_surprised_are_no_witness_in_it() -> None:
    bench, guest = watched(2)
    dies(guest)
    bench.run(20.0)
    guest.others = IDLE
    bench.run(10.0)
    guest.others = 0.0
    bench.run(20.0)
    # Silent for 50 s, and its other vCPU for 20: like a guest that computes and ticks rarely.
    assert bench.of(guest)[-1].state != "firing"
    bench.run(60.0)
    # No sign of life for the age of the silence at that time: an operator must inspect it.
    assert bench.suggestions(guest) == {"inspect"}


def test_another_witness_counts_in_a_silence_in_which_the_guest_lived() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(300.0)
    dies(guest)
    bench.said("agent", "console_panic", guest, line="Kernel panic - not syncing")
    bench.run(40.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "guest")
    assert bench.of(guest)[-1].suggested_action == "reboot"


def test_a_guest_that_dies_while_it_computes_is_known_by_how_its_vcpus_moved_until_then() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(300.0)
    dies(guest)
    bench.run(50.0)
    assert bench.of(guest) == []
    # They moved in every sample, of 10 s; six times as long exceeds their known idle times.
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert (last.suggested_action, last.witnesses) == ("reboot", ("activity", "vcpus"))


def changes_vcpu(guest: Guest) -> None:
    """Move the busy thread within each sample: both vCPUs work for half of the time."""
    guest.cores, guest.busiest, guest.others = 1.02, 0.51, 0.51


def test_a_thread_that_changes_its_vcpu_is_no_pause_of_the_other_vcpus() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(150.0)
    changes_vcpu(guest)
    bench.run(10.0)
    computes(guest)
    bench.run(140.0)
    dies(guest)
    bench.run(80.0)
    assert bench.of(guest)[-1].suggested_action == "reboot"


def test_work_does_not_hide_how_long_the_vcpus_of_a_live_guest_sleep() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(120.0)
    changes_vcpu(guest)
    bench.run(300.0)
    computes(guest)
    bench.run(10.0)
    computes(guest, others=0.0)
    bench.run(200.0)
    assert "reboot" not in bench.suggestions(guest)


def test_a_guest_that_dies_on_two_vcpus_while_it_computes_is_alerted() -> None:
    bench, guest = watched(4)
    computes(guest)
    bench.run(150.0)
    dies(guest, cores=2.0)
    guest.others = 0.4
    bench.run(240.0)
    assert bench.of(guest)[-1].state == "firing"


def computes_and_writes(guest: Guest, now_s: float, *, every_s: int = 120) -> None:
    """Write for one sample, compute without I/O for the others."""
    computes(guest, others=0.0)
    guest.writes = 50_000.0 if round(now_s) % every_s == 0 else 0.0


def test_a_guest_that_comes_back_again_and_again_is_not_reported_each_time() -> None:
    bench, guest = watched(1)
    bench.run(3600.0, lambda now_s: computes_and_writes(guest, now_s))
    assert openings(bench.of(guest)) <= 5


def test_a_guest_that_stays_away_for_twice_as_long_as_before_is_reported() -> None:
    bench, guest = watched(1)
    bench.run(360.0, lambda now_s: computes_and_writes(guest, now_s))
    before = openings(bench.of(guest))
    dies(guest)
    bench.run(120.0)
    assert openings(bench.of(guest)) == before
    bench.run(180.0)
    assert openings(bench.of(guest)) == before + 1
    assert bench.of(guest)[-1].state == "firing"


def test_what_a_guest_came_back_from_before_a_boot_is_no_habit() -> None:
    bench, guest = watched(1)
    bench.run(240.0, lambda now_s: computes_and_writes(guest, now_s))
    before = len(bench.of(guest))
    assert before
    guest.instance += 1
    guest.counters.clear()
    guest.works()
    bench.run(300.0)
    dies(guest)
    bench.run(60.0)
    assert bench.of(guest)[-1].suggested_action == "inspect"


@pytest.mark.parametrize("kind", ["probe_answered", "agent_answered"])
@pytest.mark.parametrize("after_s", [20.0, 60.0], ids=["before the order", "after it"])
def test_an_answer_always_means_alive(kind: str, after_s: float) -> None:
    bench, guest = watched(2, balloon=True)
    dies(guest)
    bench.run(after_s)
    bench.said("agent", kind, guest, node="node-0")
    bench.alerts.clear()
    bench.run(120.0)
    assert "reboot" not in bench.suggestions(guest)
    if after_s > 30.0:
        assert bench.of(guest)[0].suggested_action == "alert"
        assert "is alive" in bench.of(guest)[-1].sentence

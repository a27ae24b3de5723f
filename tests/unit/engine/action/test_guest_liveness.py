"""A node's knowledge of a guest after samples and probe answers."""

from dataclasses import replace
from typing import Any

import pytest

from flatline.engine.action.guest_liveness import (
    Answers,
    Guest,
    console_read,
    heard,
    seen,
    signs_of,
)
from flatline.engine.preflight_data import ObservedGuest, PreflightSample, Rest
from tests.unit.engine.action.samples import look

VM = look().vm
S = 10**9
MS = 10**6


def sample(at_s: float, *wanted_ns: int, **changes: Any) -> ObservedGuest:
    values: dict[str, Any] = {
        "vm": VM,
        "instance": 7,
        "boots_seen": 0,
        "mono_ns": round(at_s * S),
        "vcpu_wanted_ns": wanted_ns,
        "moved": 180,
    }
    return ObservedGuest(**(values | changes))


def watched(*samples: ObservedGuest) -> Guest:
    guest: Guest | None = None
    for one in samples:
        guest = seen(guest, one)
    assert guest is not None
    return guest


def at(at_s: float, *wanted_ns: int) -> PreflightSample:
    """Return a preflight sample whose vCPUs needed this CPU time, half of it waiting."""
    halves = tuple(ns // 2 for ns in wanted_ns)
    rest = tuple(ns - ns // 2 for ns in wanted_ns)
    return look(at_s=at_s, vcpu_time_ns=halves, vcpu_delay_ns=rest, vcpus=len(wanted_ns))


def test_a_vcpu_is_known_by_how_long_it_stands_and_how_long_it_rested_before() -> None:
    guest = watched(
        sample(0, 0, 0),
        sample(10, 9 * S, 50 * MS),
        sample(20, 18 * S, 50 * MS),
        sample(30, 27 * S, 60 * MS),
        sample(40, 36 * S, 60 * MS),
    )
    rests = signs_of(guest, at(44, 40 * S, 60 * MS)).rests
    # The first one spins: it never stopped and was never idle.
    assert rests[0] == Rest(still_s=0.0, longest_s=10.0, idle_s=0.0)
    assert rests[1] == Rest(still_s=14.0, longest_s=20.0, idle_s=20.0)


def test_a_vcpu_that_ran_since_the_last_sample_does_not_stand() -> None:
    guest = watched(sample(0, 5), sample(10, 5))
    assert signs_of(guest, at(14, 6)).rests[0].still_s == 0.0


@pytest.mark.parametrize(
    "changes", [{"instance": 8}, {"boots_seen": 1}], ids=["another run", "another boot"]
)
def test_a_boot_makes_everything_unknown_again(changes: dict[str, int]) -> None:
    guest = watched(sample(0, 5, 5), sample(10, 5, 9))
    guest, _ = heard(guest, "probe", "answered", now_ns=10 * S)
    after = seen(guest, sample(20, 5, 9, **changes))
    assert after.probe == Answers()
    shown = replace(at(24, 5, 9), **changes)  # type: ignore[arg-type]
    assert signs_of(after, shown).rests[1] == Rest(4.0, 0.0, 0.0)
    # A preflight sample at a boot that the watch has not observed yet.
    assert signs_of(guest, shown, probe="silent").probe == "unknown"
    assert signs_of(guest, shown).rests == {}


def test_a_vcpu_more_begins_all_their_rests_anew_and_keeps_what_was_answered() -> None:
    guest = watched(sample(0, 5), sample(10, 9))
    guest, _ = heard(guest, "agent", "answered", now_ns=10 * S)
    after = seen(guest, sample(20, 9, 1))
    assert after.agent.answered_ns == 10 * S
    assert signs_of(after, at(20, 9, 1)).rests[0] == Rest(0.0, 0.0, 0.0)


def test_times_without_delays_say_nothing_of_rest() -> None:
    guest = watched(sample(0, 5), sample(10, 5))
    assert signs_of(guest, look(vcpu_time_ns=(5,), vcpu_delay_ns=())).rests == {}


def test_a_vcpu_that_runs_a_little_while_the_guest_works_teaches_nothing_of_rest() -> None:
    guest = watched(*(sample(10 * n, n * MS, moved=180 + n) for n in range(9)))
    assert signs_of(guest, at(80, 8 * MS)).rests[0].idle_s == 0.0
    guest = watched(*(sample(10 * n, n * MS, moved=None) for n in range(9)))
    assert signs_of(guest, at(80, 8 * MS)).rests[0].idle_s == 0.0


def test_a_guest_is_quiet_since_it_was_last_seen_to_work() -> None:
    guest = watched(sample(0, 1), sample(10, 1))
    assert signs_of(guest, look(at_s=14)).quiet_s is None
    guest = watched(sample(0, 1, moved=80), sample(10, 1), sample(20, 1, moved=None), sample(30, 1))
    assert signs_of(guest, look(at_s=34)).quiet_s == 24.0
    assert signs_of(guest, look(at_s=34, net_tx_pkts=31)).quiet_s == 0.0
    assert signs_of(guest, look(at_s=34, block_wr_reqs=None)).quiet_s == 24.0


def test_interrupts_are_known_by_how_they_come_while_the_guest_rests() -> None:
    counts = [5, 9, 9, 12, 12]
    samples = [sample(10 * n, 1, kvm_irq_injections=count) for n, count in enumerate(counts)]
    guest = watched(*samples)
    assert signs_of(guest, look(at_s=44, kvm_irq_injections=12)).interrupts == Rest(
        14.0, 20.0, 20.0
    )
    assert signs_of(guest, look(at_s=44, kvm_irq_injections=13)).interrupts == Rest(0.0, 20.0, 20.0)
    fewer = seen(guest, sample(50, 1, kvm_irq_injections=3))
    assert fewer.interrupts is not None
    assert fewer.interrupts.idle_s == 0.0
    lost = seen(guest, sample(50, 1))
    assert signs_of(lost, look(at_s=54, kvm_irq_injections=12)).interrupts is None


@pytest.mark.parametrize("channel", ["probe", "agent"])
@pytest.mark.parametrize(("worked_s", "expected"), [(45, "silent"), (46, "unknown")])
def test_who_works_on_without_answering_is_not_silent(
    channel: Any, worked_s: float, expected: str
) -> None:
    guest, _ = heard(watched(sample(0, 1, moved=80)), channel, "answered", now_ns=10 * S)
    guest, _ = heard(guest, channel, "silent", now_ns=20 * S)
    guest = seen(guest, sample(worked_s, 1))
    asked: dict[str, Any] = {channel: "silent"}
    assert getattr(signs_of(guest, look(at_s=60), **asked), channel) == expected


def reports_of(*answers: tuple[float, Any]) -> list[str | None]:
    guest = watched(sample(0, 1))
    reported: list[str | None] = []
    for at_s, sign in answers:
        guest, said = heard(guest, "probe", sign, now_ns=round(at_s * S))
        reported.append(said)
    return reported


def test_the_first_answer_is_reported_and_then_one_in_five_minutes() -> None:
    assert reports_of((0, "answered"), (10, "answered"), (299, "answered"), (300, "answered")) == [
        "answered", None, None, "answered",
    ]  # fmt: skip


def test_two_answers_that_do_not_come_are_reported_once() -> None:
    answers = [(0, "answered"), (10, "silent"), (20, "silent"), (30, "silent")]
    assert reports_of(*answers) == ["answered", None, "silent", None]


def test_one_lost_answer_is_nothing_and_an_answer_after_silence_is_reported() -> None:
    assert reports_of((0, "answered"), (10, "silent"), (20, "answered"), (30, "silent")) == [
        "answered", None, None, None,
    ]  # fmt: skip
    assert reports_of(
        (0, "answered"), (10, "silent"), (20, "silent"), (30, "answered")
    ) == ["answered", None, "silent", "answered"]  # fmt: skip


def test_who_never_answered_is_not_silent() -> None:
    assert reports_of((0, "silent"), (10, "silent"), (20, "unknown")) == [None, None, None]


def test_who_answered_too_long_ago_is_not_silent() -> None:
    assert reports_of((0, "answered"), (601, "silent"), (611, "silent")) == ["answered", None, None]


@pytest.mark.parametrize(
    ("answered_s", "asked", "expected"),
    [
        (0, "silent", "silent"),
        (0, "answered", "answered"),
        (0, "unknown", "unknown"),
        (None, "silent", "unknown"),
        (None, "answered", "answered"),
        (-601, "silent", "unknown"),
        (-600, "silent", "silent"),
    ],
)
@pytest.mark.parametrize("channel", ["probe", "agent"])
def test_silence_counts_of_a_guest_that_answered_within_ten_minutes_alone(
    channel: Any, answered_s: float | None, asked: Any, expected: str
) -> None:
    guest = watched(sample(0, 1))
    if answered_s is not None:
        guest, _ = heard(guest, channel, "answered", now_ns=round(answered_s * S))
    assert getattr(signs_of(guest, look(at_s=0.0), **{channel: asked}), channel) == expected


def test_an_agent_that_missed_two_rounds_is_silent_to_a_sample_that_cannot_wait_for_it() -> None:
    guest = watched(sample(0, 1))
    guest, _ = heard(guest, "agent", "answered", now_ns=0)
    guest, _ = heard(guest, "agent", "silent", now_ns=10 * S)
    assert signs_of(guest, look(at_s=14)).agent == "unknown"
    guest, _ = heard(guest, "agent", "silent", now_ns=20 * S)
    assert signs_of(guest, look(at_s=24)).agent == "silent"
    assert signs_of(guest, look(at_s=601)).agent == "unknown"
    assert signs_of(guest, look(at_s=24), agent="answered").agent == "answered"
    guest, _ = heard(guest, "agent", "answered", now_ns=30 * S)
    assert signs_of(guest, look(at_s=34)).agent == "unknown"


def test_a_guest_that_is_not_watched_may_only_be_alive() -> None:
    assert signs_of(None, look(), probe="silent", agent="silent") == signs_of(None, look())
    assert signs_of(None, look(), probe="answered").probe == "answered"


OLD = "[    5.1] Kernel panic - not syncing: sysrq triggered crash\n"
NEW = "[ 9321.7] Kernel panic - not syncing: Fatal\x1b[31m exception\a\n ---[ end\n"


def test_a_panic_that_comes_while_the_console_is_watched_is_reported_once() -> None:
    guest, line = console_read(watched(sample(0, 1)), "lab: up\n")
    assert line == ""
    guest, line = console_read(guest, f"lab: up\n{NEW}")
    assert line == "Kernel panic - not syncing: Fatal[31m exception"
    assert signs_of(guest, look()).console_panic
    assert console_read(guest, f"lab: up\n{NEW}")[1] == ""


@pytest.mark.parametrize("text", ["", "lab: up", "Kernel panic is what it is not"])
def test_other_lines_are_no_panic(text: str) -> None:
    guest, _ = console_read(watched(sample(0, 1)), "")
    guest, line = console_read(guest, text)
    assert (line, guest.console_panic) == ("", False)


def test_a_panic_of_an_earlier_boot_is_none() -> None:
    guest, line = console_read(watched(sample(0, 1)), f"{OLD}Linux version 6.1\n")
    assert line == ""
    guest, line = console_read(guest, f"{OLD}Linux version 6.1\nlab: up\n")
    assert (line, guest.console_panic) == ("", False)
    guest, line = console_read(guest, f"{OLD}Linux version 6.1\n{NEW}")
    assert guest.console_panic


def test_a_line_without_end_is_cut() -> None:
    guest, _ = console_read(watched(sample(0, 1)), "")
    _, line = console_read(guest, "Kernel panic - not syncing: " + "x" * 10_000)
    assert len(line) == 200

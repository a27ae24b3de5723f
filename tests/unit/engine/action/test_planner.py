from itertools import product
from typing import Any, get_args

import msgspec
import pytest

from flatline.engine.action.catalogue import Modes, Policy
from flatline.engine.action.events import (
    AlertSeen,
    AppendControl,
    CaughtUp,
    ControlSeen,
    Instruction,
    LoadSeen,
    OrderSeen,
    ResultSeen,
    Tick,
)
from flatline.engine.action.incident import LEGAL, BrokenInvariant, Incident, Phase, moved
from flatline.engine.action.planner import step
from flatline.engine.action.state import PlannerState
from flatline.engine.action.target import CellLoad
from flatline.engine.wire.alert import Counted
from tests.unit.engine.action.play import INCIDENT, TWO_RESETS, Play
from tests.unit.engine.action.samples import NOW_MS, POLICY, VM, alert, control, mark, order

COUNTED = Counted(block_wr_bytes=5, block_rd_bytes=6, net_tx_bytes=7)


def called(policy: Policy = TWO_RESETS) -> Play:
    """Return a planner whose first order was executed 10 s ago."""
    play = Play(policy)
    play.fires()
    play.stands()
    play.wait(10)
    play.ends()
    return play


def failed() -> Play:
    """Return a planner after a failed first step."""
    play = called()
    play.wait(280)
    play.fires()
    play.wait(16)
    return play


def test_a_firing_alert_with_a_suggestion_becomes_one_order() -> None:
    play = Play()
    said = play.fires(counted=COUNTED)
    (given,) = play.given
    assert (given.action, given.vm, given.node, given.instance) == ("reset", VM, "n0", 7)
    assert (given.incident, given.step, given.dry_run) == (said.id, 0, False)
    assert given.expires_ms - given.issued_ms == 60_000
    assert given.data_ms == said.data_ms
    assert given.counted == COUNTED
    assert play.last.sentence == (
        f"Ordered: reset {VM} on n0, step 0: It spins and its disks are silent."
    )
    play.fires()
    play.wait(1)
    assert len(play.given) == 1


def test_a_step_verified_by_the_engine_is_done() -> None:
    play = called()
    play.wait(30)
    play.resolves()
    assert play.phase == "mended"
    assert play.last.sentence == f"{VM} recovered after the reset: it booted."
    play.wait(3_600)
    assert len(play.given) == 1


def test_a_repair_that_was_watched_too_briefly_is_said_to_be() -> None:
    play = called()
    play.resolves(stable_s=5.0)
    assert play.phase == "mended"
    assert "observed for only 5 s of 20 s" in play.last.sentence


def test_a_vm_that_heals_by_itself_is_left_alone() -> None:
    play = called()
    play.resolves(verified=False)
    assert play.phase == "mended"
    assert play.last.sentence == f"{VM} recovered by itself: it booted."


def test_a_deadline_without_a_verdict_is_unknown_and_never_followed() -> None:
    play = called()
    play.wait(295 + 1)
    assert play.phase == "unknown"
    assert play.last.page
    for _ in range(200):
        play.wait(60)
        play.fires()
    assert len(play.given) == 1


def test_an_alert_right_before_the_deadline_makes_the_step_failed() -> None:
    play = failed()
    assert play.phase == "backing_off"
    assert play.last.rule == "failed"


def test_a_firing_alert_soon_after_the_call_is_no_failure_yet() -> None:
    play = called()
    play.fires()
    play.wait(296)
    assert play.phase == "unknown"


def test_the_next_step_waits_for_its_back_off() -> None:
    play = failed()
    while len(play.given) == 1:
        play.wait(10)
        play.fires()
    second = play.given[1]
    assert second.step == 1
    # 600 s after the agent's result, which came 10 s after the start.
    assert 610_000 <= second.issued_ms - NOW_MS <= 620_000
    assert not [entry for entry in play.words if entry.kind == "refusal"]


def test_after_the_last_step_of_the_escalation_policy_a_person_is_called() -> None:
    play = failed()
    while len(play.given) == 1:
        play.wait(10)
        play.fires()
    play.stands()
    play.wait(10)
    play.ends()
    play.wait(280)
    play.fires()
    play.wait(16)
    assert play.phase == "exhausted"
    assert play.last.page
    assert play.last.sentence == f"No step of the policy helped {VM}. A person must inspect the VM."


@pytest.mark.parametrize(("outcome", "page"), [("refused", True), ("unknown", True)])
def test_a_refused_or_unknown_step_is_for_people_only(outcome: str, page: bool) -> None:
    play = Play()
    play.fires()
    play.stands()
    play.ends(outcome=outcome, sentence="The VM is alive.")
    assert play.phase == outcome
    assert play.last.page is page
    assert "The VM is alive." in play.last.sentence
    for _ in range(100):
        play.wait(60)
        play.fires()
    assert len(play.given) == 1


@pytest.mark.parametrize("outcome", ["expired", "not_attempted"])
def test_a_step_that_was_not_attempted_may_be_given_again_after_half_an_hour(outcome: str) -> None:
    play = Play()
    play.fires()
    play.stands()
    play.ends(outcome=outcome)
    assert play.phase == "backing_off"
    while len(play.given) == 1:
        play.wait(30)
        play.fires()
    again = play.given[1]
    assert (again.step, again.action) == (1, "reset")
    assert again.issued_ms - NOW_MS >= 1_800_000


def test_an_order_that_nobody_closes_is_unknown_at_its_deadline() -> None:
    play = Play()
    play.fires()
    play.stands()
    play.wait(311)
    assert play.phase == "unknown"
    assert "no agent reported a result before the deadline" in play.last.sentence


def test_an_append_that_never_arrived_is_given_again_under_the_same_number() -> None:
    play = Play()
    play.fires()
    play.wait(66)
    assert play.phase == "watching"
    play.fires()
    assert [given.step for given in play.given] == [0, 0]


def test_while_an_append_is_unconfirmed_it_counts_as_spent() -> None:
    play = Play()
    play.fires()
    play.fires(id="b" * 32, subject=VM[:-1] + "5", group="db")
    assert len(play.given) == 1
    assert play.last.rule == "node_in_flight"


def test_the_order_of_another_planner_is_followed() -> None:
    play = Play()
    given = order(policy=TWO_RESETS.hash, planner="other")
    play.stands(given)
    play.given.append(given)
    play.fires()
    assert len(play.given) == 1
    play.ends()
    assert play.phase == "verifying"


def test_the_same_step_ordered_again_changes_nothing() -> None:
    play = called()
    play.stands(play.given[0])
    assert play.phase == "verifying"
    assert play.state.incidents[INCIDENT].failed_steps == 0


def test_the_next_step_of_another_planner_means_that_it_saw_the_failure() -> None:
    play = called()
    play.wait(1_000)
    again = Play(TWO_RESETS, live=False)
    for given in (play.given[0], order(step=1, policy=TWO_RESETS.hash)):
        again.feed(OrderSeen(given, 0, NOW_MS, NOW_MS))
        again.feed(ResultSeen(mark(given, time_ms=NOW_MS + 10_000), NOW_MS + 10_000, NOW_MS))
    assert again.state.incidents[INCIDENT].failed_steps == 1
    assert again.phase == "verifying"


def test_a_rehearsal_ends_without_a_page_and_without_a_second_step() -> None:
    play = Play(msgspec.structs.replace(TWO_RESETS, modes=Modes()))
    play.fires()
    assert play.given[0].dry_run
    play.stands()
    play.ends()
    assert play.phase == "rehearsed"
    for _ in range(100):
        play.wait(60)
        play.fires()
    assert len(play.given) == 1
    assert not any(entry.page for entry in play.words)


HOLDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("not_actionable", {"actionable": False}),
    ("no_ladder", {"kind": "boot_stuck"}),
    ("unplaced", {"node": None}),
    ("unplaced", {"instance": None}),
    ("no_fit", {"suggested_action": "migrate"}),
    ("data_age", {"data_ms": NOW_MS - 130_000}),
    ("undated", {"data_ms": None}),
    ("newborn", {"history_s": None}),
    ("no_owner", {"tenant": None}),
    ("incident_old", {"opened_ms": NOW_MS - 86_400_000}),
)


@pytest.mark.parametrize(("rule", "changes"), HOLDS)
def test_what_holds_an_order_back_is_reported_once_and_names_the_vm(
    rule: str, changes: dict[str, Any]
) -> None:
    play = Play()
    play.fires(**changes)
    play.wait(1)
    play.wait(1)
    assert not play.given
    assert [entry.rule for entry in play.words] == [rule]
    assert play.last.kind == "refusal"
    assert play.last.sentence.startswith(f"No action on {VM}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "pending"},
        {"state": "suppressed"},
        {"suggested_action": "alert"},
        {"suggested_action": "none"},
        {"scope": "host", "subject": "n0"},
        {"scope": "pool", "subject": "p"},
    ],
)
def test_what_asks_for_no_action_is_not_considered(changes: dict[str, Any]) -> None:
    play = Play()
    play.fires(**changes)
    play.wait(1)
    assert not play.given
    assert not play.words


def test_an_order_held_back_is_given_as_soon_as_nothing_holds_it() -> None:
    play = Play()
    for command in control().values():
        play.feed(ControlSeen(command, play.now_ms))
    play.fires()
    assert play.last.rule == "paused"
    for command in control(active=False).values():
        play.feed(ControlSeen(command, play.now_ms))
    play.wait(1)
    assert len(play.given) == 1


def test_a_veto_that_arrives_holds_the_order_back() -> None:
    play = Play()
    for command in control().values():
        play.feed(ControlSeen(command, play.now_ms))
    play.fires()
    play.fires(state="suppressed", transition=2)
    for command in control(active=False).values():
        play.feed(ControlSeen(command, play.now_ms))
    play.wait(1)
    assert not play.given


def test_an_older_alert_does_not_undo_a_newer_one() -> None:
    play = called()
    play.resolves()
    play.fires(transition=1)
    assert play.phase == "mended"


@pytest.mark.parametrize("stale", [{"transition": 1}, {"transition": 2, "decided_ms": NOW_MS - 1}])
def test_a_firing_from_before_a_veto_brings_no_order(stale: dict[str, int]) -> None:
    play = Play(live=False)
    play.fires()
    play.fires(state="suppressed", transition=2)
    play.fires(**stale)
    play.feed(CaughtUp(play.now_ms))
    assert not play.given


def test_nothing_is_decided_before_the_log_is_read_to_its_end() -> None:
    play = Play(live=False)
    play.fires()
    play.wait(1)
    assert not play.given
    play.feed(CaughtUp(play.now_ms))
    assert len(play.given) == 1


def test_a_restart_reads_the_same_state_from_the_log() -> None:
    before = failed()
    again = Play(live=False)
    given = before.given[0]
    again.given = [given]
    again.feed(OrderSeen(given, 0, NOW_MS, NOW_MS))
    again.feed(ResultSeen(mark(given, time_ms=NOW_MS + 10_000), NOW_MS + 10_000, before.now_ms))
    again.feed(AlertSeen(alert(decided_ms=NOW_MS), NOW_MS, before.now_ms))
    again.feed(AlertSeen(alert(decided_ms=NOW_MS + 290_000), NOW_MS + 290_000, before.now_ms))
    again.feed(CaughtUp(before.now_ms))
    assert again.state.incidents == before.state.incidents
    assert again.state.history == before.state.history


def test_a_restart_after_the_evidence_was_missed_does_not_act_again() -> None:
    given = order(policy=TWO_RESETS.hash)
    play = Play(live=False)
    play.feed(OrderSeen(given, 0, NOW_MS, NOW_MS))
    play.feed(ResultSeen(mark(given, time_ms=NOW_MS + 10_000), NOW_MS + 10_000, NOW_MS))
    play.now_ms += 1_000_000
    play.fires()
    play.feed(CaughtUp(play.now_ms))
    assert play.phase == "unknown"
    play.wait(7_200)
    assert not play.given


def test_a_vm_is_moved_to_the_least_loaded_node() -> None:
    play = Play(POLICY)
    load = CellLoad(NOW_MS, {"n0": 0.9, "n1": 0.4, "n2": 0.2})
    play.feed(LoadSeen("c0", load, NOW_MS))
    play.fires(kind="node_contention", suggested_action="migrate")
    assert (play.given[0].action, play.given[0].target) == ("migrate", "n2")


def test_without_the_load_of_the_cell_nothing_is_moved() -> None:
    play = Play(POLICY)
    play.fires(kind="node_contention", suggested_action="migrate")
    assert not play.given
    assert play.last.rule == "no_load"


def test_a_storm_pauses_the_cell_before_a_further_order_is_given() -> None:
    play = Play()
    paused: list[Instruction] = []
    for number in range(3):
        subject = f"{VM[:-1]}{number}"
        said = alert(id=f"{number:032x}", subject=subject, state="suppressed", scope="vm")
        paused += play.feed(AlertSeen(said, play.now_ms, play.now_ms))
    play.wait(1)
    play.fires(id="f" * 32, subject=VM[:-1] + "9")
    assert play.last.rule == "paused"
    assert not play.given
    entries = [entry for entry in play.words if entry.rule == "storm"]
    assert len(entries) == 1
    assert entries[0].page


def test_the_storm_breaker_writes_its_pause_once() -> None:
    play = Play()
    said = alert(scope="pool", subject="p", vms=tuple("abc"), suggested_action="none")
    play.feed(AlertSeen(said, play.now_ms, play.now_ms))
    done = play.feed(Tick(play.now_ms))
    assert [one for one in done if isinstance(one, AppendControl)]
    assert not play.feed(Tick(play.now_ms + 1_000))


def test_incidents_are_forgotten_a_day_after_the_last_alert() -> None:
    play = called()
    play.resolves()
    play.wait(86_400)
    assert INCIDENT in play.state.incidents
    play.wait(400)
    assert INCIDENT not in play.state.incidents


def test_every_transition_that_the_table_does_not_name_is_refused() -> None:
    phases: tuple[Phase, ...] = get_args(Phase)
    assert set(LEGAL) == set(phases)
    for before, then in product(phases, phases):
        incident = Incident("a", phase=before)
        if then in LEGAL[before]:
            assert moved(incident, then).phase == then
            continue
        with pytest.raises(BrokenInvariant):
            moved(incident, then)


def test_an_order_given_before_the_log_was_read_is_a_broken_invariant() -> None:
    ordering = Incident(INCIDENT, phase="ordering", order=order())
    state = PlannerState(name="p", site="site", incidents={INCIDENT: ordering})
    with pytest.raises(BrokenInvariant, match="before the log was read"):
        step(state, Tick(NOW_MS), POLICY)


def test_a_planner_that_restarts_after_a_late_result_still_knows_that_nobody_acts_again() -> None:
    play = Play()
    play.fires()
    given = play.stands()
    play.wait(311.0)
    assert play.phase == "unknown"
    again = Play(live=False)
    again.feed(OrderSeen(given, 0, NOW_MS, NOW_MS))
    late_ms = given.deadline_ms + 20_000
    again.feed(ResultSeen(mark(given, time_ms=NOW_MS + 10_000), late_ms, late_ms))
    again.now_ms = late_ms
    again.fires(decided_ms=given.deadline_ms - 1_000)
    again.feed(CaughtUp(late_ms))
    assert again.phase == "unknown"
    again.wait(4_000.0)
    assert not again.given


@pytest.mark.parametrize(("late_ms", "phase"), [(0, "backing_off"), (1, "unknown")])
def test_an_alert_that_came_after_the_planner_gave_up_is_no_failure_after_a_restart(
    late_ms: int, phase: str
) -> None:
    before = Play()
    said = before.fires()
    given = before.stands()
    before.wait(10)
    before.ends()
    again = Play(live=False)
    again.feed(OrderSeen(given, 0, given.issued_ms, given.issued_ms))
    closing = mark(given, time_ms=before.now_ms)
    again.feed(ResultSeen(closing, before.now_ms, before.now_ms))
    again.now_ms = given.deadline_ms + 60_000
    again.feed(AlertSeen(said, said.decided_ms, again.now_ms))
    firing = alert(decided_ms=given.deadline_ms - 1_000)
    again.feed(AlertSeen(firing, given.deadline_ms + late_ms, again.now_ms))
    again.feed(CaughtUp(again.now_ms))
    assert again.phase == phase

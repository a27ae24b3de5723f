"""The steps of the catalogue: evidence, notices, quarantine, grace, moves undone."""

from typing import Any

import msgspec
import pytest

from flatline.engine.action.catalogue import KINDS, Modes, Policy, parse_policy, read_shipped
from flatline.engine.action.events import ControlSeen, LoadSeen
from flatline.engine.action.target import CellLoad, NodeRoom
from flatline.engine.faults import Step
from flatline.engine.wire.alert import EvidenceItem, Resolution
from tests.unit.engine.action.play import TWO_RESETS, Play
from tests.unit.engine.action.samples import NOW_MS, OTHER_VM, VM, control

EVERYTHING = Modes(default="auto")


def policy(*steps: Step, kind: str = "panic_spin", modes: Modes = EVERYTHING) -> Policy:
    return msgspec.structs.replace(TWO_RESETS, modes=modes, ladders={kind: steps})


EVIDENCE_FIRST = policy(Step(action="save_evidence"), Step(action="reset"), Step(action="notify"))


@pytest.mark.parametrize("outcome", ["returned", "refused", "unknown", "not_attempted"])
def test_evidence_comes_first_and_never_holds_the_repair_up(outcome: str) -> None:
    play = Play(EVIDENCE_FIRST)
    play.fires()
    assert play.stands().action == "save_evidence"
    play.ends(outcome=outcome)
    assert play.last.rule == ("evidence" if outcome == "returned" else "no_evidence")
    play.wait(1)
    assert [given.action for given in play.given] == ["save_evidence", "reset"]
    assert [given.step for given in play.given] == [0, 1]


def test_evidence_that_no_agent_saved_is_waited_for_until_its_deadline() -> None:
    play = Play(EVIDENCE_FIRST)
    play.fires()
    play.stands()
    play.wait(299)
    play.fires()
    assert len(play.given) == 1
    play.wait(12)
    play.fires()
    play.wait(1)
    assert play.given[-1].action == "reset"


def test_evidence_spends_no_budget_and_is_saved_of_a_newborn_too() -> None:
    play = Play(policy(Step(action="save_evidence"), Step(action="notify")))
    for number in range(10):
        other = {"id": f"{number:032x}", "subject": f"{VM[:-2]}{number:02}", "cell": f"c{number}"}
        play.fires(**other, history_s=1.0)
    assert len(play.given) == 10


def test_a_step_for_people_notifies_them_and_ends_the_escalation_policy() -> None:
    play = Play(policy(Step(action="notify"), kind="mem_leak"))
    play.fires(kind="mem_leak", suggested_action="alert")
    assert play.last.page
    assert play.last.sentence == f"A person must inspect {VM}: It spins and its disks are silent."
    play.wait(1)
    play.fires(kind="mem_leak", suggested_action="alert")
    assert len(play.words) == 1
    assert play.phase == "exhausted"


def test_a_quarantine_closes_the_vm_to_machines_until_a_person_opens_it() -> None:
    play = Play(policy(Step(action="quarantine"), kind="crash_loop"))
    play.fires(kind="crash_loop", suggested_action="alert")
    (command,) = play.said
    assert (command.kind, command.scope, command.subject, command.until_ms) == (
        "quarantine",
        "vm",
        VM,
        None,
    )
    assert play.last.page
    play.policy = TWO_RESETS
    play.fires(id="b" * 32)
    assert play.last.rule == "quarantined"
    assert not play.given


def test_a_planner_that_observes_reports_a_quarantine_and_closes_nothing() -> None:
    play = Play(policy(Step(action="quarantine"), kind="crash_loop", modes=Modes()))
    play.fires(kind="crash_loop", suggested_action="alert")
    assert play.last.rule == "not_quarantined"
    assert not play.said


def test_a_crash_loop_is_quarantined_after_three_repairs_in_a_day() -> None:
    play = Play(policy(Step(action="reset")))
    for number in range(4):
        play.fires(id=f"{number:032x}", decided_ms=play.now_ms, opened_ms=play.now_ms)
        if play.said:
            break
        play.stands()
        play.ends()
        play.fires(id=f"{number:032x}", state="resolved", transition=2)
        play.wait(1_801)
    assert len(play.given) == 3
    assert play.said[0].reason == "it failed again after 3 repairs within 24 h"


def test_a_step_waits_for_the_grace_period_of_the_catalogue() -> None:
    play = Play(policy(Step(action="reset", grace_s=120)))
    play.fires(opened_ms=NOW_MS)
    assert play.last.rule == "grace"
    play.wait(119)
    assert not play.given
    play.wait(1)
    assert len(play.given) == 1


def test_a_vm_that_helped_itself_before_is_given_a_little_more_time() -> None:
    play = Play()
    play.resolves(verified=False, id="c" * 32, opened_ms=NOW_MS - 80_000)
    play.fires(opened_ms=NOW_MS)
    assert play.last.rule == "grace"
    play.wait(99.5)
    assert not play.given
    play.wait(0.5)
    assert len(play.given) == 1


def test_a_leak_that_ends_in_a_panic_is_no_vm_that_helped_itself() -> None:
    play = Play()
    over = Resolution(reason="superseded: a panic", superseded_by="f" * 32)
    leak = {"kind": "mem_leak", "suggested_action": "none", "state": "resolved"}
    play.fires(**leak, id="c" * 32, opened_ms=NOW_MS - 80_000, resolution=over)
    play.fires(opened_ms=NOW_MS)
    assert len(play.given) == 1


def test_what_was_learned_ends_with_the_limit_and_holds_for_one_vm() -> None:
    play = Play()
    play.resolves(verified=False, id="c" * 32, opened_ms=NOW_MS - 601_000)
    play.resolves(verified=True, id="d" * 32, opened_ms=NOW_MS - 80_000)
    play.resolves(verified=False, id="e" * 32, subject=OTHER_VM, opened_ms=NOW_MS - 80_000)
    play.fires(opened_ms=NOW_MS)
    assert len(play.given) == 1


def test_a_guest_that_reports_its_panic_is_not_waited_for() -> None:
    play = Play()
    play.resolves(verified=False, id="c" * 32, opened_ms=NOW_MS - 80_000)
    reported = (EvidenceItem(signal="told", nats=15.0), EvidenceItem(signal="silence", nats=3.0))
    play.fires(opened_ms=NOW_MS, evidence=reported, witnesses=("activity", "guest"))
    assert len(play.given) == 1


def test_a_veto_of_the_engine_holds_what_disrupts_and_not_what_only_reads() -> None:
    play = Play(EVIDENCE_FIRST)
    play.fires(vetoes=("crash_dump",))
    play.stands()
    play.ends()
    play.wait(1)
    assert (
        play.last.sentence
        == f"No action on {VM}: the engine forbids an action at present: crash_dump."
    )
    assert [given.action for given in play.given] == ["save_evidence"]


def test_a_step_that_needs_a_witness_waits_for_it() -> None:
    play = Play(policy(Step(action="reset", needs=("vcpus",))))
    play.fires()
    assert play.last.rule == "needs"
    play.fires(witnesses=("activity", "vcpus"))
    assert play.given[0].witnesses == ("activity", "vcpus")


@pytest.mark.parametrize(
    "heard", [(), ("activity",), ("balloon", "vcpus"), ("activity", "hearsay")], ids=str
)
def test_without_a_second_witness_there_is_no_reset(heard: tuple[str, ...]) -> None:
    play = Play()
    play.fires(witnesses=heard)
    assert not play.given
    assert play.last.rule == "unwitnessed"


def test_evidence_of_many_nats_is_no_witness_unless_the_engine_counted_it() -> None:
    play = Play()
    many = (EvidenceItem(signal="balloon", nats=9.0), EvidenceItem(signal="told", nats=9.0))
    play.fires(evidence=many, witnesses=("activity",))
    assert not play.given


def test_a_vm_that_is_only_to_be_looked_at_is_never_ordered() -> None:
    play = Play()
    play.fires(suggested_action="inspect", witnesses=("activity", "balloon"))
    play.wait(3600)
    assert not play.given
    assert play.last.rule == "unwitnessed"


def test_what_only_reads_is_done_for_a_vm_that_is_to_be_looked_at() -> None:
    play = Play(EVIDENCE_FIRST)
    play.fires(suggested_action="inspect", witnesses=("activity",))
    assert [given.action for given in play.given] == ["save_evidence"]


def test_a_disk_moves_to_the_first_pool_of_the_policy_that_is_open() -> None:
    moving = policy(Step(action="move_disk"), kind="degrading_storage")
    moving = msgspec.structs.replace(moving, pools={"p1": ("p2", "p3")})
    changes: dict[str, Any] = {"kind": "degrading_storage", "suggested_action": "move_disk"}
    play = Play(moving)
    play.fires(**changes, pools=("p1",))
    assert play.last.rule == "no_disk"
    play.fires(**changes, pools=("p9",), disk="vda")
    assert play.last.rule == "no_pool"
    play.fires(**changes, pools=("p1",), disk="vda")
    (given,) = play.given
    assert (given.action, given.disk, given.target, given.pools) == (
        "move_disk",
        "vda",
        "p2",
        ("p1",),
    )


MOVING = policy(Step(action="migrate", deadline_s=900), kind="node_contention")


def moved(loads: dict[str, float]) -> Play:
    """Return a planner with a verified migration from n0 to n1 and these node loads."""
    play = Play(MOVING)
    play.feed(LoadSeen("c0", CellLoad(NOW_MS - 60_000, {"n0": 0.95, "n1": 0.2}), play.now_ms))
    play.fires(kind="node_contention", suggested_action="migrate")
    given = play.stands()
    assert (given.target, given.source_load_ratio, given.target_load_ratio) == ("n1", 0.95, 0.2)
    play.wait(30)
    play.ends()
    play.wait(70)
    play.resolves(kind="node_contention")
    assert play.last.rule == "settling"
    play.feed(LoadSeen("c0", CellLoad(play.now_ms, loads), play.now_ms))
    play.wait(1)
    return play


def test_a_migration_whose_target_is_well_is_done() -> None:
    assert moved({"n0": 0.6, "n1": 0.6}).phase == "mended"


def test_a_migration_that_worsens_its_target_is_taken_back_by_a_new_order() -> None:
    play = moved({"n0": 0.5, "n1": 0.95})
    assert play.last.rule == "undoing"
    assert play.last.page
    play.wait(780)
    assert len(play.given) == 1
    for _ in range(30):
        play.feed(LoadSeen("c0", CellLoad(play.now_ms, {"n0": 0.5, "n1": 0.95}), play.now_ms))
        play.wait(10)
        if len(play.given) == 2:
            break
    first, back = play.given
    assert (back.step, back.action, back.node, back.target) == (1, "migrate", "n1", "n0")
    assert back.instance == 70
    assert back.issued_ms >= first.deadline_ms
    play.stands()
    play.ends(node="n1")
    assert play.last.rule == "undone"
    assert play.phase == "mended"


def test_a_target_without_a_report_is_left_as_it_is() -> None:
    play = moved({})
    play.wait(1_200)
    assert play.phase == "mended"


@pytest.mark.parametrize(
    ("room", "rule"),
    [
        (NodeRoom(cores=4, memory_available_bytes=2e9), ""),
        (NodeRoom(cores=4, memory_available_bytes=1e9), "no_target_node"),
        (NodeRoom(cores=4), "no_target_node"),
        (
            NodeRoom(cores=4, memory_available_bytes=2e9, groups=frozenset({"acme/web"})),
            "no_target_node",
        ),
        (NodeRoom(cores=1, memory_available_bytes=2e9), "no_target_node"),
    ],
)
def test_a_target_has_the_memory_the_cores_and_no_member_of_the_group(
    room: NodeRoom, rule: str
) -> None:
    play = Play(MOVING)
    load = CellLoad(
        NOW_MS - 60_000, {"n0": 0.95, "n1": 0.5}, rooms={"n1": room}, vm_cores={VM: 0.5}
    )
    play.feed(LoadSeen("c0", load, play.now_ms))
    play.fires(kind="node_contention", suggested_action="migrate", memory_bytes=1_500_000_000)
    assert (play.given == []) == bool(rule)
    assert not rule or play.last.rule == rule


@pytest.mark.parametrize("kind", ["pause", "maintenance"])
def test_a_vm_is_not_moved_to_a_node_that_people_have_closed(kind: Any) -> None:
    play = Play(MOVING)
    (command,) = control(kind=kind, scope="node", subject="n1").values()
    play.feed(ControlSeen(command, play.now_ms))
    load = CellLoad(NOW_MS, {"n0": 0.95, "n1": 0.1, "n2": 0.3})
    play.feed(LoadSeen("c0", load, play.now_ms))
    play.fires(kind="node_contention", suggested_action="migrate")
    assert [given.target for given in play.given] == ["n2"]


def test_a_vm_is_not_moved_back_to_a_node_it_left_today() -> None:
    play = Play(MOVING)
    play.feed(LoadSeen("c0", CellLoad(NOW_MS, {"n0": 0.95, "n1": 0.2}), play.now_ms))
    play.fires(kind="node_contention", suggested_action="migrate")
    play.stands()
    play.ends()
    play.wait(3_600)
    play.feed(LoadSeen("c0", CellLoad(play.now_ms, {"n0": 0.1, "n1": 0.95}), play.now_ms))
    again = {"id": "b" * 32, "kind": "node_contention", "suggested_action": "migrate"}
    play.fires(**again, node="n1", opened_ms=play.now_ms)
    assert play.last.rule == "no_target_node"


def test_a_living_vm_is_left_alone_while_its_group_is_sick() -> None:
    play = Play(MOVING)
    play.feed(LoadSeen("c0", CellLoad(NOW_MS, {"n0": 0.95, "n1": 0.2}), play.now_ms))
    play.fires(id="b" * 32, subject=OTHER_VM, suggested_action="reboot")
    play.fires(kind="node_contention", suggested_action="migrate")
    assert play.last.rule == "group_sick"


def test_every_kind_that_the_engine_names_has_a_shipped_escalation_policy() -> None:
    shipped = parse_policy(read_shipped("default"), source="default")
    assert set(shipped.ladders) == set(KINDS)


def test_a_step_that_waits_for_a_person_is_given_once_it_is_approved() -> None:
    play = Play(policy(Step(action="reset"), modes=Modes(default="approve")))
    play.fires()
    assert play.last.rule == "not_approved"
    assert "flatline approve " + "a" * 32 in play.last.sentence
    for command in control(kind="approval", scope="vm", subject="a" * 32).values():
        play.feed(ControlSeen(command, play.now_ms))
    play.wait(1)
    (given,) = play.given
    assert not given.dry_run

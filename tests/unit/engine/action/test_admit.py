from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import pytest

from flatline.engine.action import admit as module
from flatline.engine.action.admit import (
    SENTENCES,
    Admission,
    History,
    admit,
    closed,
    logged,
    may_finish,
)
from flatline.engine.action.catalogue import Modes, Policy
from flatline.engine.action.present_rules import effective_mode
from flatline.engine.action.request_context import DAY_MS
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Order
from tests.unit.engine.action.samples import (
    DEFAULT,
    NOW_MS,
    OTHER_VM,
    POLICY,
    control,
    history,
    mark,
    order,
    past,
)


def elsewhere(under: Policy = POLICY, /, **changes: Any) -> Order:
    """Return an order that shares only the site with `order()`."""
    values: dict[str, Any] = {
        "incident": "b" * 32,
        "vm": OTHER_VM,
        "node": "n9",
        "cell": "c9",
        "group": "db",
    }
    return order(under, **(values | changes))


class Case(NamedTuple):
    """An order that exactly one rule rejects."""

    rule: str
    guard: str
    order: Order
    earlier: History = ()
    policy: Policy = POLICY
    controls: Mapping[bytes, Control] = {}
    at_ms: int = NOW_MS


ROOMY = msgspec.structs.replace(
    POLICY, limits=msgspec.structs.replace(POLICY.limits, site_least=20, cell_least=20)
)
ONE_A_CELL = msgspec.structs.replace(
    ROOMY, limits=msgspec.structs.replace(ROOMY.limits, cell_least=1)
)
AGAIN = order(step=1)
MOVING = msgspec.structs.replace(POLICY, modes=Modes(actions={"move_disk": "auto"}))
APPROVING = msgspec.structs.replace(POLICY, modes=Modes(actions={"reset": "approve"}))
THIRD_VM = OTHER_VM[:-1] + "3"


def before(ago_s: float, ends: str | None = "returned", **changes: Any) -> History:
    """Return a log with the first step of the same incident."""
    return history(past(order(**changes), ago_s=ago_s), ends=ends)


def expired_after(ends: str | None) -> History:
    """Return a log whose first step ended with `ends`, and whose second one expired."""
    second = past(order(step=1), ago_s=2_000.0)
    late_ms = second.expires_ms + 6_000
    entries = logged(before(4_000.0, ends=ends), second, POLICY, offset=1, time_ms=late_ms)
    return closed(entries, mark(second, time_ms=late_ms, outcome="expired"), time_ms=late_ms)


def open_until_later(ago_s: float, **changes: Any) -> History:
    """Return a log with another order that is still in flight."""
    deadline_ms = NOW_MS + 1_000_000
    return history(past(elsewhere(**changes), ago_s=ago_s, deadline_ms=deadline_ms), ends=None)


CASES = (
    Case("no_target", "_no_target", order(vm="")),
    Case("no_target", "_no_target", order(vm="*")),
    Case("no_target", "_no_target", order(vm="null")),
    Case("no_target", "_no_target", order(vm="00000000-0000-0000-0000-000000000000")),
    Case("no_target", "_no_target", order(vm=OTHER_VM.upper())),
    Case("lifetime", "_lifetime", order(issued_ms=NOW_MS - 1)),
    Case("no_deadline", "_lifetime", order(deadline_ms=NOW_MS + 59_999)),
    Case("appended_early", "append_time", order(), at_ms=NOW_MS - 5_001),
    Case("appended_late", "append_time", order(), at_ms=NOW_MS + 65_001),
    Case("bad_target", "_target", order(action="migrate")),
    Case("bad_target", "_target", order(action="migrate", target="n0")),
    Case("bad_target", "_target", order(action="migrate", target="*")),
    Case("bad_target", "_target", order(MOVING, action="move_disk", target="p1"), policy=MOVING),
    Case(
        "bad_target",
        "_target",
        order(MOVING, action="move_disk", target="p1", disk="vda", pools=("p1",)),
        policy=MOVING,
    ),
    Case("bad_target", "_target", order(target="n1")),
    Case("duplicate", "duplicate", order(), before(4_000.0, node="n8")),
    Case("gap", "_escalation", AGAIN),
    Case("step_open", "_escalation", AGAIN, before(4_000.0, ends=None)),
    Case("incident_unknown", "_escalation", AGAIN, before(4_000.0, ends="unknown")),
    Case("incident_refused", "_escalation", AGAIN, before(4_000.0, ends="refused")),
    *(
        Case(f"incident_{ends}", "_escalation", order(step=2), expired_after(ends))
        for ends in ("unknown", "refused")
    ),
    Case("step_open", "_escalation", order(step=2), expired_after(None)),
    Case("backoff", "_escalation", AGAIN, before(605.0)),
    Case("incident_old", "_incident_old", order(opened_ms=NOW_MS - DAY_MS)),
    Case("vm_in_flight", "_vm", order(), open_until_later(2_000.0, vm=order().vm)),
    Case("vm_spacing", "_vm", order(), history(past(elsewhere(vm=order().vm), ago_s=1_799.0))),
    Case(
        "vm_day",
        "_vm",
        order(),
        history(
            *(
                past(elsewhere(vm=order().vm, incident=f"{hours:032x}"), ago_s=3600.0 * hours)
                for hours in (20, 10, 5)
            )
        ),
    ),
    Case("group_in_flight", "_group", order(), open_until_later(700.0, group="web")),
    Case("node_in_flight", "_node", order(), open_until_later(700.0, node="n0")),
    Case(
        "node_in_flight",
        "_node",
        order(),
        open_until_later(700.0, action="migrate", target="n0"),
    ),
    Case(
        "node_in_flight",
        "_node",
        order(action="migrate", target="n9"),
        open_until_later(700.0),
    ),
    Case(
        "node_budget",
        "_node",
        order(ROOMY),
        history(
            past(elsewhere(node="n0"), ago_s=400.0),
            past(elsewhere(node="n0", incident="c" * 32, vm=THIRD_VM), ago_s=200.0),
            policy=ROOMY,
        ),
        ROOMY,
    ),
    Case(
        "cell_budget",
        "_cell",
        order(ONE_A_CELL),
        history(past(elsewhere(cell="c0"), ago_s=300.0)),
        ONE_A_CELL,
    ),
    Case(
        "site_budget",
        "_site",
        order(),
        history(
            past(elsewhere(), ago_s=500.0),
            past(elsewhere(incident="c" * 32, vm=THIRD_VM, cell="c8", node="n8"), ago_s=300.0),
        ),
    ),
    Case("expired", "_clock", past(order(), ago_s=60.0, data_ms=NOW_MS)),
    Case("from_future", "_clock", past(order(), ago_s=-6.0, data_ms=NOW_MS), at_ms=NOW_MS + 6_000),
    Case("data_age", "_data_age", order(data_ms=NOW_MS - 120_001)),
    Case("data_ahead", "_data_age", order(data_ms=NOW_MS + 5_001)),
    Case("newborn", "_newborn", order(DEFAULT, dry_run=True, history_s=86_399.0), policy=DEFAULT),
    Case("newborn", "_newborn", order(history_s=None)),
    Case("no_owner", "_no_owner", order(tenant="acme", group=None)),
    Case("policy", "_policy", order(policy="another")),
    Case("policy", "_policy", order(), controls=control(kind="policy", policy="another")),
    Case("mode", "_mode", order(DEFAULT), policy=DEFAULT),
    Case("mode", "_mode", order(), controls=control(kind="mode", mode="observe")),
    Case("paused", "_words", order(), controls=control()),
    Case("paused", "_words", order(), controls=control(scope="cell", subject="c0")),
    Case("paused", "_words", order(), controls=control(scope="node", subject="n0")),
    Case("paused", "_words", order(), controls=control(scope="tenant", subject="acme")),
    Case("paused", "_words", order(), controls=control(scope="pool", subject="any")),
    Case(
        "paused",
        "_words",
        order(action="migrate", target="n1"),
        controls=control(scope="node", subject="n1"),
    ),
    Case("paused", "_words", order(pools=("p1",)), controls=control(scope="pool", subject="p1")),
    Case(
        "paused",
        "_words",
        order(MOVING, action="move_disk", target="p2", disk="vda", pools=("p1",)),
        policy=MOVING,
        controls=control(scope="pool", subject="p2"),
    ),
    Case(
        "quarantined",
        "_words",
        order(),
        controls=control(kind="quarantine", scope="vm", subject=order().vm),
    ),
    Case("witnesses", "_witnesses", order(witnesses=("activity",))),
    Case("witnesses", "_witnesses", order(witnesses=("balloon", "vcpus"))),
    Case("witnesses", "_witnesses", order(action="reboot", witnesses=("activity", "hearsay"))),
    Case("group_sick", "_group_sick", order(action="migrate", target="n1", group_sick=1)),
    Case(
        "not_approved",
        "_mode",
        order(APPROVING),
        policy=APPROVING,
        controls=control(kind="approval", scope="vm", subject="another incident"),
    ),
    Case(
        "maintenance",
        "_words",
        order(),
        controls=control(kind="maintenance", scope="vm", subject=order().vm),
    ),
)


def ask(case: Case) -> Admission:
    return admit(
        case.order,
        case.earlier,
        case.policy,
        at_ms=case.at_ms,
        now_ms=NOW_MS,
        controls=case.controls,
    )


def test_an_order_that_nothing_speaks_against_is_admitted() -> None:
    assert ask(Case("", "", order())) == Admission(True, "admitted", SENTENCES["admitted"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.guard}-{case.rule}")
def test_each_rule_refuses_with_its_own_sentence(case: Case) -> None:
    admission = ask(case)
    assert (admission.admitted, admission.rule) == (False, case.rule)
    assert admission.sentence.endswith(".")
    assert "{" not in admission.sentence


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.guard}-{case.rule}")
def test_without_the_guard_the_order_would_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("LOG_RULES", "PRESENT_RULES"):
        kept = tuple(rule for rule in getattr(module, table) if rule.__name__ != case.guard)
        monkeypatch.setattr(module, table, kept)
    assert ask(case).admitted


def test_every_guard_and_every_sentence_has_a_case() -> None:
    guards = {rule.__name__ for rule in (*module.LOG_RULES, *module.PRESENT_RULES)}
    assert guards == {case.guard for case in CASES}
    assert set(SENTENCES) == {case.rule for case in CASES} | {"admitted", "over"}


@pytest.mark.parametrize(
    ("earlier", "ago_s", "commands", "rule"),
    [
        (history(order(), ends=None), 0.0, {}, "admitted"),
        (history(order(), ends=None), 0.0, control(kind="pause", scope="site"), "paused"),
        (history(order(), ends=None), 0.0, control(kind="mode", mode="observe"), "mode"),
        (history(order(), ends="unknown"), 0.0, {}, "over"),
        (history(order(), ends=None), 3_600.0, {}, "over"),
        (history(elsewhere(), ends=None), 0.0, {}, "over"),
    ],
    ids=["open", "paused", "observed", "marked", "past its deadline", "not in the log"],
)
def test_what_was_cut_off_is_finished_while_the_log_and_people_hold_it_open(
    earlier: History, ago_s: float, commands: dict[bytes, Control], rule: str
) -> None:
    given = order()
    admission = may_finish(
        (given.incident, given.step),
        earlier,
        POLICY,
        now_ms=NOW_MS + round(1000 * ago_s),
        controls=commands,
    )
    assert (admission.admitted, admission.rule) == (rule == "admitted", rule)
    assert admission.sentence == SENTENCES[rule] or rule in ("paused", "mode")


def test_an_order_that_was_never_admitted_is_not_finished() -> None:
    twice = history(order(), order(), ends=None)
    key = (order().incident, order().step)
    assert not may_finish(key, twice[1:], POLICY, now_ms=NOW_MS, controls={}).admitted


def test_the_next_step_of_an_incident_need_not_wait_half_an_hour() -> None:
    earlier = history(past(order(), ago_s=611.0))
    assert ask(Case("", "", AGAIN, earlier)).admitted


def test_the_next_step_waits_for_the_deadline_of_the_last_one_too() -> None:
    slow = order(deadline_ms=NOW_MS + 3_600_000)
    early, due = history(past(slow, ago_s=3_599.0)), history(past(slow, ago_s=3_600.0))
    assert ask(Case("", "", AGAIN, early)).rule == "backoff"
    assert ask(Case("", "", AGAIN, due)).admitted


@pytest.mark.parametrize(("zone", "rule"), [("z0", "paused"), ("z1", "admitted"), ("", "paused")])
def test_a_command_about_a_zone_holds_for_it_and_for_who_does_not_name_his(
    zone: str, rule: str
) -> None:
    commands = control(scope="zone", subject="z0")
    assert ask(Case("", "", order(zone=zone), controls=commands)).rule == rule


def test_a_step_that_was_not_attempted_is_spaced_like_any_other_order() -> None:
    earlier = history(past(order(), ago_s=611.0), ends="not_attempted")
    assert ask(Case("", "", AGAIN, earlier)).rule == "vm_spacing"
    assert ask(Case("", "", AGAIN, history(past(order(), ago_s=1_801.0), ends="expired"))).admitted


def test_an_order_is_in_flight_until_its_result_or_its_deadline() -> None:
    given = past(order(), ago_s=100.0)
    entries = history(given, ends=None)
    assert entries[0].in_flight(at_ms=given.deadline_ms - 1)
    assert not entries[0].in_flight(at_ms=given.deadline_ms)
    assert not closed(entries, mark(given, time_ms=NOW_MS), time_ms=NOW_MS)[0].in_flight(
        at_ms=NOW_MS
    )


def test_a_result_of_another_node_closes_nothing() -> None:
    entries = history(order(), ends=None)
    assert closed(entries, mark(order(), time_ms=NOW_MS, node="n1"), time_ms=NOW_MS) is entries


def test_the_first_result_stands() -> None:
    entries = history(order(), ends="unknown")
    assert closed(entries, mark(order(), time_ms=NOW_MS), time_ms=NOW_MS) is entries


def test_rehearsals_and_real_orders_spend_apart() -> None:
    rehearsed = past(order(incident="b" * 32, dry_run=True), ago_s=100.0)
    assert ask(Case("", "", order(), history(rehearsed))).admitted
    assert not ask(Case("", "", order(dry_run=True), history(rehearsed))).admitted


def test_an_order_that_the_log_itself_refused_spends_nothing() -> None:
    orders = [
        past(elsewhere(), ago_s=500.0 - index, incident=f"{index:032x}") for index in range(9)
    ]
    entries = history(*orders)
    assert [entry.admitted for entry in entries] == [True] + [False] * 8


def test_an_order_under_another_policy_is_counted_as_spent() -> None:
    # Its cell already had the only order that this policy permits.
    own = past(elsewhere(ONE_A_CELL, cell="c0", node="n8"), ago_s=400.0)
    foreign = past(
        elsewhere(policy="another", cell="c0", node="n7", incident="c" * 32, vm=THIRD_VM),
        ago_s=300.0,
    )
    entries = history(own, foreign, policy=ONE_A_CELL)
    assert [entry.admitted for entry in entries] == [True, True]


def test_the_second_order_for_a_step_is_never_admitted_whatever_it_names() -> None:
    entries = history(past(order(), ago_s=5_000.0), order(policy="another"))
    assert [entry.admitted for entry in entries] == [True, False]


def test_the_history_forgets_after_a_day() -> None:
    entries = history(past(elsewhere(), ago_s=DAY_MS / 1000 + 1), order())
    assert [entry.order.incident for entry in entries] == [order().incident]


def test_a_date_that_the_order_contradicts_makes_nothing_be_forgotten() -> None:
    entries = history(past(order(), ago_s=100.0))
    for policy in (POLICY.hash, "another"):
        after = logged(
            entries, elsewhere(policy=policy), POLICY, offset=1, time_ms=NOW_MS + 2 * DAY_MS
        )
        assert after[:1] == entries
    assert not logged(entries, elsewhere(), POLICY, offset=1, time_ms=NOW_MS + 65_001)[1].admitted


def test_a_date_within_the_slack_of_two_clocks_is_taken() -> None:
    for at_ms in (NOW_MS - 5_000, NOW_MS + 65_000):
        assert ask(Case("", "", order(), at_ms=at_ms)).admitted


def test_the_verdict_over_the_log_does_not_depend_on_who_replays_it() -> None:
    orders = (past(elsewhere(), ago_s=500.0), past(order(), ago_s=400.0), order(incident="d" * 32))
    once = history(*orders)
    again: History = ()
    for offset, given in enumerate(orders):
        again = logged(again, given, POLICY, offset=offset, time_ms=given.issued_ms)
        again = closed(
            again, mark(given, time_ms=given.issued_ms + 10_000), time_ms=given.issued_ms + 10_000
        )
        again = closed(
            again,
            mark(given, time_ms=given.issued_ms + 12_000, outcome="unknown"),
            time_ms=given.issued_ms + 12_000,
        )
    assert once == again


def test_a_command_that_was_taken_back_or_ended_holds_nothing_up() -> None:
    for ended in (control(active=False), control(until_ms=NOW_MS)):
        assert ask(Case("", "", order(), controls=ended)).admitted


def test_a_control_record_makes_a_policy_stricter_and_never_laxer() -> None:
    def mode(policy: Policy, command: dict[bytes, Control]) -> str:
        return effective_mode(policy, command, tenant="acme", action="reset", now_ms=NOW_MS)

    assert mode(POLICY, {}) == "auto"
    assert mode(POLICY, control(kind="mode", mode="observe", action="reset")) == "observe"
    assert mode(POLICY, control(kind="mode", mode="observe", action="migrate")) == "auto"
    assert mode(POLICY, control(kind="mode", mode="approve")) == "approve"
    assert mode(DEFAULT, control(kind="mode", mode="auto")) == "observe"
    tenants = Modes(default="observe", tenants={"acme": {"reset": "auto"}})
    of_tenant = msgspec.structs.replace(POLICY, modes=tenants)
    assert mode(of_tenant, {}) == "auto"
    other = control(kind="mode", mode="observe", scope="tenant", subject="other")
    assert mode(of_tenant, other) == "auto"


def test_a_vm_that_says_itself_that_it_crashed_needs_no_day_of_history() -> None:
    given = order(DEFAULT, dry_run=True, history_s=10.0, attested=True)
    assert ask(Case("", "", given, policy=DEFAULT)).admitted


@pytest.mark.parametrize(("late_ms", "outcome"), [(5_000, "returned"), (5_001, "unknown")])
def test_a_result_appended_after_the_deadline_says_that_nobody_knows(
    late_ms: int, outcome: str
) -> None:
    given = order()
    time_ms = given.deadline_ms + late_ms
    entries = logged((), given, POLICY, offset=0, time_ms=NOW_MS)
    (entry,) = closed(entries, mark(given, time_ms=NOW_MS + 10_000), time_ms=time_ms)
    assert entry.result is not None
    assert entry.result.outcome == outcome


@pytest.mark.parametrize("changes", [{"dry_run": True}, {"action": "save_evidence"}])
def test_a_late_result_of_what_changes_nothing_is_believed(
    changes: dict[str, Any],
) -> None:
    given = order(**changes)
    entries = logged((), given, POLICY, offset=0, time_ms=NOW_MS)
    (entry,) = closed(entries, mark(given, time_ms=0), time_ms=given.deadline_ms + 60_000)
    assert entry.result is not None
    assert entry.result.outcome == "returned"

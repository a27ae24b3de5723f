from dataclasses import replace
from typing import Any

import pytest

from engine.action import look as module
from engine.action.look import SENTENCES, Verdict, judge, shape
from engine.looks import Look
from engine.wire.alert import Counted
from engine.wire.order import Order
from tests.unit.engine.action.samples import NOW_MS, OTHER_VM, look, order

HALTED: dict[str, Any] = {"vcpu_time_ns": (0, 0), "cpu_time_ns": 0}
SENT: dict[str, Any] = {"block_rd_bytes": 8_192, "net_tx_bytes": 4_096}
MIGRATION = order(action="migrate", target="n1", cpu_shape="unknown", kind="node_contention")


def ask(given: Order, *looks: Look, gap_s: float = 4.0, age_s: float = 5.0) -> Verdict:
    return judge(given, looks, gap_s=gap_s, age_s=age_s)


def pair(first: dict[str, Any] | None = None, **second: Any) -> tuple[Look, Look]:
    """Return two samples 4.2 s apart; `first` changes both, `second` the later one."""
    return look(**(first or {})), look(at_s=4.2, **((first or {}) | second))


def moving(**second: Any) -> tuple[Look, Look]:
    return pair(block_wr_reqs=140, block_wr_bytes=60_000, **second)


CASES: tuple[tuple[str, str, Order, tuple[Look, ...]], ...] = (
    ("too_few", "_enough", order(), (look(), look(at_s=3.9))),
    ("other_vm", "_same_vm", order(vm=OTHER_VM), pair()),
    ("other_run", "_same_run", order(instance=8), pair()),
    ("other_run", "_same_run", order(), pair(instance=8)),
    ("monitor", "_monitor_answers", order(), pair(extra={"monitor": "silent"})),
    ("opted_out", "_open_to_actions", order(), pair(opted_out=True)),
    ("job", "_no_job", order(), pair(job_active=True)),
    ("state", "_running_or_crashed", order(), pair({"state": "paused"})),
    ("state", "_running_or_crashed", order(), pair(state="shut_off")),
    ("state", "_running", order(action="reboot"), pair({"state": "crashed"})),
    ("state", "_running", MIGRATION, moving(state="paused")),
    ("alive", "_stands_still", order(), pair(block_wr_reqs=101)),
    ("alive", "_stands_still", order(), pair(block_wr_bytes=51_201)),
    ("alive", "_stands_still", order(), pair(block_rd_reqs=51)),
    ("alive", "_stands_still", order(), pair(net_tx_pkts=31)),
    ("alive", "_stands_still", order(action="reboot"), pair(net_tx_pkts=31)),
    ("uncounted", "_every_device_counts", order(), pair({"uncounted": "hostdev"})),
    ("uncounted", "_every_device_counts", order(action="reboot"), pair(uncounted="hostdev")),
    ("half_seen", "_stands_still", order(), pair(net_tx_pkts=None)),
    ("went_back", "_stands_still", order(), pair(block_wr_bytes=0)),
    *(
        ("alive_since", "_still_since_judged", order(action=action, counted=counted), pair(SENT))
        for action in ("reset", "reboot")
        for counted in (
            Counted(block_wr_bytes=51_199),
            Counted(block_rd_bytes=8_191),
            Counted(net_tx_bytes=4_095),
        )
    ),
    (
        "balloon_since",
        "_balloon_silent_since_judged",
        order(data_ms=NOW_MS - 20_000),
        pair({"balloon_last_update_s": NOW_MS // 1000 - 14}),
    ),
    (
        "unseen_disk",
        "_stands_still",
        order(),
        pair({"block_wr_reqs": None, "block_wr_bytes": None, "block_rd_reqs": None}),
    ),
    ("balloon", "_balloon_is_stale", order(), pair(balloon_last_update_s=1_003)),
    ("shape_unseen", "_same_shape", order(), pair({"vcpu_time_ns": ()})),
    ("shape_unseen", "_same_shape", order(cpu_shape="unknown"), pair()),
    ("shape", "_same_shape", order(), pair(HALTED)),
    ("shape", "_same_shape", order(cpu_shape="idle"), pair()),
    (
        "shape",
        "_same_shape_if_judged",
        order(action="migrate", target="n1", cpu_shape="all_cores"),
        moving(),
    ),
    ("no_request", "_requests_complete", MIGRATION, pair()),
)


@pytest.mark.parametrize(("rule", "guard", "given", "looks"), CASES)
def test_each_rule_refuses_with_its_own_sentence(
    rule: str, guard: str, given: Order, looks: tuple[Look, ...]
) -> None:
    verdict = ask(given, *looks)
    assert (verdict.agrees, verdict.rule) == (False, rule)
    assert verdict.sentence.startswith("Refused: ")


@pytest.mark.parametrize(("rule", "guard", "given", "looks"), CASES)
def test_without_the_guard_the_call_would_be_made(
    rule: str,
    guard: str,
    given: Order,
    looks: tuple[Look, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = tuple(one for one in module.EVERY_ACTION if one.__name__ != guard)
    rules = {
        action: tuple(one for one in of_action if one.__name__ != guard)
        for action, of_action in module.RULES.items()
    }
    monkeypatch.setattr(module, "EVERY_ACTION", every)
    monkeypatch.setattr(module, "RULES", rules)
    assert ask(given, *looks).agrees


def test_every_guard_and_every_sentence_has_a_case() -> None:
    guards = {rule.__name__ for rule in module.EVERY_ACTION}
    guards |= {rule.__name__ for rules in module.RULES.values() for rule in rules}
    assert guards == {guard for _, guard, _, _ in CASES}
    elsewhere = {"agreed", "too_old", "no_look"}
    assert set(SENTENCES) == {rule for rule, _, _, _ in CASES} | elsewhere


def test_a_dead_guest_may_be_reset() -> None:
    verdict = ask(order(), *pair())
    assert verdict.agrees
    assert verdict.sentence == "The look agrees: running, vCPUs one_core, 4.2 s watched."


def test_a_guest_that_stands_as_it_was_judged_may_be_reset() -> None:
    judged = Counted(block_wr_bytes=51_200, block_rd_bytes=8_192, net_tx_bytes=4_096)
    answered = {"balloon_last_update_s": NOW_MS // 1000 - 15}
    given = order(counted=judged, data_ms=NOW_MS - 20_000)
    assert ask(given, *pair(SENT | answered)).agrees


def test_a_guest_that_said_itself_that_it_crashed_may_have_written_until_then() -> None:
    given = order(counted=Counted(block_wr_bytes=1), attested=True)
    assert ask(given, *pair({"balloon_last_update_s": NOW_MS // 1000 + 10})).agrees


def test_a_guest_that_halted_in_its_panic_may_be_reset() -> None:
    assert ask(order(cpu_shape="idle"), *pair(HALTED)).agrees


def test_a_vm_paused_by_its_own_crash_counts_as_crashed() -> None:
    crashed: dict[str, Any] = {"state": "paused", "extra": {"state_reason": "crashed"}}
    assert ask(order(cpu_shape="idle"), *pair(crashed | HALTED)).agrees


def test_a_vm_without_a_network_card_can_still_be_seen_dead() -> None:
    assert ask(order(), *pair({"net_tx_pkts": None})).agrees


def test_the_look_is_void_after_ten_seconds() -> None:
    assert ask(order(), *pair(), age_s=10.0).agrees
    assert ask(order(), *pair(), age_s=10.1).rule == "too_old"


def test_samples_out_of_order_are_no_look() -> None:
    assert ask(order(), look(at_s=4.2), look(), look(at_s=8.4)).rule == "too_few"
    assert ask(order()).rule == "too_few"


def test_an_action_without_a_look_is_refused() -> None:
    assert ask(order(action="wipe"), *pair()).rule == "no_look"


def test_a_hung_userland_is_rebooted_though_its_kernel_answers() -> None:
    assert ask(order(action="reboot"), *pair(balloon_last_update_s=1_004)).agrees


def test_one_spinning_vcpu_of_one_is_all_of_them() -> None:
    looks = look(vcpu_time_ns=(0,)), look(at_s=4.2, vcpu_time_ns=(4_200_000_000,))
    assert ask(order(cpu_shape="one_core"), *looks).agrees
    assert ask(order(cpu_shape="all_cores"), *looks).agrees


@pytest.mark.parametrize(
    ("used_s", "expected"),
    [
        ((4.2, 0.0), "one_core"),
        ((4.2, 4.2), "all_cores"),
        ((0.0, 0.1), "idle"),
        ((4.2, 1.2), "mixed"),
        ((1.2, 1.2), "mixed"),
        ((-1.0, 0.0), "unknown"),
    ],
)
def test_the_shape_follows_from_the_vcpus(used_s: tuple[float, ...], expected: str) -> None:
    times = tuple(round(10e9 + used * 1e9) for used in used_s)
    first = look(vcpu_time_ns=(10_000_000_000, 10_000_000_000))
    assert shape((first, look(at_s=4.2, vcpu_time_ns=times))) == expected


def test_time_waited_for_a_core_counts_as_wanted() -> None:
    spinning: dict[str, Any] = {"at_s": 4.2, "vcpu_time_ns": (1_260_000_000, 0)}
    first, last = look(), look(**spinning)
    assert shape((first, last)) == "mixed"
    first = look(vcpu_delay_ns=(5_000_000_000, 7_000_000_000))
    last = look(**spinning, vcpu_delay_ns=(7_900_000_000, 7_000_000_000))
    assert shape((first, last)) == "one_core"


@pytest.mark.parametrize("delays", [(), (9_000_000_000,)], ids=["unknown", "of some vCPUs"])
def test_waiting_that_is_not_known_for_every_vcpu_is_not_counted(delays: tuple[int, ...]) -> None:
    first = look(vcpu_delay_ns=(5_000_000_000, 7_000_000_000))
    last = look(at_s=4.2, vcpu_time_ns=(1_260_000_000, 0), vcpu_delay_ns=delays)
    assert shape((first, last)) == "mixed"


def test_waiting_that_went_back_makes_the_vcpus_unknown() -> None:
    looks = look(vcpu_delay_ns=(5, 5)), look(at_s=4.2, vcpu_delay_ns=(5, 4))
    assert shape(looks) == "unknown"


def test_a_vm_that_says_itself_that_it_crashed_works_through_no_device() -> None:
    assert ask(order(attested=True), *pair({"uncounted": "hostdev"})).agrees


@pytest.mark.parametrize("bad", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("other_vm", {"vm": bytes(16)}),
        ("other_run", {"instance": 8}),
        ("monitor", {"extra": {"monitor": "silent"}}),
        ("opted_out", {"opted_out": True}),
        ("job", {"job_active": True}),
        ("state", {"state": "paused"}),
        ("half_seen", {"net_tx_pkts": None}),
        ("uncounted", {"uncounted": "hostdev"}),
    ],
)
def test_one_bad_sample_is_enough_to_refuse(rule: str, change: dict[str, Any], bad: int) -> None:
    looks = list(pair())
    looks[bad] = replace(looks[bad], **change)
    assert ask(order(), *looks).rule == rule

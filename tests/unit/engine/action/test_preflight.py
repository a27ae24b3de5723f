from dataclasses import replace
from typing import Any

import pytest

from flatline.engine.action import preflight as module
from flatline.engine.action.preflight import Verdict, judge, last_check, shape
from flatline.engine.action.preflight_sentences import SENTENCES
from flatline.engine.action.witness_checks import witnesses
from flatline.engine.preflight_data import PreflightSample, Rest, Signs
from flatline.engine.wire.alert import Counted, CpuShape
from flatline.engine.wire.order import Order
from tests.unit.engine.action.samples import NOW_MS, OTHER_VM, look, order

RULES: dict[str, Any] = dict(module.RULES)
AGENT_SILENT = Signs(agent="silent")
HALTED: dict[str, Any] = {"vcpu_time_ns": (0, 0), "cpu_time_ns": 0}
SENT: dict[str, Any] = {"block_rd_bytes": 8_192, "net_tx_bytes": 4_096}
ONE_VCPU: dict[str, Any] = {"vcpu_time_ns": (0,), "vcpus": 1}
COUNTED = {"kvm_irq_injections": 7, "kvm_io_exits": 9}
LATE = {"balloon_period_s": 5, "balloon_last_update_s": NOW_MS // 1000 - 35}
WATCHED = {1: Rest(still_s=40.0, longest_s=12.0, idle_s=300.0)}
FINE: dict[str, Any] = {"vcpu_delay_ns": (7, 9)}
ONE_FINE: dict[str, Any] = ONE_VCPU | {"vcpu_delay_ns": (7,)}
CRASHED: dict[str, Any] = {"state": "crashed", "state_reason": "crashed", **HALTED}
MIGRATION = order(action="migrate", target="n1", cpu_shape="unknown", kind="node_contention")


def ask(
    given: Order,
    *samples: PreflightSample,
    gap_s: float = 4.0,
    age_s: float = 5.0,
    signs: Signs = AGENT_SILENT,
) -> Verdict:
    """Judge with one witness more than the samples have, unless the test sets another."""
    return judge(given, samples, gap_s=gap_s, age_s=age_s, signs=signs, newborn_s=86_400)


def pair(
    first: dict[str, Any] | None = None, **second: Any
) -> tuple[PreflightSample, PreflightSample]:
    """Return two samples 4.2 s apart; `first` changes both, `second` the later one."""
    return look(**(first or {})), look(at_s=4.2, **((first or {}) | second))


def moving(**second: Any) -> tuple[PreflightSample, PreflightSample]:
    return pair(block_wr_reqs=140, block_wr_bytes=60_000, **second)


CASES: tuple[tuple[str, str, Order, tuple[PreflightSample, ...]], ...] = (
    ("too_few", "_enough", order(), (look(), look(at_s=3.9))),
    ("other_vm", "_same_vm", order(vm=OTHER_VM), pair()),
    ("other_run", "_same_run", order(instance=8), pair()),
    ("other_run", "_same_run", order(), pair(instance=8)),
    ("monitor", "_monitor_answers", order(), pair(monitor_answered=False)),
    ("monitor", "_monitor_answers", order(), pair(monitor_answered=None)),
    ("other_owner", "_same_owner", order(), pair(tenant="bmce")),
    ("other_owner", "_same_owner", order(), pair({"group": None})),
    ("booted", "_not_booted", order(), pair(boots_seen=1)),
    ("opted_out", "_open_to_actions", order(), pair(opted_out=True)),
    ("job", "_no_job", order(), pair(job_active=True)),
    ("job", "_no_job", order(), pair(job_active=None)),
    ("state", "_running_or_crashed", order(), pair({"state": "paused"})),
    ("state", "_running_or_crashed", order(), pair(state="shut_off")),
    ("state", "_running_or_crashed", order(), pair(state_reason="unknown")),
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
    ("shape", "_same_shape", order(cpu_shape="all_cores"), pair()),
    (
        "shape",
        "_same_shape_if_judged",
        order(action="migrate", target="n1", cpu_shape="all_cores"),
        moving(),
    ),
    ("no_request", "_requests_complete", MIGRATION, pair()),
    ("vcpu_moves", "_dead_vcpus_stand_still", order(), pair(vcpu_time_ns=(4_200_000_000, 1))),
    (
        "vcpu_moves",
        "_dead_vcpus_stand_still",
        order(cpu_shape="idle"),
        pair(HALTED, vcpu_time_ns=(0, 10_000_001)),
    ),
)
NEWBORN = tuple(
    (
        "newborn_untold",
        "_old_or_reported",
        order(attested=True, action=action, history_s=known),
        pair(),
    )
    for action in ("reset", "reboot")
    for known in (None, 86_399.0)
)
SIGNED: tuple[tuple[str, str, Signs], ...] = (
    ("sign_of_life", "_no_sign_of_life", Signs(probe="answered", agent="silent")),
    ("sign_of_life", "_no_sign_of_life", Signs(probe="silent", agent="answered")),
    ("no_witness", "_second_witness", Signs()),
)


ALL = [(*case, AGENT_SILENT) for case in (*CASES, *NEWBORN)] + [
    (rule, guard, order(action=action), pair(ONE_VCPU, vcpu_time_ns=(4_200_000_000,)), signs)
    for rule, guard, signs in SIGNED
    for action in ("reset", "reboot")
]


@pytest.mark.parametrize(("rule", "guard", "given", "samples", "signs"), ALL)
def test_each_rule_refuses_with_its_own_sentence(
    rule: str, guard: str, given: Order, samples: tuple[PreflightSample, ...], signs: Signs
) -> None:
    verdict = ask(given, *samples, signs=signs)
    assert (verdict.agrees, verdict.rule) == (False, rule)
    assert verdict.sentence.startswith("Refused: ")


@pytest.mark.parametrize(("rule", "guard", "given", "samples", "signs"), ALL)
def test_without_the_guard_the_call_would_be_made(
    rule: str,
    guard: str,
    given: Order,
    samples: tuple[PreflightSample, ...],
    signs: Signs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = tuple(one for one in module.EVERY_ACTION if one.__name__ != guard)
    rules = {
        action: tuple(one for one in of_action if one.__name__ != guard)
        for action, of_action in RULES.items()
    }
    monkeypatch.setattr(module, "EVERY_ACTION", every)
    monkeypatch.setattr(module, "RULES", rules)
    assert ask(given, *samples, signs=signs).agrees


def test_every_guard_and_every_sentence_has_a_case() -> None:
    guards = {rule.__name__ for rule in module.EVERY_ACTION}
    guards |= {rule.__name__ for rules in RULES.values() for rule in rules}
    assert guards == {guard for _, guard, *_ in ALL}
    elsewhere = {"agreed", "too_old", "no_look"}
    assert set(SENTENCES) == {rule for rule, *_ in ALL} | elsewhere


def test_a_dead_guest_may_be_reset() -> None:
    verdict = ask(order(), *pair(FINE), signs=Signs(rests=WATCHED))
    assert verdict.agrees
    assert verdict.witnesses == ("activity", "vcpus")
    assert verdict.sentence == (
        "The preflight check passed: running, vCPUs one_core, observed for 4.2 s; witnesses: "
        "activity, vcpus."
    )


def test_a_guest_that_stands_as_it_was_judged_may_be_reset() -> None:
    judged = Counted(block_wr_bytes=51_200, block_rd_bytes=8_192, net_tx_bytes=4_096)
    answered = {"balloon_last_update_s": NOW_MS // 1000 - 15}
    given = order(counted=judged, data_ms=NOW_MS - 20_000)
    assert ask(given, *pair(SENT | answered)).agrees


LATER: dict[str, Any] = {"balloon_last_update_s": NOW_MS // 1000 + 10}


@pytest.mark.parametrize("seen", [{"reported": "panicked"}, CRASHED], ids=["device", "crashed"])
def test_a_guest_of_whose_crash_this_node_heard_may_have_written_until_then(
    seen: dict[str, Any],
) -> None:
    shape: Any = "idle" if "state" in seen else "one_core"
    given = order(counted=Counted(block_wr_bytes=1), cpu_shape=shape)
    assert ask(given, *pair(LATER | seen)).agrees


@pytest.mark.parametrize("changes", [{"counted": Counted(block_wr_bytes=1)}, {}])
def test_the_claim_of_the_order_that_a_guest_crashed_relaxes_nothing(
    changes: dict[str, Any],
) -> None:
    assert not ask(order(attested=True, **changes), *pair(LATER)).agrees


def test_a_guest_that_halted_in_its_panic_may_be_reset() -> None:
    assert ask(order(cpu_shape="idle"), *pair(HALTED)).agrees


def test_a_vm_paused_by_its_own_crash_counts_as_crashed() -> None:
    crashed: dict[str, Any] = {"state": "paused", "state_reason": "crashed"}
    assert ask(order(cpu_shape="idle"), *pair(crashed | HALTED), signs=Signs()).agrees
    unread = crashed | HALTED | {"state_reason": "unknown"}
    assert ask(order(cpu_shape="idle"), *pair(unread)).rule == "state"


def test_a_vm_without_a_network_card_can_still_be_seen_dead() -> None:
    assert ask(order(), *pair({"net_tx_pkts": None})).agrees


def test_the_check_is_void_after_ten_seconds() -> None:
    assert ask(order(), *pair(), age_s=10.0).agrees
    assert ask(order(), *pair(), age_s=10.1).rule == "too_old"


def test_samples_out_of_order_are_no_check() -> None:
    assert ask(order(), look(at_s=4.2), look(), look(at_s=8.4)).rule == "too_few"
    assert ask(order()).rule == "too_few"


def test_an_action_without_a_sample_is_refused() -> None:
    assert ask(order(action="wipe"), *pair()).rule == "no_look"


def test_a_hung_userland_is_rebooted_though_its_kernel_answers() -> None:
    assert ask(order(action="reboot"), *pair(balloon_last_update_s=1_004)).agrees


def test_one_spinning_vcpu_of_one_is_all_of_them() -> None:
    samples = look(**ONE_VCPU), look(at_s=4.2, vcpus=1, vcpu_time_ns=(4_200_000_000,))
    assert ask(order(cpu_shape="one_core"), *samples).agrees
    assert ask(order(cpu_shape="all_cores"), *samples).agrees


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
    samples = look(vcpu_delay_ns=(5, 5)), look(at_s=4.2, vcpu_delay_ns=(5, 4))
    assert shape(samples) == "unknown"


def test_a_crashed_vm_works_through_no_device_and_needs_no_other_witness() -> None:
    samples = pair(CRASHED | ONE_VCPU | {"uncounted": "hostdev"})
    verdict = ask(order(cpu_shape="idle"), *samples, signs=Signs())
    assert verdict.witnesses == ("activity", "hypervisor")


@pytest.mark.parametrize("seen", [{}, {"reported": "panicked"}])
def test_a_device_without_counters_refuses_whatever_the_order_or_the_guest_says(
    seen: dict[str, Any],
) -> None:
    samples = pair(seen | {"uncounted": "hostdev"})
    assert ask(order(attested=True), *samples).rule == "uncounted"


@pytest.mark.parametrize("bad", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("other_vm", {"vm": bytes(16)}),
        ("other_run", {"instance": 8}),
        ("monitor", {"monitor_answered": False}),
        ("other_owner", {"tenant": None}),
        ("opted_out", {"opted_out": True}),
        ("job", {"job_active": True}),
        ("state", {"state": "paused"}),
        ("half_seen", {"net_tx_pkts": None}),
        ("uncounted", {"uncounted": "hostdev"}),
    ],
)
def test_one_bad_sample_is_enough_to_refuse(rule: str, change: dict[str, Any], bad: int) -> None:
    samples = list(pair())
    samples[bad] = replace(samples[bad], **change)
    assert ask(order(), *samples).rule == rule


def after(**last: Any) -> str | None:
    """Return the reason against the call if the last sample has these values."""
    given, samples = order(), pair()
    return last_check(given, samples)(look(at_s=6.0, vcpu_time_ns=(6_000_000_000, 0), **last))


def test_a_guest_that_stands_as_it_was_looked_at_may_be_reset() -> None:
    assert after() is None


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("another VM", {"vm": bytes(16)}),
        ("this is run 8", {"instance": 8}),
        ("definition of the VM names tenant 'bmce'", {"tenant": "bmce"}),
        ("forbids actions", {"opted_out": True}),
        ("was reset or rebooted", {"boots_seen": 1}),
        ("monitor", {"monitor_answered": None}),
        ("a job is active", {"job_active": True}),
        ("the VM is paused", {"state": "paused"}),
        ("the VM is crashed", {"state": "crashed", "state_reason": "crashed"}),
        ("hostdev", {"uncounted": "hostdev"}),
        ("disk-write requests increased", {"block_wr_reqs": 101}),
        ("written bytes increased", {"block_wr_bytes": 51_201}),
        ("disk-read requests increased", {"block_rd_reqs": 51}),
        ("transmitted packets increased", {"net_tx_pkts": 31}),
        ("transmitted packets was present in one sample only", {"net_tx_pkts": None}),
        ("balloon driver reported", {"balloon_last_update_s": 1_002}),
    ],
)
def test_whatever_moved_since_the_check_forbids_the_call(
    words: str, change: dict[str, Any]
) -> None:
    said = after(**change)
    assert said is not None
    assert words in said


def test_a_vcpu_that_ran_since_the_check_forbids_the_call() -> None:
    check = last_check(order(), pair())
    said = check(look(at_s=6.0, vcpu_time_ns=(6_000_000_000, 1)))
    assert said is not None
    assert said.startswith("Refused: vCPU 1 ran 0.000 ms")


def test_no_call_is_made_for_an_action_without_a_last_sample() -> None:
    assert last_check(order(action="wipe"), pair())(pair()[1]) is not None


@pytest.mark.parametrize(
    ("witness", "shape", "seen", "signs"),
    [
        ("vcpus", "one_core", FINE, Signs(rests=WATCHED)),
        (
            "vcpus",
            "idle",
            HALTED | FINE,
            Signs(rests={0: Rest(21.0, 8.0, 400.0), 1: Rest(21.0, 0.0, 400.0)}),
        ),
        ("exits", "all_cores", COUNTED, Signs(interrupts=WATCHED[1])),
        ("guest", "all_cores", {"reported": "watchdog"}, Signs()),
        ("guest", "all_cores", {}, Signs(agent="silent")),
        ("guest", "all_cores", {}, Signs(console_panic=True)),
        ("probe", "all_cores", {}, Signs(probe="silent")),
        (
            "balloon",
            "all_cores",
            {"balloon_period_s": 5, "balloon_last_update_s": NOW_MS // 1000 - 15},
            Signs(quiet_s=10.0),
        ),
        ("vcpus", "one_core", FINE, Signs(rests=WATCHED, quiet_s=15.0)),
        ("exits", "all_cores", COUNTED, Signs(interrupts=WATCHED[1], quiet_s=15.0)),
        ("guest", "all_cores", {"reported": "panicked"}, Signs(quiet_s=0.0)),
        ("hypervisor", "all_cores", {"state": "crashed", "state_reason": "crashed"}, Signs()),
    ],
)
def test_each_witness_is_seen_and_suffices_beside_the_silence(
    witness: str, shape: CpuShape, seen: dict[str, Any], signs: Signs
) -> None:
    assert witnesses(shape, pair(seen), signs) == ("activity", witness)


@pytest.mark.parametrize(
    ("shape", "first", "last", "signs"),
    [
        # A single vCPU has no other; if all spin, none is idle.
        ("one_core", ONE_FINE, {"vcpu_time_ns": (4_200_000_000,)}, Signs(rests=WATCHED)),
        ("idle", ONE_FINE, {"vcpu_time_ns": (0,)}, Signs(rests={0: Rest(99.0, 0.0, 400.0)})),
        ("all_cores", FINE, {"vcpu_time_ns": (4_200_000_000,) * 2}, Signs(rests=WATCHED)),
        ("mixed", FINE, {}, Signs(rests=WATCHED)),
        # Two of three plugged-in vCPUs are reported; one of two delays.
        ("one_core", FINE | {"vcpus": 3}, {}, Signs(rests=WATCHED)),
        ("one_core", FINE | {"vcpus": None}, {}, Signs(rests=WATCHED)),
        ("one_core", {"vcpu_delay_ns": (7,)}, {}, Signs(rests=WATCHED)),
        ("one_core", {}, {}, Signs(rests=WATCHED)),
        # It ran, or needed to run.
        ("one_core", FINE, {"vcpu_time_ns": (4_200_000_000, 1)}, Signs(rests=WATCHED)),
        ("one_core", FINE, {"vcpu_delay_ns": (7, 10)}, Signs(rests=WATCHED)),
        # Not watched, not idle, idle for too short a time, and idle for longer while it lived.
        ("one_core", FINE, {}, Signs()),
        ("one_core", FINE, {}, Signs(rests={0: Rest(40.0, 1.0, 400.0)})),
        ("one_core", FINE, {}, Signs(rests={1: Rest(40.0, 1.0, 299.0)})),
        ("one_core", FINE, {}, Signs(rests={1: Rest(19.9, 1.0, 400.0)})),
        ("one_core", FINE, {}, Signs(rests={1: Rest(40.0, 20.1, 400.0)})),
        ("idle", HALTED | FINE, {"vcpu_time_ns": (0, 1)}, Signs(rests=WATCHED | {0: WATCHED[1]})),
        ("all_cores", COUNTED, {"kvm_io_exits": 10}, Signs(interrupts=WATCHED[1])),
        ("all_cores", {"kvm_io_exits": 9}, {}, Signs(interrupts=WATCHED[1])),
        # No interrupts were observed while it was idle, or their absence is not new.
        ("all_cores", COUNTED, {}, Signs()),
        ("all_cores", COUNTED, {}, Signs(interrupts=Rest(40.0, 1.0, 299.0))),
        ("all_cores", COUNTED, {}, Signs(interrupts=Rest(40.0, 20.1, 400.0))),
        # It stopped while the guest did I/O, 26 s before that ended.
        ("one_core", FINE, {}, Signs(rests=WATCHED, quiet_s=13.9)),
        ("all_cores", COUNTED, {}, Signs(interrupts=WATCHED[1], quiet_s=13.9)),
        ("all_cores", LATE, {}, Signs(quiet_s=8.9)),
        (
            "all_cores",
            {"reported": "watchdog", "reported_ns": -40 * 10**9},
            {},
            Signs(quiet_s=19.0),
        ),
        ("all_cores", {}, {"reported": "panicked"}, Signs()),
        ("all_cores", {}, {}, Signs(probe="answered", agent="answered")),
        # Never queried, never answered, and not late yet.
        ("all_cores", {"balloon_period_s": 0}, {}, Signs()),
        ("all_cores", {"balloon_period_s": 5, "balloon_last_update_s": None}, {}, Signs()),
        (
            "all_cores",
            {"balloon_period_s": 5, "balloon_last_update_s": NOW_MS // 1000 - 14},
            {},
            Signs(),
        ),
    ],
)
def test_what_does_not_prove_a_death_is_no_witness(
    shape: CpuShape, first: dict[str, Any], last: dict[str, Any], signs: Signs
) -> None:
    assert witnesses(shape, pair(first, **last), signs) == ("activity",)


def test_a_vm_without_a_second_witness_is_refused_with_what_would_help() -> None:
    samples = pair(ONE_VCPU, vcpu_time_ns=(4_200_000_000,))
    verdict = ask(order(), *samples, signs=Signs())
    assert verdict.sentence == (
        "Refused: silence is the only evidence that the VM is dead. No second witness: the VM has "
        "one vCPU, its balloon has no period (virsh dommemstat --period 10), this node received no "
        "report of a panic device or watchdog, no guest agent has answered before, no probe has "
        "answered before."
    )


@pytest.mark.parametrize("seen", [{"reported": "watchdog"}, CRASHED], ids=["told", "crashed"])
def test_a_young_vm_is_reset_where_this_node_heard_of_its_crash(seen: dict[str, Any]) -> None:
    shape: Any = "idle" if "state" in seen else "one_core"
    assert ask(order(attested=True, history_s=60.0, cpu_shape=shape), *pair(seen)).agrees

"""A death needs two independent witnesses; a sign of life counts immediately."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flatline.engine.action.catalogue import Policy, parse_policy, read_shipped
from flatline.engine.action.events import AlertSeen, AppendOrder, CaughtUp, Tick
from flatline.engine.action.planner import step
from flatline.engine.action.state import PlannerState
from flatline.engine.detection.evidence import Picture
from flatline.engine.detection.hypotheses import Verdict
from flatline.engine.detection.sentences import of_verdict
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import Alert, EvidenceItem, counted_witnesses, may_be_reset
from flatline.engine.wire.order import Order
from flatline.models.kernels import silence_model
from tests.unit.engine.detection.frames_by_hand import Bench, Guest, cell

DEFAULT = parse_policy(
    read_shipped("default").replace(
        '# actions = { reset = "auto" }', 'actions = { reset = "auto" }'
    ),
    source="default with resets",
)
IDLE = 0.006  # of a core, the cost of an idle vCPU's timers


def orders(alerts: list[Alert], policy: Policy = DEFAULT) -> list[Order]:
    """Return a planner's orders for these alerts under the default policy."""
    state, given = PlannerState(name="p", site="site"), []
    now_ms = alerts[0].decided_ms if alerts else 0
    state, _ = step(state, CaughtUp(now_ms), policy)
    for alert in alerts:
        for event in (
            AlertSeen(alert, alert.decided_ms, alert.decided_ms),
            Tick(alert.decided_ms + 1000),
        ):
            state, done = step(state, event, policy)
            given += [one.order for one in done if isinstance(one, AppendOrder)]
    return given


def watched(
    vcpus: int, *, interval_s: float = 10.0, balloon: bool = False, **changes: Any
) -> tuple[Bench, Guest]:
    """Return a guest that wrote once a second for a while, with 25 h of history."""
    bench, guests = cell(4, interval_s=interval_s)
    guest = guests[0]
    guest.vcpus, guest.cores = vcpus, 0.05
    guest.balloon_period_s = 5 if balloon else 0
    guest.others = IDLE if vcpus > 1 else 0.0
    for name, value in changes.items():
        setattr(guest, name, value)
    # A second of writes, as learned over a day, a few samples at rest, and then the four minutes of
    # the report.
    bench.run(120 * interval_s, lambda now_s: rests_seldom(guest, round(now_s / interval_s)))
    guest.works()
    guest.cores = changes.get("cores", 0.05)
    table: VmTable = bench.partition.cells["cell"].tables["node-0"]
    table.row("history_s")[:] = 90_000.0
    # The result of a day of such samples: 9,000 signs of life and no gap.
    table.gaps[:, silence_model.LIVE] += 9000.0
    bench.run(240.0)
    return bench, guest


def rests_seldom(guest: Guest, sample: int) -> None:
    """Do no I/O in every fifth sample: only then vCPUs show the effect of timers alone."""
    guest.writes, guest.sends = (0.0, 0.0) if sample % 5 == 0 else (50_000.0, 20_000.0)


def computes(guest: Guest, *, others: float = IDLE) -> None:
    """Use one whole core without any I/O; the kernel's timers continue on the other vCPUs."""
    guest.cores = 1.0 + others * (guest.vcpus - 1)
    guest.busiest, guest.others = 1.0, others
    guest.writes = guest.reads = guest.sends = 0.0


def dies(guest: Guest, *, cores: float = 1.0) -> None:
    guest.panics(cores=cores)
    guest.others = 0.0


@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("reported", [True, False], ids=["vcpus told", "vcpus not told"])
def test_a_live_guest_that_computes_on_one_thread_is_never_ordered(
    vcpus: int, reported: bool
) -> None:
    bench, guest = watched(vcpus)
    computes(guest)
    if not reported:
        guest.others = None
    bench.run(600.0)
    assert "reboot" not in bench.suggestions(guest)
    assert orders(bench.of(guest)) == []


def test_the_time_to_reboot_itself_begins_when_its_other_vcpus_stand_still() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(10.0)
    dies(guest)
    bench.run(20.0)
    # Silent for 30 s, but dead for 20 s at most.
    assert bench.of(guest)[-1].vetoes == ("self_reboot_wait",)
    bench.run(10.0)
    assert bench.of(guest)[-1].suggested_action == "reboot"


def test_its_other_vcpus_take_even_the_alert_back() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.run(600.0)
    assert bench.of(guest) == []


def test_the_same_guest_that_panicked_is_ordered_by_its_other_vcpus() -> None:
    bench, guest = watched(2)
    dies(guest)
    bench.run(60.0)
    last = bench.of(guest)[-1]
    assert (last.suggested_action, last.witnesses) == ("reboot", ("activity", "vcpus"))
    (order,) = orders(bench.of(guest))
    assert (order.action, order.witnesses) == ("reset", ("activity", "vcpus"))
    assert order.dry_run is False


def test_the_same_guest_with_one_vcpu_is_looked_at_and_its_alert_says_what_would_help() -> None:
    bench, guest = watched(1)
    dies(guest)
    bench.run(300.0)
    last = bench.of(guest)[-1]
    assert (last.suggested_action, last.witnesses) == ("inspect", ("activity",))
    assert "no second witness" in last.sentence
    for way in ("<stats period='10'/>", "<panic model='isa'/>", "the probe of the agent"):
        assert way in last.sentence
    assert orders(bench.of(guest)) == []


@pytest.mark.parametrize(
    ("nats", "says"),
    [
        (2.0, "the second witness is still too weak"),
        (
            0.0,
            "A person must inspect the VM. To add a second witness, enable",
        ),
        (
            None,
            "A person must inspect the VM. To add a second witness, enable",
        ),
    ],
)
def test_an_alert_says_whether_its_second_witness_lacks_or_has_yet_to_last(
    nats: float | None, says: str
) -> None:
    seen = SimpleNamespace(shape="one_core", run_s=20.0, longest_s=0.0, silence_nats=5.0)
    evidence = (
        EvidenceItem(signal="silence", nats=5.0, witness="activity", minimum_nats=3.0),
        EvidenceItem(signal="balloon", nats=nats, witness="balloon", minimum_nats=3.0),
    )
    verdict = Verdict(
        Kind.PANIC_SPIN,
        True,
        9.0,
        "critical",
        "inspect",
        1,
        1_790_000_000_000,
        "one_core",
        evidence,
    )
    said = of_verdict("web", "n1", verdict, cast(Picture, seen), way="a balloon")
    assert says in said


def test_the_same_guest_with_one_vcpu_and_a_balloon_is_ordered() -> None:
    bench, guest = watched(1, balloon=True)
    dies(guest)
    bench.run(60.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "balloon")
    assert len(orders(bench.of(guest))) == 1


def test_a_guest_whose_vcpus_nobody_saw_idle_has_no_witness_in_them() -> None:
    bench, guest = watched(2, cores=1.2, others=0.6)
    dies(guest)
    bench.run(300.0)
    assert "vcpus" not in bench.of(guest)[-1].witnesses


def test_a_tickless_guest_whose_idle_vcpus_sleep_for_long_has_no_witness_in_them() -> None:
    bench, guest = watched(2)

    def sleeps(now_s: float) -> None:
        guest.others = IDLE if round(now_s) % 120 == 0 else 0.0

    bench.run(3600.0, sleeps)
    dies(guest)
    bench.run(60.0)
    assert bench.of(guest)[-1].suggested_action == "inspect"
    # Its owner's batch job looks the same, and got no order either.
    assert orders(bench.of(guest)) == []


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_halted_guest_is_known_by_all_of_its_vcpus(vcpus: int) -> None:
    # Its single vCPU is its idle one: it ticks too, and stays at 0 once the kernel halted.
    bench, guest = watched(vcpus, cores=0.09)

    def rests(now_s: float) -> None:
        """Do nothing in every second sample, with a tenth of the CPU."""
        guest.writes, guest.sends = (0.0, 0.0) if round(now_s) % 20 else (50_000.0, 20_000.0)

    bench.run(600.0, rests)
    guest.works()
    guest.cores = 0.09
    bench.run(1200.0)
    dies(guest, cores=0.0)
    bench.run(90.0)
    last = bench.of(guest)[-1]
    assert (last.kind, last.suggested_action) == ("panic_halt", "reboot")
    assert last.witnesses == ("activity", "vcpus")


def test_a_guest_that_rests_is_dead_for_as_long_as_its_vcpus_stand_still_at_most() -> None:
    bench, guest = watched(2, cores=0.09)
    guest.writes = guest.sends = 0.0
    guest.cores = 2 * IDLE
    bench.run(300.0)
    dies(guest, cores=0.0)
    # It may be at its firmware, which has not been reported yet.
    bench.run(20.0)
    assert "reboot" not in bench.suggestions(guest)
    bench.run(320.0)
    assert bench.suggestions(guest) & {"reboot", "inspect"}


def test_a_guest_that_does_nothing_while_its_vcpus_serve_timers_hangs_and_has_not_halted() -> None:
    bench, guest = watched(2, cores=0.5)
    guest.writes = guest.sends = 0.0
    guest.cores = 2 * IDLE
    bench.run(120.0)
    firing = [alert for alert in bench.of(guest) if alert.state == "firing"]
    assert {alert.kind for alert in firing} == {"hung_userland"}
    assert bench.suggestions(guest) == {"alert"}


def test_vcpus_that_sleep_in_some_samples_do_not_make_the_kind_flip() -> None:
    bench, guest = watched(2, cores=0.5)
    guest.writes = guest.sends = 0.0

    def sleeps(now_s: float) -> None:
        """Let its vCPUs serve timers in every second sample."""
        asleep = round(now_s / bench.interval_s) % 2
        guest.others = 0.0 if asleep else IDLE
        guest.cores = 0.0 if asleep else 2 * IDLE

    bench.run(180.0, sleeps)
    firing = [alert for alert in bench.of(guest) if alert.state == "firing"]
    assert len({(alert.kind, alert.suggested_action) for alert in firing}) == 1


def test_vcpus_that_stop_long_after_the_last_byte_order_nothing_for_as_long_again() -> None:
    """The silence of a guest that rests, then waits at a boot prompt, is not that of a death."""
    bench, guest = watched(2, cores=0.09)
    guest.writes = guest.sends = 0.0
    guest.cores = 2 * IDLE
    bench.run(900.0)
    dies(guest, cores=0.0)
    bench.run(800.0)
    assert "reboot" not in bench.suggestions(guest)
    bench.run(300.0)
    assert "reboot" in bench.suggestions(guest)


@pytest.mark.parametrize("stopped", ["vcpus", "balloon"])
def test_what_stood_still_while_the_guest_worked_is_no_witness(stopped: str) -> None:
    bench, guest = watched(2 if stopped == "vcpus" else 1, balloon=stopped == "balloon")
    if stopped == "vcpus":
        guest.others = 0.0
    else:
        guest.balloon = False
    bench.run(600.0)
    computes(guest, others=0.0)
    bench.run(600.0)
    assert stopped not in {name for one in bench.of(guest) for name in one.witnesses}
    assert orders(bench.of(guest)) == []


def test_a_vcpu_that_slept_already_when_the_kernel_died_is_a_witness() -> None:
    bench, guest = watched(2, interval_s=2.0)
    guest.others = 0.0
    bench.run(10.0)
    dies(guest)
    bench.run(80.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "vcpus")


@pytest.mark.parametrize(
    "changes",
    [{"vcpus": 3, "times_ns": [3e9, 3e9, 3e9]}, {"others": None}],
    ids=["plugged", "lost"],
)
def test_vcpus_that_changed_or_are_not_reported_are_unknown(changes: dict[str, Any]) -> None:
    bench, guest = watched(2)
    dies(guest)
    bench.run(20.0)
    for name, value in changes.items():
        setattr(guest, name, value)
    bench.run(10.0)
    assert "vcpus" not in bench.of(guest)[-1].witnesses
    assert "reboot" not in bench.suggestions(guest)


def test_kvm_that_injects_nothing_and_serves_nothing_is_a_witness() -> None:
    bench, guest = watched(1, kvm=(250.0, 40.0))
    dies(guest)
    guest.kvm = (0.0, 0.0)
    bench.run(60.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "exits")


def test_kvm_whose_interrupts_are_posted_is_no_witness() -> None:
    # They reach the guest uncounted; then only its I/O moved, which is its activity.
    bench, guest = watched(1, kvm=(0.0, 40.0))
    dies(guest)
    guest.kvm = (0.0, 0.0)
    bench.run(300.0)
    assert bench.of(guest)[-1].witnesses == ("activity",)


def test_interrupts_that_go_on_speak_neither_for_nor_against_a_death() -> None:
    # A Linux kernel handles its timer's interrupts after a panic.
    bench, guest = watched(1, balloon=True, kvm=(250.0, 40.0))
    dies(guest)
    guest.kvm = (250.0, 0.0)
    bench.run(60.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "balloon")


def last_answer(bench: Bench, ago_s: float = 0.0) -> str:
    return str(bench.time_ms - round(1000 * ago_s))


def test_a_probe_that_is_not_answered_any_more_is_a_witness() -> None:
    bench, guest = watched(1)
    bench.said("agent", "probe_answered", guest, node="node-0", address="10.0.0.7")
    dies(guest)
    bench.run(20.0)
    bench.said("agent", "probe_silent", guest, node="node-0", last_answer_ms=last_answer(bench, 20))
    bench.run(40.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "probe")
    assert len(orders(bench.of(guest))) == 1


@pytest.mark.parametrize(
    ("node", "ago_s"), [("node-0", 601.0), ("node-9", 20.0)], ids=["long ago", "another node"]
)
def test_silence_of_a_probe_that_says_nothing(node: str, ago_s: float) -> None:
    bench, guest = watched(1)
    dies(guest)
    bench.run(20.0)
    answered = last_answer(bench, ago_s)
    bench.said("agent", "probe_silent", guest, node=node, last_answer_ms=answered)
    bench.run(40.0)
    assert bench.of(guest)[-1].witnesses == ("activity",)


def test_a_node_that_lists_a_vm_which_runs_elsewhere_cannot_say_that_it_is_silent() -> None:
    bench, guests = cell(6, nodes=2)
    guests[0].balloon_period_s = 0
    bench.run(240.0)
    bench.places[1].guests.append(
        Guest(guests[0].name, state="shut_off", counters=dict(guests[0].counters))
    )
    bench.run(10.0)
    dies(guests[0])
    bench.run(20.0)
    answered = last_answer(bench, 20)
    bench.said("agent", "probe_silent", guests[0], node="node-1", last_answer_ms=answered)
    bench.run(40.0)
    assert bench.of(guests[0])[-1].witnesses == ("activity",)


@pytest.mark.parametrize("kind", ["probe_answered", "agent_answered"])
def test_an_answer_from_before_the_silence_says_nothing(kind: str) -> None:
    bench, guest = watched(2)
    bench.said("agent", kind, guest, node="node-0")
    dies(guest)
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guest)


@pytest.mark.parametrize("kind", ["agent_silent", "console_panic"])
def test_what_the_agent_hears_of_a_guest_is_a_witness(kind: str) -> None:
    bench, guest = watched(1)
    bench.said("agent", "agent_answered", guest, node="node-0")
    dies(guest)
    bench.run(10.0)
    bench.said("agent", kind, guest, node="node-0", line="Kernel panic - not syncing")
    bench.run(50.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "guest")


def test_a_watchdog_that_was_not_served_is_a_witness() -> None:
    bench, guest = watched(1)
    dies(guest)
    bench.run(10.0)
    bench.places[0].tell("watchdog", guest)
    bench.run(50.0)
    assert bench.of(guest)[-1].witnesses == ("activity", "guest")


@pytest.mark.parametrize("kind", ["agent_silent", "console_panic"])
def test_reports_on_a_guest_that_lived_on_are_forgotten(kind: str) -> None:
    bench, guest = watched(1)
    bench.said("agent", kind, guest, node="node-0")
    bench.run(60.0)
    dies(guest)
    bench.run(60.0)
    assert bench.of(guest)[-1].witnesses == ("activity",)


def test_the_hypervisor_alone_is_enough() -> None:
    bench, guest = watched(1)
    dies(guest, cores=0.0)
    guest.state = "crashed"
    bench.run(40.0)
    last = bench.of(guest)[-1]
    assert last.suggested_action == "reboot"
    assert "hypervisor" in last.witnesses


def test_a_panic_that_a_live_guest_is_said_to_have_had_is_refused_by_its_other_vcpus() -> None:
    bench, guest = watched(2)
    computes(guest)
    bench.places[0].tell("panicked", guest)
    bench.run(300.0)
    last = bench.of(guest)[-1]
    assert last.suggested_action == "alert"
    assert "vcpus_lives" in last.vetoes
    assert orders(bench.of(guest)) == []


def item(witness: str, nats: float, minimum_nats: float | None) -> EvidenceItem:
    return EvidenceItem(signal="x", nats=nats, witness=witness, minimum_nats=minimum_nats)


def test_a_witness_below_its_stated_minimum_does_not_count() -> None:
    assert counted_witnesses([item("balloon", 0.008, 2.0)]) == ()
    assert counted_witnesses([item("balloon", 2.0, 2.0)]) == ("balloon",)
    assert counted_witnesses([item("balloon", 9.0, None)]) == ()
    assert counted_witnesses([item("rumour", 9.0, 1.0)]) == ()
    both = [item("activity", 2.5, 3.0), item("activity", 0.6, None)]
    assert counted_witnesses(both) == ("activity",)
    assert counted_witnesses([item("guest", 15.0, 3.0), item("guest", -20.0, 3.0)]) == ()


@pytest.mark.parametrize(
    ("heard", "enough"),
    [
        ((), False),
        (("activity",), False),
        (("balloon", "vcpus", "probe"), False),
        (("activity", "activity"), False),
        (("activity", "io"), False),
        (("activity", "probe"), True),
        (("hypervisor",), True),
    ],
)
def test_activity_and_one_more_or_the_hypervisor(heard: tuple[str, ...], enough: bool) -> None:
    assert may_be_reset(heard) is enough


def test_a_snapshot_keeps_what_was_learned_of_vcpus_bit_for_bit() -> None:
    bench, guest = watched(2, kvm=(250.0, 40.0))
    chunks, manifest = take_snapshot(bench.partition)
    again = restore(chunks, manifest, bench.partition.configuration)
    assert digest(again) == digest(bench.partition)
    before = len(bench.records)
    dies(guest)
    bench.run(60.0)
    for record in bench.records[before:]:
        again.fold(record)
    assert digest(again) == digest(bench.partition)

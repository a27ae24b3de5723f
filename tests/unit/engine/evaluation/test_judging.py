import pytest

from flatline.engine.evaluation.judging import judge, within_samples
from flatline.engine.evaluation.scores import score
from flatline.engine.evaluation.truth import Occurrence


def fault(kind="panic_spin", *, start=10_000, end=13_000, expected="reboot", vms="a", **more):
    known = {"is_fault": True, "host": "h0", "shape": "one core" if "spin" in kind else ""}
    return Occurrence(
        kind=kind,
        expected=expected,
        vms=frozenset(vms),
        start_s=float(start),
        end_s=float(end),
        **{**known, **more},
    )


def confounder(kind="batch_compute", **more):
    return fault(kind, is_fault=False, expected=more.pop("expected", "none"), shape="", **more)


def judged(lines, *truth, chosen=None):
    return judge(lines, truth, interval_s=300.0, chosen=chosen)


def test_alert_and_suggestion_have_delays_of_their_own(line) -> None:
    lines = [
        line(10_500, state="pending"),
        line(10_600),
        line(10_900, suggestion="reboot"),
        line(16_000, state="resolved", suggestion="none"),
    ]
    [finding] = judged(lines, fault()).findings
    assert (finding.alert_s, finding.suggestion_s, finding.kind) == (600.0, 900.0, "panic_spin")
    assert judged(lines, fault()).false_alerts == ()
    assert judged(lines, fault()).false_orders == ()


def test_what_is_reported_too_late_or_of_another_vm_is_a_miss_and_false(line) -> None:
    for wrong in (line(15_000), line(9_000), line(10_600, subject="b")):
        judgement = judged([wrong], fault())
        assert judgement.findings[0].alert_s is None
        assert [alert.behind for alert in judgement.false_alerts] == [None]


def test_pending_alone_was_never_reported(line) -> None:
    judgement = judged([line(10_600, state="pending")], fault())
    assert judgement.findings[0].alert_s is None
    assert judgement.reported == ()


def test_an_alert_on_a_confounder_is_false_and_the_confounder_is_named(line) -> None:
    [alert] = judged([line(10_600)], confounder()).false_alerts
    assert alert.behind is not None
    assert alert.behind.kind == "batch_compute"


@pytest.mark.parametrize(
    ("occurrence", "suggestion", "is_false"),
    [
        (fault(), "reboot", False),
        (fault(), "migrate", True),
        (fault(detectable=False), "reboot", False),
        (fault("crash_reboot", expected="alert"), "reboot", True),
        (fault("hung_io", expected="migrate"), "migrate", False),
        (fault("noisy_neighbour", expected="migrate", vms="b", victims=frozenset("a")),
         "migrate", True),
        (confounder(), "reboot", True),
        (fault(vms="z"), "reboot", True),
    ],
)  # fmt: skip
def test_a_suggestion_counts_whatever_a_guard_would_say(
    line, occurrence, suggestion, is_false
) -> None:
    judgement = judged([line(10_600), line(10_900, suggestion=suggestion)], occurrence)
    assert bool(judgement.false_orders) is is_false


def test_an_incident_is_one_false_order_however_often_it_is_reported(line) -> None:
    lines = [
        line(10_600, suggestion="reboot"),
        line(10_900),
        line(11_200, suggestion="reboot"),
    ]
    assert len(judged(lines, confounder()).false_orders) == 1


def test_a_fleets_silence_asks_for_an_alert_of_the_fleet_and_of_nobody_else(line) -> None:
    silence = confounder("fleet_io_silence", expected="fleet_alert", vms="abc", host="")
    fleet = line(10_300, "cell", "fleet_silence", "fleet_alert", scope="fleet", vms=("a", "b"))
    judgement = judged([fleet, line(10_600)], silence)
    assert judgement.findings[0].suggestion_s == 300.0
    assert [alert.incident.first.subject for alert in judgement.false_alerts] == ["a"]
    assert judgement.findings[0].extra == 1


def test_a_silent_host_is_found_by_an_alert_of_the_host(line) -> None:
    silence = fault("host_silence", expected="host_alert", vms="ab")
    host = line(10_900, "h0", "host_silence", "host_alert", scope="host", vms=("a", "b"))
    one = line(10_600, "a", "vm_silence")
    judgement = judged([one, host], silence)
    assert judgement.findings[0].suggestion_s == 900.0
    assert judgement.findings[0].kind == "host_silence"
    assert judgement.findings[0].extra == 1
    assert judgement.false_alerts == ()


def test_a_fleet_that_falls_silent_while_a_host_is_out_is_no_repeat_of_the_host(line) -> None:
    host = fault("host_silence", expected="host_alert", vms="ab")
    fleet = confounder("fleet_io_silence", expected="fleet_alert", vms="cd", host="")
    reported = [
        line(10_600, "h0", "host_silence", "host_alert", scope="host", vms=("a", "b")),
        line(10_900, "cell", "fleet_silence", "fleet_alert", scope="fleet", vms=("c", "d")),
    ]
    assert [found.extra for found in judged(reported, host, fleet).findings] == [0, 0]
    assert [found.extra for found in judged(reported, host).findings] == [1]


def test_a_host_is_not_ill_because_one_of_its_guests_is(line) -> None:
    host = line(10_600, "h0", "host_stall", "host_alert", scope="host", vms=("a", "b", "c"))
    assert len(judged([host], fault()).false_alerts) == 1


def test_an_alert_of_a_victim_is_neither_right_nor_wrong(line) -> None:
    noisy = fault("noisy_neighbour", expected="migrate", vms="b", victims=frozenset("a"))
    judgement = judged([line(10_600, "a", "degrading_storage")], noisy)
    assert judgement.false_alerts == ()
    assert judgement.findings[0].alert_s is None
    assert judgement.findings[0].extra == 0


def test_figures_on_a_part_of_the_vms_leave_the_others_out(line) -> None:
    truth = (fault(), fault(vms="b"))
    lines = [line(10_600), line(20_000, "b")]
    judgement = judged(lines, *truth, chosen=lambda vm: vm == "a")
    assert len(judgement.findings) == 1
    assert judgement.false_alerts == ()


def test_within_so_many_samples_forgives_the_closing_of_a_window() -> None:
    assert within_samples(749.0, 2, 300.0)
    assert not within_samples(751.0, 2, 300.0)
    assert not within_samples(None, 6, 300.0)


def test_scores_add_up(line) -> None:
    truth = (
        fault(),
        fault(vms="b"),
        fault("panic_halt", vms="c", shape="halt"),
        fault("panic_halt", vms="d", shape="halt", detectable=False),
        confounder(vms="e"),
    )
    lines = [
        line(10_300),
        line(10_600, suggestion="reboot"),
        line(10_900, "c", "hung_io"),
        line(10_900, "e", "panic_spin", "reboot"),
    ]
    scores = score(judged(lines, *truth), interval_s=300.0, vm_days=100.0)
    assert (scores.alerts["panic"].total, scores.alerts["panic"].found) == (3, 2)
    assert scores.alerts["panic: one core"].within == {
        "1": 0.5, "2": 0.5, "3": 0.5, "4": 0.5, "5": 0.5, "6": 0.5,
    }  # fmt: skip
    assert scores.suggestions["panic"].found == 1
    assert scores.undetectable == 1
    assert scores.false_orders.count == 1
    assert scores.false_orders.per_1000 == 10.0
    assert scores.orders_behind == {"batch_compute": 1}
    assert scores.confusion["panic_halt"] == {"hung_io": 1}
    assert scores.confusion["nothing"] == {"panic_spin": 1}
    # Of panic_spin one is right, one missed, one invented; of panic_halt none is right.
    assert scores.kinds["panic_spin"].f1 == pytest.approx(0.5)
    assert scores.kinds["panic_halt"].f1 == 0.0
    assert scores.macro_f1 == pytest.approx(0.25)


@pytest.mark.parametrize("aggregates_only", [True, False])
def test_to_inspect_is_the_decision_only_where_no_second_witness_can_be_heard(
    line, aggregates_only
) -> None:
    lines = [line(10_600), line(10_900, suggestion="inspect")]
    right = judge(lines, (fault(),), interval_s=300.0, aggregates_only=aggregates_only)
    assert right.findings[0].suggestion_s == (900.0 if aggregates_only else None)
    wrong = judge(lines, (confounder(),), interval_s=300.0, aggregates_only=aggregates_only)
    assert len(wrong.false_orders) == aggregates_only

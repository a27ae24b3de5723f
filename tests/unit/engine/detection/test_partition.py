"""The engine on small hand-made sequences: detections, delays, and cases without alerts."""

from dataclasses import replace

import numpy as np
import pytest

from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.rejected import decode_rejected
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, cell

WARM_S = 120.0


def a_panic() -> tuple[Bench, Guest]:
    bench, guests = cell(6, nodes=2)
    bench.run(WARM_S)
    guests[0].panics()
    bench.run(40.0)
    return bench, guests[0]


def firing(alerts: list[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.state == "firing"]


def test_a_spinning_panic_is_alerted_within_fourteen_seconds() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics()
    found = firing(bench.run(14.0))
    assert [(alert.subject, alert.kind) for alert in found] == [(guests[0].text, "panic_spin")]


def test_a_reboot_is_suggested_within_forty_five_seconds() -> None:
    bench, guest = a_panic()
    first = next(alert for alert in bench.of(guest) if alert.suggested_action == "reboot")
    assert first.decided_ms - 1000 * round(WARM_S) - 1_767_261_600_000 <= 45_000
    assert first.cpu_shape == "one_core"
    assert first.instance == 7
    assert first.node == "node-0"
    assert first.actionable


@pytest.mark.parametrize("interval_s", [1.0, 2.0, 10.0, 60.0])
def test_a_guest_gets_the_same_seconds_to_reboot_itself_however_often_it_is_sampled(
    interval_s: float,
) -> None:
    bench, guests = cell(interval_s=interval_s)
    bench.run(60 * interval_s)
    guests[0].panics()
    wait_s = max(FAST.self_reboot_s, FAST.alert_samples * interval_s)
    bench.run(wait_s - 0.5 * interval_s)
    assert "reboot" not in bench.suggestions(guests[0])
    bench.run(4 * interval_s)
    assert "reboot" in bench.suggestions(guests[0])


def test_a_halted_guest_is_found_by_its_silence_and_its_balloon() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics(cores=0.0)
    bench.run(40.0)
    assert {alert.kind for alert in bench.of(guests[0])} == {"panic_halt"}
    assert "reboot" in bench.suggestions(guests[0])


def test_received_traffic_is_no_sign_of_life() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics()
    guests[0].receives = 1e6
    bench.run(40.0)
    assert "reboot" in bench.suggestions(guests[0])


def test_transmitted_traffic_is_a_sign_of_life() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics()
    guests[0].sends = 100.0
    bench.run(60.0)
    assert "reboot" not in bench.suggestions(guests[0])


def test_a_batch_job_without_io_is_left_alone() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].computes()
    bench.run(300.0)
    assert not bench.of(guests[0])


def test_a_batch_job_of_a_guest_without_a_balloon_leads_to_no_order() -> None:
    bench, guests = cell()
    guests[0].balloon_period_s = 0
    bench.run(WARM_S)
    guests[0].computes()
    bench.run(300.0)
    assert "reboot" not in bench.suggestions(guests[0])


def test_a_guest_that_computed_since_before_is_left_alone() -> None:
    bench, guests = cell()
    guests[0].computes()
    bench.run(600.0)
    assert not bench.of(guests[0])


def test_an_idle_guest_is_left_alone() -> None:
    bench, guests = cell()
    guests[0].cores = 0.005

    def seldom(now_s: float) -> None:
        guests[0].writes = 4096.0 if now_s % 40 < 2 else 0.0
        guests[0].sends = 60.0 if now_s % 34 < 2 else 0.0

    bench.run(900.0, each=seldom)
    assert not bench.of(guests[0])


def test_hung_processes_under_a_living_kernel_are_alerted_and_never_rebooted() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].cores, guests[0].writes, guests[0].sends = 0.002, 0.0, 98.0
    bench.run(120.0)
    assert {alert.kind for alert in firing(bench.of(guests[0]))} == {"hung_userland"}
    assert bench.suggestions(guests[0]) == {"alert"}


def test_disks_that_hang_are_distinguished_from_processes_by_the_node() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].cores, guests[0].writes, guests[0].sends = 0.002, 0.0, 98.0
    bench.places[0].gauges["psi_io_some_ratio"] = 0.2
    bench.run(120.0)
    assert {alert.kind for alert in firing(bench.of(guests[0]))} == {"hung_io"}


def test_a_node_that_hovers_at_its_limit_does_not_make_the_kind_of_a_hang_flip() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].cores, guests[0].writes, guests[0].sends = 0.002, 0.0, 98.0
    gauges = bench.places[0].gauges

    def hovers(now_s: float) -> None:
        gauges["psi_io_some_ratio"] = 0.2 if now_s % 20 < 10 else 0.0

    bench.run(180.0, each=hovers)
    first = firing(bench.of(guests[0]))[0].kind
    assert {alert.kind for alert in firing(bench.of(guests[0]))} == {first}
    assert {alert.transition for alert in firing(bench.of(guests[0]))} == {0}
    assert len({alert.sentence.rsplit(":")[-1] for alert in bench.of(guests[0])}) == 1
    other = {"hung_io": "hung_userland", "hung_userland": "hung_io"}[first]
    gauges["psi_io_some_ratio"] = 0.2 if other == "hung_io" else 0.0
    bench.run(FAST.hung_kind_s + 2 * bench.interval_s)
    last = bench.of(guests[0])[-1]
    assert (last.kind, last.transition) == (other, 1)


def test_a_guest_of_which_nothing_moved_since_its_boot_is_alerted_at_most() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics()
    bench.places[0].tell("rebooted", guests[0])
    guests[0].instance += 1
    guests[0].counters.clear()
    bench.run(300.0)
    assert "boot_stuck" in {alert.kind for alert in bench.of(guests[0])}
    assert "reboot" not in bench.suggestions(guests[0])


def test_a_panic_reported_by_the_guest_needs_no_learned_silence() -> None:
    bench, guests = cell()
    bench.run(20.0)
    guests[0].panics(cores=0.0)
    guests[0].state = "crashed"
    bench.places[0].tell("panicked", guests[0])
    found = firing(bench.run(10.0))
    assert found[0].kind == "panic_halt"
    assert "reboot" in bench.suggestions(guests[0])


def test_a_guest_held_as_crashed_is_not_given_time_to_reboot_itself() -> None:
    bench, guests = cell()
    bench.run(WARM_S)
    guests[0].panics()
    guests[0].state = "crashed"
    bench.places[0].tell("panicked", guests[0])
    bench.run(FAST.told_order_s + 2 * bench.interval_s)
    assert "reboot" in bench.suggestions(guests[0])


@pytest.mark.parametrize("interval_s", [1.0, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("word", ["panicked", "crashed"])
def test_a_guest_that_reported_its_panic_and_runs_on_may_reboot_itself_first(
    interval_s: float, word: str
) -> None:
    bench, guests = cell(interval_s=interval_s)
    bench.run(60 * interval_s)
    guests[0].panics()
    bench.places[0].tell(word, guests[0])
    wait_s = max(FAST.self_reboot_s, FAST.alert_samples * interval_s)
    bench.run(wait_s - interval_s)
    assert bench.suggestions(guests[0]) == {"alert"}
    bench.run(3 * interval_s)
    assert "reboot" in bench.suggestions(guests[0])


@pytest.mark.parametrize("interval_s", [2.0, 10.0])
def test_a_guest_that_was_quiet_before_it_reported_its_panic_gets_as_long(
    interval_s: float,
) -> None:
    bench, guests = cell(interval_s=interval_s)
    bench.run(60 * interval_s)
    guests[0].writes = guests[0].reads = guests[0].sends = 0.0
    bench.run(60.0)
    guests[0].panics()
    bench.places[0].tell("panicked", guests[0])
    bench.run(FAST.self_reboot_s)
    assert "reboot" not in bench.suggestions(guests[0])
    bench.run(3 * interval_s)
    assert "reboot" in bench.suggestions(guests[0])


def test_a_shared_pool_that_stalls_is_one_alert_and_no_reboot() -> None:
    bench, guests = cell(50, nodes=2)
    for guest in guests:
        guest.pool = "pool-a"
    bench.run(WARM_S)
    for guest in guests:
        guest.writes = guest.sends = 0.0
        guest.cores = 0.01
    bench.run(120.0)
    assert [(alert.scope, alert.kind, alert.subject) for alert in firing(bench.alerts)[:1]] == [
        ("pool", "pool_stall", "pool-a")
    ]
    assert {alert.scope for alert in firing(bench.alerts)} == {"pool"}
    assert len({alert.id for alert in bench.alerts}) == 1
    for guest in guests:
        guest.works()
    assert bench.run(20.0)[-1].state == "resolved"


def test_a_node_that_stops_reporting_is_one_alert_and_none_of_its_vms_is_judged() -> None:
    bench, _ = cell(8, nodes=4)
    bench.run(WARM_S)
    bench.places[1].reachable = False
    bench.run(60.0)
    assert {(alert.scope, alert.kind, alert.subject) for alert in bench.alerts} == {
        ("host", "host_silence", "node-1")
    }
    assert len({alert.id for alert in bench.alerts}) == 1
    bench.places[1].reachable = True
    assert bench.run(10.0)[-1].state == "resolved"


def test_a_collector_that_sees_no_hypervisor_is_silence_of_the_node_not_absence_of_vms() -> None:
    bench, _ = cell(8, nodes=4)
    bench.run(WARM_S)
    bench.places[1].guests = []
    bench.places[1].gauges["hypervisor_reachable"] = 0.0
    bench.run(60.0)
    assert {alert.kind for alert in bench.alerts} == {"host_silence"}


def test_nodes_that_fall_silent_together_are_one_incident_of_the_cell() -> None:
    bench, _ = cell(8, nodes=4)
    bench.run(WARM_S)
    for place in bench.places:
        place.reachable = False
    bench.run(60.0)
    assert {(alert.scope, alert.kind) for alert in bench.alerts} == {("fleet", "fleet_silence")}


def test_a_vm_on_an_overloaded_node_is_to_be_migrated_if_another_has_room() -> None:
    bench, _guests = cell(8, nodes=2)
    bench.run(WARM_S)
    bench.places[0].busy = 1.0
    for index, guest in enumerate(bench.places[0].guests):
        guest.delay = 0.1 * (index + 1)
    bench.run(60.0)
    found = firing(bench.alerts)
    worst = bench.places[0].guests[-1]
    assert {(alert.subject, alert.kind, alert.suggested_action) for alert in found} == {
        (worst.text, "node_contention", "migrate")
    }


def test_nobody_is_migrated_when_all_nodes_are_full() -> None:
    bench, guests = cell(8, nodes=2)
    for place in bench.places:
        place.busy = 1.0
    for guest in guests:
        guest.delay = 0.4
    bench.run(120.0)
    assert not bench.alerts


def test_a_vm_that_vanishes_without_an_event_is_reported() -> None:
    bench, _guests = cell(4)
    bench.run(WARM_S)
    gone = bench.places[0].guests.pop(0)
    bench.run(60.0)
    assert {alert.kind for alert in bench.of(gone)} == {"vm_silence"}


def test_a_vm_that_was_shut_down_is_not_missed() -> None:
    bench, _guests = cell(4)
    bench.run(WARM_S)
    gone = bench.places[0].guests.pop(0)
    bench.places[0].tell("shutdown", gone)
    bench.run(120.0)
    assert not bench.of(gone)


def test_a_migrated_vm_keeps_what_was_learned_of_it() -> None:
    bench, _guests = cell(4, nodes=2)
    bench.run(WARM_S)
    moved = bench.places[0].guests.pop(0)
    moved.instance, moved.counters = 99, {}
    bench.places[1].guests.append(moved)
    bench.places[1].tell("migrated_in", moved)
    bench.run(40.0)
    assert not bench.of(moved)
    moved.panics()
    bench.run(40.0)
    reboot = [alert for alert in bench.of(moved) if alert.suggested_action == "reboot"]
    assert reboot
    assert reboot[0].node == "node-1"
    assert reboot[0].instance == 99
    assert (reboot[0].history_s or 0.0) > WARM_S


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_same_records_give_the_same_alerts_and_digest_in_any_portions(size: int) -> None:
    bench, _ = a_panic()
    whole = run_records(bench.records, FAST)
    partition = Partition(FAST)
    alerts: list[Alert] = []
    for start in range(0, len(bench.records), size):
        for record in bench.records[start : start + size]:
            alerts += [out.alert for out in partition.fold(record) if out.alert is not None]
    assert alerts == whole.alerts == bench.alerts
    assert digest(partition) == whole.digest


def test_a_restored_snapshot_goes_on_bit_for_bit_from_twenty_points() -> None:
    bench, _ = a_panic()
    whole = run_records(bench.records, FAST)
    partition = Partition(FAST)
    alerts: list[Alert] = []
    points = set(np.linspace(1, len(bench.records) - 1, 20).astype(int).tolist())
    for index, record in enumerate(bench.records):
        if index in points:
            chunks, manifest = take_snapshot(partition)
            partition = restore(chunks, manifest, FAST)
        alerts += [out.alert for out in partition.fold(record) if out.alert is not None]
    assert alerts == whole.alerts
    assert digest(partition) == whole.digest


def test_records_folded_before_a_snapshot_change_nothing_after_it() -> None:
    bench, _ = a_panic()
    half = len(bench.records) // 2
    partition = Partition(FAST)
    for record in bench.records[:half]:
        partition.fold(record)
    restored = restore(*take_snapshot(partition), FAST)
    for record in bench.records:
        restored.fold(record)
    assert digest(restored) == run_records(bench.records, FAST).digest


def test_duplicates_and_shuffled_frames_lead_to_the_same_alert_ids(
    rng: np.random.Generator,
) -> None:
    bench, _ = a_panic()
    whole = run_records(bench.records, FAST)
    order = np.arange(len(bench.records)) + rng.uniform(0, 12, len(bench.records))
    shuffled = [bench.records[index] for index in np.argsort(order, kind="stable")]
    again = [record for record in shuffled for _ in range(1 + int(rng.random() < 0.2))]
    times = sorted(record.time_ms for record in again)
    records = [
        Record(
            topic=record.topic,
            partition=0,
            offset=offset,
            time_ms=time_ms,
            key=record.key,
            value=record.value,
        )
        for offset, (record, time_ms) in enumerate(zip(again, times, strict=True))
    ]
    mixed = run_records(records, FAST)
    assert {alert.id for alert in mixed.alerts} == {alert.id for alert in whole.alerts}
    assert {alert.id for alert in mixed.alerts if alert.suggested_action == "reboot"} == {
        alert.id for alert in whole.alerts if alert.suggested_action == "reboot"
    }


def test_every_record_is_accounted_for(rng: np.random.Generator) -> None:
    bench, _ = cell(3)
    bench.run(20.0)
    frames = list(bench.records)
    for index in range(200):
        value = frames[index % len(frames)].value
        kind = index % 4
        if kind == 0:
            value = rng.bytes(40)
        elif kind == 1:
            value = value[: len(value) // 2]
        bench.fold(bench.record(value))
        counters = bench.partition.counters
        assert counters.balanced(bench.partition.waiting())
    assert counters.rejected == 100
    assert counters.duplicate == 100
    rejected = [out for out in bench.outputs if out.topic == "flatline.rejected.v1"]
    assert len(rejected) == 100
    assert decode_rejected(rejected[0].value).reason in {"malformed", "truncated"}


def test_a_frame_whose_gap_was_given_up_is_counted_late() -> None:
    bench, _ = cell(3)
    bench.run(20.0)
    place = bench.places[0]
    held: list[Record] = []
    original = bench.fold

    def keep(record: Record) -> list[Alert]:
        held.append(record)
        return []

    bench.fold = keep  # type: ignore[method-assign]
    bench.now_s += 2
    bench.sample(place)
    bench.fold = original  # type: ignore[method-assign]
    bench.run(40.0)
    late = bench.record(held[0].value)
    bench.fold(late)
    assert bench.partition.counters.late == 1
    assert bench.partition.waiting() == 0


def test_a_node_clock_that_goes_back_is_a_new_epoch_and_never_a_rate() -> None:
    bench, _guests = cell(3)
    bench.run(WARM_S)
    bench.places[0].mono_ns -= 60_000_000_000
    bench.run(20.0)
    assert bench.partition.counters.clock_backwards == 1
    assert not bench.alerts


def test_a_gap_in_the_log_makes_nobody_silent() -> None:
    bench, _ = cell(6, nodes=3)
    bench.run(WARM_S)
    bench.now_s += 600.0
    bench.run(20.0)
    assert not bench.alerts


def test_an_alert_reads_as_plain_sentences() -> None:
    bench, guest = a_panic()
    sentence = next(a for a in bench.of(guest) if a.suggested_action == "reboot").sentence
    assert sentence == (
        "vm-0 on node-0 has kept one vCPU at 100 % for 30 s with no disk I/O and no network "
        "output. A silence this long has a probability of 1 in 120 for this VM. The balloon driver "
        "has not reported for 30 s. Probable cause: a kernel panic with a spinning vCPU."
    )


def test_records_that_the_log_dropped_are_counted_and_change_no_digest() -> None:
    bench, _guests = cell(2)
    bench.run(4.0)
    whole, trimmed = Partition(FAST), Partition(FAST)
    for record in bench.records:
        whole.fold(record)
        at = record.offset + (5 if record.offset < 2 else 8)
        trimmed.fold(replace(record, offset=at))
    assert (whole.lost, trimmed.lost) == (0, 3)
    assert digest(trimmed) == digest(whole)

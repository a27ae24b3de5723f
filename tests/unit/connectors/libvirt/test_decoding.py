"""The rows contain libvirt's values, and no others."""

import numpy as np
import pytest

from flatline.connectors.libvirt.binding import Stats, StatValue
from flatline.connectors.libvirt.decoding import (
    BUSY_RATIO,
    Reading,
    VcpuTimes,
    decode,
    host_mark,
    instance_of,
    monitor_answered,
)
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW, INTEGERS, KVM_COUNTERS
from flatline.engine.wire.vcpus import MAX_VM_VCPUS
from tests.unit.connectors.libvirt.scripted import recorded

VM = bytes(range(16))
SECOND_NS = 10**9


def value(rows: VmRows, name: str, column: int = 0) -> int | None:
    row = INTEGER_ROW[name]
    if rows.missing is not None and rows.missing[row, column]:
        assert rows.integers[row, column] == 0
        return None
    return int(rows.integers[row, column])


def rows_of(stats: Stats, job_active: bool | None = None) -> VmRows:
    reading = Reading(vm=VM, instance=7, stats=stats, job_active=job_active)
    return decode([reading], {}, mono_ns=SECOND_NS)[0]


def decoded_twice(
    first: dict[str, int], second: dict[str, int], *, elapsed_ns: int = SECOND_NS
) -> VmRows:
    before = Reading(vm=VM, instance=7, stats=first)
    _, previous = decode([before], {}, mono_ns=SECOND_NS)
    after = Reading(vm=VM, instance=7, stats=second)
    return decode([after], previous, mono_ns=SECOND_NS + elapsed_ns)[0]


def vcpus(*times_ns: int) -> dict[str, int]:
    reported = {f"vcpu.{number}.time": time_ns for number, time_ns in enumerate(times_ns)}
    waited = {f"vcpu.{number}.delay": 0 for number in range(len(times_ns))}
    return {"vcpu.maximum": len(times_ns), **reported, **waited}


def test_a_healthy_vm_fills_every_column_but_those_that_x86_lacks() -> None:
    rows = rows_of(recorded("healthy")["vm1"], job_active=False)
    absent = {metric.name for metric in INTEGERS if value(rows, metric.name) is None}
    of_kvm = {metric.name for metric in KVM_COUNTERS}
    assert absent == {"vcpu_wait_ns", "vcpus_busy", "vcpus_halted"} | of_kvm


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("cpu_time_ns", "cpu.time"),
        ("cpu_user_ns", "cpu.user"),
        ("cpu_system_ns", "cpu.system"),
        ("vcpu_delay_ns", "vcpu.0.delay"),
        ("block_rd_ns", "block.0.rd.times"),
        ("block_wr_ns", "block.0.wr.times"),
        ("block_fl_ns", "block.0.fl.times"),
        ("block_rd_bytes", "block.0.rd.bytes"),
        ("block_wr_bytes", "block.0.wr.bytes"),
        ("block_rd_reqs", "block.0.rd.reqs"),
        ("block_wr_reqs", "block.0.wr.reqs"),
        ("block_fl_reqs", "block.0.fl.reqs"),
        ("net_rx_bytes", "net.0.rx.bytes"),
        ("net_tx_bytes", "net.0.tx.bytes"),
        ("net_rx_pkts", "net.0.rx.pkts"),
        ("net_tx_pkts", "net.0.tx.pkts"),
        ("net_rx_errs", "net.0.rx.errs"),
        ("net_tx_errs", "net.0.tx.errs"),
        ("net_rx_drop", "net.0.rx.drop"),
        ("net_tx_drop", "net.0.tx.drop"),
        ("balloon_major_faults", "balloon.major_fault"),
        ("balloon_current_kib", "balloon.current"),
        ("balloon_rss_kib", "balloon.rss"),
        ("balloon_usable_kib", "balloon.usable"),
        ("balloon_last_update_s", "balloon.last-update"),
        ("state", "state.state"),
        ("vcpus", "vcpu.current"),
    ],
)
def test_each_column_holds_its_own_field(name: str, field: str) -> None:
    stats = recorded("healthy")["vm1"]
    stats[field] = 3  # unlike every other field's value, and a valid state
    assert value(rows_of(stats), name) == 3


def test_a_silent_monitor_leaves_cpu_and_network_and_nothing_of_the_disks() -> None:
    rows = rows_of(recorded("hung")["vm1"])
    assert value(rows, "cpu_time_ns") == recorded("hung")["vm1"]["cpu.time"]
    assert value(rows, "net_tx_pkts") is not None
    assert value(rows, "state") == 1
    for name in (metric.name for metric in INTEGERS if metric.name.startswith("block_")):
        assert value(rows, name) is None
    assert value(rows, "balloon_last_update_s") is None
    assert value(rows, "balloon_rss_kib") is None


def test_a_silent_monitor_is_distinguished_from_one_that_answered() -> None:
    assert [monitor_answered(stats) for stats in recorded("hung").values()] == [False, True, True]
    assert all(monitor_answered(stats) for stats in recorded("healthy").values())


def test_a_vm_stopped_by_its_panic_device_is_crashed() -> None:
    assert value(rows_of(recorded("crashed")["vm2"]), "state") == 6


def test_disks_and_network_cards_are_summed_over_devices() -> None:
    stats = {"block.count": 3, "block.0.wr.reqs": 5, "block.2.wr.reqs": 7}
    assert value(rows_of(stats), "block_wr_reqs") == 12


def test_a_vm_without_a_device_misses_its_columns_rather_than_idling() -> None:
    assert value(rows_of({"block.count": 0, "net.count": 0}), "block_wr_reqs") is None
    assert value(rows_of({"block.count": 0, "net.count": 0}), "net_rx_pkts") is None


@pytest.mark.parametrize("reported", [-1, 2**64, "many", True, 1.5])
def test_what_is_no_counter_is_missing(reported: StatValue) -> None:
    assert value(rows_of({"cpu.time": reported}), "cpu_time_ns") is None


def test_the_largest_counter_is_kept_exactly() -> None:
    assert value(rows_of({"cpu.time": 2**64 - 1}), "cpu_time_ns") == 2**64 - 1


def test_a_balloon_that_never_reported_has_no_last_update() -> None:
    assert value(rows_of({"balloon.last-update": 0}), "balloon_last_update_s") is None


def test_a_state_that_libvirt_adds_later_is_unknown() -> None:
    assert value(rows_of({"state.state": 8}), "state") is None


def test_waiting_is_missing_where_the_kernel_keeps_no_scheduler_statistics() -> None:
    assert value(rows_of({"vcpu.maximum": 1, "vcpu.0.wait": 0}), "vcpu_wait_ns") is None
    both = {"vcpu.maximum": 2, "vcpu.0.wait": 3, "vcpu.1.wait": 4}
    assert value(rows_of(both), "vcpu_wait_ns") == 7


def test_halted_vcpus_are_counted_where_the_platform_reports() -> None:
    reported = {
        "vcpu.maximum": 3,
        "vcpu.0.halted": True,
        "vcpu.1.halted": False,
        "vcpu.2.halted": True,
    }
    assert value(rows_of(reported), "vcpus_halted") == 2


def test_a_job_not_asked_for_is_missing_and_no_job_is_zero() -> None:
    stats = recorded("healthy")["vm1"]
    assert value(rows_of(stats), "job_active") is None
    assert value(rows_of(stats, job_active=False), "job_active") == 0
    assert value(rows_of(stats, job_active=True), "job_active") == 1


def test_the_first_sample_of_a_vm_reports_nothing_of_its_vcpus_use() -> None:
    rows = rows_of(vcpus(5, 5))
    assert value(rows, "vcpus_busy") is None
    assert np.isnan(rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], 0])


def test_one_spinning_vcpu_of_four_is_busy_and_the_busiest() -> None:
    rows = decoded_twice(vcpus(0, 10, 20, 30), vcpus(0, 10, 20, 30 + SECOND_NS))
    assert value(rows, "vcpus_busy") == 1
    assert rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], 0] == pytest.approx(1.0)


def test_a_vcpu_is_busy_from_half_a_core_on() -> None:
    half_ns = int(BUSY_RATIO * SECOND_NS)
    rows = decoded_twice(vcpus(0, 0), vcpus(half_ns, half_ns - 1))
    assert value(rows, "vcpus_busy") == 1


def test_an_idle_vm_has_no_busy_vcpu_which_is_not_missing() -> None:
    rows = decoded_twice(vcpus(5), vcpus(5))
    assert value(rows, "vcpus_busy") == 0
    assert rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], 0] == 0.0


def test_another_instance_of_the_vm_has_no_interval_yet() -> None:
    previous = {VM: VcpuTimes(instance=6, mono_ns=0, times_ns={0: 1})}
    reading = Reading(vm=VM, instance=7, stats=vcpus(SECOND_NS))
    rows, current = decode([reading], previous, mono_ns=SECOND_NS)
    assert value(rows, "vcpus_busy") is None
    assert current[VM] == VcpuTimes(instance=7, mono_ns=SECOND_NS, times_ns={0: SECOND_NS})


def test_a_vcpu_time_that_went_back_is_no_rate() -> None:
    assert value(decoded_twice(vcpus(9_000, 0), vcpus(0, SECOND_NS)), "vcpus_busy") is None


def test_a_vcpu_plugged_in_between_is_left_out_of_this_interval() -> None:
    rows = decoded_twice(vcpus(0), vcpus(SECOND_NS, SECOND_NS))
    assert value(rows, "vcpus_busy") == 1


def test_unplugged_vcpus_leave_gaps_in_the_numbers() -> None:
    with_gap = {"vcpu.maximum": 4, "vcpu.0.time": 0, "vcpu.3.time": 0}
    after = {"vcpu.maximum": 4, "vcpu.0.time": 0, "vcpu.3.time": SECOND_NS}
    assert value(decoded_twice(with_gap, after), "vcpus_busy") == 1


def test_the_time_of_each_vcpu_stands_at_its_number() -> None:
    stats = recorded("healthy")
    readings = [
        Reading(vm=bytes([number]) * 16, instance=7, stats=reported)
        for number, reported in enumerate([stats["vm1"], stats["vm3"]])
    ]
    rows, _ = decode(readings, {}, mono_ns=1)
    assert rows.vcpus is not None
    assert rows.vcpus.counts.tolist() == [1, 2]
    # Run time in ticks of 10 ms, and wait for a core in ns: whole microseconds.
    waited = [
        stats[vm][f"vcpu.{number}.delay"] for vm, number in (("vm1", 0), ("vm3", 0), ("vm3", 1))
    ]
    ran = [7_160_000_000, 7_720_000_000, 5_270_000_000]
    wanted = [(a + int(b)) // 1000 * 1000 for a, b in zip(ran, waited, strict=True)]
    assert rows.vcpus.times_ns.tolist() == wanted
    assert rows.vcpus.missing is None


def test_ticks_alone_are_no_standstill() -> None:
    reported = vcpus(5_000_000, 7_000_000)
    del reported["vcpu.1.delay"]
    assert rows_of(reported).vcpus is None


def test_a_vcpu_that_waits_for_a_core_is_as_busy_as_one_that_has_it() -> None:
    later = {**vcpus(SECOND_NS // 4, 0), "vcpu.0.delay": 3 * SECOND_NS // 4}
    rows = decoded_twice(vcpus(0, 0), later)
    assert value(rows, "vcpus_busy") == 1
    assert rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], 0] == pytest.approx(1.0)


def test_a_vcpu_that_is_not_plugged_in_is_missing_and_not_still() -> None:
    reported = {"vcpu.0.time": 5000, "vcpu.3.time": 6000, "vcpu.0.delay": 0, "vcpu.3.delay": 0}
    rows = rows_of({"vcpu.maximum": 8, **reported})
    assert rows.vcpus is not None
    assert rows.vcpus.counts.tolist() == [4]
    assert rows.vcpus.times_ns.tolist() == [5000, 0, 0, 6000]
    assert rows.vcpus.absent().tolist() == [False, True, True, False]


def test_a_vm_with_more_vcpus_than_a_frame_holds_is_unknown() -> None:
    assert rows_of(vcpus(*range(MAX_VM_VCPUS + 1))).vcpus is None
    most = rows_of(vcpus(*range(MAX_VM_VCPUS))).vcpus
    assert most is not None
    assert most.counts.tolist() == [MAX_VM_VCPUS]


# `virsh domstats --vcpu` of a guest on KVM with libvirt 9 (crafted: the lab has no KVM).
OF_KVM = {
    "vcpu.current": 2, "vcpu.maximum": 2, "vcpu.0.time": 10, "vcpu.1.time": 20,
    "vcpu.0.exits.sum": 5_468_522, "vcpu.1.exits.sum": 4_003_074,
    "vcpu.0.irq_injections.sum": 230_535, "vcpu.1.irq_injections.sum": 594,
    "vcpu.0.io_exits.sum": 2_425_489, "vcpu.1.io_exits.sum": 1_723_037,
    "vcpu.0.mmio_exits.sum": 913, "vcpu.1.mmio_exits.sum": 87,
    "vcpu.0.halt_exits.sum": 132_437, "vcpu.0.blocking.cur": True,
}  # fmt: skip


def test_what_kvm_counts_is_summed_over_all_vcpus() -> None:
    rows = rows_of(dict(OF_KVM))
    assert value(rows, "kvm_exits") == 9_471_596
    assert value(rows, "kvm_irq_injections") == 231_129
    assert value(rows, "kvm_io_exits") == 4_149_526


@pytest.mark.parametrize("lost", ["vcpu.1.io_exits.sum", "vcpu.0.mmio_exits.sum"])
def test_a_sum_that_lacks_a_vcpu_is_unknown(lost: str) -> None:
    reported: Stats = {name: number for name, number in OF_KVM.items() if name != lost}
    assert value(rows_of(reported), "kvm_io_exits") is None
    assert value(rows_of(reported), "kvm_irq_injections") == 231_129


def test_a_vm_that_is_gone_is_forgotten() -> None:
    _, current = decode([], {VM: VcpuTimes(instance=7, mono_ns=0, times_ns={})}, mono_ns=1)
    assert current == {}


def test_the_dirty_rate_is_known_only_once_it_was_measured() -> None:
    row = GAUGE_ROW["dirty_bytes_per_s"]
    measured = {"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 3}
    measuring = {"dirtyrate.calc_status": 1, "dirtyrate.megabytes_per_second": 3}
    assert rows_of(measured).gauges[row, 0] == 3 * 2**20
    assert np.isnan(rows_of(measuring).gauges[row, 0])


def test_no_row_at_all_is_an_empty_table() -> None:
    rows, _ = decode([], {}, mono_ns=0)
    assert len(rows) == 0
    assert rows == VmRows.empty()


def test_an_instance_changes_with_each_start_each_node_and_each_boot_of_the_node() -> None:
    here = host_mark(host_uuid="a", boot_id="1")
    marks = [here, host_mark(host_uuid="b", boot_id="1"), host_mark(host_uuid="a", boot_id="2")]
    numbers = [instance_of(host_mark=mark, domain_id=number) for mark in marks for number in (3, 4)]
    assert len(set(numbers)) == 6
    assert instance_of(host_mark=here, domain_id=3) == numbers[0]
    assert all(0 <= number < 2**32 for number in numbers)


def two_cards(second: bool, *, name: str = "vnet1", sent: int = 10**10) -> Stats:
    """Return the statistics of a VM with two network cards, the second with or without counters."""
    reported: dict[str, StatValue] = {"net.count": 2, "net.0.name": "vnet0", "net.1.name": name}
    reported["net.0.tx.bytes"] = 1000
    return reported | ({"net.1.tx.bytes": sent} if second else {})


def sampled(*samples: Stats) -> list[VmRows]:
    """Decode samples of one VM, ten seconds apart."""
    previous: dict[bytes, VcpuTimes] = {}
    rows: list[VmRows] = []
    for number, stats in enumerate(samples):
        reading = Reading(vm=VM, instance=7, stats=stats)
        decoded, previous = decode([reading], previous, mono_ns=(1 + number) * 10 * SECOND_NS)
        rows.append(decoded)
    return rows


def test_a_card_that_leaves_its_counters_out_makes_the_sum_unknown_and_no_other_set() -> None:
    first, second, third = sampled(two_cards(True), two_cards(False), two_cards(True, sent=10**11))
    assert value(first, "net_tx_bytes") == 10**10 + 1000
    assert value(second, "net_tx_bytes") is None
    assert value(second, "device_set") is None
    assert value(third, "net_tx_bytes") == 10**11 + 1000
    assert value(third, "device_set") == value(first, "device_set")


# libvirt's names for the counters of a disk and of a card.
DEVICE_COUNTERS = [
    *(f"block.1.{way}.{what}" for way in ("rd", "wr") for what in ("reqs", "bytes", "times")),
    *(f"block.1.fl.{what}" for what in ("reqs", "times")),
    *(f"net.1.{way}.{what}" for way in ("rx", "tx") for what in ("bytes", "pkts", "errs", "drop")),
]


@pytest.mark.parametrize("left_out", [None, -1])
@pytest.mark.parametrize("counter", DEVICE_COUNTERS)
def test_a_counter_that_one_device_leaves_out_makes_that_sum_alone_unknown(
    counter: str, left_out: int | None
) -> None:
    names: dict[str, StatValue] = {"block.count": 2, "net.count": 2}
    names |= {f"{group}.{n}.name": f"{group}{n}" for group in ("block", "net") for n in (0, 1)}
    counts = {name.replace(".1.", f".{n}."): 10**9 for name in DEVICE_COUNTERS for n in (0, 1)}
    whole, part = names | counts, names | {k: n for k, n in counts.items() if k != counter}
    if left_out is not None:
        part[counter] = left_out
    first, second, third = sampled(whole, part, whole)
    column = counter.replace("times", "ns").replace(".1.", ".").replace(".", "_")
    assert value(first, column) == value(third, column) == 2 * 10**9
    assert value(second, column) is None
    others = {name.replace("times", "ns").replace(".1.", ".") for name in DEVICE_COUNTERS}
    assert {value(second, name.replace(".", "_")) for name in others} == {None, 2 * 10**9}
    assert value(third, "device_set") == value(first, "device_set")


def test_a_counter_that_one_disk_never_reports_is_summed_over_the_others() -> None:
    reported: dict[str, StatValue] = {
        "block.count": 2,
        "block.0.name": "vda",
        "block.1.name": "vdb",
    }
    reported |= {"block.0.wr.bytes": 5, "block.1.wr.bytes": 7, "block.0.fl.reqs": 3}
    first, second = sampled(reported, reported)
    assert (value(second, "block_wr_bytes"), value(second, "block_fl_reqs")) == (12, 3)
    assert value(second, "device_set") == value(first, "device_set")


def test_a_card_that_is_unplugged_is_another_set_at_once() -> None:
    gone: dict[str, StatValue] = {"net.count": 1, "net.0.name": "vnet0", "net.0.tx.bytes": 1000}
    first, second = sampled(two_cards(True), gone)
    assert value(second, "net_tx_bytes") == 1000
    assert value(second, "device_set") not in (None, value(first, "device_set"))


def test_a_device_that_never_reported_or_has_not_for_long_does_not_count() -> None:
    (alone,) = sampled(two_cards(False))
    assert value(alone, "net_tx_bytes") == 1000
    rows = sampled(two_cards(True), *[two_cards(False)] * 14)
    assert value(rows[11], "net_tx_bytes") is None
    assert value(rows[14], "net_tx_bytes") == 1000

"""The node's gauges follow from the kernel's counters at two readings."""

from pathlib import Path

import pytest

from flatline.connectors.libvirt.node import (
    NodeReader,
    NodeTotals,
    gauges_between,
    parse_meminfo,
    parse_pressure,
    parse_stat,
)
from flatline.engine.wire.metrics import NODE_METRICS

STAT = """cpu  100 10 40 800 30 5 5 10 7 0
cpu0 50 5 20 400 15 3 2 5 4 0
cpu1 50 5 20 400 15 2 3 5 3 0
intr 12345
"""
MEMINFO = """MemTotal:       24684084 kB
MemFree:        20000000 kB
MemAvailable:   23376660 kB
HugePages_Total:       0
"""
PRESSURE = """some avg10=80.72 avg60=53.99 avg300=36.28 total=231494184
full avg10=0.00 avg60=0.00 avg300=0.00 total=17
"""
SECOND_NS = 10**9


def totals(
    mono_ns: int, *, busy: int = 0, ticks: int = 0, stalled_us: dict[str, int] | None = None
) -> NodeTotals:
    return NodeTotals(
        mono_ns=mono_ns,
        cores=2,
        busy_ticks=busy,
        all_ticks=ticks,
        memory={"memory_total_bytes": 1.0},
        stalled_us=stalled_us or {},
    )


def test_busy_is_all_but_idle_and_waiting_for_disks_and_guests_count_once() -> None:
    assert parse_stat(STAT) == (2, 170, 1000)


def test_memory_is_in_bytes() -> None:
    assert parse_meminfo(MEMINFO) == {
        "memory_total_bytes": 24684084 * 1024,
        "memory_available_bytes": 23376660 * 1024,
    }


def test_pressure_is_the_total_by_line() -> None:
    assert parse_pressure(PRESSURE) == {"some": 231494184, "full": 17}


def test_the_busy_share_is_that_of_the_interval() -> None:
    gauges = gauges_between(
        totals(0, busy=500, ticks=1000), totals(SECOND_NS, busy=550, ticks=1200)
    )
    assert gauges["cpu_busy_ratio"] == pytest.approx(0.25)


def test_the_stalled_share_is_that_of_the_interval() -> None:
    before = totals(0, stalled_us={"psi_io_some_ratio": 100})
    after = totals(2 * SECOND_NS, stalled_us={"psi_io_some_ratio": 500_100})
    assert gauges_between(before, after)["psi_io_some_ratio"] == pytest.approx(0.25)


def test_a_first_reading_has_no_interval() -> None:
    assert gauges_between(None, totals(0, busy=5, ticks=9)) == {
        "memory_total_bytes": 1.0,
        "cpu_cores": 2.0,
    }


def test_a_share_stays_a_share_when_clocks_are_read_one_after_the_other() -> None:
    before = totals(0, stalled_us={"psi_cpu_some_ratio": 0})
    after = totals(SECOND_NS, stalled_us={"psi_cpu_some_ratio": 1_000_900})
    assert gauges_between(before, after)["psi_cpu_some_ratio"] == 1.0


def test_a_kernel_without_pressure_leaves_it_out(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "meminfo").write_text(MEMINFO)
    reader = NodeReader(tmp_path)
    reader.read()
    assert set(reader.read()) == {"memory_total_bytes", "memory_available_bytes", "cpu_cores"}
    assert reader.boot_id() == ""


def test_this_machine_is_read_under_names_of_the_wire(tmp_path: Path) -> None:
    for name, text in (("stat", STAT), ("meminfo", MEMINFO)):
        (tmp_path / name).write_text(text)
    (tmp_path / "pressure").mkdir()
    for resource in ("cpu", "io", "memory"):
        (tmp_path / "pressure" / resource).write_text(PRESSURE)
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("5f2c\n")
    reader = NodeReader(tmp_path)
    reader.read()
    (tmp_path / "stat").write_text(STAT.replace("cpu  100", "cpu  200"))
    gauges = reader.read()
    assert set(gauges) == set(NODE_METRICS) - {"hypervisor_reachable"}
    assert gauges["cpu_busy_ratio"] == 1.0
    assert reader.boot_id() == "5f2c"

"""Counters to rates: start of an epoch, unknown values, signs of life."""

import numpy as np
import pytest

from flatline.engine.detection.vm_table import VmTable
from flatline.models.kernels import baseline
from tests.unit.engine.detection.frames_by_hand import Bench, Guest, cell

WARM_S = 60.0


def warmed() -> tuple[Bench, Guest, VmTable]:
    bench, guests = cell(3)
    bench.run(WARM_S)
    return bench, guests[0], bench.partition.cells["cell"].tables["node-0"]


def rate(table: VmTable, name: str) -> float:
    return float(table.counted[baseline.OUT[name], 0])


def test_a_rate_is_the_difference_over_the_nodes_own_time() -> None:
    _, _, table = warmed()
    assert rate(table, "cpu_cores") == pytest.approx(0.2, rel=1e-3)
    assert rate(table, "disk_wr_bytes_per_s") == pytest.approx(50_000, rel=1e-3)
    assert rate(table, "net_tx_bytes_per_s") == pytest.approx(20_000, rel=1e-3)


@pytest.mark.parametrize("counter", ["cpu_time_ns", "block_wr_bytes", "net_tx_bytes"])
def test_a_smaller_counter_begins_an_epoch_of_all_and_is_never_a_rate(counter: str) -> None:
    bench, guest, table = warmed()
    guest.counters[counter] = 0.0
    bench.run(2.0)
    for name in baseline.SIGNALS:
        assert np.isnan(rate(table, name))
    assert table.figure("epoch_s", 0) <= 2.0
    bench.run(2.0)
    assert rate(table, "cpu_cores") == pytest.approx(0.2, rel=1e-3)


def test_another_instance_begins_an_epoch_even_if_its_counters_are_larger() -> None:
    bench, guest, table = warmed()
    guest.instance += 1
    guest.counters["cpu_time_ns"] += 1e13
    bench.run(2.0)
    assert np.isnan(rate(table, "cpu_cores"))
    assert table.number("moved", 0) == 0


def test_an_epoch_of_one_vm_is_no_epoch_of_its_neighbour() -> None:
    bench, guest, table = warmed()
    guest.instance += 1
    bench.run(2.0)
    assert float(table.counted[0, 1]) == pytest.approx(0.2, rel=1e-3)


def test_missing_is_unknown_it_neither_ends_a_silence_nor_adds_to_it() -> None:
    bench, guest, table = warmed()
    guest.panics()
    bench.run(6.0)
    assert float(table.life[0, 0]) == pytest.approx(6.0)
    guest.measured = False
    bench.run(10.0)
    assert float(table.life[0, 0]) == pytest.approx(6.0)
    assert table.number("run_samples", 0) == 3


def test_the_level_before_a_silence_leaves_out_the_mixed_sample() -> None:
    bench, guest, table = warmed()
    guest.cores, guest.busiest = 1.5, 1.0
    bench.run(2.0)
    guest.panics(cores=2.0)
    bench.run(4.0)
    assert table.figure("cpu_before", 0) == pytest.approx(0.2, rel=1e-2)


def test_reads_alone_do_not_count_as_a_guest_that_was_seen_working() -> None:
    bench, guests = cell(3)
    guests[0].writes = guests[0].sends = 0.0
    guests[0].reads = 1e6
    bench.run(WARM_S)
    table = bench.partition.cells["cell"].tables["node-0"]
    assert table.number("moved", 0) == 0
    assert table.number("moved", 1) > 20


def test_a_jump_that_no_device_can_make_is_neither_life_nor_silence() -> None:
    bench, guest, table = warmed()
    guest.panics()
    bench.run(6.0)
    guest.counters["block_wr_bytes"] += 1e15
    bench.run(2.0)
    assert float(table.life[0, 0]) == pytest.approx(6.0)


@pytest.mark.parametrize("counter", ["cpu_time_ns", "vcpu_delay_ns"])
def test_a_jump_that_no_guest_can_make_leaves_the_level_unchanged(counter: str) -> None:
    bench, guest, table = warmed()
    guest.delay = 0.8
    bench.run(10 * WARM_S)
    names = ("cpu_recent", "used_recent", "contention")
    before = [table.figure(name, 0) for name in names]
    guest.counters[counter] += 1e15
    # A level lags by one sample.
    bench.run(4.0)
    after = [table.figure(name, 0) for name in names]
    assert after[:2] == pytest.approx(before[:2], rel=0.01)
    assert after[2] <= before[2]


def test_a_wait_that_is_counted_when_it_ends_belongs_to_the_level() -> None:
    bench, guest, table = warmed()
    for _ in range(60):
        bench.run(2.0)
        guest.counters["vcpu_delay_ns"] += 7e9
        bench.run(2.0)
    assert table.figure("cpu_recent", 0) == pytest.approx(0.2 + 7 / 4, rel=0.2)


def test_the_balloons_own_clock_is_followed() -> None:
    bench, guest, table = warmed()
    assert table.figure("balloon_period_s", 0) == pytest.approx(5.0, abs=0.6)
    guest.balloon = False
    bench.run(20.0)
    assert table.figure("balloon_still_s", 0) >= 16.0


def test_a_silence_that_a_boot_ended_is_not_learned_as_a_habit() -> None:
    bench, guest, table = warmed()
    guest.panics()
    bench.run(40.0)
    bench.places[0].tell("rebooted", guest)
    guest.works()
    bench.run(20.0)
    assert float(table.gaps[0, 3 + 4, 0]) == 0.0


def test_a_silence_that_ended_by_itself_is_learned_as_a_habit() -> None:
    bench, guest, table = warmed()
    guest.writes = guest.sends = 0.0
    bench.run(40.0)
    guest.works()
    bench.run(20.0)
    # Edges are powers of two: the gap of 40 s reached the one of 16 s.
    assert float(table.gaps[0, 3 + 4, 0]) == 1.0


def test_a_pause_is_no_silence_and_no_habit() -> None:
    bench, guest, table = warmed()
    guest.state, guest.writes, guest.sends, guest.cores = "paused", 0.0, 0.0, 0.0
    bench.run(40.0)
    assert float(table.life[0, 0]) == 0.0
    guest.works()
    bench.run(10.0)
    assert float(table.gaps[0, 3 + 4, 0]) == 0.0

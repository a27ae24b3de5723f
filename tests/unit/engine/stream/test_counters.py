"""Counters to growth: new epochs, unknown values, and the same rule as the engine's kernel."""

from collections.abc import Mapping

import numpy as np
import pytest

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.rates import fold_rows
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.stream.counters import Counters, growth, known
from flatline.engine.wire.frame import UUID_BYTES, VmRows
from flatline.engine.wire.metrics import GAUGES, INTEGER_ROW, INTEGERS

NAMES = ("cpu_time_ns", "block_rd_bytes", "block_wr_bytes", "net_tx_bytes")


def rows_of(vms: int, **columns: object) -> VmRows:
    """Return a frame's rows with these integer columns; NaN and all other columns are missing."""
    integers = np.zeros((len(INTEGERS), vms), np.uint64)
    missing = np.ones((len(INTEGERS), vms), np.bool_)
    for name, given in columns.items():
        values = np.broadcast_to(np.asarray(given, np.float64), vms)
        missing[INTEGER_ROW[name]] = np.isnan(values)
        integers[INTEGER_ROW[name]] = np.nan_to_num(values).astype(np.uint64)
    return VmRows(
        uuids=b"".join(vm.to_bytes(UUID_BYTES, "big") for vm in range(vms)),
        integers=integers,
        gauges=np.full((len(GAUGES), vms), np.nan, np.float32),
        missing=missing,
    )


def grown_by(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    """Return the growth of CPU time and written bytes of one VM between two samples."""
    counters = Counters(("cpu_time_ns", "block_wr_bytes"), 1)
    assert np.isnan(counters.take(rows_of(1, **before))).all()
    found: list[float] = counters.take(rows_of(1, **after))[:, 0].tolist()
    return found


def test_the_growth_is_the_difference_of_two_samples() -> None:
    before = {"cpu_time_ns": 10, "block_wr_bytes": 5, "instance": 1}
    after = {"cpu_time_ns": 30, "block_wr_bytes": 5, "instance": 1}
    assert grown_by(before, after) == [20.0, 0.0]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"cpu_time_ns": 9}, [np.nan, np.nan]),
        ({"instance": 2}, [np.nan, np.nan]),
        ({"device_set": 8}, [20.0, np.nan]),
        ({"block_wr_bytes": np.nan}, [20.0, np.nan]),
        ({"instance": np.nan, "device_set": np.nan}, [20.0, 2.0]),
    ],
    ids=["smaller counter", "other instance", "other devices", "missing counter", "unknown epoch"],
)
def test_a_new_epoch_and_a_missing_value_have_no_growth(
    after: dict[str, float], expected: list[float]
) -> None:
    before = {"cpu_time_ns": 10, "block_wr_bytes": 5, "instance": 1, "device_set": 7}
    later = before | {"cpu_time_ns": 30, "block_wr_bytes": 7} | after
    np.testing.assert_equal(grown_by(before, later), expected)


def test_an_instance_is_compared_with_the_last_known_one() -> None:
    counters = Counters(("cpu_time_ns",), 1)
    counters.take(rows_of(1, cpu_time_ns=10, instance=1))
    counters.take(rows_of(1, cpu_time_ns=20))
    assert np.isnan(counters.take(rows_of(1, cpu_time_ns=30, instance=2))).all()


def test_a_restart_of_one_vm_is_none_of_its_neighbour() -> None:
    grown, restarted = growth(np.array([[1.0, 9.0]]), np.array([[2.0, 4.0]]))
    assert restarted.tolist() == [True, False]
    np.testing.assert_equal(grown, [[np.nan, 5.0]])


def test_another_roster_keeps_the_counters_of_the_vms_that_stay() -> None:
    counters = Counters(("cpu_time_ns",), 2)
    counters.take(rows_of(2, cpu_time_ns=[10, 20], instance=[1, 2], device_set=[3, 4]))
    moved = counters.moved(np.array([1, -1, 0]))
    np.testing.assert_equal(moved.values, [[20.0, np.nan, 10.0]])
    np.testing.assert_equal(moved.instances, [2.0, np.nan, 1.0])
    np.testing.assert_equal(moved.device_sets, [4.0, np.nan, 3.0])


def test_a_missing_column_is_unknown_and_not_zero() -> None:
    np.testing.assert_equal(known(rows_of(1, vcpus=2), ("vcpus", "cpu_time_ns")), [[2.0], [np.nan]])


def test_the_kernel_of_the_engine_finds_the_same_growth() -> None:
    rng = np.random.default_rng(13)
    vms = 40
    first = rows_of(vms)
    table, counters = VmTable(first.uuids), Counters(NAMES, vms)
    total = rng.integers(0, 10**6, (4, vms)).astype(np.float64)
    instance, devices = np.ones(vms), np.ones(vms)
    compared = 0
    for sequence in range(60):
        total += rng.integers(0, 1000, (4, vms))
        total[:, rng.random(vms) < 0.03] /= 2
        instance += rng.random(vms) < 0.03
        devices += rng.random(vms) < 0.03
        given = [np.floor(total), instance[None], devices[None]]
        shown = np.concatenate(given)
        shown[rng.random(shown.shape) < 0.1] = np.nan
        rows = rows_of(vms, **dict(zip((*NAMES, "instance", "device_set"), shown, strict=True)))
        fold_rows(
            table, rows, dt_s=1.0, sequence=sequence, event_ms=0, configuration=Configuration()
        )
        grown = counters.take(rows) * np.array([[1e-9], [1.0], [1.0], [1.0]])
        np.testing.assert_allclose(table.counted[:4, :vms], grown, rtol=1e-6)
        compared += int((~np.isnan(grown)).sum())
    assert compared > 5000

from functools import partial

import numpy as np
import pytest

from flatline.connectors.traces.dataset import open_dataset
from flatline.connectors.traces.table import read_blocks
from flatline.connectors.traces.windows import WindowCounts
from flatline.engine.errors import SettingsError
from tests.unit.connectors.traces.conftest import GAUGES

STEADY = [
    f"{300 * k},{vm},{cpu},100,1,2,3,4" for k in range(1, 5) for vm, cpu in (("a", 50), ("b", 10))
]
EXPLODE = (
    "pack_lifecycle.csv, line 2: operation is 'explode'. Known operations: reboot, power_off, "
    "power_on, live_migration."
)


def test_gauges_become_rates_in_plain_units(make) -> None:
    dataset = open_dataset(make(traces=STEADY))
    windows = list(dataset.windows())
    assert dataset.interval_s == 300.0
    assert [vm.id for vm in dataset.vms] == ["a", "b", "c"]
    assert dict(dataset.hosts) == {"h0": slice(0, 2), "h1": slice(2, 3)}
    assert [window.number for window in windows] == [0, 1, 2, 3]
    assert windows[0].column("cpu_cores")[:2].tolist() == [1.0, 0.1]
    assert windows[0].column("memory_bytes")[0] == 100 * 1024**2
    assert windows[0].column("net_tx_bytes_per_s")[0] == 4096.0
    assert np.isnan(windows[0].values[:, 2]).all()


def test_a_fleet_larger_than_a_block_of_rows_has_an_interval(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(read_blocks, rows=1)
    monkeypatch.setattr("flatline.connectors.traces.dataset.read_blocks", small)
    assert open_dataset(make(traces=STEADY)).interval_s == 300.0


def test_counters_become_rates_over_the_time_between_their_samples(make) -> None:
    rows = [
        "10.2,10.0,a,0,0,0,0,0,7",
        "20.2,20.0,a,5000000000,100,0,0,0,",
        "29.2,29.0,a,14000000000,100,0,0,0,9",
    ]
    windows = list(open_dataset(make(stream=rows)).windows())
    assert np.isnan(windows[0].column("cpu_cores")[0])
    assert windows[0].measured[0, 0]
    assert [window.column("cpu_cores")[0] for window in windows[1:]] == [0.5, 1.0]
    assert [window.column("disk_read_bytes_per_s")[0] for window in windows[1:]] == [10.0, 0.0]
    assert np.isnan(windows[1].column("memory_bytes")[0])
    assert windows[2].column("memory_bytes")[0] == 9 * 1024


def test_a_smaller_counter_is_reported_and_gives_no_rate(make) -> None:
    rows = [
        "10,10,a,9000000000,500,0,0,0,7",
        "20,20,a,10000000000,600,0,0,0,7",
        "30,30,a,1000000000,5,0,0,0,7",
        "40,40,a,6000000000,15,0,0,0,7",
    ]
    windows = list(open_dataset(make(stream=rows)).windows())
    assert [bool(window.restarted[0]) for window in windows] == [False, False, True, False]
    assert np.isnan(windows[2].column("cpu_cores")[0])
    assert windows[3].column("cpu_cores")[0] == 0.5


def test_every_row_is_used_or_counted(make) -> None:
    rows = [
        "10,10,a,0,0,0,0,0,1",
        "20,20,a,0,10,0,0,0,1",
        "20.5,20,a,0,10,0,0,0,1",
        "40,40,a,0,40,0,0,0,1",
        "50,50,a,0,50,0,0,0,1",
        "66,30,a,0,20,0,0,0,1",
    ]
    counts = WindowCounts()
    windows = list(open_dataset(make(stream=rows)).windows(counts))
    assert (counts.read, counts.used, counts.repeated, counts.late) == (6, 4, 1, 1)
    assert [window.number for window in windows] == [0, 1, 3, 4]
    assert windows[2].column("disk_read_bytes_per_s")[0] == 1.5


def test_jitter_and_drift_do_not_split_a_window(make) -> None:
    rows = []
    for k in range(200):
        for vm, jitter in (("a", 0.0), ("b", 40.0 * (k % 2)), ("c", 12.5)):
            rows.append((300 * k + 1.5 * k + jitter, vm))
    rows.sort()
    windows = list(open_dataset(make(traces=[f"{t},{vm},1,1,1,1,1,1" for t, vm in rows])).windows())
    assert len(windows) == 200
    assert all(window.present.all() for window in windows)


def test_a_negative_value_is_unknown_and_never_zero(make) -> None:
    rows = [*STEADY[:4], "900,a,50,100,-3,2,3,4"]
    counts = WindowCounts()
    last = list(open_dataset(make(traces=rows)).windows(counts))[-1]
    assert np.isnan(last.column("disk_read_bytes_per_s")[0])
    assert last.column("disk_write_bytes_per_s")[0] == 2048.0
    assert counts.bad_values == 1


@pytest.mark.parametrize("written", ["nan", "NaN", "-nan", " nan", '"nan"', "inf"])
def test_a_nan_that_stands_there_is_counted_and_an_empty_field_is_not(make, written) -> None:
    rows = [*STEADY[:4], f"900,a,50,100,{written},,3,4", f"900,b,50,100,,2,3,{written}"]
    counts = WindowCounts()
    last = list(open_dataset(make(traces=rows)).windows(counts))[-1]
    assert np.isnan(last.column("disk_read_bytes_per_s")).all()
    assert np.isnan(last.column("disk_write_bytes_per_s")[0])
    assert last.column("disk_write_bytes_per_s")[1] == 2048.0
    assert np.isnan(last.column("net_tx_bytes_per_s")[1])
    assert counts.bad_values == 2


def test_a_vm_may_be_called_nan(make) -> None:
    vms = ["vm,host,ncpu,mem_capacity_mb", "nan,h0,1,1024"]
    counts = WindowCounts()
    rows = [f"{300 * k},nan,50,100,1,2,3," for k in range(1, 4)]
    assert len(list(open_dataset(make(traces=rows, vms=vms)).windows(counts))) == 3
    assert counts.bad_values == 0


def test_a_missing_table_of_vms_is_reported_with_its_columns(make, tmp_path) -> None:
    prefix = make(traces=STEADY)
    (tmp_path / "pack_vms.csv").unlink()
    with pytest.raises(SettingsError) as caught:
        open_dataset(prefix)
    assert f"{prefix}_vms.csv does not exist. PREFIX_vms.csv is required" in str(caught.value)
    assert "with the columns vm, host, ncpu, mem_capacity_mb." in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"traces": [*STEADY, "1500,z,1,1,1,1,1,1"]}, {"traces": STEADY, "lifecycle": ["z,5,reboot"]}],
)
def test_an_unknown_vm_is_reported_with_the_table_that_lacks_it(make, change) -> None:
    prefix = make(**change)
    with pytest.raises(SettingsError, match=f"'z' is not in the table of VMs, {prefix}_vms.csv"):
        list(open_dataset(prefix).windows())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"traces": [*STEADY, "1500,a,x,1,1,1,1,1"]}, "line 10: cpu_pct is 'x', not a number"),
        ({"traces": [*STEADY, "1500,a,1,1,1,1,1"]}, "line 10: 7 fields, but the header has 8"),
        ({"traces": [*STEADY, "1500,z,1,1,1,1,1,1"]}, "line 10: VM 'z' is not in the table"),
        ({"traces": [*STEADY, "1500,aa,1,1,1,1,1,1"]}, "VM 'aa' is not in the table"),
        ({"traces": [*STEADY, "1100,a,1,1,1,1,1,1"]}, "line 10: t decreases from 1200.000"),
        ({"traces": [*STEADY, ",a,1,1,1,1,1,1"]}, "line 10: t is empty or not a finite number"),
        ({"traces": [], "header": "t,vm,cpu_pct"}, "has no column mem_active_mb, disk_read_kbs"),
        ({"traces": []}, "holds no samples"),
        ({"traces": STEADY[:2]}, "no VM has two samples"),
        ({}, "is not a dataset: none of pack_traces.csv.gz"),
        ({"traces": STEADY, "vms": ["vm,host", "a,h"]}, "has no column ncpu, mem_capacity_mb"),
        (
            {"traces": STEADY, "vms": ["vm,host,ncpu,mem_capacity_mb", "a,h,two,1"]},
            "line 2: ncpu is 'two', not a number",
        ),
        (
            {"traces": STEADY, "vms": ["vm,host,ncpu,mem_capacity_mb", "a,h,1,1", "a,h,1,1"]},
            "line 3: VM 'a' occurs twice",
        ),
        ({"traces": STEADY, "lifecycle": ["a,500,explode"]}, EXPLODE),
        ({"traces": [*STEADY, "nan,a,1,1,1,1,1,1"]}, "line 10: t is empty or not a finite number"),
        ({"traces": [*STEADY, "-5,a,1,1,1,1,1,1"]}, "line 10: t is -5.0, not a time"),
        ({"traces": STEADY, "lifecycle": ["a,soon,reboot"]}, "line 2: t is 'soon', not a number"),
        ({"traces": STEADY, "lifecycle": ["q,500,reboot"]}, "VM 'q' is not in the table"),
    ],
)
def test_what_cannot_be_used_is_reported_with_file_line_and_column(make, change, sentence) -> None:
    with pytest.raises(SettingsError) as caught:
        list(open_dataset(make(**change)).windows())
    assert sentence in str(caught.value)


def test_the_truth_beside_a_dataset_is_never_opened(make, tmp_path) -> None:
    prefix = make(traces=STEADY)
    truth = tmp_path / "pack_events.csv"
    truth.mkdir()
    assert list(open_dataset(prefix).windows())


def test_samples_that_are_damaged_are_reported(make, tmp_path) -> None:
    rng = np.random.default_rng(3)
    rows = [f"{300 * k},a,{rng.random()},1,1,1,1,1" for k in range(2000)]
    prefix = make(traces=rows)
    path = tmp_path / "pack_traces.csv.gz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(60) + whole[260:]):
        path.write_bytes(damaged)
        with pytest.raises(SettingsError, match="cannot be read"):
            list(open_dataset(prefix).windows())


def test_a_byte_order_mark_is_no_part_of_a_columns_name(make) -> None:
    assert list(open_dataset(make(traces=STEADY, header="\ufeff" + GAUGES)).windows())


def test_an_error_for_the_name_of_a_file_gives_the_prefix(make) -> None:
    prefix = make(traces=STEADY)
    with pytest.raises(SettingsError, match=f"Use the part before that suffix: {prefix}$"):
        open_dataset(f"{prefix}_traces.csv.gz")


def shuffled(*, late_s, share=1.0, seed=7):
    """Return rows of two VMs every 10 s, some of them late; the counter grows evenly."""
    rng = np.random.default_rng(seed)
    rows = [
        (10 * k + 0.2 + (rng.random() < share) * rng.uniform(0, late_s), 10 * k, vm)
        for k in range(1, 1001)
        for vm in "ab"
    ]
    return [f"{late:.3f},{t},{vm},0,{t},0,0,0,1" for late, t, vm in sorted(rows)]


@pytest.mark.parametrize("late_s", [10, 30])
@pytest.mark.parametrize("rows_in_block", [100_000, 150])
def test_rows_that_overtake_each_other_are_waited_for(
    make, monkeypatch: pytest.MonkeyPatch, late_s, rows_in_block
) -> None:
    small = partial(read_blocks, rows=rows_in_block)
    monkeypatch.setattr("flatline.connectors.traces.dataset.read_blocks", small)
    counts = WindowCounts()
    windows = list(open_dataset(make(stream=shuffled(late_s=late_s))).windows(counts))
    assert (counts.used, counts.late) == (2000, 0)
    assert [window.number for window in windows] == list(range(1000))
    rates = np.array([window.column("disk_read_bytes_per_s")[:2] for window in windows[1:]])
    assert (rates == 1.0).all()


def test_nobody_waits_for_a_late_batch_now_and_then(make) -> None:
    counts = WindowCounts()
    windows = list(open_dataset(make(stream=shuffled(late_s=30, share=0.01))).windows(counts))
    assert counts.late > 5
    assert {window.patience_s for window in windows} == {5.0}


def test_nobody_waits_for_a_clock_that_is_minutes_behind(make) -> None:
    rows = [
        (10 * k + 0.2, 10 * k - lag, vm) for k in range(20, 99) for vm, lag in (("a", 0), ("b", 90))
    ]
    counts = WindowCounts()
    stream = [f"{arrived},{t},{vm},0,0,0,0,0,1" for arrived, t, vm in rows]
    windows = list(open_dataset(make(stream=stream)).windows(counts))
    assert counts.late == 79
    assert {window.patience_s for window in windows} == {5.0}

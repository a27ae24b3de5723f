"""`flatline forecast` on a dataset, from the command line."""

import csv
import gzip
import io

import numpy as np
import pytest

from tests.unit.engine.cli.conftest import Flatline

GAUGES = "t,vm,cpu_pct,mem_active_mb,disk_read_kbs,disk_write_kbs,net_rx_kbs,net_tx_kbs"
BEGIN_S = 1_376_314_846
COLUMNS = ["t", "vm", "metric", "horizon_s", "mean", "lo90", "hi90", "lo50", "hi50"]


def dataset(folder, *, samples=330, left_out=(), name="pack"):
    """Write two VMs with a sample every 300 s, and return the prefix."""
    rng = np.random.default_rng(5)
    rows = [GAUGES]
    for step in range(samples):
        for vm, level in (("a", 20.0), ("b", 3.0)):
            noise = rng.normal(0, 1, 6)
            if (step, vm) in left_out:
                continue
            cpu, *rest = np.round(np.abs(level + noise), 2)
            rows.append(f"{BEGIN_S + 300 * step},{vm},{cpu}," + ",".join(f"{v:.2f}" for v in rest))
    with gzip.open(folder / f"{name}_traces.csv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    (folder / f"{name}_vms.csv").write_text(
        "vm,host,ncpu,mem_capacity_mb\na,h0,2,1024\nb,h0,4,2048\n"
    )
    return str(folder / name)


def table(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    reader = csv.DictReader(io.StringIO(text.decode()))
    assert reader.fieldnames == COLUMNS
    return list(reader)


def test_every_sample_gets_every_metric_and_horizon(flatline: Flatline, tmp_path) -> None:
    out = tmp_path / "forecasts.csv"
    said = flatline("forecast", dataset(tmp_path), "--out", str(out))
    assert said.code == 0, said.err
    rows = table(out)
    assert len(rows) == 330 * 2 * 6 * 3
    first = rows[0]
    assert (first["t"], first["vm"], first["metric"]) == (str(BEGIN_S), "a", "cpu_pct")
    assert {row["horizon_s"] for row in rows} == {"300", "1800", "86400"}
    last = [row for row in rows[-36:] if row["metric"] == "cpu_pct" and row["horizon_s"] == "300"]
    # In the trace's own unit: % of the VM's vCPUs, for any number of them.
    assert float(last[0]["mean"]) == pytest.approx(20, abs=1)
    assert float(last[1]["mean"]) == pytest.approx(3, abs=1)
    for row in rows:
        mean, lo90, hi90, lo50, hi50 = (float(row[band]) for band in COLUMNS[4:])
        assert lo90 <= mean <= hi90
        assert lo90 <= lo50
        assert hi50 <= hi90


def test_mean_of_a_constant_lies_in_its_interval_to_the_last_digit(
    flatline: Flatline, tmp_path
) -> None:
    prefix = dataset(tmp_path, samples=1)
    rows = [f"{BEGIN_S + 300 * step},a" + ",309.31427" * 6 for step in range(40)]
    with gzip.open(tmp_path / "pack_traces.csv.gz", "wt") as file:
        file.write("\n".join([GAUGES, *rows]) + "\n")
    out = tmp_path / "forecasts.csv"
    assert flatline("forecast", prefix, "--out", str(out)).code == 0
    for row in table(out):
        mean, lo90, hi90, lo50, hi50 = (float(row[band]) for band in COLUMNS[4:])
        assert lo90 <= lo50 <= mean <= hi50 <= hi90


def test_what_comes_later_changes_no_forecast(flatline: Flatline, tmp_path) -> None:
    long, short = tmp_path / "long.csv", tmp_path / "short.csv"
    flatline("forecast", dataset(tmp_path), "--out", str(long))
    flatline("forecast", dataset(tmp_path, samples=200, name="cut"), "--out", str(short))
    assert table(long)[: 200 * 36] == table(short)


def test_missing_sample_is_not_forecast_and_does_not_stop_others(
    flatline: Flatline, tmp_path
) -> None:
    out = tmp_path / "forecasts.csv.gz"
    gap = {(step, "a") for step in range(100, 103)}
    flatline("forecast", dataset(tmp_path, samples=150, left_out=gap), "--out", str(out))
    counts = {"a": 0, "b": 0}
    for row in table(out):
        counts[row["vm"]] += 1
    assert counts == {"a": 147 * 18, "b": 150 * 18}


def test_score_needs_a_week_and_then_names_the_worst(flatline: Flatline, tmp_path) -> None:
    out = tmp_path / "forecasts.csv"
    said = flatline("forecast", dataset(tmp_path, samples=2400), "--out", str(out), "--score")
    assert "cpu_pct" in said.out
    assert "MAE" in said.out
    assert "μs" in said.out


def test_score_of_less_than_a_week_says_so_and_shows_no_table(flatline: Flatline, tmp_path) -> None:
    out = tmp_path / "forecasts.csv"
    said = flatline("forecast", dataset(tmp_path), "--out", str(out), "--score")
    assert said.code == 0
    assert "There is nothing to score yet" in said.out
    assert "persistence" not in said.out


@pytest.mark.parametrize("part", ["traces.csv.gz", "vms.csv"])
def test_file_of_the_dataset_itself_is_not_written_over(flatline: Flatline, tmp_path, part) -> None:
    own = tmp_path / f"pack_{part}"
    prefix = dataset(tmp_path, samples=5)
    before = own.read_bytes()
    said = flatline("forecast", prefix, "--out", str(own))
    assert said.code == 2
    assert "is a file of the dataset itself" in " ".join(said.err.split())
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    ("prefix", "reported"),
    [
        ("nowhere", "is not a dataset"),
        ("apart", "apart. Forecasts require an interval of at most 300 s"),
    ],
)
def test_what_cannot_be_forecast_is_reported(
    flatline: Flatline, tmp_path, prefix, reported
) -> None:
    if prefix == "apart":
        rows = [GAUGES] + [f"{BEGIN_S + 900 * k},a,1,1,1,1,1,1" for k in range(5)]
        with gzip.open(tmp_path / "apart_traces.csv.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")
        (tmp_path / "apart_vms.csv").write_text("vm,host,ncpu,mem_capacity_mb\na,h0,2,1024\n")
    said = flatline("forecast", str(tmp_path / prefix), "--out", str(tmp_path / "x.csv"))
    assert said.code == 2
    assert reported in " ".join(said.err.split())


def test_file_that_cannot_be_written_is_named(flatline: Flatline, tmp_path) -> None:
    said = flatline("forecast", dataset(tmp_path, samples=5), "--out", str(tmp_path / "no" / "x"))
    assert said.code == 5
    assert "cannot be written" in " ".join(said.err.split())


def test_stream_of_counters_is_forecast_on_minutes(flatline: Flatline, tmp_path) -> None:
    rows = ["recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"]
    for k in range(180):
        t = 1_700_000_040 + 10 * k
        rows.append(f"{t},{t},a,{10**9 * 5 * k},{k * 10240},{k * 1024},{k},{k},{1 << 20}")
    with gzip.open(tmp_path / "s_stream.csv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    (tmp_path / "s_vms.csv").write_text("vm,host,ncpu,mem_capacity_mb\na,h0,2,1024\n")
    out = tmp_path / "forecasts.csv"
    assert flatline("forecast", str(tmp_path / "s"), "--out", str(out)).code == 0
    near = [row for row in table(out) if row["horizon_s"] == "300"]
    by_metric = {row["metric"]: float(row["mean"]) for row in near}
    assert by_metric["cpu_pct"] == pytest.approx(25.0, rel=1e-3)
    assert by_metric["disk_read_kbs"] == pytest.approx(1.0, rel=1e-3)
    assert by_metric["mem_active_mb"] == pytest.approx(1024.0, rel=1e-3)
    # A forecast a minute, not one a sample; a day ahead at the end of each 5 minutes.
    assert len({row["t"] for row in near}) == 30
    assert 5 <= len([row for row in table(out) if row["horizon_s"] == "86400"]) / 6 <= 7

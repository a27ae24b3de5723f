"""Minutes and hours equal their samples exactly: compared with the naive computation."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from flatline.engine.history.rollups import Window, hour_points, hour_queries
from flatline.engine.ports import Answer
from flatline.engine.wire.measurement import HOUR_STATISTICS, VM, VM_METRICS
from flatline.engine.wire.points import MISSING, kept
from tests.conftest import DATA

FIELDS = VM_METRICS[:4]


def assert_exact(samples: np.ndarray) -> None:
    """Compare a window of samples, shape (times, metrics, n), with NumPy on each series."""
    window = Window.empty(0, metrics=len(FIELDS), size=samples.shape[2])
    for sample in samples:
        window.add(sample)
    columns = window.columns(FIELDS)
    for row, field in enumerate(FIELDS):
        for index in range(samples.shape[2]):
            known = samples[:, row, index]
            known = known[~np.isnan(known)]
            found = {
                name: columns[f"{field.name}_{name}"][index]
                for name in HOUR_STATISTICS
                if f"{field.name}_{name}" in columns
            }
            if not len(known):
                assert found.pop("count") == MISSING
                assert np.isnan(list(found.values())).all()
                continue
            assert found["count"] == len(known)
            assert found["min"] == known.min()
            assert found["max"] == known.max()
            assert found["last"] == known[-1]
            total = 0.0
            for value in known:
                total += value
            assert found["mean"] == kept(np.array([total / len(known)]))[0]


def test_a_window_is_exact_with_gaps(rng):
    samples = kept(rng.lognormal(2.0, 3.0, (30, len(FIELDS), 7)))
    samples[rng.random(samples.shape) < 0.3] = np.nan
    samples[:, 1, 3] = np.nan
    assert_exact(samples)


@pytest.mark.data
def test_a_window_is_exact_on_real_traces():
    columns = ("cpu_pct", "mem_active_mb", "disk_write_kbs", "net_tx_kbs")
    by_vm: dict[str, list[list[float]]] = {}
    with gzip.open(Path(DATA) / "bitbrains_clean_dev_traces.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            values = by_vm.setdefault(row["vm"], [])
            if len(values) < 288:
                values.append([float(row[name] or "nan") for name in columns])
    whole = [values for values in by_vm.values() if len(values) == 288]
    assert len(whole) > 20
    samples = kept(np.array(whole).transpose(1, 2, 0))
    for begin in range(0, 288, 12):
        assert_exact(samples[begin : begin + 12])


def test_a_moved_window_keeps_what_stayed_and_begins_what_is_new(rng):
    window = Window.empty(60, metrics=len(FIELDS), size=3)
    window.add(rng.random((len(FIELDS), 3)))
    moved = window.moved(np.array([2, -1, 0]))
    before, after = window.columns(FIELDS), moved.columns(FIELDS)
    for name, column in after.items():
        assert column[0] == before[name][2]
        assert column[2] == before[name][0]
    assert after["cpu_cores_count"][1] == MISSING


def test_an_hour_has_a_row_for_every_series_that_any_answer_names():
    queries = hour_queries(VM, cell="c", begin_s=3600)
    assert len(queries) == len(VM_METRICS)
    assert {query.where["cell"] for query in queries} == {"c"}
    answers: list[list[Answer]] = [[] for _ in queries]
    numbers = tuple(float(place) for place in range(len(HOUR_STATISTICS)))
    answers[0] = [Answer(("n1", "vm-1"), 0, numbers)]
    answers[2] = [Answer(("n1", "vm-2"), 0, (5.0, None, *numbers[2:]))]
    (points,) = hour_points(VM, answers, cell="c", begin_s=3600)
    assert points.series.tags["vm"] == ("vm-1", "vm-2")
    assert set(points.time_ns.tolist()) == {3600 * 10**9}
    assert list(points.fields["cpu_cores_count"]) == [0, MISSING]
    assert list(points.fields["vcpu_busiest_ratio_count"]) == [MISSING, 5]
    assert np.isnan(np.asarray(points.fields["vcpu_busiest_ratio_mean"], np.float64)).all()


def test_an_hour_without_answers_has_no_rows():
    assert hour_points(VM, [[] for _ in VM_METRICS], cell="c", begin_s=0) == []

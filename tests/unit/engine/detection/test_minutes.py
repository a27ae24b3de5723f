"""The summary of each minute: its content, and when it is closed."""

from typing import Any

import numpy as np
import pytest

from benchmarks.disturbed import Disturbance
from flatline.engine.detection import partition as partition_module
from flatline.engine.detection.cell import Cell
from flatline.engine.detection.fold import fold_frame
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.wire.score import decode_scores
from tests.unit.engine.detection.frames_by_hand import FAST, cell
from tests.unit.engine.detection.test_disturbed_order import site, travelled

WARM_S = 120.0


def test_a_closed_minute_is_scored() -> None:
    bench, guests = cell(3)
    bench.run(WARM_S)
    scores = [out for out in bench.outputs if out.topic == "flatline.scores.v1"]
    minute = decode_scores(scores[-1].value)
    by_name = dict(zip(minute.features, minute.matrix(), strict=True))
    assert minute.uuids == b"".join(guest.uuid for guest in guests)
    np.testing.assert_allclose(by_name["cpu_cores"], 0.2, rtol=1e-3)
    np.testing.assert_allclose(by_name["disk_wr_bytes_per_s"], 50_000, rtol=1e-3)
    assert minute.node_load == {"node-0": 0.3}


def test_the_summary_of_a_minute_does_not_delay_the_alerts_of_its_last_window() -> None:
    bench, guests = cell(3)
    bench.run(WARM_S)
    guests[0].panics()
    bench.run(WARM_S)
    partition, minutes, alerts = Partition(FAST), 0, 0
    for record in bench.records:
        known = partition.cells.get("cell")
        closed = (known.counts.windows, known.closed_ms) if known is not None else (0, 0)
        topics = [output.topic for output in partition.fold(record)]
        if "flatline.scores.v1" in topics:
            minutes += 1
            assert topics == ["flatline.scores.v1"]
            assert partition.cells["cell"].counts.windows == closed[0]
            assert closed[1] // 60_000 * 60_000 == partition.cells["cell"].counts.minute_ms
        alerts += "flatline.alerts.v1" in topics
    assert minutes >= 3
    assert alerts >= 2


def test_a_minute_is_closed_before_a_sample_of_the_next_one_is_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, _guests = site(10.0)
    folded = 0

    def fold_checked(cell: Cell, *given: Any, **named: Any) -> None:
        nonlocal folded
        folded += 1
        ended_ms = cell.closed_ms - cell.closed_ms % 60_000
        assert cell.counts.minute_ms == (ended_ms if cell.counts.windows else 0)
        fold_frame(cell, *given, **named)

    monkeypatch.setattr(partition_module, "fold_frame", fold_checked)
    run_records(travelled(bench.records, Disturbance(lost=0.02, late_s=30.0)), FAST)
    assert folded > 100

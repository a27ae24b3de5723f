"""Bad records among good ones: no role crashes, no good record is lost, each bad one is counted."""

import pytest

from benchmarks.bench_fuzz import PARTS, fuzzed
from benchmarks.fuzzed import mixed
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.forecasting import forecast_state
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.history import history_state as history_state
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.wire import topics
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.rejected import decode_rejected
from tests.simulation.site_records import Site

PLAN = WorldPlan(
    seed=11,
    cells=1,
    nodes_per_cell=2,
    vms_per_node=12,
    pinned={0: "web"},
    incidents=(Incident(kind="panic_spin", at_s=700.0, vms=(0,)),),
)


@pytest.fixture(scope="module")
def good():
    return list(Site(PLAN).run(900.0))


def folded(records):
    partition = Partition(Configuration())
    outputs = [output for record in records for output in partition.fold(record)]
    alerts = [output.alert for output in outputs if output.alert is not None]
    rejected = [
        decode_rejected(output.value) for output in outputs if output.topic == topics.REJECTED.name
    ]
    return partition, alerts, rejected


def test_bad_records_are_each_counted_and_change_no_alert(good):
    clean, expected, none = folded(good)
    assert any(alert.kind == "panic_spin" for alert in expected)
    assert not none
    partition, alerts, rejected = folded(mixed(good, seed=5))
    assert partition.counters.processed == clean.counters.processed == len(good)
    assert partition.counters.rejected == len(rejected) == len(good)
    assert partition.counters.balanced(partition.waiting())
    assert {alert.id for alert in alerts} == {alert.id for alert in expected}
    assert {entry.reason for entry in rejected} >= {
        "malformed",
        "truncated",
        "unknown_version",
        "oversized",
        "bad_value",
    }


def test_readable_frames_of_an_invented_cell_change_nothing_for_known_vms(good):
    _, expected, _ = folded(good)
    partition, alerts, _ = folded(mixed(good, seed=6, hostile_every=10, hostile_cell="nowhere"))
    known = {alert.subject for alert in expected}
    assert {alert.id for alert in alerts if alert.subject in known} == {
        alert.id for alert in expected
    }
    assert partition.counters.balanced(partition.waiting())


def test_readable_frames_by_strangers_in_a_cell_lead_to_no_action(good):
    partition, alerts, _ = folded(mixed(good[: len(good) // 3], seed=7, hostile_every=10))
    assert partition.counters.balanced(partition.waiting())
    assert not [alert for alert in alerts if alert.suggested_action in ("reboot", "migrate")]


def test_frames_hostile_in_every_field_end_no_role_and_lose_no_good_one(good):
    records = list(mixed(good[: len(good) // 2], seed=11, hostile_every=2))
    partition, forecaster, historian = Partition(Configuration()), PartitionForecasts(), FrameFold()
    for record in records:
        partition.fold(record)
        forecaster.fold(record)
        historian.fold_record(record)
    counters = partition.counters
    assert counters.poison == 0
    assert counters.balanced(partition.waiting())
    chunks, manifest = take_snapshot(partition)
    assert digest(restore(chunks, manifest, Configuration())) == digest(partition)
    assert forecast_state.take_state(forecaster).chunks
    assert history_state.take_state(historian).chunks
    nodes = {frame.header.node for frame in map(_collected, good) if frame is not None}
    known = partition.cells["c0"].nodes
    assert nodes <= {node.name for node in known.values()}


@pytest.mark.parametrize(("part", "scale"), [("frames", 4e-4), ("planner", 1e-3), ("kafka", 3e-3)])
def test_a_small_share_of_the_fuzz_ends_no_role_and_loses_no_good_record(part, scale):
    """The complete run is `python -m benchmarks.bench_fuzz`."""
    found = fuzzed(part, scale=scale, seed=1)
    assert found.hostile >= round(PARTS[part][0] * scale)
    assert found.good > 0
    assert (found.deaths, found.good_lost, found.first_death) == (0, 0, "")


def test_the_fuzz_counts_a_role_that_raises_and_good_records_that_are_lost(monkeypatch):
    monkeypatch.setattr(Partition, "fold", lambda *_: 1 / 0)
    found = fuzzed("frames", scale=2e-5, seed=1)
    assert found.deaths > 0
    assert "ZeroDivisionError" in found.first_death
    assert found.good_lost > 0


def _collected(record):
    frame = decode_frame(record.value)
    return frame if frame.header.role == "collector" else None

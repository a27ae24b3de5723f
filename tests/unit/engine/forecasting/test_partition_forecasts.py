import dataclasses

import msgspec
import numpy as np
import pytest

from flatline.engine.errors import SnapshotDamaged
from flatline.engine.forecasting.forecast_state import digest, restore_state, take_state
from flatline.engine.forecasting.partition_forecasts import STEP_S, PartitionForecasts
from flatline.engine.ports import Record
from flatline.engine.stream.snapshot_format import packed
from flatline.engine.wire.forecast import BANDS, HORIZONS_S, METRICS, Forecasts, decode_forecasts
from flatline.engine.wire.frame import UUID_BYTES
from flatline.models.kernels import forecast_row
from tests.unit.engine.fleet_by_hand import MIB, Fleet, Machine, uuid_of


def folded(state: PartitionForecasts, records: list[Record]) -> list[Forecasts]:
    return [decode_forecasts(output.value) for record in records for output in state.fold(record)]


def of(forecasts: Forecasts, name: str, metric: str, horizon_s: int = 300) -> dict[str, float]:
    place = forecasts.uuids.index(uuid_of(name)) // UUID_BYTES
    bands = forecasts.vms()[place, METRICS.index(metric), HORIZONS_S.index(horizon_s)]
    return dict(zip(BANDS, bands.tolist(), strict=True))


def test_wire_and_kernel_mean_the_same_horizons_and_bands() -> None:
    assert forecast_row.HORIZONS_S == HORIZONS_S
    assert forecast_row.BANDS == BANDS


def test_a_steady_vm_and_its_node_are_forecast_as_they_are() -> None:
    fleet = Fleet({"n0": [Machine("a", cores=0.5), Machine("b", cores=2.0)]})
    last = folded(PartitionForecasts(), fleet.run(30))[-1]
    assert last.step_s == STEP_S
    assert of(last, "a", "cpu_cores")["mean"] == pytest.approx(0.5, rel=1e-3)
    assert of(last, "b", "cpu_cores", 1800)["mean"] == pytest.approx(2.0, rel=1e-3)
    assert of(last, "a", "memory_used_bytes")["mean"] == pytest.approx(512 * MIB, rel=1e-3)
    own = last.own()
    assert own is not None
    # The node's CPU and memory are its own gauges, its disks the sum over its VMs.
    assert own[0, 0, 0] == pytest.approx(2.0, rel=1e-3)
    assert own[1, 0, 0] == pytest.approx(6144 * MIB, rel=1e-3)
    assert own[METRICS.index("disk_wr_bytes_per_s"), 0, 0] == pytest.approx(8192, rel=1e-3)


def test_a_day_ahead_is_forecast_every_five_minutes() -> None:
    made = folded(PartitionForecasts(), Fleet({"n0": [Machine("a")]}).run(30))
    known = [not np.isnan(one.vms()[0, 0, 2, 0]) for one in made if one.time_ms]
    assert sum(known) == len([one for one in made if one.time_ms % 300_000 == 0])
    assert sum(known) >= 5


def test_restarted_guest_gives_no_rate_and_no_spike() -> None:
    fleet = Fleet({"n0": [Machine("a", cores=1.0)]})
    state = PartitionForecasts()
    folded(state, fleet.run(20))
    machine = fleet.nodes["n0"][0]
    machine.instance, machine.cpu_ns, machine.written = 2, 5e14, 0.0
    made = folded(state, fleet.run(10))
    for one in made:
        assert of(one, "a", "cpu_cores")["mean"] == pytest.approx(1.0, rel=1e-2)


def test_missing_vm_is_not_forecast_and_others_are() -> None:
    fleet = Fleet({"n0": [Machine("a"), Machine("b")]})
    state = PartitionForecasts()
    folded(state, fleet.run(10))
    fleet.nodes["n0"][0].missing = True
    last = folded(state, fleet.run(5))[-1]
    assert np.isnan(of(last, "a", "cpu_cores")["mean"])
    assert of(last, "b", "cpu_cores")["mean"] == pytest.approx(0.5, rel=1e-3)


def test_repeated_and_broken_records_change_nothing_and_are_counted() -> None:
    records = Fleet({"n0": [Machine("a")]}).run(10)
    plain, disturbed = PartitionForecasts(), PartitionForecasts()
    made = folded(plain, records)
    noisy: list[Record] = []
    for record in records:
        noisy += [record, record, msgspec_free(record, b"junk")]
    noisy = [renumbered(record, place) for place, record in enumerate(noisy)]
    assert folded(disturbed, noisy) == made
    assert disturbed.counts == {
        "folded": len(records), "repeated": len(records), "rejected": len(records), "other": 0
    }  # fmt: skip


def msgspec_free(record: Record, value: bytes) -> Record:
    return Record(
        topic=record.topic, partition=0, offset=0, time_ms=record.time_ms, key=b"", value=value
    )


def renumbered(record: Record, offset: int) -> Record:
    return Record(
        topic=record.topic,
        partition=0,
        offset=offset,
        time_ms=record.time_ms,
        key=record.key,
        value=record.value,
    )


def test_a_vm_that_moves_takes_what_was_learned_along() -> None:
    fleet = Fleet({"n0": [Machine("a", cores=1.5), Machine("b")], "n1": [Machine("c")]})
    state = PartitionForecasts()
    folded(state, fleet.run(60))
    row = state.nodes["cell", "n0"].forecaster.state[:6].copy()
    fleet.nodes["n1"].append(fleet.nodes["n0"].pop(0))
    record = fleet.frame("n0"), fleet.frame("n1")
    for one in record:
        state.fold(one)
    moved = state.nodes["cell", "n1"].forecaster.state[6:12]
    assert np.array_equal(moved, row, equal_nan=True)
    last = [one for one in folded(state, fleet.run(5)) if one.node == "n1"][-1]
    assert of(last, "a", "cpu_cores")["mean"] == pytest.approx(1.5, rel=1e-2)


def test_state_goes_on_bit_for_bit_from_its_snapshot() -> None:
    records = Fleet({"n0": [Machine("a"), Machine("b", cores=1.0)]}).run(40)
    half = len(records) // 2
    whole, first = PartitionForecasts(), PartitionForecasts()
    folded(whole, records)
    folded(first, records[:half])
    again = restore_state(*take_state(first))
    # Records folded before change nothing, so reading may begin earlier.
    folded(again, records[half - 10 :])
    assert digest(again) == digest(whole)


def test_a_generation_takes_half_the_bytes_of_the_state() -> None:
    state = PartitionForecasts()
    folded(state, Fleet({"n0": [Machine(f"vm-{n}", cores=n / 9) for n in range(9)]}).run(3))
    held = sum(node.forecaster.state.nbytes for node in state.nodes.values())
    assert sum(map(len, take_state(state).chunks)) < held / 2


@pytest.mark.parametrize("harm", ["flipped", "missing", "uncompressed"])
def test_damaged_state_is_refused(harm: str) -> None:
    state = PartitionForecasts()
    folded(state, Fleet({"n0": [Machine("a")]}).run(3))
    chunks, manifest = take_state(state)
    if harm == "flipped":
        chunks[0] = bytes([chunks[0][0] ^ 1]) + chunks[0][1:]
    elif harm == "missing":
        chunks = []
    else:
        # A state before the introduction of compression has the same content.
        chunks, manifest = packed(b"\x80", next_offset=7, time_ms=0)
        manifest = msgspec.structs.replace(manifest, packing="zstd")
    with pytest.raises(SnapshotDamaged):
        restore_state(chunks, manifest)


def test_new_vm_begins_from_the_profile_of_its_class() -> None:
    fleet = Fleet({"n0": [Machine(name, cores=1.0) for name in "abcd"]}, interval_s=60)
    state = PartitionForecasts()
    folded(state, fleet.run(30))
    size = state.nodes["cell", "n0"].forecaster.profile
    profile = forecast_row.profile_of(
        state.nodes["cell", "n0"].forecaster.state, forecast_row.layout(STEP_S)
    )
    assert size(np.arange(6)) is None
    profile[:] = 7.0
    state.profiles["cpu_cores", "busy"] = profile
    fleet.nodes["n0"].append(Machine("new", cores=1.0))
    folded(state, fleet.run(3))
    node = state.nodes["cell", "n0"]
    plan = forecast_row.layout(STEP_S)
    learned = forecast_row.profile_of(node.forecaster.state[24:25], plan)
    horizons = len(forecast_row.HORIZONS_S)
    assert (learned[:-horizons] > 5).all()
    memory = forecast_row.profile_of(node.forecaster.state[25:26], plan)
    assert (memory[:-horizons] < 6).all()


def test_a_vm_that_reports_no_vcpus_does_not_stop_the_daily_profiles() -> None:
    fleet = Fleet({"n0": [Machine("none", vcpus=0), Machine("two")]}, interval_s=300)
    state = PartitionForecasts()
    folded(state, fleet.run(25 * 60))
    assert np.isnan(state.nodes["cell", "n0"].demand.vcpus[0])
    assert not state.counts["rejected"]


def test_a_log_whose_clock_ran_ahead_for_minutes_stops_no_forecast() -> None:
    records = Fleet({"n0": [Machine("a", cores=0.5)]}).run(60)
    third = len(records) // 3
    shifted = [
        dataclasses.replace(record, time_ms=record.time_ms + 600_000)
        if third <= place < 2 * third
        else record
        for place, record in enumerate(records)
    ]
    state = PartitionForecasts()
    folded(state, shifted[: 2 * third])
    after = folded(state, shifted[2 * third :])
    # It continues with the steps of the corrected time, within two minutes.
    assert after[-1].time_ms <= records[-1].time_ms + STEP_S * 1000
    assert len(after) >= 17

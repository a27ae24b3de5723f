"""The claims of a writer are limited: those beyond a limit are rejected, the rest continues."""

import msgspec
import pytest

from flatline.engine.detection import bounds, partition, sources
from flatline.engine.detection.snapshot import restore, take_snapshot
from flatline.engine.wire.frame import Event, Frame, Role, VmRows, encode_frame
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.topics import REJECTED
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, Place, cell, item


def too_many(bench: Bench) -> list[str]:
    """Return the details of the rejections for a limit."""
    found = [decode_rejected(one.value) for one in bench.outputs if one.topic == REJECTED.name]
    assert {entry.reason for entry in found} <= {"too_many"}
    return [entry.detail for entry in found]


def invented(count: int, *, first: int = 0) -> list[Guest]:
    guests = [Guest(f"invented-{number}") for number in range(first, first + count)]
    for guest in guests:
        guest.passes(1.0, 0.0)
    return guests


def said(
    bench: Bench, *, role: Role = "collector", cell_name: str = "cell", node: str = "node-0",
    run: str = "run-1", sequence: int = 0, events: tuple[Event, ...] = (),
) -> None:  # fmt: skip
    """Fold a frame without rows."""
    header = bench.header(node, role, run, sequence, 1)
    header = msgspec.structs.replace(header, cell=cell_name)
    gauges = {"cpu_busy_ratio": 0.1} if role == "collector" else {}
    frame = Frame(header=header, rows=VmRows.empty(), events=events, node=gauges)
    bench.fold(bench.record(encode_frame(frame)))


def test_a_cell_has_so_many_vms_and_further_ones_are_not_taken_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, _ = cell(6, nodes=2)
    bench.run(20.0)
    monkeypatch.setattr(bounds, "MAX_VMS", 8)
    place = bench.places[0]
    place.guests += invented(2)
    bench.run(4.0)
    assert not too_many(bench)
    assert len(bench.partition.cells["cell"].vms) == 8
    honest = list(place.guests)
    place.guests = [*honest, *invented(1, first=2)]
    bench.run(4.0)
    assert len(too_many(bench)) == 2
    assert "more than 8" in too_many(bench)[0]
    place.guests = honest
    bench.run(4.0)
    assert len(too_many(bench)) == 2
    assert len(bench.partition.cells["cell"].vms) == 8
    assert bench.partition.counters.balanced(bench.partition.waiting())


@pytest.mark.parametrize("how", ["inventory", "events"])
def test_vms_that_are_only_named_count_as_well(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    bench, _ = cell(6)
    bench.run(20.0)
    monkeypatch.setattr(bounds, "MAX_VMS", 10)
    for number in range(4):
        named = invented(2, first=2 * number)
        header = bench.header("node-0", "collector", "run-1", 100 + number, 1)
        place = bench.places[0]
        header = msgspec.structs.replace(header, sequence=place.sequence)
        place.sequence += 1
        frame = Frame(header=header, rows=VmRows.empty())
        if how == "inventory":
            frame = msgspec.structs.replace(frame, inventory=tuple(item(one) for one in named))
        else:
            events = tuple(
                Event(id=one.name, kind="started", time_ns=header.event_time_ns, vm=one.uuid)
                for one in named
            )
            frame = msgspec.structs.replace(frame, events=events)
        bench.fold(bench.record(encode_frame(frame)))
    assert len(bench.partition.cells["cell"].vms) == 10
    assert len(too_many(bench)) == 2


def test_one_node_leaves_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = cell(6, nodes=2)
    bench.run(20.0)
    monkeypatch.setattr(bounds, "MAX_VMS_OF_NODE", 7)
    first, second = bench.places
    honest = list(first.guests)
    for number in range(4):
        # New names each time: removed VMs are remembered for a day.
        first.guests = [*honest, *invented(2, first=2 * number)]
        bench.run(2.0)
    assert "node node-0 would have more than 7" in too_many(bench)[-1]
    second.guests += invented(4, first=100)
    bench.run(2.0)
    assert invented(1, first=100)[0].uuid in bench.partition.cells["cell"].vms


def test_cells_nodes_and_parts_of_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = cell(2)
    bench.run(4.0)
    monkeypatch.setattr(bounds, "MAX_NODES", 3)
    monkeypatch.setattr(bounds, "MAX_CELLS", 2)
    for number in range(4):
        said(bench, node=f"invented-{number}")
    assert sorted(bench.partition.cells["cell"].nodes) == ["invented-0", "invented-1", "node-0"]
    for number in range(3):
        said(bench, cell_name=f"cell-{number}", node="n")
    assert sorted(bench.partition.cells) == ["cell", "cell-0"]
    assert len(too_many(bench)) == 4
    # Known VMs continue.
    bench.run(4.0)
    assert len(too_many(bench)) == 4


def test_runs_of_a_writer_and_of_all_writers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_RUNS", 3)
    bench = Bench([Place("node-0", [])])
    for number in range(5):
        said(bench, role="owner", node="somebody", run=f"run-{number}")
    assert len(bench.partition.sources) == 3
    assert "started 3 runs" in too_many(bench)[0]
    said(bench, role="owner", node="another")
    monkeypatch.setattr(sources, "MAX_SOURCES", 4)
    said(bench, role="owner", node="third")
    assert len(bench.partition.sources) == 4
    assert len(too_many(bench)) == 3
    said(bench, role="owner", node="another", sequence=1)
    assert len(too_many(bench)) == 3


def test_what_waits_for_a_gap_is_bounded_and_counted_again_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, _ = cell(2)
    bench.run(20.0)
    place = bench.places[0]
    place.sequence += 1
    size = len(bench.records[-2].value)
    monkeypatch.setattr(partition, "MAX_WAITING_BYTES", 3 * size)
    for _ in range(3):
        bench.now_s += 2.0
        bench.sample(place)
    kept = bench.partition.waiting_bytes
    assert 2 * size < kept <= 3 * size
    chunks, manifest = take_snapshot(bench.partition)
    assert restore(chunks, manifest, FAST).waiting_bytes == kept
    before = bench.partition.counters.processed
    bench.now_s += 2.0
    bench.sample(place)
    # Long before half a minute is over the gap is given up, and the waiting frames are folded.
    assert bench.partition.counters.processed == before + 4
    assert bench.partition.counters.missing == 1
    assert bench.partition.waiting_bytes == bench.partition.waiting() == 0
    assert not too_many(bench)


def test_a_vm_has_so_many_pools_and_networks_whoever_names_them() -> None:
    bench, guests = cell(2, nodes=2)
    many = {f"d{number}": f"pool-{number}" for number in range(500)}
    bench.run(10.0)
    for place in bench.places:
        wide = msgspec.structs.replace(item(guests[0]), disks=many, nics=many)
        header = bench.header(place.name, "collector", place.run, place.sequence, 1)
        place.sequence += 1
        frame = Frame(header=header, rows=VmRows.empty(), inventory=(wide,))
        bench.fold(bench.record(encode_frame(frame)))
    vm = bench.partition.cells["cell"].vms[guests[0].uuid]
    assert len(vm.pools) == len(vm.networks) == bounds.MAX_PLACES_OF_VM
    (offer,) = vm.offers.values()
    assert len(offer.disks) == len(offer.nics) == bounds.MAX_PLACES_OF_VM

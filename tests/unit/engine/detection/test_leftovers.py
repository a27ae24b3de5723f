"""What is left of subjects that went: nodes that died, VMs that were restarted or deleted."""

from engine.detection.configuration import Configuration
from engine.detection.snapshot import digest, restore, take_snapshot
from engine.ports import Record
from engine.wire.alert import Alert
from tests.unit.engine.detection.frames_by_hand import Bench, cell

# A deleted VM is forgotten after two minutes instead of a quarter of an hour.
SHORT = Configuration(resolved_kept_s=120.0)


def _unlisted(bench: Bench) -> set[bytes]:
    """Return the VMs that a node lists although the cell does not know them."""
    (one,) = bench.partition.cells.values()
    return {vm for lanes in one.lanes.values() for vm in lanes.places if vm not in one.vms}


def test_a_vm_restarted_elsewhere_and_then_deleted_leaves_nothing_on_its_dead_node() -> None:
    bench, _ = cell(4, nodes=2, configuration=SHORT)
    bench.run(60.0)
    alive, dead = bench.places
    dead.reachable = False
    bench.run(20.0)
    (moved, *_) = dead.guests
    alive.guests.append(moved)
    bench.run(20.0)
    alive.guests.remove(moved)
    bench.run(400.0)
    (one,) = bench.partition.cells.values()
    assert moved.uuid not in one.vms
    assert not _unlisted(bench)
    assert moved.uuid not in one.lanes[dead.name].places


def test_a_lone_node_that_was_silent_may_come_back_with_its_frames_swapped() -> None:
    bench, _ = cell(2)
    bench.run(60.0)
    (place,) = bench.places
    # Frames that overtake each other first make the cell wait for slots.
    for _ in range(3):
        _swap(bench)
    for _ in range(30):
        bench.now_s += bench.interval_s
        bench.tick()
    assert bench.partition.cells["cell"].nodes[place.name].silent
    _swap(bench)
    bench.run(20.0)
    assert not bench.partition.cells["cell"].nodes[place.name].silent


def _swap(bench: Bench) -> None:
    """Let the next two frames of the only place arrive in the wrong order, a second apart."""
    (place,) = bench.places
    held: list[bytes] = []

    def hold(record: Record) -> list[Alert]:
        held.append(record.value)
        return []

    fold, bench.fold = bench.fold, hold  # type: ignore[method-assign]
    for _ in range(2):
        bench.now_s += bench.interval_s
        bench.sample(place)
    bench.fold = fold  # type: ignore[method-assign]
    for value in reversed(held):
        bench.fold(bench.record(value))
        bench.now_s += 1.0
        bench.tick()


def test_a_restored_cell_writes_the_same_bytes_for_the_minute() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(50.0)
    guests.reverse()
    for place in bench.places:
        place.guests.reverse()
        place.sequence = 100 * (1 + place.sequence // 100)
    bench.run(30.0)
    chunks, manifest = take_snapshot(bench.partition)
    again = restore(chunks, manifest, bench.configuration)
    first = len(bench.outputs)
    offset = bench.offset
    bench.run(70.0)
    said = [one.value for one in bench.outputs[first:]]
    values = [o.value for record in bench.records[offset:] for o in again.fold(record)]
    assert values == said
    assert digest(again) == digest(bench.partition)

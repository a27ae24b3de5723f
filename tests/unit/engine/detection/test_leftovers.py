"""State of removed subjects: nodes that died, VMs that were restarted or deleted."""

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.departures import FORGETTABLE
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import Event, Frame, VmRows, encode_frame
from tests.unit.engine.detection.frames_by_hand import Bench, cell

# A deleted VM is forgotten after two minutes instead of a quarter of an hour.
SHORT = Configuration(resolved_kept_s=120.0)


def _unlisted(bench: Bench) -> set[bytes]:
    """Return the VMs that a node lists although the cell does not know them."""
    (one,) = bench.partition.cells.values()
    return {vm for table in one.tables.values() for vm in table.indices if vm not in one.vms}


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
    alive.tell("stopped", moved)
    bench.run(400.0)
    (one,) = bench.partition.cells.values()
    assert moved.uuid not in one.vms
    assert not _unlisted(bench)
    assert moved.uuid not in one.tables[dead.name].indices


def test_a_lone_node_that_was_silent_may_come_back_with_its_frames_swapped() -> None:
    bench, _ = cell(2)
    bench.run(60.0)
    (place,) = bench.places
    # Out-of-order frames first make the cell wait for windows.
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
    """Deliver the next two frames of the only place in the wrong order, a second apart."""
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


def _forget(bench: Bench, scope: str, name: str) -> None:
    detail = {"scope": scope, "name": name}
    event = Event(id="f", kind="owner_forget", time_ns=bench.time_ms * 1_000_000, detail=detail)
    header = bench.header("owner", "owner", f"owner-{bench.offset}", 0, 0)
    bench.fold(
        bench.record(encode_frame(Frame(header=header, rows=VmRows.empty(), events=(event,))))
    )


def _last(bench: Bench, subject: str) -> tuple[str, str]:
    """Return state and reason of the newest alert on a subject."""
    alert = [alert for alert in bench.alerts if alert.subject == subject][-1]
    return alert.state, "" if alert.resolution is None else alert.resolution.reason


def test_a_node_that_an_owner_forgets_ends_with_its_alert_and_its_vms() -> None:
    bench, _ = cell(4, nodes=2)
    bench.run(60.0)
    _, gone = bench.places
    gone.reachable = False
    bench.run(60.0)
    assert _last(bench, gone.name)[0] == "firing"
    _forget(bench, "node", gone.name)
    bench.run(6.0)
    assert _last(bench, gone.name) == ("resolved", "an owner reported that it was removed")
    one = bench.partition.cells["cell"]
    assert set(one.nodes) == set(one.tables) == {"node-0"}
    assert {vm.node for vm in one.vms.values()} == {"node-0"}
    # It is no ban: a node that reports again is known again.
    gone.reachable = True
    bench.run(20.0)
    assert set(bench.partition.cells["cell"].nodes) == {"node-0", "node-1"}


def test_a_silent_node_ends_by_time_and_sooner_where_nothing_is_missing_with_it() -> None:
    short = Configuration(forget_s=600.0, forget_empty_s=120.0)
    for moved, ends_s in ((True, 120.0), (False, 600.0)):
        bench, _ = cell(4, nodes=2, configuration=short)
        bench.run(60.0)
        alive, gone = bench.places
        gone.reachable = False
        if moved:
            bench.run(20.0)
            alive.guests += gone.guests
        bench.run(ends_s - 40.0)
        assert _last(bench, gone.name)[0] == "firing"
        bench.run(60.0)
        assert _last(bench, gone.name)[0] == "resolved"
        assert gone.name not in bench.partition.cells["cell"].nodes


def test_a_vm_that_an_owner_forgets_ends_with_its_alert() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(60.0)
    bench.places[0].guests.remove(guests[0])
    bench.run(60.0)
    assert _last(bench, guests[0].text)[0] == "firing"
    _forget(bench, "vm", guests[0].text)
    bench.run(6.0)
    assert _last(bench, guests[0].text)[0] == "resolved"
    assert guests[0].uuid not in bench.partition.cells["cell"].vms


def test_a_vm_of_a_silent_node_that_is_forgotten_leaves_nothing_in_its_list() -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(60.0)
    bench.places[0].reachable = False
    bench.run(30.0)
    _forget(bench, "vm", guests[0].text)
    bench.run(130.0)
    assert guests[0].uuid not in bench.partition.cells["cell"].vms
    assert not _unlisted(bench)


def test_a_command_about_what_nobody_knows_changes_nothing() -> None:
    bench, _ = cell(2)
    bench.run(20.0)
    for scope in (*FORGETTABLE, "everything"):
        _forget(bench, scope, "*")
    bench.run(20.0)
    assert len(bench.partition.cells["cell"].vms) == 2
    assert not bench.alerts

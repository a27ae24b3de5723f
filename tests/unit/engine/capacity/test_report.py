from dataclasses import replace

import numpy as np
import pytest

from flatline.engine.capacity.report import report
from flatline.engine.capacity.usage_from_frames import UsageCollector
from flatline.engine.capacity.usage_snapshot import (
    NodeUse,
    PoolUse,
    Size,
    UsageSnapshot,
    VmUse,
    free,
    how_many,
)
from flatline.engine.capacity.whatif import cell_drained, node_lost, vms_come
from flatline.engine.errors import SettingsError
from flatline.engine.ports import RecordedFrame
from flatline.engine.wire.frame import decode_frame
from tests.unit.engine.fleet_by_hand import MIB, Fleet, Machine

GIB = 1024 * MIB


def vm(name, node, *, flavor="m1", cores=1.0, gib=4.0, **more):
    values = {
        "vm": name, "name": name, "node": node, "flavor": flavor, "vcpus": 2.0,
        "memory_bytes": gib * GIB, "cpu_p95_cores": cores, "memory_p99_bytes": gib * GIB * 0.9,
    }  # fmt: skip
    return VmUse(**(values | more))


def node(name, cell, *, cores=8.0, gib=32.0, zone="z1", **more):
    return NodeUse(
        node=name, cell=cell, zone=zone, cores=cores, memory_bytes=gib * GIB,
        cpu_p95_cores=more.pop("cpu", 2.0), memory_p99_bytes=more.pop("memory", 8.0) * GIB, **more,
    )  # fmt: skip


@pytest.fixture
def estate():
    nodes = [node("n0", "a"), node("n1", "a"), node("n2", "b"), node("n3", "b")]
    vms = [vm(f"v{k}", f"n{k % 4}") for k in range(8)]
    return UsageSnapshot(nodes=nodes, vms=vms, days=30.0)


def row(found, scope, subject, resource):
    return next(
        one
        for one in found.scopes
        if (one.scope, one.subject, one.resource) == (scope, subject, resource)
    )


def test_a_cell_keeps_its_largest_node_in_reserve(estate):
    found = report(estate)
    cell = row(found, "cell", "a", "cpu")
    assert cell.usable == 8.0
    assert cell.used == 4.0
    assert cell.remaining_ratio == pytest.approx(0.5)
    assert row(found, "node", "n0", "cpu").usable == 8.0
    assert row(found, "zone", "z1", "memory").usable == 64 * GIB


def test_vms_that_fit_are_counted_node_by_node_and_within_the_reserve(estate):
    found = report(estate)
    # A node's two VMs use 8 of 32 GiB; six of its eight cores are free.
    assert row(found, "node", "n0", "cpu").vms_that_fit == 6
    # Two nodes would fit twelve, but the cell may use one node's worth: 4 cores are left.
    assert row(found, "cell", "a", "cpu").vms_that_fit == 4
    assert row(found, "zone", "z1", "memory").vms_that_fit == 8


def test_promises_are_held_against_what_is_there(estate):
    assert row(report(estate), "cell", "a", "cpu").oversubscription_ratio == pytest.approx(0.5)


def test_cpu_beside_full_memory_is_stranded():
    full = node("n0", "a", memory=31.0)
    found = report(UsageSnapshot(nodes=[full, node("n1", "a")], vms=[vm("v", "n1")]))
    assert row(found, "node", "n0", "cpu").stranded == pytest.approx(6.0)
    assert row(found, "node", "n1", "cpu").stranded == 0.0
    assert row(found, "cell", "a", "memory").stranded == 0.0


def test_days_to_full_of_a_growing_pool_and_of_a_node():
    grows = np.linspace(100, 700, 61)
    pool = PoolUse(
        pool="fast", cell="a", capacity_bytes=1000.0, used_bytes=700.0, daily_used_bytes=grows
    )
    nodes = [node("n0", "a", daily_cores=np.linspace(1, 2, 30)), node("n1", "a")]
    found = report(UsageSnapshot(nodes=nodes, vms=[], pools=[pool]))
    disk = row(found, "pool", "a/fast", "disk")
    assert disk.days_to_full == pytest.approx(30, abs=1)
    assert disk.days_to_full_low <= disk.days_to_full <= disk.days_to_full_high
    assert disk.remaining_ratio == pytest.approx(0.3)
    cpu = row(found, "node", "n0", "cpu")
    assert cpu.days_to_full == pytest.approx(6 / (1 / 29), rel=0.05)
    # No days are known for n1, so none are reported for the cell.
    assert not row(found, "cell", "a", "cpu").days_known


def test_idle_and_oversized_vms_get_a_proposal(estate):
    vms = [
        vm("idle", "n0", cores=0.01, io_bytes_per_s=10.0),
        vm("busy-disk", "n0", cores=0.01, vcpus=1.0, io_bytes_per_s=1e6),
        vm("huge", "n0", cores=1.0, vcpus=8.0),
        vm("fat", "n0", cores=1.9, gib=16.0, memory_p99_bytes=2.0 * GIB),
        vm("right", "n0", cores=1.2),
    ]
    found = report(UsageSnapshot(nodes=estate.nodes, vms=vms))
    assert {one.name: one.finding for one in found.vms} == {
        "idle": "idle",
        "huge": "oversized",
        "fat": "oversized",
    }
    proposed = {one.name: one for one in found.vms}
    assert proposed["huge"].proposed_vcpus == 2
    assert proposed["fat"].proposed_memory_bytes == 2.5 * GIB


def test_contention_and_the_largest_vm_stand_by_the_cell(estate):
    vms = [vm("w", "n1", waiting_ratio=0.2), vm("q", "n0", waiting_ratio=0.01)]
    cell = report(UsageSnapshot(nodes=estate.nodes, vms=vms)).cells[0]
    assert cell.contended_nodes == ("n1",)
    assert cell.largest_vm_memory_bytes == 24 * GIB
    assert cell.survives_node_loss


def test_unknown_sizes_are_unknown_and_not_nothing():
    bare = NodeUse(node="n0", cell="a")
    found = report(UsageSnapshot(nodes=[bare], vms=[vm("v", "n0")]))
    cpu = row(found, "node", "n0", "cpu")
    assert (cpu.usable, cpu.used, cpu.vms_that_fit, cpu.remaining_ratio) == (None, None, None, None)
    assert found.cells[0].survives_node_loss is None


def test_coming_vms_are_spread_and_what_finds_no_place_is_said(estate):
    few = vms_come(estate, count=4, flavor="m1", scope="cell:a")
    assert (few.asked, few.placed, few.placements) == (4, 4, {"n0": 2, "n1": 2})
    many = vms_come(estate, count=100, flavor="m1")
    assert many.placed == 24
    assert len(many.unplaced) == 76
    assert not many.cells[0].survives_node_loss


def test_a_lost_node_is_made_up_for_by_its_cell_alone(estate):
    answer = node_lost(estate, "n0")
    assert answer.placements == {"n1": 2}
    assert [cell.cell for cell in answer.cells] == ["a"]
    assert answer.cells[0].nodes == 1
    small = UsageSnapshot(nodes=[node("n0", "a"), node("n1", "a", memory=31.0)], vms=estate.vms)
    assert node_lost(small, "n0").unplaced == ("v0", "v4")


def test_a_drained_cell_goes_to_the_other_cells_of_its_zone(estate):
    answer = cell_drained(estate, "a")
    assert answer.placements == {"n2": 2, "n3": 2}
    far = UsageSnapshot(nodes=[node("n0", "a"), node("n9", "b", zone="z2")], vms=[vm("v", "n0")])
    assert cell_drained(far, "a").unplaced == ("v",)


@pytest.mark.parametrize(
    ("ask", "reported"),
    [
        (lambda e: vms_come(e, count=1, flavor="x9"), "flavors: m1"),
        (lambda e: vms_come(e, count=0, flavor="m1"), "1 to"),
        (lambda e: vms_come(e, count=1, flavor="m1", scope="pool:p"), "cell:NAME or zone:NAME"),
        (lambda e: vms_come(e, count=1, flavor="m1", scope="cell:q"), "cells: a, b"),
        (lambda e: node_lost(e, "n7"), "nodes: n0, n1, n2, n3"),
        (lambda e: cell_drained(e, "q"), "cells: a, b"),
    ],
)
def test_queries_about_nothing_are_refused_with_what_there_is(estate, ask, reported):
    with pytest.raises(SettingsError, match=reported):
        ask(estate)


def test_what_fits_nodes_of_unknown_size_is_no_answer_of_nothing(estate):
    unknown = [replace(one, cores=None, memory_bytes=None) for one in estate.nodes]
    with pytest.raises(SettingsError, match="Placement requires the capacity of the nodes"):
        node_lost(replace(estate, nodes=unknown), "n0")


def test_room_is_what_neither_use_nor_promise_takes():
    has = node("n0", "a", cpu=5.0, memory=1.0)
    assert free(has, [vm("v", "n0")]) == Size(3.0, 28.0 * GIB)
    assert how_many(Size(1.0, 4.0 * GIB), Size(3.0, 28.0 * GIB)) == 3
    assert how_many(Size(0.0, 4.0 * GIB), Size(3.0, 28.0 * GIB)) == 7


def moments(fleet, minutes):
    return [RecordedFrame(one.time_ms, decode_frame(one.value)) for one in fleet.run(minutes)]


def test_usage_snapshot_reads_use_from_frames():
    fleet = Fleet({"n0": [Machine("a", cores=0.5), Machine("b", cores=1.5)]}, interval_s=60)
    found = UsageCollector().take(moments(fleet, 60)).usage()
    assert [one.node for one in found.nodes] == ["n0"]
    assert found.nodes[0].cores == 8.0
    assert found.nodes[0].cpu_p95_cores == pytest.approx(2.0)
    cores = [one.cpu_p95_cores or 0.0 for one in found.vms]
    assert sorted(cores) == pytest.approx([0.5, 1.5])
    assert {one.memory_p99_bytes for one in found.vms} == {512.0 * MIB}
    assert found.days == pytest.approx(59 / 1440)


def test_usage_snapshot_knows_a_vm_where_it_was_last():
    fleet = Fleet({"n0": [Machine("a"), Machine("b")], "n1": [Machine("c")]}, interval_s=60)
    collector = UsageCollector().take(moments(fleet, 30))
    fleet.nodes["n1"].append(fleet.nodes["n0"].pop(0))
    found = collector.take(moments(fleet, 30)).usage()
    assert sorted(one.node for one in found.vms) == ["n0", "n1", "n1"]
    assert [one.cpu_p95_cores for one in found.vms] == pytest.approx([0.5, 0.5, 0.5])

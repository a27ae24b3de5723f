"""A cell of 64 nodes with 260 VMs each is judged, and the log accepts each of its records."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from msgspec import UNSET

from benchmarks import workloads
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.action.events import LoadSeen
from flatline.engine.action.planner import step
from flatline.engine.action.state import PlannerState
from flatline.engine.action.target import CellLoad
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Output, Partition
from flatline.engine.ports import Record
from flatline.engine.wire.envelope import MAX_APPEND_BYTES, MAX_RECORD_BYTES
from flatline.engine.wire.frame import Frame, Header, InventoryItem
from flatline.engine.wire.order import signed
from flatline.engine.wire.score import Scores, decode_scores
from flatline.engine.wire.topics import FRAMES, SCORES
from tests.signing import ENGINE_KEY

NODES, VMS = 64, 260
START_MS = 1_790_000_000_000
BYTES = 16


def frame(node: int, slot: int, *, vms: int) -> Frame:
    rows = workloads.fleet_rows(vms, seed=node)
    names = [rows.vm(column) for column in range(len(rows))]
    items = tuple(
        InventoryItem(
            vm=vm, name=f"vm-{node}-{place}", tenant="tenant", group=f"a group of node {node:02d}"
            f" with a long name {place:03d}", disks={"vda": f"pool-{node % 3}"},
        )
        for place, vm in enumerate(names)
    )  # fmt: skip
    header = Header(
        site="s", zone="z", cell="large", node=f"n{node:02d}", role="collector", run="r",
        sequence=slot, event_time_ns=(START_MS + 30_000 * slot) * 10**6,
        mono_ns=30 * 10**9 * slot, interval_ms=30_000,
    )  # fmt: skip
    gauges = {"cpu_busy_ratio": 0.25, "hypervisor_reachable": 1.0}
    return Frame(header=header, rows=rows, inventory=items if slot == 0 else (), node=gauges)


@cache
def minutes_of(nodes: int, vms: int) -> list[list[Output]]:
    """Return the scores of each closed minute."""
    partition, found, offset = Partition(Configuration()), [], 0
    for slot in range(4):
        reported: list[Output] = []
        for node in range(nodes):
            time_ms = START_MS + 30_000 * slot + node
            record = Record(FRAMES.name, 0, offset, time_ms, b"large", b"")
            reported += partition.fold(record, frame(node, slot, vms=vms))
            offset += 1
        scores = [output for output in reported if output.topic == SCORES.name]
        if scores:
            found.append(scores)
    return found


def test_a_minute_of_a_large_cell_is_several_records_of_whole_nodes() -> None:
    minutes = minutes_of(NODES, VMS)
    assert minutes
    for outputs in minutes:
        assert all(len(output.value) < MAX_RECORD_BYTES for output in outputs)
        for output in outputs:
            headers = (*output.headers, *signed(output.value, ENGINE_KEY))
            size = len(output.key) + sum(len(name) + len(code) for name, code in headers)
            assert size + len(output.value) <= MAX_APPEND_BYTES
        parts = [decode_scores(output.value) for output in outputs]
        assert len(parts) > 1
        assert len({part.minute_ms for part in parts}) == 1
        names = [name for part in parts for name in part.nodes]
        assert names == sorted(set(names))
        assert len(names) == NODES
        assert {part.vm_count for part in parts} == {NODES * VMS}
        assert sum(len(part.uuids) for part in parts) == NODES * VMS * BYTES
        assert all(part.matrix().shape[1] == len(part.classes) for part in parts)
        assert all(len(part.covered()) == len(part.classes) for part in parts)
        assert sum(parts[0].pool_vms.values()) == NODES * VMS
        assert not any(part.pool_vms for part in parts[1:])


def test_a_minute_of_a_small_cell_is_one_record() -> None:
    for outputs in minutes_of(2, 20):
        [scores] = [decode_scores(output.value) for output in outputs]
        assert scores.cell_vms is UNSET
        assert scores.vm_count == 40


def load(scores: Scores) -> CellLoad:
    return CellLoad(
        scores.minute_ms, scores.node_load, scores.vm_count, pools=scores.pool_vms,
        vm_cores={f"{name}": 1.0 for name in scores.nodes},
    )  # fmt: skip


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [0, 0, 1, 1, 2, 3, 4, 4]])
def test_the_planner_knows_the_whole_cell_in_whatever_order_its_records_come(
    order: list[int],
) -> None:
    parts = [decode_scores(output.value) for output in minutes_of(NODES, VMS)[0]]
    assert len(parts) == 5
    policy = parse_policy(read_shipped("default"), source="default")
    state = PlannerState(name="p", site="s")
    old = CellLoad(parts[0].minute_ms - 60_000, {"gone": 1.0}, 7)
    state = replace(state, loads={"large": old})
    for index in order:
        event = LoadSeen("large", load(parts[index]), START_MS)
        state, _ = step(state, event, policy)
    known = state.loads["large"]
    assert len(known.nodes) == NODES == len(known.vm_cores)
    assert known.vm_count == NODES * VMS
    assert sum(known.pools.values()) == NODES * VMS
    assert np.allclose(list(known.nodes.values()), 0.25)

"""Convert a partition's state to a snapshot and back, bit for bit; compute its digest."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec
import numpy as np

from flatline.engine.detection.cell import (
    Cell,
    CellCounts,
    CommonCause,
    Incident,
    Node,
    OutOfOrder,
    Vm,
)
from flatline.engine.detection.configuration import Configuration, configuration_hash
from flatline.engine.detection.forest import new_forest
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.sources import Counters, Source
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.stream.snapshot_format import Manifest, Snapshot, named, packed, unpacked
from flatline.engine.wire import limits
from flatline.engine.wire.log_clock import LogClock
from flatline.engine.wire.stored import Array, array_of, restoring, stored
from flatline.models.half_space_trees import HalfSpaceForest
from flatline.models.protocol import Arrays


class VmTableValue(msgspec.Struct, frozen=True):
    """One node's rows."""

    roster: bytes
    foreign: list[bytes]
    arrays: dict[str, Array]


class CellValue(
    msgspec.Struct,
    frozen=True,
    rename={
        "tables": "lanes",
        "common_causes": "latches",
        "counts": "totals",
        "out_of_order": "overtaken",
    },
):
    """One cell."""

    name: str
    site: str
    zone: str
    nodes: dict[str, Node]
    tables: dict[str, VmTableValue]
    departed: VmTableValue
    forest: dict[str, Array]
    vms: list[Vm]
    incidents: dict[str, Incident]
    common_causes: dict[str, CommonCause]
    counts: CellCounts
    reported: list[str]
    watched: list[bytes]
    round_ms: limits.TimeMs
    closed_ms: limits.TimeMs
    passed_ms: limits.TimeMs
    outage_ms: limits.TimeMs
    disturbed_ms: limits.TimeMs = 0
    out_of_order: OutOfOrder = msgspec.field(default_factory=OutOfOrder)
    beyond: list[str] = []
    forgets: list[tuple[str, str]] = []


class PartitionValue(msgspec.Struct, frozen=True):
    """All state that affects decisions; the offset is in the manifest."""

    cells: list[CellValue]
    sources: dict[str, Source]
    counters: Counters
    time_ms: limits.TimeMs
    passed_ms: limits.TimeMs
    forgot_ms: limits.TimeMs
    clock: LogClock | None = None
    marks: dict[str, limits.TimeMs] = {}


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(PartitionValue)


def take_snapshot(partition: Partition) -> Snapshot:
    """Return the state as records for the log."""
    # Not compressed, so that an earlier release reads it.
    return packed(
        _encoder.encode(_value(partition)),
        next_offset=partition.next_offset,
        time_ms=partition.time_ms,
        configuration=configuration_hash(partition.configuration),
    )


def restore(chunks: Sequence[bytes], manifest: Manifest, configuration: Configuration) -> Partition:
    """Return the partition of a snapshot, able to continue bit for bit.

    Raises
    ------
    SnapshotDamaged
        A chunk is missing or differs from its hash in the manifest, or the state is invalid.
    """
    body = unpacked(chunks, manifest)
    with restoring(named(manifest)):
        value = _decoder.decode(body)
        partition = Partition(configuration)
        partition.next_offset = manifest.next_offset
        partition.sources = value.sources
        partition.counters = value.counters
        partition.time_ms = value.time_ms
        partition.passed_ms = value.passed_ms
        partition.forgot_ms = value.forgot_ms
        # An earlier release stored no clock, and accepted every append time.
        partition.clock = value.clock or LogClock(value.time_ms, value.time_ms)
        partition.marks = value.marks
        waiting = (len(one.value) for source in value.sources.values() for one in source.waiting)
        partition.waiting_bytes = sum(waiting)
        partition.queued = {key for key, source in value.sources.items() if source.waiting}
        partition.cells = {cell.name: _cell(cell) for cell in value.cells}
    return partition


def digest(partition: Partition) -> str:
    """Return sha256 over all state that affects decisions: append times, but not offsets."""
    return sha256(_encoder.encode(_value(partition))).hexdigest()


def _value(partition: Partition) -> PartitionValue:
    return PartitionValue(
        cells=[_cell_value(partition.cells[name]) for name in sorted(partition.cells)],
        sources=partition.sources,
        counters=partition.counters,
        time_ms=partition.time_ms,
        passed_ms=partition.passed_ms,
        forgot_ms=partition.forgot_ms,
        clock=partition.clock,
        marks=partition.marks,
    )


def _cell_value(cell: Cell) -> CellValue:
    return CellValue(
        name=cell.name,
        site=cell.site,
        zone=cell.zone,
        nodes=cell.nodes,
        tables={name: _table_value(table) for name, table in cell.tables.items()},
        departed=_table_value(cell.departed),
        forest=_pack(cell.forest.to_arrays()),
        vms=[cell.vms[uuid] for uuid in sorted(cell.vms)],
        incidents=cell.incidents,
        common_causes=cell.common_causes,
        counts=cell.counts,
        reported=sorted(cell.reported),
        watched=sorted(cell.watched),
        round_ms=cell.round_ms,
        closed_ms=cell.closed_ms,
        passed_ms=cell.passed_ms,
        outage_ms=cell.outage_ms,
        disturbed_ms=cell.disturbed_ms,
        out_of_order=cell.out_of_order,
        beyond=sorted(cell.beyond),
        forgets=cell.forgets,
    )


def _cell(value: CellValue) -> Cell:
    forests = _unpack(value.forest)
    # Checked first: trees of another height may need more memory than available.
    if not np.array_equal(forests["settings"], new_forest().to_arrays()["settings"]):
        raise ValueError(f"the forest of cell {value.name} does not fit this release")
    forest = HalfSpaceForest.from_arrays(forests)
    cell = Cell(value.name, site=value.site, zone=value.zone, forest=forest)
    cell.nodes = value.nodes
    cell.tables = {name: _table(table) for name, table in value.tables.items()}
    cell.departed = _table(value.departed)
    cell.vms = {vm.uuid: vm for vm in value.vms}
    cell.incidents = value.incidents
    cell.common_causes = value.common_causes
    cell.counts = value.counts
    cell.reported = set(value.reported)
    cell.watched = set(value.watched)
    cell.round_ms = value.round_ms
    cell.closed_ms = value.closed_ms
    cell.passed_ms = value.passed_ms
    cell.outage_ms = value.outage_ms
    cell.disturbed_ms = value.disturbed_ms
    cell.out_of_order = value.out_of_order
    cell.beyond = set(value.beyond)
    cell.forgets = value.forgets
    foreign = {vm for table in cell.tables.values() for vm in table.foreign}
    if cell.tables.keys() != cell.nodes.keys() or not cell.vms.keys() >= cell.watched | foreign:
        raise ValueError(f"cell {cell.name} names nodes or VMs that are not in the snapshot")
    return cell


def _table_value(table: VmTable) -> VmTableValue:
    return VmTableValue(table.roster, sorted(table.foreign), _pack(table.to_arrays()))


def _table(value: VmTableValue) -> VmTable:
    table = VmTable.from_arrays(value.roster, _unpack(value.arrays))
    table.foreign = set(value.foreign)
    if not table.indices.keys() >= table.foreign:
        raise ValueError(
            "rows of the VM table belong to VMs of other nodes that are not in their VM lists"
        )
    return table


def _pack(arrays: Arrays) -> dict[str, Array]:
    return {name: stored(array) for name, array in arrays.items()}


def _unpack(arrays: Mapping[str, Array]) -> Arrays:
    return {name: array_of(array) for name, array in arrays.items()}

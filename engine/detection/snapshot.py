"""Convert a partition's state to chunks of bytes and back, bit for bit; compute its digest.

A snapshot is one complete generation: chunks, then a manifest with their hashes. State
consists of arrays and msgspec Structs only; nothing is pickled.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from engine.detection.cell import Cell, Incident, Latch, Node, Overtaken, Totals, Vm
from engine.detection.configuration import Configuration, configuration_hash
from engine.detection.forest import new_forest
from engine.detection.lanes import Lanes
from engine.detection.partition import Partition
from engine.detection.sources import Counters, Source
from engine.errors import SnapshotDamaged, SnapshotTooNew
from engine.wire import limits
from engine.wire.log_clock import LogClock
from engine.wire.stored import Array, array_of, restoring, stored
from models.half_space_trees import HalfSpaceForest
from models.protocol import Arrays

FORMAT: Final = 1
RELEASE: Final = "0.1.0"
# Below the log's limit for a record, with space for key and headers.
CHUNK_BYTES: Final = 800_000


class LanesValue(msgspec.Struct, frozen=True):
    """One node's lanes."""

    roster: bytes
    foreign: list[bytes]
    arrays: dict[str, Array]


class CellValue(msgspec.Struct, frozen=True):
    """One cell."""

    name: str
    site: str
    zone: str
    nodes: dict[str, Node]
    lanes: dict[str, LanesValue]
    departed: LanesValue
    forest: dict[str, Array]
    vms: list[Vm]
    incidents: dict[str, Incident]
    latches: dict[str, Latch]
    totals: Totals
    reported: list[str]
    watched: list[bytes]
    round_ms: limits.TimeMs
    closed_ms: limits.TimeMs
    passed_ms: limits.TimeMs
    outage_ms: limits.TimeMs
    disturbed_ms: limits.TimeMs = 0
    overtaken: Overtaken = msgspec.field(default_factory=Overtaken)
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


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a complete generation; `chunks` are sha256 in order."""

    generation: limits.Word
    next_offset: limits.Count
    time_ms: limits.TimeMs
    chunks: Annotated[tuple[limits.Word, ...], Meta(max_length=65_536)]
    configuration: limits.Word
    format: int = FORMAT
    release: str = RELEASE


class _Format(msgspec.Struct):
    format: int = 0
    release: str = ""


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(PartitionValue)
_manifest_decoder = msgspec.msgpack.Decoder(Manifest)
_format_decoder = msgspec.msgpack.Decoder(_Format)


def take_snapshot(partition: Partition) -> tuple[list[bytes], Manifest]:
    """Return the chunks of the state, each ≤ `CHUNK_BYTES`, and their manifest."""
    body = _encoder.encode(_value(partition))
    chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    manifest = Manifest(
        generation=sha256(body).hexdigest()[:32],
        next_offset=partition.next_offset,
        time_ms=partition.time_ms,
        chunks=tuple(sha256(chunk).hexdigest() for chunk in chunks),
        configuration=configuration_hash(partition.configuration),
    )
    return chunks, manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest."""
    return _encoder.encode(manifest)


def decode_manifest(value: bytes) -> Manifest:
    """Return the manifest.

    Raises
    ------
    SnapshotTooNew
        A later release wrote it.
    SnapshotDamaged
        The value is not a manifest.
    """
    with restoring("a snapshot's manifest"):
        found = _format_decoder.decode(value)
        if found.format > FORMAT:
            raise SnapshotTooNew(
                f"a snapshot of format {found.format} was written by release {found.release}. This "
                f"is release {RELEASE}, which reads formats up to {FORMAT}. Start that release "
                "again, or delete the records of flatline.snapshots.v1 to start without state"
            )
        return _manifest_decoder.decode(value)


def restore(chunks: Sequence[bytes], manifest: Manifest, configuration: Configuration) -> Partition:
    """Return the partition of a snapshot, able to continue bit for bit.

    Raises
    ------
    SnapshotDamaged
        A chunk is missing or differs from its hash in the manifest, or the state is invalid.
    """
    hashes = tuple(sha256(chunk).hexdigest() for chunk in chunks)
    if hashes != manifest.chunks:
        whole = sum(a == b for a, b in zip(hashes, manifest.chunks, strict=False))
        raise SnapshotDamaged(
            f"snapshot {manifest.generation} at offset {manifest.next_offset}: only {whole} of "
            f"{len(manifest.chunks)} chunks match the manifest; an older snapshot is used instead"
        )
    with restoring(f"snapshot {manifest.generation} at offset {manifest.next_offset}"):
        value = _decoder.decode(b"".join(chunks))
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
        lanes={name: _lanes_value(lanes) for name, lanes in cell.lanes.items()},
        departed=_lanes_value(cell.departed),
        forest=_pack(cell.forest.to_arrays()),
        vms=[cell.vms[uuid] for uuid in sorted(cell.vms)],
        incidents=cell.incidents,
        latches=cell.latches,
        totals=cell.totals,
        reported=sorted(cell.reported),
        watched=sorted(cell.watched),
        round_ms=cell.round_ms,
        closed_ms=cell.closed_ms,
        passed_ms=cell.passed_ms,
        outage_ms=cell.outage_ms,
        disturbed_ms=cell.disturbed_ms,
        overtaken=cell.overtaken,
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
    cell.lanes = {name: _lanes(lanes) for name, lanes in value.lanes.items()}
    cell.departed = _lanes(value.departed)
    cell.vms = {vm.uuid: vm for vm in value.vms}
    cell.incidents = value.incidents
    cell.latches = value.latches
    cell.totals = value.totals
    cell.reported = set(value.reported)
    cell.watched = set(value.watched)
    cell.round_ms = value.round_ms
    cell.closed_ms = value.closed_ms
    cell.passed_ms = value.passed_ms
    cell.outage_ms = value.outage_ms
    cell.disturbed_ms = value.disturbed_ms
    cell.overtaken = value.overtaken
    cell.beyond = set(value.beyond)
    cell.forgets = value.forgets
    foreign = {vm for lanes in cell.lanes.values() for vm in lanes.foreign}
    if cell.lanes.keys() != cell.nodes.keys() or not cell.vms.keys() >= cell.watched | foreign:
        raise ValueError(f"cell {cell.name} names nodes or VMs that are not in the snapshot")
    return cell


def _lanes_value(lanes: Lanes) -> LanesValue:
    return LanesValue(lanes.roster, sorted(lanes.foreign), _pack(lanes.to_arrays()))


def _lanes(value: LanesValue) -> Lanes:
    lanes = Lanes.from_arrays(value.roster, _unpack(value.arrays))
    lanes.foreign = set(value.foreign)
    if not lanes.places.keys() >= lanes.foreign:
        raise ValueError(
            "rows of the VM table belong to VMs of other nodes that are not in their VM lists"
        )
    return lanes


def _pack(arrays: Arrays) -> dict[str, Array]:
    return {name: stored(array) for name, array in arrays.items()}


def _unpack(arrays: Mapping[str, Array]) -> Arrays:
    return {name: array_of(array) for name, array in arrays.items()}

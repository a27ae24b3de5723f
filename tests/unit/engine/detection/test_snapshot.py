"""State to bytes and back: complete or rejected, and a digest of all that affects decisions."""

import hashlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from flatline.engine.detection import configuration
from flatline.engine.detection.configuration import Configuration, configuration_hash
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.detection.snapshot import (
    CellValue,
    PartitionValue,
    digest,
    restore,
    take_snapshot,
)
from flatline.engine.errors import SnapshotDamaged, SnapshotTooNew
from flatline.engine.ports import Record
from flatline.engine.stream.snapshot_format import (
    CHUNK_BYTES,
    FORMAT,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from flatline.engine.wire.stored import array_of, stored
from flatline.models.kernels import hours, trends
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, cell


def snapped() -> tuple[Bench, list[bytes]]:
    bench, guests = cell(12, nodes=12)
    bench.run(60.0)
    guests[0].panics()
    bench.run(20.0)
    return bench, take_snapshot(bench.partition)[0]


def moved(record: Record, *, by: int = 0, time_ms: int = 0) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset + by,
        time_ms=record.time_ms + time_ms,
        key=record.key,
        value=record.value,
    )


def test_chunks_fit_into_records_and_restore_to_the_same_state() -> None:
    bench, chunks = snapped()
    assert max(map(len, chunks)) <= CHUNK_BYTES
    _, manifest = take_snapshot(bench.partition)
    again = restore(chunks, decode_manifest(encode_manifest(manifest)), FAST)
    assert digest(again) == digest(bench.partition)
    assert again.next_offset == bench.partition.next_offset


@pytest.mark.parametrize("harm", ["flipped", "missing", "swapped", "truncated"])
def test_a_damaged_snapshot_is_refused(harm: str) -> None:
    bench, chunks = snapped()
    _, manifest = take_snapshot(bench.partition)
    chunks = [*chunks, *chunks] if harm == "swapped" else list(chunks)
    if harm == "flipped":
        chunks[0] = chunks[0][:100] + bytes([chunks[0][100] ^ 1]) + chunks[0][101:]
    elif harm == "missing":
        chunks = chunks[:-1]
    elif harm == "truncated":
        chunks[-1] = chunks[-1][:-1]
    with pytest.raises(SnapshotDamaged, match=r"older (snapshot|one) is used"):
        restore(chunks, manifest, FAST)


def array(name: str, **fields: Any) -> Callable[[CellValue], None]:
    """Return a function that changes an array of a cell's first rows."""

    def change(value: CellValue) -> None:
        arrays = value.tables["node-0"].arrays
        arrays[name] = msgspec.structs.replace(arrays[name], **fields)

    return change


def lacks(holder: str, name: str) -> Callable[[CellValue], None]:
    return lambda value: getattr(value, holder).pop(name)


def of_forest(value: CellValue) -> None:
    settings = np.array([10, 24, 250, 42], np.int64)
    value.forest["settings"] = stored(settings)


def narrow(value: CellValue) -> None:
    value.forest["learned"] = stored(np.zeros((1, 1, 1), np.uint16))


def counts(value: CellValue) -> None:
    arrays = value.tables["node-0"].arrays
    arrays["vcpu_counts"] = stored(array_of(arrays["vcpu_counts"]) + 1)


HARMS: dict[str, Callable[[CellValue], None]] = {
    "an array of another shape": array("floats", shape=(3, 7)),
    "an array that would be spread": array("floats", shape=(23, 1), data=bytes(8 * 23)),
    "an array of another type": array("floats", dtype="<i8"),
    "no type at all": array("floats", dtype="nonsense"),
    "an array of objects": array("floats", dtype="O"),
    "a forest without its counts": lacks("forest", "counts"),
    "a forest too high for any memory": of_forest,
    "a forest that would be spread": narrow,
    "a node without its VM table": lacks("tables", "node-0"),
    "vCPU times that are not there": counts,
    "a VM of another node that is not listed": lambda value: value.tables["node-0"].foreign.append(
        bytes(16)
    ),
    "a VM to be watched that is not known": lambda value: value.watched.append(bytes(16)),
}


def body_of(chunks: list[bytes]) -> PartitionValue:
    return msgspec.msgpack.decode(b"".join(chunks), type=PartitionValue)


def as_written(value: PartitionValue, manifest: Manifest) -> tuple[list[bytes], Manifest]:
    """Return a state with the bytes that its manifest names."""
    body = msgspec.msgpack.encode(value)
    hashed = (hashlib.sha256(body).hexdigest(),)
    return [body], msgspec.structs.replace(manifest, chunks=hashed)


@pytest.mark.parametrize("harm", HARMS)
def test_a_state_that_cannot_be_one_is_damage_though_its_bytes_are_as_written(harm: str) -> None:
    bench, chunks = snapped()
    value = body_of(chunks)
    HARMS[harm](value.cells[0])
    chunks, manifest = as_written(value, take_snapshot(bench.partition)[1])
    with pytest.raises(SnapshotDamaged, match=r"older (snapshot|one) is used"):
        restore(chunks, manifest, FAST)


@pytest.mark.parametrize("field", ["time_ms", "passed_ms", "forgot_ms"])
@pytest.mark.parametrize("value_ms", [-1, 10**15])
def test_a_time_outside_every_calendar_is_damage(field: str, value_ms: int) -> None:
    bench, chunks = snapped()
    value = msgspec.structs.replace(body_of(chunks), **{field: value_ms})
    chunks, manifest = as_written(value, take_snapshot(bench.partition)[1])
    with pytest.raises(SnapshotDamaged, match=r"older (snapshot|one) is used"):
        restore(chunks, manifest, FAST)


def test_a_roster_that_names_a_vm_twice_is_damage() -> None:
    bench, chunks = snapped()
    value = body_of(chunks)
    table = value.cells[0].tables
    table["node-0"] = msgspec.structs.replace(table["node-0"], roster=bytes(32))
    chunks, manifest = as_written(value, take_snapshot(bench.partition)[1])
    with pytest.raises(SnapshotDamaged, match="names a VM twice"):
        restore(chunks, manifest, FAST)


def test_bytes_that_are_no_manifest_are_damage() -> None:
    for value in (b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"format": "x"})):
        with pytest.raises(SnapshotDamaged):
            decode_manifest(value)


def test_a_snapshot_of_a_later_release_is_named_with_what_to_do() -> None:
    bench, _ = snapped()
    _, manifest = take_snapshot(bench.partition)
    later = msgspec.structs.replace(manifest, format=FORMAT + 1, release="7.0.0")
    with pytest.raises(SnapshotTooNew, match=r"release 7\.0\.0"):
        decode_manifest(encode_manifest(later))


def test_the_digest_leaves_the_offsets_out_and_takes_append_times_in() -> None:
    bench, _ = snapped()
    whole = run_records(bench.records, FAST).digest
    assert run_records([moved(one, by=1000) for one in bench.records], FAST).digest == whole
    later = [moved(one, time_ms=1) for one in bench.records]
    assert run_records(later, FAST).digest != whole


def test_one_more_record_is_another_digest() -> None:
    bench, _ = snapped()
    before = digest(bench.partition)
    bench.run(2.0)
    assert digest(bench.partition) != before


def test_a_restored_state_shares_no_memory_with_the_snapshot() -> None:
    bench, chunks = snapped()
    _, manifest = take_snapshot(bench.partition)
    first = restore(chunks, manifest, FAST)
    before = digest(restore(chunks, manifest, FAST))
    for record in bench.records[-3:]:
        first.fold(moved(record, by=1000, time_ms=2000))
    assert digest(restore(chunks, manifest, FAST)) == before


def test_any_constant_changes_the_configurations_hash() -> None:
    hashes = {
        configuration_hash(Configuration()),
        configuration_hash(Configuration(alert_error_rate=1e-4)),
        configuration_hash(Configuration(balloon_cap_nats=6.5)),
    }
    assert len(hashes) == 3


def test_an_empty_partition_has_a_snapshot_too() -> None:
    chunks, manifest = take_snapshot(Partition(FAST))
    assert digest(restore(chunks, manifest, FAST)) == digest(Partition(FAST))


@pytest.mark.parametrize("kernel", [hours, trends], ids=["hours", "trends"])
def test_the_hash_knows_every_limit_of_what_shows_over_hours(kernel: ModuleType) -> None:
    limits = {name: value for name, value in vars(kernel).items() if isinstance(value, float)}
    assert len(limits) > 5
    assert not [name for name, value in limits.items() if value not in kernel.CONSTANTS]
    assert set(kernel.CONSTANTS) <= set(configuration._KERNELS)

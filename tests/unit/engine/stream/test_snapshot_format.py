"""The format of a snapshot, which engine, forecaster and historian share with earlier releases."""

from hashlib import sha256
from typing import Literal

import msgspec
import numpy as np
import pytest
from cramjam import zstd

from flatline.engine.errors import SnapshotDamaged, SnapshotTooNew
from flatline.engine.stream.snapshot_format import (
    CHUNK_BYTES,
    Manifest,
    decode_manifest,
    encode_manifest,
    packed,
    unpacked,
)

# Three chunks and a part of one, also when compressed.
STATE = np.random.default_rng(0).bytes(3 * CHUNK_BYTES + 7)


class EngineManifest(msgspec.Struct, kw_only=True):
    """The manifest of an engine before the three roles shared one format."""

    generation: str
    next_offset: int
    time_ms: int
    chunks: tuple[str, ...]
    configuration: str
    format: int = 1
    release: str = "0.1.0"


def earlier() -> tuple[list[bytes], bytes]:
    """Return the chunks and the manifest of a forecaster before the roles shared one format."""
    body = bytes(zstd.compress(STATE, level=1))
    chunks = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
    manifest = {"next_offset": 7, "chunks": len(chunks), "sha256": sha256(body).hexdigest(), "v": 1}
    return chunks, msgspec.msgpack.encode(manifest)


@pytest.mark.parametrize("packing", ["", "zstd"])
def test_a_state_of_many_chunks_is_whole_again(packing: Literal["", "zstd"]) -> None:
    chunks, manifest = packed(STATE, next_offset=7, time_ms=9, configuration="c", packing=packing)
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= CHUNK_BYTES
    again = decode_manifest(encode_manifest(manifest))
    assert (again.next_offset, again.time_ms, again.configuration) == (7, 9, "c")
    assert unpacked(chunks, again) == STATE


@pytest.mark.parametrize("form", ["shared", "earlier"])
@pytest.mark.parametrize("harm", ["flipped", "missing", "added", "swapped", "truncated"])
def test_chunks_that_differ_from_their_manifest_are_damage(form: str, harm: str) -> None:
    if form == "shared":
        chunks, manifest = packed(STATE, next_offset=7, time_ms=0, packing="zstd")
    else:
        chunks, value = earlier()
        manifest = decode_manifest(value)
    changed = {
        "flipped": [bytes([chunks[0][0] ^ 1]) + chunks[0][1:], *chunks[1:]],
        "missing": chunks[:-1],
        "added": [*chunks, b""],
        "swapped": [chunks[1], chunks[0], *chunks[2:]],
        "truncated": [*chunks[:-1], chunks[-1][:-1]],
    }[harm]
    with pytest.raises(SnapshotDamaged, match="an older one is used instead"):
        unpacked(changed, manifest)


def test_a_snapshot_of_an_earlier_forecaster_is_read() -> None:
    chunks, value = earlier()
    manifest = decode_manifest(value)
    assert manifest.next_offset == 7
    assert len(manifest.chunks) == len(chunks)
    assert unpacked(chunks, manifest) == STATE


def test_an_earlier_engine_and_this_one_read_each_other_s_manifests() -> None:
    chunks, manifest = packed(STATE, next_offset=7, time_ms=9, configuration="c")
    value = encode_manifest(manifest)
    before = msgspec.msgpack.decode(value, type=EngineManifest)
    assert before.chunks == manifest.chunks
    assert b"".join(chunks) == STATE
    assert unpacked(chunks, decode_manifest(msgspec.msgpack.encode(before))) == STATE


@pytest.mark.parametrize("version", [{"format": 2, "release": "9.0.0"}, {"v": 2}])
def test_a_snapshot_of_a_later_release_is_named_with_what_to_do(version: dict[str, object]) -> None:
    value = msgspec.msgpack.encode({"next_offset": 0, "chunks": 0, **version})
    with pytest.raises(SnapshotTooNew, match="Start that release again"):
        decode_manifest(value)


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x80", b"\xa1x", b"junk"])
def test_bytes_that_are_no_manifest_are_damage(value: bytes) -> None:
    with pytest.raises(SnapshotDamaged):
        decode_manifest(value)


def test_an_empty_state_has_a_manifest_without_chunks() -> None:
    chunks, manifest = packed(b"", next_offset=0, time_ms=0)
    assert manifest == Manifest(
        generation=manifest.generation, next_offset=0, time_ms=0, chunks=(), configuration=""
    )
    assert unpacked(chunks, manifest) == b""

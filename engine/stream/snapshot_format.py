"""The format of a snapshot: chunks of a state, and the manifest that completes them.

Engine, forecaster and historian share it. A state consists of arrays and msgspec Structs only;
nothing is pickled.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from cramjam import zstd
from msgspec import Meta

from flatline.engine.errors import SnapshotDamaged, SnapshotTooNew
from flatline.engine.wire import limits
from flatline.engine.wire.stored import restoring

FORMAT: Final = 1
RELEASE: Final = "0.1.0"
# Below the log's limit for a record, with space for key and headers.
CHUNK_BYTES: Final = 800_000
# This level halves the snapshot of a forecaster and takes 10 ms of a core per 30 MB; higher levels
# save only 3 % more.
_LEVEL: Final = 1
# 50 GB: more than the state of a whole site.
_MAX_CHUNKS: Final = 65_536


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a complete snapshot.

    Attributes
    ----------
    generation
        The name of the snapshot: the first 32 hex digits of the sha256 of the state.
    next_offset
        The offset of the frames at which reading resumes.
    chunks
        The sha256 of each chunk, in order.
    configuration
        The hash of the configuration under which the state was made; "" where none affects it.
    packing
        How the joined chunks are compressed.
    whole
        The sha256 of the joined chunks, if `chunks` has no hashes: in a snapshot that an earlier
        release of forecaster or historian wrote. Otherwise "".
    """

    generation: limits.Word
    next_offset: limits.Count
    time_ms: limits.TimeMs
    chunks: Annotated[tuple[limits.Word, ...], Meta(max_length=_MAX_CHUNKS)]
    configuration: limits.Word
    packing: Literal["", "zstd"] = ""
    whole: limits.Word = ""
    format: int = FORMAT
    release: str = RELEASE


class Snapshot(NamedTuple):
    """A state as records for the log: chunks, each ≤ `CHUNK_BYTES`, and their manifest."""

    chunks: list[bytes]
    manifest: Manifest


class _Format(msgspec.Struct):
    format: int = 0
    v: int = 0
    release: str = ""


class _Earlier(msgspec.Struct):
    """The manifest of a forecaster or historian before the three roles shared one format."""

    next_offset: limits.Count
    chunks: Annotated[int, Meta(ge=0, le=_MAX_CHUNKS)]
    sha256: limits.Word


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Manifest)
_earlier_decoder = msgspec.msgpack.Decoder(_Earlier)
_format_decoder = msgspec.msgpack.Decoder(_Format)


def packed(
    state: bytes,
    *,
    next_offset: int,
    time_ms: int,
    configuration: str = "",
    packing: Literal["", "zstd"] = "",
) -> Snapshot:
    """Return the snapshot that holds an encoded state; see `Manifest` for the other values."""
    body = bytes(zstd.compress(state, level=_LEVEL)) if packing else state
    chunks = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
    manifest = Manifest(
        generation=sha256(state).hexdigest()[:32],
        next_offset=next_offset,
        time_ms=time_ms,
        chunks=tuple(sha256(chunk).hexdigest() for chunk in chunks),
        configuration=configuration,
        packing=packing,
    )
    return Snapshot(chunks, manifest)


def unpacked(chunks: Sequence[bytes], manifest: Manifest) -> bytes:
    """Return the encoded state of a snapshot; `chunks` are in order.

    Raises
    ------
    SnapshotDamaged
        A chunk is missing or differs from its hash in the manifest.
    """
    with restoring(named(manifest)):
        body = b"".join(chunks)
        if manifest.whole:
            intact = len(chunks) if sha256(body).hexdigest() == manifest.whole else 0
        else:
            hashes = (sha256(chunk).hexdigest() for chunk in chunks)
            intact = sum(a == b for a, b in zip(hashes, manifest.chunks, strict=False))
        if not intact == len(chunks) == len(manifest.chunks):
            raise SnapshotDamaged(
                f"{named(manifest)}: only {intact} of {len(manifest.chunks)} chunks match the "
                "manifest; an older one is used instead"
            )
        return bytes(zstd.decompress(body)) if manifest.packing else body


def named(manifest: Manifest) -> str:
    """Return a snapshot's name and position for a sentence."""
    return f"snapshot {manifest.generation} at offset {manifest.next_offset}"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest."""
    return _encoder.encode(manifest)


def decode_manifest(value: bytes) -> Manifest:
    """Return the manifest, also of a snapshot of an earlier release.

    Raises
    ------
    SnapshotTooNew
        A later release wrote it.
    SnapshotDamaged
        The value is not a manifest.
    """
    with restoring("a snapshot's manifest"):
        found = _format_decoder.decode(value)
        if max(found.format, found.v) > FORMAT:
            raise SnapshotTooNew(
                f"a snapshot of format {max(found.format, found.v)} was written by release "
                f"{found.release}. This is release {RELEASE}, which reads formats up to {FORMAT}. "
                "Start that release again, or delete the snapshots of this group to start without "
                "state"
            )
        if not found.v:
            return _decoder.decode(value)
        earlier = _earlier_decoder.decode(value)
        return Manifest(
            generation=earlier.sha256[:32],
            next_offset=earlier.next_offset,
            time_ms=0,
            chunks=("",) * earlier.chunks,
            configuration="",
            packing="zstd",
            whole=earlier.sha256,
        )

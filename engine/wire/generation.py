"""A state in the log: compressed chunks, and the manifest that completes them."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from cramjam import zstd
from msgspec import Meta

from engine.errors import SnapshotDamaged, SnapshotTooNew
from engine.wire import limits
from engine.wire.stored import restoring

VERSION: Final = 1
# Below the log's limit for a record, with room for key and headers.
CHUNK_BYTES: Final = 800_000
# Halves the bytes of a forecaster for 10 ms of a core per 30 MB; higher levels gain 3 %.
_LEVEL: Final = 1
# 50 GB: more than the state of a whole site.
_MAX_CHUNKS: Final = 65_536


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Completes the chunks of one state: their hash, and the offset at which reading resumes."""

    next_offset: limits.Count
    chunks: Annotated[int, Meta(ge=0, le=_MAX_CHUNKS)]
    sha256: limits.Word
    v: int = VERSION


class Generation(NamedTuple):
    """The records of one state: chunks, each ≤ `CHUNK_BYTES`, then the manifest."""

    name: str
    chunks: list[bytes]
    manifest: bytes


State = TypeVar("State")

_manifest_decoder = msgspec.msgpack.Decoder(Manifest)


def packed(state: bytes, *, next_offset: int) -> Generation:
    """Return the generation that holds `state`; reading resumes at `next_offset`."""
    body = bytes(zstd.compress(state, level=_LEVEL))
    chunks = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
    hashed = sha256(body).hexdigest()
    manifest = Manifest(next_offset=next_offset, chunks=len(chunks), sha256=hashed)
    return Generation(hashed[:32], chunks, msgspec.msgpack.encode(manifest))


def unpacked(
    chunks: Mapping[int, bytes],
    manifest: bytes,
    decoder: msgspec.msgpack.Decoder[State],
    *,
    owner: str,
) -> tuple[int, State]:
    """Return the offset at which reading resumes, and the decoded state of `owner` (a role).

    Raises
    ------
    SnapshotDamaged
        Bytes are missing or changed, or are of an earlier form.
    SnapshotTooNew
        A later release wrote it.
    """
    with restoring(f"The {owner}'s state"):
        told = _manifest_decoder.decode(manifest)
        if told.v > VERSION:
            raise SnapshotTooNew(
                f"The {owner}'s state has version {told.v}, but this release reads version "
                f"{VERSION}. Start the release that wrote it, or use another consumer group."
            )
        body = b"".join(chunks.get(index, b"") for index in range(told.chunks))
        if sha256(body).hexdigest() != told.sha256:
            raise SnapshotDamaged(f"The {owner}'s state is damaged. An older one is used.")
        return told.next_offset, decoder.decode(bytes(zstd.decompress(body)))

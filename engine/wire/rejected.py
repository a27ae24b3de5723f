"""What could not be read: kept with its reason, so that nothing is lost uncounted."""

from hashlib import sha256
from typing import Final, Literal

import msgspec

from engine.wire import limits
from engine.wire.envelope import decode_msgpack

# Enough to see what it was; a flood of 10 MB records must not fill the topic.
KEPT_BYTES: Final = 65_536
# A key of ours is a cell's name of at most 128; what a foreign record brings may be as long as
# a record, and then the word about it would be longer than the log takes.
KEPT_KEY_BYTES: Final = 256
# The first error of a decoder is a sentence; what it quotes may be the record itself.
KEPT_DETAIL: Final = 1_000


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """The first `KEPT_BYTES` of a record that was refused, and why."""

    topic: limits.Text
    partition: limits.Count
    offset: limits.Count
    reason: limits.Word
    detail: limits.Sentence
    length: limits.Count
    sha256: str
    head: bytes
    v: Literal[1] = 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Rejected)


def encode_rejected(
    value: bytes,
    *,
    topic: str,
    partition: int,
    offset: int,
    reason: str,
    detail: str,
    kept_bytes: int = KEPT_BYTES,
) -> bytes:
    """Return the bytes that stand on `flatline.rejected.v1` for a refused `value`.

    Partition and offset are 0 of a record that no log took, which `detail` then says.
    """
    return _encoder.encode(
        Rejected(
            topic=topic,
            partition=partition,
            offset=offset,
            reason=reason,
            detail=detail[:KEPT_DETAIL],
            length=len(value),
            sha256=sha256(value).hexdigest(),
            head=value[:kept_bytes],
        )
    )


def rejected_key(key: bytes, *, cell: str = "") -> bytes:
    """Return the key under which a refused record is kept: its own, else the cell's."""
    return key[:KEPT_KEY_BYTES] or cell.encode()


def decode_rejected(value: bytes) -> Rejected:
    """Return what was refused, or raise `RecordRejected`."""
    return decode_msgpack(value, _decoder)

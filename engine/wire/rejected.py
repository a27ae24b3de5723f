"""Rejected records: kept with the reason, so that every loss is counted."""

from hashlib import sha256
from typing import Final, Literal

import msgspec

from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_msgpack

# Enough to identify the record; a flood of 10 MB records must not fill the topic.
KEPT_BYTES: Final = 65_536
# Flatline's keys are names of cells, 128 bytes at most. A foreign key may be as long as a record,
# and then the report about it would exceed the log's limit.
KEPT_KEY_BYTES: Final = 256
# A decoder's error message may quote the whole record, so only its beginning is kept.
KEPT_DETAIL: Final = 1_000


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """The first `KEPT_BYTES` of a rejected record, and the reason."""

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
    """Return the bytes for `flatline.rejected.v1` that report a rejected `value`.

    Topic, partition and offset are the position of the rejected record; partition and offset are 0
    for a record that no log accepted, and `detail` then states it. `reason` is one of
    `REJECTION_REASONS`. Of `value` the first `kept_bytes` are kept.
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
    """Return the key of the report: that of the rejected record, else the cell's name."""
    return key[:KEPT_KEY_BYTES] or cell.encode()


def decode_rejected(value: bytes) -> Rejected:
    """Return the report that `value` encodes, or raise `RecordRejected`."""
    return decode_msgpack(value, _decoder)

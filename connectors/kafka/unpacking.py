"""Decompress Kafka batches within fixed limits of memory.

aiokafka decompresses a batch completely, whatever its size: 33 KB of zstd became 1 GiB. A header
name that is not UTF-8 ended the reader. This module decompresses a batch into a buffer of a fixed
size and reads it record by record. Unreadable records are replaced, at the same offsets, by records
whose value states the reason; every reader rejects and counts these like any foreign record.

`install` patches aiokafka's consumer, which Faust uses too. aiokafka is pinned to a minor release;
a test checks that its fetcher still takes batches from here.
"""

import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol, cast

import cramjam
import numpy as np
import structlog
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import decode_varint
from numpy.typing import NDArray
from prometheus_client import Counter

# A broker accepts batches of up to 1 MiB. Flatline's batches have at most that size before
# compression. Other clients fill a batch by its estimated compressed size, so that it decompresses
# to several times as much.
MAX_UNPACKED_BYTES: Final = 16 << 20
# The most records of a batch: 1 MB, at seven bytes each.
_MOST_RECORDS: Final = 150_000
# The year 2200 (`engine.wire.limits`), a limit for the time in a damaged batch.
_LATEST_MS: Final = 7_258_118_400_000
# Flatline's records have about ten headers at most; a header takes about 100 bytes of memory.
MAX_HEADERS: Final = 1000

_UNREADABLE: Final = Counter(
    "flatline_kafka_unreadable_total",
    "Records of Kafka that could not be read: records of batches that exceed the limit after "
    "decompression (oversized) or are damaged (damaged), batches whose checksum is always wrong "
    "(checksum), and headers with a name that is not UTF-8 (header).",
    ["reason"],
)

# Message format 2: base offset, length, leader's epoch, magic, CRC, attributes, last offset's
# delta, first and largest time, producer, its epoch, first sequence, number of records.
_HEAD: Final = struct.Struct(">qiibIhiqqqhii")
_LENGTH: Final = struct.Struct(">qi")
_ATTRIBUTES_AT: Final = 21
_CODEC_BITS: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_MAGIC_AT: Final = 16
_NONE, _GZIP, _SNAPPY, _LZ4, _ZSTD = range(5)
# The first 8 bytes of xerial's framing, which Java's snappy library writes; two version numbers
# follow.
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD: Final = 16
# Number of remembered batches with a wrong checksum; the oldest is forgotten.
_DOUBTED_KEPT: Final = 256
# The window size that selects the gzip format in `zlib`.
_GZIP_WINDOW: Final = 31
_DAMAGED: Final = (CorruptRecordException, ValueError, IndexError, struct.error, OverflowError)

_log = structlog.get_logger()


class RawRecord(NamedTuple):
    """A record as aiokafka's consumer expects it."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class _AnyRecord(Protocol):
    @property
    def offset(self) -> int: ...


class _Scratch(threading.local):
    """A buffer for each thread; memory that no batch has filled is not resident."""

    def __init__(self) -> None:
        self.buffer: NDArray[np.uint8] = np.empty(MAX_UNPACKED_BYTES, np.uint8)


_scratch = _Scratch()
# Digests of batches with a wrong checksum. If a batch with the same bytes is fetched again, the
# broker's copy is damaged.
_doubted: deque[bytes] = deque(maxlen=_DOUBTED_KEPT)


class Unreadable(Exception):
    """A batch that cannot be unpacked; `reason` labels the counter."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def unpack(codec: int, packed: bytes) -> bytes:
    """Return the decompressed content of a batch.

    `codec` is Kafka's number: 1 gzip, 2 snappy, 3 lz4, 4 zstd.

    Raises
    ------
    Unreadable
        More than `MAX_UNPACKED_BYTES`, damaged, or of an unknown codec.
    """
    try:
        if codec == _GZIP:
            unpacker = zlib.decompressobj(_GZIP_WINDOW)
            found = unpacker.decompress(packed, MAX_UNPACKED_BYTES)
            if unpacker.unconsumed_tail:
                raise _oversized(packed)
            if not unpacker.eof:
                raise ValueError("the data are truncated")
            return found
        if codec == _SNAPPY:
            return b"".join(_snappy_blocks(packed))
        if codec in (_LZ4, _ZSTD):
            module = cramjam.lz4 if codec == _LZ4 else cramjam.zstd
            size = module.decompress_into(packed, _scratch.buffer)
            return _scratch.buffer[:size].tobytes()
    except cramjam.DecompressionError as error:
        # The library's message for a full buffer.
        if "failed to write whole buffer" in str(error):
            raise _oversized(packed) from None
        raise Unreadable(
            "damaged", f"{len(packed)} bytes cannot be decompressed: {error}"
        ) from error
    except (zlib.error, ValueError, struct.error) as error:
        raise Unreadable(
            "damaged", f"{len(packed)} bytes cannot be decompressed: {error}"
        ) from error
    raise Unreadable("damaged", f"unknown codec {codec}")


def _oversized(packed: bytes) -> Unreadable:
    return Unreadable(
        "oversized", f"{len(packed)} bytes decompress to more than {MAX_UNPACKED_BYTES}"
    )


def _snappy_blocks(packed: bytes) -> Iterator[bytes]:
    """Yield the blocks of snappy data; each states its size before it is decompressed."""
    if not packed.startswith(_XERIAL):
        yield _snappy_block(packed, MAX_UNPACKED_BYTES, packed)
        return
    at, left = _XERIAL_HEAD, MAX_UNPACKED_BYTES
    while at < len(packed):
        (size,) = struct.unpack_from(">i", packed, at)
        if size < 0 or at + 4 + size > len(packed):
            raise ValueError("a block is truncated")
        block = _snappy_block(packed[at + 4 : at + 4 + size], left, packed)
        left -= len(block)
        at += 4 + size
        yield block


def _snappy_block(block: bytes, left: int, packed: bytes) -> bytes:
    if cramjam.snappy.decompress_raw_len(block) > left:
        raise _oversized(packed)
    return bytes(cramjam.snappy.decompress_raw(block))


class Batch:
    """One batch of message format 2, with the interface that aiokafka's consumer reads.

    Parameters
    ----------
    raw
        Bytes of the batch.
    following
        Base offset of the next batch, None where that is not known.
    """

    def __init__(self, raw: bytes, *, following: int | None = None) -> None:
        self._raw = raw
        self._following = following
        self._damage = ""
        if len(raw) < _HEAD.size:
            raise CorruptRecordException(f"a batch of {len(raw)} bytes has no complete header")
        head = _HEAD.unpack_from(raw)
        self.base_offset: int = head[0]
        self._attributes: int = head[5]
        self._last_delta: int = head[6]
        self._first_time: int = head[7]
        self._largest_time: int = head[8]
        self.producer_id: int = head[9]
        self._count: int = head[12]

    @property
    def next_offset(self) -> int:
        """The offset after the last one that this batch ever held."""
        return self.base_offset + self._last_delta + 1

    @property
    def is_transactional(self) -> bool:
        """Whether the batch belongs to a transaction."""
        return bool(self._attributes & 0x10)

    @property
    def is_control_batch(self) -> bool:
        """Whether the batch ends a transaction and holds no data records."""
        return bool(self._attributes & 0x20)

    def validate_crc(self) -> bool:
        """Return whether to continue with the batch.

        A batch damaged in transit is fetched again, as in aiokafka. A batch that is fetched twice
        with the same bytes is damaged on the broker and would block every reader permanently. It
        is skipped, and one record reports the damage.
        """
        if DefaultRecordBatch(self._raw).validate_crc():
            return True
        seen = blake2b(self._raw, digest_size=16).digest()
        if seen not in _doubted:
            _doubted.append(seen)
            return False
        self._pass_over()
        return True

    def _pass_over(self) -> None:
        """Mark the batch as damaged, and limit the header values that are still used.

        The next batch's base offset, where known, replaces the number of records in the header.
        """
        count = self._last_delta + 1
        if self._following is not None and self._following > self.base_offset:
            count = self._following - self.base_offset
        elif not 0 < count <= _MOST_RECORDS:
            count = 1
        self._attributes, self._last_delta = 0, count - 1
        self._first_time = self._largest_time = max(0, min(self._largest_time, _LATEST_MS))
        self._damage = (
            f"a batch of {len(self._raw)} bytes from offset {self.base_offset} to "
            f"{self.next_offset - 1} has a wrong checksum each time it is fetched: a disk or the "
            "memory of a broker is damaged"
        )

    def __iter__(self) -> Iterator[_AnyRecord]:
        """Yield each record; in place of an unreadable one, a record that states the reason."""
        if self._damage:
            # One record for the whole batch: the number of lost records is not known.
            yield next(self._stand_ins(self.base_offset, "checksum", self._damage))
            return
        codec = self._attributes & _CODEC_BITS
        plain = self._raw
        if codec != _NONE:
            try:
                plain = self._plain(unpack(codec, self._raw[_HEAD.size :]))
            except Unreadable as error:
                yield from self._stand_ins(self.base_offset, error.reason, str(error))
                return
        done, next_offset = 0, self.base_offset
        try:
            for record in DefaultRecordBatch(plain):
                # A record with a too high offset would make the consumer skip all records before.
                if not next_offset <= record.offset < self.next_offset:
                    raise ValueError(f"offset {record.offset} is out of order")
                done, next_offset = done + 1, record.offset + 1
                yield record
        except _DAMAGED:
            # aiokafka's reader stops at a header name that is not UTF-8; `_read` continues.
            yield from self._read(plain, done)

    def _plain(self, unpacked: bytes) -> bytes:
        """Return the batch as if it had not been compressed."""
        head = bytearray(self._raw[: _HEAD.size])
        attributes = self._attributes & ~_CODEC_BITS
        struct.pack_into(">h", head, _ATTRIBUTES_AT, attributes)
        struct.pack_into(">i", head, 8, _HEAD.size - _LENGTH.size + len(unpacked))
        return bytes(head) + unpacked

    def _read(self, plain: bytes, done: int) -> Iterator[RawRecord]:
        """Yield the records after the first `done`, without invalid headers."""
        at, next_offset = _HEAD.size, self.base_offset
        for number in range(self._count):
            try:
                length, at = decode_varint(plain, at)
                if length < 0 or at + length > len(plain):
                    raise ValueError("a record ends beyond its batch")
                record = self._record(plain[at : at + length])
                if record.offset < next_offset:
                    raise ValueError(f"offset {record.offset} is out of order")
            except _DAMAGED as error:
                yield from self._stand_ins(next_offset, "damaged", f"a record is damaged: {error}")
                return
            at += length
            next_offset = record.offset + 1
            if number >= done:
                yield record

    def _record(self, raw: bytes) -> RawRecord:
        at = 1  # attributes, of which none are defined
        time_delta, at = decode_varint(raw, at)
        offset_delta, at = decode_varint(raw, at)
        key, at = _field(raw, at)
        value, at = _field(raw, at)
        count, at = decode_varint(raw, at)
        if not 0 <= count <= MAX_HEADERS or not 0 <= offset_delta <= self._last_delta:
            raise ValueError(f"{count} headers at offset {self.base_offset} + {offset_delta}")
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name, at = _field(raw, at)
            content, at = _field(raw, at)
            try:
                headers.append(((name or b"").decode(), content))
            except UnicodeDecodeError:
                _UNREADABLE.labels("header").inc()
        return RawRecord(
            offset=self.base_offset + offset_delta,
            timestamp=self._time(time_delta),
            timestamp_type=int(bool(self._attributes & _LOG_APPEND_TIME)),
            key=key,
            value=value,
            headers=headers,
        )

    def _time(self, delta: int) -> int:
        is_of_log = self._attributes & _LOG_APPEND_TIME
        return self._largest_time if is_of_log else self._first_time + delta

    def _stand_ins(self, first: int, reason: str, sentence: str) -> Iterator[RawRecord]:
        """Yield a record that states the reason for each offset from `first` to the batch's end."""
        _log.error(
            "Records of a batch cannot be read and are rejected.",
            first_offset=first,
            next_offset=self.next_offset,
            reason=sentence,
        )
        for offset in range(first, self.next_offset):
            _UNREADABLE.labels(reason).inc()
            yield RawRecord(
                offset=offset,
                timestamp=self._largest_time,
                timestamp_type=int(bool(self._attributes & _LOG_APPEND_TIME)),
                key=None,
                value=f"unreadable: {sentence}".encode(),
                headers=[],
            )


def _field(raw: bytes, at: int) -> tuple[bytes | None, int]:
    """Return a field of bytes, None for null, and the position of the next one."""
    size, at = decode_varint(raw, at)
    if size < 0:
        return None, at
    if at + size > len(raw):
        raise ValueError("a field ends beyond its record")
    return raw[at : at + size], at + size


class Batches:
    """The batches of one fetched partition; replaces aiokafka's `MemoryRecords`.

    Formats before Kafka 0.11 (2017) are not read: brokers since 4.0 do not serve them.
    """

    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._at = 0

    def size_in_bytes(self) -> int:
        """Return the number of fetched bytes."""
        return len(self._fetched)

    def has_next(self) -> bool:
        """Return whether a whole batch is left; the broker may truncate the last one.

        Raises
        ------
        CorruptRecordException
            The length of the next batch is negative.
        """
        return self._end() is not None

    def next_batch(self) -> Batch | None:
        """Return the next batch; None if no whole batch is left.

        Raises
        ------
        CorruptRecordException
            The batch is damaged, or not of message format 2.
        """
        end = self._end()
        if end is None:
            return None
        raw = self._fetched[self._at : end]
        self._at = end
        following = None
        if len(self._fetched) - end >= _LENGTH.size:
            following = int(_LENGTH.unpack_from(self._fetched, end)[0])
        if len(raw) <= _MAGIC_AT or raw[_MAGIC_AT] != 2:
            raise CorruptRecordException("a batch is not of message format 2")
        return Batch(raw, following=following)

    def _end(self) -> int | None:
        left = len(self._fetched) - self._at
        if left < _LENGTH.size:
            return None
        _, length = _LENGTH.unpack_from(self._fetched, self._at)
        if length < 0:
            raise CorruptRecordException(f"a batch of {length} bytes")
        whole = _LENGTH.size + int(length)
        return self._at + whole if whole <= left else None


def install() -> None:
    """Make every consumer of aiokafka in this process read through this module."""
    cast(Any, fetcher).MemoryRecords = Batches

"""Bytes that no broker should deliver, through the connector's decoding, to every reader.

Each batch is damaged or forged: wrong checksums, decompression bombs, header names that are not
UTF-8, extreme lengths and counts. Good batches are mixed in.
"""

import asyncio
import random
import struct
from typing import Final

import cramjam
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from benchmarks.fuzz_frames import Tally
from benchmarks.fuzz_planner import ENGINE_KEY, HostileRecords, Roles, good_alert
from flatline.connectors.kafka.reading import to_record
from flatline.connectors.kafka.unpacking import MAX_UNPACKED_BYTES, Batches
from flatline.engine.ports import Headers
from flatline.engine.wire.alert import encode_alert
from flatline.engine.wire.order import signed
from flatline.engine.wire.topics import ALERTS

_HEAD_BYTES: Final = 61
# Records of one planner and agent, in consecutive fetches.
_AT_ONE_LOG: Final = 2_000
_BATCHES_A_FETCH: Final = 20
# A reader that requests this many fetches without progress is stuck.
_PATIENCE: Final = 3
_BOMBS: Final = tuple(
    (codec, bytes(pack(bytes(2 * MAX_UNPACKED_BYTES))))
    for codec, pack in ((2, cramjam.snappy.compress_raw), (4, cramjam.zstd.compress))
)

Told = tuple[bytes, bytes, Headers]


def _batch(records: list[Told], *, offset: int, codec: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=7, producer_epoch=0,
        base_sequence=0, batch_size=1 << 30,
    )  # fmt: skip
    for number, (key, value, headers) in enumerate(records):
        builder.append(
            number, timestamp=1_790_000_000_000, key=key, value=value, headers=list(headers)
        )
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, offset)
    return bytes(raw)


def _sealed(raw: bytes) -> bytes:
    """Return a batch whose length and checksum fit its bytes."""
    whole = bytearray(raw)
    struct.pack_into(">i", whole, 8, len(whole) - 12)
    struct.pack_into(">I", whole, 17, calc_crc32c(bytes(whole[21:])))
    return bytes(whole)


def _hostile_batch(chance: random.Random, records: list[Told], *, offset: int) -> bytes:
    """Return a batch with an error, or with an error only in its records."""
    raw = _batch(records, offset=offset, codec=chance.choice((0, 0, 0, 1, 2, 3, 4)))
    body = bytearray(raw)
    match chance.randrange(8):
        case 0:
            # A bit error of a disk, anywhere behind the checksum.
            body[chance.randrange(21, len(body))] ^= 1 << chance.randrange(8)
            return bytes(body)
        case 1 if chance.random() < 0.05:
            codec, bomb = chance.choice(_BOMBS)
            struct.pack_into(">h", body, 21, codec)
            return _sealed(bytes(body[:_HEAD_BYTES]) + bomb)
        case 2:
            named: list[Told] = [
                (key, value, (("n" * 3, b"1"), ("good", b"2"))) for key, value, _ in records
            ]
            plain = _batch(named, offset=offset)
            return _sealed(plain.replace(b"nnn", chance.choice((b"\xff\xfe\xfd", b"\xed\xa0\x80"))))
        case 3 | 4:
            for _ in range(chance.randint(1, 6)):
                body[chance.randrange(_HEAD_BYTES, len(body))] = chance.randrange(256)
            return _sealed(bytes(body))
        case 5:
            return _sealed(bytes(body[: chance.randrange(_HEAD_BYTES, len(body))]))
        case 6:
            # A record count without any records.
            struct.pack_into(">i", body, 57, chance.choice((0, 1, -1, 2**31 - 1)))
            return _sealed(bytes(body))
        case _:
            return raw


class _Broker:
    """Serves one partition's batches as a broker does: whole ones, from the requested one on."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, bytes]] = []

    def append(self, next_offset: int, raw: bytes) -> None:
        self._batches.append((next_offset, raw))

    def fetch(self, offset: int) -> bytes:
        found = [raw for next_offset, raw in self._batches if next_offset > offset]
        self._batches = self._batches[-len(found) :] if found else []
        return b"".join(found[:_BATCHES_A_FETCH])


async def _drain(broker: _Broker, offset: int, end: int, tally: Tally) -> list[ConsumerRecord]:
    """Read to the end as aiokafka's consumer does; a reader without progress counts as dead."""
    found: list[ConsumerRecord] = []
    tried = 0
    while offset < end:
        records = fetcher.PartitionRecords(
            TopicPartition("t", 0), Batches(broker.fetch(offset)), [], offset, None, None, True, 0
        )
        try:
            found += records
        except CorruptRecordException:
            tried += records.next_fetch_offset == offset
        if records.next_fetch_offset > offset:
            offset, tried = records.next_fetch_offset, 0
        elif tried > _PATIENCE:
            tally.died("reader", RuntimeError(f"it stays at offset {offset}"))
            return found
    return found


async def _play(tally: Tally, count: int, *, seed: int) -> None:
    chance = random.Random(seed)
    drawn, roles, broker = HostileRecords(chance), Roles(tally), _Broker()
    await roles.begin()
    topics: dict[int, str] = {}
    offset = read = good = sent = 0
    delivered: set[int] = set()
    while sent < count:
        for _ in range(_BATCHES_A_FETCH // 2):
            records = [drawn.draw() for _ in range(chance.randint(1, 3))]
            raw = _hostile_batch(chance, [one[1:] for one in records], offset=offset)
            topics.update({offset + at: one[0] for at, one in enumerate(records)})
            offset += len(records)
            sent += len(records)
            broker.append(offset, raw)
            value, headers = encode_alert(good_alert(good))
            reported = (b"good", value, (*headers, *signed(value, ENGINE_KEY)))
            topics[offset] = ALERTS.name
            broker.append(offset + 1, _batch([reported], offset=offset))
            offset, good = offset + 1, good + 1
        for raw_record in await _drain(broker, read, offset, tally):
            topic = topics.get(raw_record.offset, ALERTS.name)
            record = to_record(topic, raw_record)
            delivered.add(raw_record.offset)
            await roles.give(topic, record.key, record.value, record.headers)
        read = offset
        await roles.tick()
    tally.hostile += sent
    tally.good += good
    tally.good_lost += sum(not roles.knows(number) for number in range(good))


def fuzz_kafka(count: int, *, seed: int) -> Tally:
    """Send `count` records in hostile batches to readers of Kafka one after the other."""
    tally = Tally()
    for number, first in enumerate(range(0, count, _AT_ONE_LOG)):
        size = min(_AT_ONE_LOG, count - first)
        asyncio.run(_play(tally, size, seed=seed * 1_000_003 + number))
    return tally

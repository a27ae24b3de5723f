"""A batch is decompressed within limits, and an error in it costs no other record."""

import asyncio
import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c, encode_varint
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from flatline.connectors.kafka import reading
from flatline.connectors.kafka.unpacking import (
    MAX_UNPACKED_BYTES,
    Batch,
    Batches,
    Unreadable,
    unpack,
)

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
Told = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
RECORDS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=5),
        st.none() | st.binary(max_size=40),
        st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=4)), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def batch(records: Sequence[Told], *, codec: int = 0, offset: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=7, producer_epoch=0,
        base_sequence=0, batch_size=1 << 30,
    )  # fmt: skip
    for number, (key, value, headers) in enumerate(records):
        made = builder.append(
            number, timestamp=1000 + number, key=key, value=value, headers=headers
        )
        assert made is not None
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, offset)
    return bytes(raw)


def sealed(raw: bytes) -> bytes:
    """Return a batch whose length and checksum fit its bytes."""
    whole = bytearray(raw)
    struct.pack_into(">i", whole, 8, len(whole) - 12)
    struct.pack_into(">I", whole, 17, calc_crc32c(bytes(whole[21:])))
    return bytes(whole)


def packed(codec: int, content: bytes) -> bytes:
    match codec:
        case 1:
            return gzip.compress(content, 9)
        case 2:
            return bytes(cramjam.snappy.compress_raw(content))
        case 3:
            return bytes(cramjam.lz4.compress(content))
        case _:
            return bytes(cramjam.zstd.compress(content))


def of_payload(codec: int, payload: bytes, *, count: int = 1, offset: int = 0) -> bytes:
    """Return a batch that claims `count` records and whose payload is this."""
    raw = bytearray(batch([(None, b"x", [])] * count, offset=offset)[:61])
    struct.pack_into(">h", raw, 21, codec)
    return sealed(bytes(raw) + payload)


def read(fetched: bytes) -> list[Any]:
    """Read like the consumer, from its own loop over the fetched bytes."""
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), Batches(fetched), [], 0, None, None, True, 0
    )
    return list(records)


@given(records=RECORDS, codec=st.sampled_from(sorted(CODECS.values())), offset=st.integers(0, 9**9))
@settings(max_examples=80, deadline=None)
def test_what_aiokafka_writes_is_read_as_aiokafka_reads_it(records, codec, offset) -> None:
    whole = batch(records, codec=codec, offset=offset) + batch(records, offset=offset + 99)
    theirs = MemoryRecords(whole)
    expected = []
    while theirs.has_next():
        expected += [
            (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, r.headers)
            for r in theirs.next_batch()
        ]
    found = [
        (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers))
        for r in read(whole + whole[:30])
    ]
    assert found == expected
    assert [value for _, _, _, _, value, _ in found[: len(records)]] == [r[1] for r in records]


GOOD = batch([(b"k", b"before", [])], offset=0)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_is_rejected_in_little_memory_and_its_neighbours_are_read(codec: int) -> None:
    bomb = packed(codec, bytes(4 * MAX_UNPACKED_BYTES))
    tracemalloc.start()
    found = read(
        GOOD + of_payload(codec, bomb, count=3, offset=1) + batch([(None, b"z", [])], offset=4)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [record.offset for record in found] == [0, 1, 2, 3, 4]
    assert (found[0].value, found[-1].value) == (b"before", b"z")
    reported = (
        f"unreadable: {len(bomb)} bytes decompress to more than {MAX_UNPACKED_BYTES}".encode()
    )
    assert {record.value for record in found[1:4]} == {reported}
    # The buffer and copies of the fetched bytes; never the decompressed size of the bomb.
    assert peak < 2 * MAX_UNPACKED_BYTES + 8 * len(bomb)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_what_unpacks_to_the_limit_is_read(codec: int) -> None:
    assert len(unpack(codec, packed(codec, bytes(MAX_UNPACKED_BYTES)))) == MAX_UNPACKED_BYTES
    with pytest.raises(Unreadable) as caught:
        unpack(codec, packed(codec, bytes(MAX_UNPACKED_BYTES + 1)))
    assert caught.value.reason == "oversized"


def test_blocks_of_snappy_count_together() -> None:
    block = packed(2, bytes(MAX_UNPACKED_BYTES // 2 + 1))
    framed = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
    one = struct.pack(">i", len(block)) + block
    assert len(unpack(2, framed + one)) == MAX_UNPACKED_BYTES // 2 + 1
    with pytest.raises(Unreadable, match="decompress to more than"):
        unpack(2, framed + one + one)
    with pytest.raises(Unreadable, match="truncated"):
        unpack(2, framed + one[:-1])


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 7])
@given(data=st.binary(max_size=60), cut=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_damaged_data_is_rejected_at_its_offsets(codec: int, data: bytes, cut: int) -> None:
    content = packed(codec, b"whole" * 100)[:cut] + data if codec < 5 else data
    found = read(
        GOOD + of_payload(codec, content, count=2, offset=1) + batch([(None, b"z", [])], offset=3)
    )
    assert [record.offset for record in found] == [0, 1, 2, 3]
    assert all(record.value.startswith(b"unreadable: ") for record in found[1:3])


def bad_header(name: bytes, *, codec: int = 0) -> bytes:
    """Return a batch of three records; the second has a header of this name among others."""
    records: list[Told] = [
        (b"k0", b"v0", [("a", b"1")]),
        (b"k1", b"v1", [("good", b"1"), ("n" * len(name), b"2"), ("also", b"3")]),
        (b"k2", b"v2", []),
    ]
    raw = batch(records)
    assert raw.count(b"n" * len(name)) == 1
    plain = raw.replace(b"n" * len(name), name)
    if not codec:
        return sealed(plain)
    whole = bytearray(plain[:61])
    struct.pack_into(">h", whole, 21, codec)
    return sealed(bytes(whole) + packed(codec, plain[61:]))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("name", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\x80\x81\x82"])
def test_a_header_whose_name_is_no_text_is_left_out_and_nothing_else(
    codec: int, name: bytes
) -> None:
    found = read(bad_header(name, codec=codec))
    assert [(r.offset, r.key, r.value) for r in found] == [
        (0, b"k0", b"v0"), (1, b"k1", b"v1"), (2, b"k2", b"v2"),
    ]  # fmt: skip
    assert [name for name, _ in found[1].headers] == ["good", "also"]
    assert list(found[0].headers) == [("a", b"1")]
    assert [record.timestamp for record in found] == [1000, 1001, 1002]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_changed_in_a_batch_each_offset_is_delivered_once(data: st.DataObject) -> None:
    records: list[Told] = [
        (b"key", b"value %d" % number, [("name", b"text")]) for number in range(4)
    ]
    raw = bytearray(batch(records, offset=10)[61:])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    whole = sealed(batch(records, offset=10)[:61] + bytes(raw))
    found = read(whole + batch([(None, b"after", [])], offset=14))
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == 14
    assert found[-1].value == b"after"
    assert all(10 <= offset < 14 for offset in offsets[:-1])


def test_a_record_that_claims_a_billion_headers_is_rejected() -> None:
    body = bytearray()
    for number in (0, 0, 0, -1, -1, 1 << 30):
        encode_varint(number, body.append)
    length = bytearray()
    encode_varint(len(body), length.append)
    [record] = read(of_payload(0, bytes(length + body)))
    assert record.value.startswith(b"unreadable: a record is damaged: ")


def damaged(raw: bytes, *, at: int = 70) -> bytes:
    """Return a batch with one changed byte, so that its checksum is wrong."""
    whole = bytearray(raw)
    whole[at] ^= 0xFF
    return bytes(whole)


@pytest.mark.parametrize("at", [21, 22, 23, 26, 40, 57, 60, 70])
def test_a_batch_whose_checksum_stays_wrong_is_passed_over_at_the_second_reading(at: int) -> None:
    bad = damaged(batch([(None, b"lost %d" % at, [])] * 3, offset=1), at=at)
    fetched = GOOD + bad + batch([(None, b"after", [])], offset=4)
    # The first time it may have been damaged in transit, so it is fetched again.
    with pytest.raises(CorruptRecordException):
        read(fetched)
    counted = counter("checksum")
    found = read(fetched)
    assert [record.offset for record in found] == [0, 1, 4]
    assert found[1].value.startswith(b"unreadable: a batch of ")
    assert b"from offset 1 to 3 has a wrong checksum" in found[1].value
    assert (found[0].value, found[2].value) == (b"before", b"after")
    assert counter("checksum") == counted + 1


def test_a_batch_that_was_damaged_on_the_way_is_read_when_it_comes_whole() -> None:
    whole = batch([(None, b"whole", [])], offset=7)
    for at in (62, 63, 64):
        with pytest.raises(CorruptRecordException):
            read(damaged(whole, at=at))
    assert [record.value for record in read(whole)] == [b"whole"]


@pytest.mark.parametrize(("claimed", "next_offset"), [(2, 10), (-5, 8), (2**31 - 1, 8)])
def test_the_last_batch_reports_how_far_to_pass_over_where_that_is_possible(
    claimed: int, next_offset: int
) -> None:
    raw = bytearray(batch([(None, b"last", [])], offset=7))
    struct.pack_into(">i", raw, 23, claimed)
    for _ in range(2):
        records = fetcher.PartitionRecords(
            TopicPartition("t", 0), Batches(bytes(raw)), [], 7, None, None, True, 0
        )
        with contextlib.suppress(CorruptRecordException):
            assert [record.offset for record in records] == [7]
    assert records.next_fetch_offset == next_offset


def counter(reason: str) -> float:
    value = REGISTRY.get_sample_value("flatline_kafka_unreadable_total", {"reason": reason})
    return value or 0.0


def test_aiokafkas_fetcher_reads_through_here() -> None:
    """If a release took batches from elsewhere, bombs would be decompressed completely again."""
    assert fetcher.MemoryRecords is Batches
    assert reading.FETCH_BYTES < MAX_UNPACKED_BYTES
    assert {"MemoryRecords"} <= set(fetcher.Fetcher._proc_fetch_request.__code__.co_names)


def test_a_batch_without_a_head_or_of_an_old_format_is_reported() -> None:
    with pytest.raises(Exception, match="has no complete header"):
        Batch(bytes(20))
    old = bytearray(GOOD)
    old[16] = 1
    with pytest.raises(Exception, match="not of message format 2"):
        Batches(bytes(old)).next_batch()


def test_threads_do_not_share_their_buffers() -> None:
    contents = [bytes([number]) * 1_000_000 for number in range(4)]

    async def unpacked() -> list[bytes]:
        return await asyncio.gather(
            *(asyncio.to_thread(unpack, 4, packed(4, content)) for content in contents)
        )

    assert asyncio.run(unpacked()) == contents

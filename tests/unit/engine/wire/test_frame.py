import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workloads import fleet_frame
from flatline.engine.errors import RecordRejected
from flatline.engine.wire import metrics
from flatline.engine.wire.envelope import MAX_RECORD_BYTES
from flatline.engine.wire.frame import MAX_FRAME_ROWS, Frame, VmRows, decode_frame, encode_frame
from tests.unit.engine.wire import samples

GOOD = encode_frame(samples.frame(7))


@pytest.mark.parametrize("size", [0, 1, 7, 200, MAX_FRAME_ROWS])
@pytest.mark.parametrize("share", [0.0, 0.2], ids=["whole", "missing"])
def test_frame_comes_back_as_it_was(size, share):
    sent = samples.frame(size, missing_share=share)
    got = decode_frame(encode_frame(sent))
    assert got.rows == sent.rows
    assert (got.header, got.events, got.inventory) == (sent.header, sent.events, sent.inventory)
    assert (got.node, got.pools) == (sent.node, sent.pools)


def test_same_frame_gives_the_same_bytes():
    assert encode_frame(samples.frame(50)) == encode_frame(samples.frame(50))


def test_missing_value_is_never_decoded_as_a_measured_zero():
    sent = samples.frame(100, missing_share=0.3)
    got = decode_frame(encode_frame(sent))
    assert got.rows.missing is not None
    assert np.array_equal(got.rows.missing, sent.rows.missing)


def test_full_metric_set_of_200_vms_takes_at_most_145_bytes_a_sample():
    assert len(encode_frame(fleet_frame(200))) / 200 <= 145


def test_frame_of_too_many_rows_is_refused_by_the_writer():
    with pytest.raises(ValueError, match="split it first"):
        encode_frame(Frame(header=samples.header(), rows=samples.rows(MAX_FRAME_ROWS + 1)))


def test_rows_can_be_split_by_range():
    rows = samples.rows(10, missing_share=0.2)
    part = rows.select(slice(4, 9))
    assert len(part) == 5
    assert part.vm(0) == rows.vm(4)
    assert part == decode_frame(encode_frame(Frame(header=samples.header(), rows=part))).rows


def rejected(value):
    with pytest.raises(RecordRejected) as caught:
        decode_frame(value)
    return caught.value.reason


def test_oversized_record_is_rejected():
    assert rejected(b"\x00" * (MAX_RECORD_BYTES + 1)) == "oversized"


def test_truncated_record_is_rejected():
    assert rejected(GOOD[: len(GOOD) // 2]) == "truncated"


def test_record_of_a_later_version_is_distinguished_from_a_wrong_one():
    fields = msgspec.msgpack.decode(GOOD)
    later = msgspec.msgpack.encode({**fields, "v": 2, "header": "something new"})
    assert rejected(later) == "unknown_version"
    assert rejected(msgspec.msgpack.encode({**fields, "header": "not a header"})) == "malformed"


def test_field_of_a_later_release_is_ignored():
    fields = msgspec.msgpack.decode(GOOD)
    assert decode_frame(msgspec.msgpack.encode({**fields, "later": 1})) is not None


@pytest.mark.parametrize(
    "changes",
    [{"sequence": -1}, {"mono_ns": -5}, {"interval_ms": 0}, {"cell": ""}, {"interval_ms": 10**9}],
    ids=["sequence", "mono", "no_interval", "no_cell", "long_interval"],
)
def test_header_that_cannot_be_is_rejected(changes):
    bad = Frame(header=samples.header(**changes), rows=VmRows.empty())
    assert rejected(encode_frame(bad)) == "bad_value"


def test_uuid_bytes_that_do_not_fit_are_rejected():
    fields = msgspec.msgpack.decode(GOOD)
    assert rejected(msgspec.msgpack.encode({**fields, "uuids": b"123"})) == "malformed"


def decodes_or_rejects(value):
    with contextlib.suppress(RecordRejected):
        frame = decode_frame(value)
        assert frame.rows.integers.shape == (len(metrics.INTEGERS), len(frame.rows))


@settings(max_examples=400)
@given(st.binary(max_size=400))
def test_no_bytes_crash_the_decoder(value):
    decodes_or_rejects(value)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(GOOD)),
)
def test_no_damage_to_a_good_frame_crashes_the_decoder(edits, length):
    value = bytearray(GOOD)
    for place, byte in edits:
        value[place] = byte
    decodes_or_rejects(bytes(value[:length]))

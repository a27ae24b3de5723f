import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.metrics import Columns, Metric
from flatline.engine.wire.table import PackedColumn, PackedTable, pack, unpack

THREE = Columns((Metric("a"), Metric("b", 512), Metric("c", 10_000_000)))


def words(*rows):
    return np.array(rows, np.uint64)


@given(arrays.arrays(np.uint64, st.tuples(st.just(3), st.integers(1, 9))))
def test_any_values_come_back_exactly(values):
    unpacked, missing = unpack(THREE, pack(THREE, values, None), values.shape[1])
    assert np.array_equal(unpacked, values)
    assert missing is None


@given(
    arrays.arrays(np.uint64, (3, 11), elements=st.integers(0, 2**20)),
    arrays.arrays(np.bool_, (3, 11)),
)
def test_missing_comes_back_exactly(values, missing):
    values[missing] = 0
    unpacked, found = unpack(THREE, pack(THREE, values, missing), 11)
    assert np.array_equal(unpacked, values)
    assert np.array_equal(np.zeros_like(missing) if found is None else found, missing)


@pytest.mark.parametrize("bits", range(1, 65))
def test_each_width_holds_its_largest_value(bits):
    values = words([2**bits - 1, 0], [0, 2**bits - 1], [1, 2**bits - 1])
    unpacked, _ = unpack(THREE, pack(THREE, values, None), 2)
    assert np.array_equal(unpacked, values)


def test_column_travels_in_the_narrowest_width():
    values = words(range(200), [0] * 200, [10_000_000 * k for k in range(200)])
    table = pack(THREE, values, None)
    # One byte a value for the first, a word for the constant, one byte for the ticks.
    assert len(table.data) == 200 + 8 + 200


def test_constant_column_costs_one_word():
    table = pack(THREE, np.full((3, 1000), 5, np.uint64), None)
    assert len(table.data) == 3 * 8


def test_column_the_reader_does_not_know_is_passed_over():
    writer = Columns((*THREE.metrics, Metric("later")))
    values = words([1, 2], [512, 1024], [7, 2**40], [9, 300])
    unpacked, missing = unpack(THREE, pack(writer, values, None), 2)
    assert np.array_equal(unpacked, values[:3])
    assert missing is None


def test_column_the_writer_did_not_send_is_missing():
    writer = Columns(THREE.metrics[:2])
    unpacked, missing = unpack(THREE, pack(writer, words([1, 2], [3, 4]), None), 2)
    assert missing is not None
    assert missing.tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert unpacked[2].tolist() == [0, 0]


def test_order_of_columns_is_the_readers():
    writer = Columns(tuple(reversed(THREE.metrics)))
    unpacked, _ = unpack(THREE, pack(writer, words([1, 2], [3, 4], [5, 6]), None), 2)
    assert unpacked.tolist() == [[5, 6], [3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: PackedTable(t.layout, t.data[:-1], t.missing), "truncated"),
        (lambda t: PackedTable(t.layout, t.data + b"\0", t.missing), "malformed"),
        (lambda t: PackedTable(t.layout[:-1], t.data, t.missing), "malformed"),
        (lambda t: PackedTable(t.layout, t.data, b"\0"), "malformed"),
        (lambda t: PackedTable(b"\xff", t.data, t.missing), "malformed"),
    ],
    ids=["short", "long", "layout_cut", "stray_bits", "no_layout"],
)
def test_damaged_table_is_rejected_with_its_reason(change, reason):
    table = pack(THREE, words([1, 2], [3, 4], [5, 6]), None)
    with pytest.raises(RecordRejected) as caught:
        unpack(THREE, change(table), 2)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("width", "size"), [(8, 16), (0, 8)], ids=["varying", "constant"])
def test_value_beyond_64_bits_after_its_quantum_is_rejected(width, size):
    column = PackedColumn(name="c", width=width, quantum=10_000_000, has_missing=False)
    forged = PackedTable(msgspec.msgpack.encode([column]), b"\xff" * size, b"")
    with pytest.raises(RecordRejected) as caught:
        unpack(THREE, forged, 2)
    assert caught.value.reason == "bad_value"

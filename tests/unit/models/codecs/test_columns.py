import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatline.engine.wire.metrics import Columns, Metric
from flatline.engine.wire.table import pack, unpack
from flatline.models.codecs.columns import widen

COLUMNS = Columns(tuple(Metric(f"c{k}", quantum) for k, quantum in enumerate([1, 512, 1, 1000, 4])))

WIDENS = pytest.mark.parametrize("widen", [widen, widen.py_func], ids=["compiled", "python"])


@WIDENS
@settings(deadline=None, max_examples=60)
@given(
    bits=st.lists(st.integers(0, 53), min_size=5, max_size=5),
    size=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    divisible=st.booleans(),
)
def test_values_are_those_that_were_packed(widen, bits, size, seed, divisible):
    rng = np.random.default_rng(seed)
    values = np.array([rng.integers(0, 2**width, size) for width in bits]).astype(np.uint64)
    if divisible:
        values *= np.array([[metric.quantum] for metric in COLUMNS.metrics], np.uint64)
    words, missing = unpack(COLUMNS, pack(COLUMNS, values, None), size, widen)
    assert np.array_equal(words, values)
    assert missing is None


@WIDENS
def test_unknown_columns_are_passed_over_and_absent_ones_are_zero(widen):
    writer = Columns((*COLUMNS.metrics[1:], Metric("later")))
    values = np.arange(15, dtype=np.uint64).reshape(5, 3) << np.uint64(18)
    words, missing = unpack(COLUMNS, pack(writer, values, None), 3, widen)
    assert np.array_equal(words[1:], values[:4])
    assert words[0].tolist() == [0, 0, 0]
    assert missing is not None
    assert missing[:, 0].tolist() == [True, False, False, False, False]

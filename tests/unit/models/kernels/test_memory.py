import numpy as np
import pytest

from models.kernels._jit import kernel
from models.kernels._memory import SCRATCH, fetch, row_of, scratch


def doubled_rows(array):
    kept = scratch()
    for i in range(array.shape[0]):
        row = row_of(array, i)
        fetch(array, i + 2, 0)
        kept[SCRATCH - 1] = 0.0
        for k in range(row.shape[0]):
            kept[SCRATCH - 1] += row[k]
            row[k] = 2 * row[k]
        row[0] = kept[SCRATCH - 1]


@pytest.mark.parametrize("run", [doubled_rows, kernel(doubled_rows)], ids=["python", "compiled"])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_row_is_the_arrays_own_memory(run, offset):
    whole = np.arange(28, dtype=np.float32).reshape(4, 7)
    array = whole[:, offset:]
    expected = whole.copy()
    expected[:, offset:] *= 2
    expected[:, offset] = whole[:, offset:].sum(axis=1)
    run(array)
    assert np.array_equal(whole, expected)

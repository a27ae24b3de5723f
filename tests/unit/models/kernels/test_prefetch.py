import numpy as np
import pytest

from flatline.models.kernels._jit import kernel
from flatline.models.kernels._prefetch import fetch


def doubled_rows(array):
    for i in range(array.shape[0]):
        fetch(array, i + 2, 0)
        array[i] *= 2


@pytest.mark.parametrize("run", [doubled_rows, kernel(doubled_rows)], ids=["python", "compiled"])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_prefetch_changes_nothing_and_may_lie_beyond_the_end(run, offset):
    whole = np.arange(28, dtype=np.float32).reshape(4, 7)
    expected = whole.copy()
    expected[:, offset:] *= 2
    run(whole[:, offset:])
    assert np.array_equal(whole, expected)

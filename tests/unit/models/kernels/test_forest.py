"""The samples selected for the forest: the kernel and its twin agree."""

import numpy as np
import pytest

from flatline.engine.detection.forest import FEATURES
from flatline.engine.wire.score import CLASS_EDGES
from flatline.models.kernels import baseline, forest
from flatline.models.kernels.blocks import BLOCK_ROWS
from tests.reference import forest_twin

SIZE, BLOCKS = 150, 3


def node(rng):
    """Return arguments of `take_gated`: some rows are surprising, and some have unknown values."""
    indices = BLOCKS * BLOCK_ROWS
    counted = rng.normal(0.0, 9.0, (baseline.OUT_ROWS, indices)).astype(np.float32)
    counted[baseline.OUT["gate"]] = rng.integers(0, 4, indices) * (rng.random(indices) < 0.4)
    counted[:, rng.random(indices) < 0.1] *= np.float32(np.nan)
    state = rng.random((BLOCKS, baseline.FIELD_COUNT, BLOCK_ROWS)).astype(np.float32)
    state[:, baseline.MEAN, ::8] = 0.0  # some are idle
    cpu = np.where(rng.random(indices) < 0.2, np.nan, rng.uniform(-0.1, 5.0, indices))
    nats = rng.uniform(0.0, 12.0, (2, indices)).astype(np.float32)
    vcpus = rng.integers(-1, 5, indices)
    return counted, state, cpu, rng.uniform(0.0, 1.2, indices), vcpus, *nats, CLASS_EDGES, SIZE


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("function", [forest.take_gated, forest.take_gated.py_func])
def test_what_is_taken_is_what_the_twin_takes_to_the_bit(seed, function) -> None:
    given = node(np.random.default_rng(seed))
    gated, models = np.empty((2, SIZE), np.int64)
    samples = np.empty((SIZE, forest.FEATURES))
    count = function(*given, gated, samples, models)
    theirs = forest_twin.take_gated(*given)
    assert count > 10
    assert set(models[:count]) == {0, 1, 2}
    assert np.isnan(samples[:count]).any()
    for ours, expected in zip((gated, samples, models), theirs, strict=True):
        np.testing.assert_array_equal(ours[:count], expected)


def test_columns_stand_in_the_order_of_their_names() -> None:
    names = [name.lower() for name in dir(forest) if name.lower() in FEATURES]
    assert tuple(sorted(names, key=lambda name: getattr(forest, name.upper()))) == FEATURES
    assert len(FEATURES) == forest.FEATURES

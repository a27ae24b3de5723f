import numpy as np
import pytest
from river.anomaly import HalfSpaceTrees

from flatline.models.half_space_trees import MAX_WINDOW, HalfSpaceForest
from flatline.models.kernels.forest import score_then_learn

FEATURES = ["cpu", "net", "rd", "wr"]


def stream(count, *, seed, missing=0.0, special=None):
    rng = np.random.default_rng(seed)
    samples = np.clip(rng.normal(0.5, 0.2, (count, len(FEATURES))), -0.2, 1.2)
    if special is not None:
        chosen = rng.random(samples.shape) < 0.05
        samples[chosen] = rng.choice(special, int(chosen.sum()))
    samples[1:][rng.random(samples[1:].shape) < missing] = np.nan
    return samples


def as_dict(sample):
    return {
        name: value for name, value in zip(FEATURES, sample.tolist(), strict=True) if value == value
    }


@pytest.mark.parametrize(
    ("trees", "height", "window", "missing"),
    [(10, 8, 250, 0.0), (10, 8, 250, 0.05), (25, 6, 100, 0.0), (5, 10, 300, 0.02)],
    ids=["default", "missing", "many_trees", "deep"],
)
def test_scores_equal_rivers_to_the_last_bit(trees, height, window, missing):
    river = HalfSpaceTrees(n_trees=trees, height=height, window_size=window, seed=7)
    forest = HalfSpaceForest(
        features=FEATURES, model_count=1, tree_count=trees, height=height, window=window, seed=7
    )
    thresholds = forest._thresholds[forest._thresholds != 0]
    model = np.zeros(1, np.int64)
    nonzero = 0
    for sample in stream(3 * window, seed=1, missing=missing, special=thresholds):
        expected = river.score_one(as_dict(sample))
        river.learn_one(as_dict(sample))
        score = forest.score_then_learn(sample[None], model)[0]
        assert score == expected
        nonzero += score != 0
    assert nonzero > window


def test_forests_of_the_same_settings_share_shapes_that_nobody_can_change():
    first, second = (HalfSpaceForest(features=FEATURES, model_count=1) for _ in range(2))
    other = HalfSpaceForest(features=FEATURES, model_count=1, seed=7)
    assert first._shapes is second._shapes
    assert not np.array_equal(first._thresholds, other._thresholds)
    with pytest.raises(ValueError, match="read-only"):
        first._thresholds[0, 0] = 0.5


def test_compiled_walk_equals_python_walk():
    samples = stream(120, seed=3, missing=0.1)
    models = np.arange(120) % 3
    scores = {}
    for name, walk in (("compiled", score_then_learn), ("python", score_then_learn.py_func)):
        forest = HalfSpaceForest(features=FEATURES, model_count=3, height=4, window=15)
        scores[name] = np.empty(120)
        walk(
            samples,
            models,
            forest._shapes,
            forest._thresholds,
            forest._learned,
            forest._reference,
            forest._counts,
            forest._first_window,
            4,
            15,
            scores[name],
        )
    assert np.array_equal(scores["compiled"], scores["python"])
    assert (scores["compiled"] > 0).any()


def test_state_exported_in_mid_stream_goes_on_bit_for_bit():
    samples = stream(700, seed=4)
    models = np.arange(700) % 2
    whole = HalfSpaceForest(features=FEATURES, model_count=2, window=100)
    expected = whole.score_then_learn(samples, models)
    first = HalfSpaceForest(features=FEATURES, model_count=2, window=100)
    first.score_then_learn(samples[:333], models[:333])
    arrays = {name: np.array(array) for name, array in first.to_arrays().items()}
    second = HalfSpaceForest.from_arrays(arrays)
    assert np.array_equal(second.score_then_learn(samples[333:], models[333:]), expected[333:])


def test_window_beyond_16_bits_is_refused():
    with pytest.raises(ValueError, match="masses have 16 bits"):
        HalfSpaceForest(features=FEATURES, model_count=1, window=MAX_WINDOW + 1)

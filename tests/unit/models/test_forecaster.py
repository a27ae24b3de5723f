import numpy as np
import pytest

from models.forecaster import Forecaster

START = 6_000_000


def fed(count, steps, *, seed=1):
    rng = np.random.default_rng(seed)
    forecaster = Forecaster(count, step_s=300)
    level = rng.uniform(1, 50, count)
    for step in range(steps):
        forecaster.fold(np.maximum(level + rng.normal(0, 1, count), 0), START + step)
    return forecaster


def test_state_goes_on_bit_for_bit_from_its_arrays():
    forecaster = fed(4, 400)
    copy = Forecaster.from_arrays({k: v.copy() for k, v in forecaster.to_arrays().items()})
    for step in range(400, 420):
        values = np.array([1.0, np.nan, 30.0, float(step)])
        made = forecaster.fold(values, START + step)
        assert np.array_equal(made, copy.fold(values, START + step), equal_nan=True)
    assert np.array_equal(forecaster.state, copy.state, equal_nan=True)


def test_step_that_is_not_later_is_refused():
    forecaster = fed(1, 3)
    with pytest.raises(ValueError, match="not after"):
        forecaster.fold(np.zeros(1), START + 2)


def test_left_out_steps_are_unknown_steps():
    one, other = fed(2, 300), fed(2, 300)
    for step in range(300, 310):
        other.fold(np.full(2, np.nan), START + step)
    values = np.array([3.0, 4.0])
    made = one.fold(values, START + 310)
    assert np.array_equal(made, other.fold(values, START + 310), equal_nan=True)


def test_after_two_days_without_a_step_a_series_begins_anew():
    forecaster = fed(1, 300)
    forecaster.fold(np.array([7.0]), START + 300 + 600)
    fresh = Forecaster(1, step_s=300)
    fresh.fold(np.array([7.0]), START + 300 + 600)
    assert np.array_equal(forecaster.state, fresh.state, equal_nan=True)


def test_rearranged_series_keep_what_they_learned():
    forecaster = fed(3, 300)
    moved = forecaster.rearranged(np.array([2, -1, 0]))
    assert np.array_equal(moved.state[0], forecaster.state[2], equal_nan=True)
    assert np.array_equal(moved.state[2], forecaster.state[0], equal_nan=True)
    assert moved.is_new().tolist() == [False, True, False]


def test_new_series_starts_with_the_widths_of_its_class():
    rng = np.random.default_rng(3)
    grown_up = Forecaster(5, step_s=300)
    # Skewed errors: the upper side of an interval is far wider than the lower one.
    for step in range(1000):
        grown_up.fold(10 + rng.exponential(1, 5) ** 2, START + step)
    profile = grown_up.profile(np.arange(5))
    assert profile is not None
    misses = {}
    for name in ("taught", "plain"):
        newborn = Forecaster(200, step_s=300)
        if name == "taught":
            newborn.start(np.arange(200), profile)
        rng = np.random.default_rng(4)
        above = count = 0
        edge = None
        # The first hour: later each has learned its own widths.
        for step in range(12):
            values = 10 + rng.exponential(1, 200) ** 2
            if edge is not None and step > 3:
                above += int((values > edge).sum())
                count += 200
            edge = newborn.fold(values, START + step)[:, 0, 2]
        misses[name] = above / count
    assert abs(misses["taught"] - 0.05) < abs(misses["plain"] - 0.05)


def test_too_few_or_too_young_series_teach_nobody():
    assert fed(5, 300).profile(np.arange(5)) is None
    assert fed(2, 900).profile(np.arange(2)) is None

import numpy as np
import pytest

from flatline.models.forecaster import Forecaster
from flatline.models.kernels.forecast_row import EW_LONG

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


def width_90(made):
    return float(np.mean(made[:, 0, 2] - made[:, 0, 1]))


def test_new_series_begins_with_errors_as_large_as_its_class_has_at_its_level():
    rng = np.random.default_rng(3)
    levels = np.array([5.0, 10.0, 20.0, 40.0])
    grown_up = Forecaster(4, step_s=300)
    for step in range(1000):
        made = grown_up.fold(levels * rng.uniform(0.8, 1.2, 4), START + step)
    profile = grown_up.profile(np.arange(4))
    assert profile is not None
    taught, plain = Forecaster(1, step_s=300), Forecaster(1, step_s=300)
    taught.start(np.arange(1), profile)
    first = taught.fold(np.array([30.0]), START)
    usual = width_90(made) / levels.mean() * 30.0
    assert 0.5 * usual < width_90(first) < 2.0 * usual
    # Without teaching the error may be as large as the level.
    assert width_90(plain.fold(np.array([30.0]), START)) > 4.0 * usual


def test_a_taught_series_that_rests_at_first_learns_its_errors_like_an_untaught_one():
    rng = np.random.default_rng(3)
    grown_up = Forecaster(4, step_s=300)
    for step in range(1000):
        grown_up.fold(rng.uniform(8.0, 12.0, 4), START + step)
    profile = grown_up.profile(np.arange(4))
    assert profile is not None
    taught, plain = Forecaster(1, step_s=300), Forecaster(1, step_s=300)
    taught.start(np.arange(1), profile)
    for step, value in enumerate((0.0, 30.0, 20.0, 35.0)):
        widths = [width_90(one.fold(np.array([value]), START + step)) for one in (taught, plain)]
        # Neither forecasts the first value.
        assert np.isnan(widths).all() if step == 0 else widths[0] >= 0.9 * widths[1]


def test_a_class_that_rests_teaches_no_width_beyond_the_level_itself():
    rng = np.random.default_rng(3)
    grown_up = Forecaster(4, step_s=300)
    for step in range(1000):
        grown_up.fold(rng.exponential(5.0, 4), START + step)
    # Silent for so long that the mean over hours has forgotten the past.
    grown_up.state[:, EW_LONG] = 0.0
    profile = grown_up.profile(np.arange(4))
    assert profile is not None
    taught = Forecaster(1, step_s=300)
    taught.start(np.arange(1), profile)
    assert width_90(taught.fold(np.array([2.0]), START)) < 20.0


def test_too_few_or_too_young_series_teach_nobody():
    assert fed(5, 300).profile(np.arange(5)) is None
    assert fed(2, 900).profile(np.arange(2)) is None

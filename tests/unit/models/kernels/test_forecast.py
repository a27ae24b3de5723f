import numpy as np
import pytest
from river import stats, time_series

from flatline.models.kernels import forecast
from flatline.models.kernels.forecast_row import (
    AGE,
    BANDS,
    EW_FAST,
    HOLT_LEVEL,
    HOLT_TREND,
    HORIZON_COUNT,
    constants,
    layout,
    new_series,
)
from tests.reference.forecast_twin import ForecastTwin

START = 5_000_000 * 12
FOLDS = pytest.mark.parametrize(
    "fold", [forecast.fold_step, forecast.fold_step.py_func], ids=["compiled", "python"]
)


class Series:
    """Series that begin at `START`, folded a step at a time."""

    def __init__(self, count=1, *, step_s=300, fold=forecast.fold_step):
        self.plan = layout(step_s)
        self.weights = constants(step_s)
        self.per_slot = 300 // step_s
        self.state = new_series(count, self.plan)
        self.out = np.empty((count, HORIZON_COUNT * len(BANDS)), np.float32)
        self.number = START * self.per_slot
        self.fold = fold

    def step(self, values):
        self.number += 1
        closes = int(self.number % self.per_slot == 0)
        self.fold(
            self.state,
            np.atleast_1d(np.asarray(values, np.float64)),
            self.number,
            closes,
            self.plan.start,
            self.plan.steps,
            self.weights,
            self.out,
        )
        return self.out.reshape(-1, HORIZON_COUNT, len(BANDS)).copy()


def daily(steps, *, seed, noise=0.5, step_s=300):
    rng = np.random.default_rng(seed)
    hours = np.arange(steps) * step_s / 3600
    shape = 20 + 8 * np.sin(hours / 24 * 2 * np.pi)
    return np.maximum(shape + rng.normal(0, noise, steps), 0)


@pytest.mark.parametrize("step_s", [300, 60])
@FOLDS
def test_forecast_matches_its_naive_twin(fold, step_s):
    compiled = fold is forecast.fold_step
    steps = 700 if compiled else 60
    rng = np.random.default_rng(7)
    values = daily(steps, seed=3, noise=2.0, step_s=step_s)
    values[rng.random(steps) < 0.05] *= 4
    values[rng.random(steps) < 0.03] = np.nan
    series, twin = Series(step_s=step_s, fold=fold), ForecastTwin(step_s=step_s)
    for value in values:
        made = series.step(value)[0]
        expected = twin.learn_one(None if np.isnan(value) else float(value), series.number)
        if expected is None:
            assert np.isnan(made).all()
            continue
        for horizon, bands in enumerate(expected):
            if bands is None:
                assert np.isnan(made[horizon]).all()
            else:
                np.testing.assert_allclose(made[horizon], bands, rtol=2e-3, atol=2e-3)


def test_river_candidates_are_rivers_own():
    series, mean = Series(), stats.EWMean(fading_factor=0.5)
    holt = time_series.HoltWinters(alpha=0.3, beta=0.1)
    values = daily(300, seed=1)
    # River's Holt takes its first level from the second value, ours from the first.
    for value in values[:1]:
        series.step(value)
        mean.update(float(value))
        holt.learn_one(float(value))
    for value in values[1:]:
        series.step(value)
        mean.update(float(value))
        holt.learn_one(float(value))
    row = series.state[0]
    assert row[EW_FAST] == pytest.approx(mean.get(), rel=1e-5)
    # The initial values have faded after 300 steps.
    assert row[HOLT_LEVEL] + row[HOLT_TREND] == pytest.approx(holt.forecast(1)[0], rel=1e-3)


def test_constant_series_is_forecast_exactly_with_no_width():
    series = Series()
    for _ in range(2500):
        made = series.step(19.63)[0]
    assert np.array_equal(made[:, 0], np.full(3, np.float32(19.63)))
    assert (made[:, 2] - made[:, 1] < 1e-4).all()
    assert (made[:, 1] <= np.float32(19.63)).all()
    assert (made[:, 2] >= np.float32(19.63)).all()


@pytest.mark.parametrize(("horizon", "ahead"), [(0, 1), (1, 6)])
def test_intervals_keep_their_promise_on_noise_level_shift_and_spikes(horizon, ahead):
    rng = np.random.default_rng(5)
    values = daily(6000, seed=2, noise=1.5)
    values[3000:] *= 3
    values[rng.random(6000) < 0.02] += 60
    series = Series()
    made = np.array([series.step(value)[0, horizon] for value in values])
    made, outcome = made[2016:-ahead], values[2016 + ahead :].astype(np.float32)
    wide = (made[:, 1] <= outcome) & (outcome <= made[:, 2])
    narrow = (made[:, 3] <= outcome) & (outcome <= made[:, 4])
    assert 0.88 <= wide.mean() <= 0.92
    assert 0.47 <= narrow.mean() <= 0.53


def test_noisy_daily_series_is_forecast_better_than_by_its_last_value():
    values = daily(5000, seed=4, noise=2.0)
    series = Series()
    made = np.array([series.step(value)[0, :, 0] for value in values])
    for horizon, ahead in ((0, 1), (1, 6)):
        miss = np.abs(made[2016:-ahead, horizon] - values[2016 + ahead :]).mean()
        persisted = np.abs(values[2016:-ahead] - values[2016 + ahead :]).mean()
        assert miss < 0.8 * persisted


def test_tomorrow_is_forecast_by_its_habit():
    values = daily(288 * 12, seed=6, noise=0.2)
    series = Series()
    made = np.array([series.step(value)[0, 2] for value in values])
    miss = np.abs(made[2016:-288, 0] - values[2016 + 288 :]).mean()
    assert miss < 0.5


def test_unknown_steps_are_not_forecast_and_teach_nothing():
    series = Series()
    for value in daily(400, seed=8):
        series.step(value)
    before = series.state.copy()
    made = series.step(np.nan)
    assert np.isnan(made).all()
    head = before[0, :AGE], series.state[0, :AGE]
    assert np.array_equal(*head)
    assert np.isfinite(series.step(20.0)[0]).all()


def test_nothing_is_forecast_below_zero():
    rng = np.random.default_rng(9)
    series = Series(20)
    for _ in range(600):
        made = series.step(np.where(rng.random(20) < 0.8, 0.0, rng.exponential(5, 20)))
        assert (made[~np.isnan(made)] >= 0).all()
    assert (made[:, :, 1] <= made[:, :, 0]).all()
    assert (made[:, :, 0] <= made[:, :, 2]).all()


def test_series_do_not_touch_each_other():
    values = np.stack([daily(400, seed=s) for s in (1, 2, 3)], axis=1)
    values[100, 1] = np.nan
    together, alone = Series(3), Series(1)
    for row in values:
        made = together.step(row)
        single = alone.step(row[1])
    assert np.array_equal(made[1], single[0], equal_nan=True)
    assert np.array_equal(together.state[1], alone.state[0], equal_nan=True)


def test_a_forecast_depends_on_nothing_that_comes_later():
    values = daily(800, seed=11)
    changed = values.copy()
    changed[500:] += 100
    one, other = Series(), Series()
    for number, (a, b) in enumerate(zip(values, changed, strict=True)):
        same = np.array_equal(one.step(a), other.step(b), equal_nan=True)
        assert same == (number < 500)
        if number > 500:
            break


def test_steps_that_do_not_divide_a_window_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        layout(7)


def test_a_day_of_a_fault_does_not_decide_for_days_who_is_heard():
    rng = np.random.default_rng(12)
    values = np.abs(2.0 + rng.normal(0, 0.4, 5000))
    values[2100:2388] = 98.0
    series = Series()
    made = np.array([series.step(value)[0, 1, 0] for value in values])
    later = slice(2388 + 2 * 288, 2388 + 4 * 288)
    outcome = values[later.start + 6 : later.stop + 6]
    missed = np.abs(made[later] - outcome).mean()
    persisted = np.abs(values[later] - outcome).mean()
    # Noise around a level: the level itself errs 0.71 times as much as the last value.
    assert missed <= 0.88 * persisted


SHAPES = {
    "constant": lambda rng, n: np.full(n, rng.choice([0.0, 1e-6, 12.5, 80.0, 1e9])),
    "rarely another": lambda rng, n: np.where(rng.random(n) < 0.02, rng.random(n), 80.0),
    "steps": lambda rng, n: np.repeat(rng.integers(0, 5, n // 50 + 1), 50)[:n] * 1.0,
    "spikes": lambda rng, n: rng.exponential(1, n) * (rng.random(n) < 0.1) * 1e6,
    "noise": lambda rng, n: np.abs(rng.normal(50, 5, n)),
    "drift": lambda rng, n: np.cumsum(rng.exponential(0.01, n)),
    "nearly constant": lambda rng, n: 80.0 + rng.integers(-1, 2, n) * 1e-4,
    "holes": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.integers(0, 3, n) * 1.0),
}


@pytest.mark.parametrize("shape", SHAPES)
@FOLDS
def test_quantiles_are_in_order_and_hold_the_forecast(fold, shape):
    steps = 3000 if fold is forecast.fold_step else 40
    rng = np.random.default_rng(list(SHAPES).index(shape))
    values = np.stack([SHAPES[shape](rng, steps) for _ in range(6)], axis=1)
    series = Series(6, fold=fold)
    for row in values:
        made = series.step(row)
        mean, lo90, hi90, lo50, hi50 = np.moveaxis(made[~np.isnan(made[:, :, 0])], -1, 0)
        assert (lo90 <= lo50).all()
        assert (lo50 <= mean).all()
        assert (mean <= hi50).all()
        assert (hi50 <= hi90).all()
        assert (np.isnan(made).all(axis=2) == np.isnan(made).any(axis=2)).all()


@pytest.mark.parametrize("step_s", [300, 60])
@FOLDS
def test_no_interval_claims_that_nothing_errs_before_an_outcome_has_shown_it(fold, step_s):
    values = daily(60, seed=21, step_s=step_s)
    series = Series(step_s=step_s, fold=fold)
    for number, value in enumerate(values):
        for mean, lo90, hi90, lo50, hi50 in series.step(value)[0]:
            if np.isnan(mean):
                continue
            assert lo90 < lo50 <= hi50 < hi90
            if number < 2:
                # Errors are unknown: they may be as large as the level.
                assert lo90 == 0
                assert hi90 > 2 * value


def test_of_a_series_that_was_nothing_so_far_nothing_is_said_until_six_outcomes_are_known():
    series = Series()
    shown = [not np.isnan(series.step(0.0)[0, 0, 0]) for _ in range(12)]
    assert shown.index(True) == 6
    assert all(shown[6:])


def test_a_constant_series_has_no_width_once_six_outcomes_have_shown_it():
    series = Series()
    widths = [float(np.ptp(series.step(7.0)[0, 0, 1:3])) for _ in range(12)]
    assert min(widths[:6]) > 7.0
    assert max(widths[6:]) < 1e-4

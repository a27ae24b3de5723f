import numpy as np
import pytest

from flatline.engine.forecasting.forecast_accuracy import WARM_UP_S, Judge
from flatline.models.kernels.forecast_row import BANDS, HORIZONS_S

STEP_S = 300
WARM_UP = WARM_UP_S // STEP_S
START = 1_000_000


def judged(values, forecast_of, *, names=("a",)):
    judge = Judge(("cpu_pct",), names, step_s=STEP_S)
    for number, row in enumerate(values):
        made = np.full((len(names), len(HORIZONS_S), len(BANDS)), np.nan, np.float32)
        made[...] = forecast_of(number)
        judge.take(START + number, np.asarray(row, np.float64), made)
    return {verdict.horizon_s: verdict for verdict in judge.verdicts()}


def test_last_value_scores_one_and_the_truth_scores_nothing():
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 10, (WARM_UP + 400, 1))
    last = judged(values, lambda n: values[n, 0])
    assert last[300].mae_ratio == pytest.approx(1.0, abs=1e-6)
    assert last[1800].mae_ratio == pytest.approx(1.0, abs=1e-6)
    known = judged(values, lambda n: values[min(n + 1, len(values) - 1), 0])
    assert known[300].mae_ratio == pytest.approx(0.0, abs=1e-6)
    assert known[300].coverage_90 == 1.0


def test_outcome_is_the_value_at_the_horizon_and_no_mean_on_the_way():
    values = np.arange(WARM_UP + 400, dtype=np.float64)[:, None]
    right = judged(values, lambda n: n + 6.0)
    assert right[1800].mae_ratio == pytest.approx(0.0, abs=1e-6)
    assert right[300].mae_ratio == pytest.approx(5.0, abs=1e-6)


def test_the_first_seven_days_of_each_vm_do_not_count():
    values = np.zeros((WARM_UP + 10, 2))
    values[:100, 1] = np.nan
    verdicts = judged(values, lambda n: 0.0, names=("a", "b"))
    # The forecast must be made after the warm-up, with a known outcome: 9 times for `a`.
    assert verdicts[300].forecasts == 9
    assert verdicts[300].series == 1


def test_coverage_counts_edges_as_inside_and_constant_series_apart():
    rng = np.random.default_rng(2)
    values = np.stack([np.full(WARM_UP + 500, 3.0), rng.uniform(0, 1, WARM_UP + 500)], axis=1)

    def made(number):
        bands = np.empty((2, 1, len(BANDS)), np.float32)
        bands[0] = [3.0, 3.0, 3.0, 3.0, 3.0]
        bands[1] = [0.5, 0.05, 0.95, 0.25, 0.75]
        return bands

    verdict = judged(values, made, names=("idle", "busy"))[300]
    assert verdict.coverage_90 > 0.94
    assert verdict.moving_90 == pytest.approx(0.9, abs=0.05)
    assert verdict.moving_50 == pytest.approx(0.5, abs=0.07)
    assert verdict.worst == "busy"

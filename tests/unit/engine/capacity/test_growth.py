import numpy as np
import pytest

from benchmarks.growing import KINDS, grown
from flatline.engine.capacity.growth import HORIZON_DAYS, days_to_full, first_passages

# The benchmark's own seeds begin elsewhere; a tenth of its cases.
CASES = 40


def test_a_straight_line_is_full_when_it_gets_there():
    reported = days_to_full(np.linspace(10.0, 69.0, 60), 100.0)
    assert reported is not None
    assert reported.expected == pytest.approx(31.0, abs=0.5)
    assert reported.low <= reported.expected <= reported.high
    assert reported.high - reported.low < 2


def test_what_is_full_is_full_now_and_what_never_moves_never():
    assert days_to_full(np.linspace(10, 101, 30), 100.0) == (0.0, 0.0, 0.0)
    assert days_to_full(np.full(30, 5.0), 100.0) == (np.inf, np.inf, np.inf)


def test_shrinking_use_is_not_full_within_two_years():
    rng = np.random.default_rng(1)
    reported = days_to_full(50 - 0.3 * np.arange(60) + rng.normal(0, 0.2, 60), 100.0)
    assert reported is not None
    assert reported.expected == np.inf
    assert reported.low > HORIZON_DAYS / 2


def test_less_than_a_week_is_no_answer():
    assert days_to_full(np.arange(6.0), 100.0) is None
    assert days_to_full(np.array([1.0, np.nan] * 6), 100.0) is None


def test_unknown_days_change_little_and_days_since_the_last_known_one_count():
    use = np.linspace(10.0, 69.0, 60)
    holed = use.copy()
    holed[[3, 20, 21]] = np.nan
    reported = days_to_full(holed, 100.0)
    assert reported is not None
    assert reported.expected == pytest.approx(31.0, abs=0.5)
    late = days_to_full(np.append(use, [np.nan] * 5), 100.0)
    assert late is not None
    assert late.expected == pytest.approx(26.0, abs=0.5)


def test_a_weekly_habit_is_distinguished_from_growth():
    days = np.arange(70)
    use = 20 + 0.5 * days + 6 * np.array([0, 0, 0, 0, 0, 1, 1])[days % 7]
    reported = days_to_full(use, 80.0)
    truth = next(d for d in range(1000) if 20 + 0.5 * (69 + d) + 6 * ((69 + d) % 7 > 4) >= 80)
    assert reported is not None
    assert reported.expected == pytest.approx(truth, abs=2)


def test_same_history_gives_the_same_answer():
    case = grown("noisy", seed=5)
    assert days_to_full(case.used, 1.0) == days_to_full(case.used, 1.0)


def test_first_passage_lies_between_the_days():
    paths = np.array([[0.0, 1.0, 3.0], [0.0, 0.1, 0.2]])
    assert first_passages(paths, 2.0).tolist() == [1.5, np.inf]


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = []
    for kind in KINDS:
        for seed in range(90_000, 90_000 + CASES):
            case = grown(kind, seed=seed)
            reported = days_to_full(case.used, 1.0)
            assert reported is not None
            inside.append(reported.low <= case.truth <= reported.high)
    # 200 cases: three standard errors around the promise.
    assert 0.84 <= np.mean(inside) <= 0.96

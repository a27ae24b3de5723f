import math

import pytest

from flatline.engine.evaluation.rate_bounds import binomial_lower, poisson_upper, rate_upper


@pytest.mark.parametrize(
    ("count", "upper"),
    # Garwood's limits as tabulated: chi-squared 0.95 quantiles of 2 (count + 1), halved.
    [(0, 2.995732), (1, 4.743865), (2, 6.295794), (10, 16.962219), (100, 118.079273)],
)
def test_a_count_hides_as_much_as_the_exact_limit_says(count, upper) -> None:
    assert poisson_upper(count) == pytest.approx(upper, abs=1e-5)


def test_zero_in_a_thousand_days_is_no_proof_of_zero() -> None:
    bound = rate_upper(0, 1633.0)
    assert bound == pytest.approx(1.83, abs=0.01)
    assert rate_upper(0, 0.0) is None


@pytest.mark.parametrize(
    ("hits", "total", "lower"),
    # All of n hit: the bound is 0.05 ** (1 / n); 8 of 10 as tabulated by Clopper and Pearson.
    [(21, 21, 0.05 ** (1 / 21)), (1, 1, 0.05), (8, 10, 0.49310), (0, 5, 0.0), (0, 0, 0.0)],
)
def test_a_recall_may_be_as_low_as_the_exact_limit_says(hits, total, lower) -> None:
    assert binomial_lower(hits, total) == pytest.approx(lower, abs=1e-5)


def test_bounds_are_where_the_tail_is_five_percent() -> None:
    mean = poisson_upper(3)
    tail = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(4))
    assert tail == pytest.approx(0.05)
    share = binomial_lower(7, 9)
    above = sum(math.comb(9, k) * share**k * (1 - share) ** (9 - k) for k in range(7, 10))
    assert above == pytest.approx(0.05)

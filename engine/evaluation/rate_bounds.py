"""Compute exact one-sided 95 % confidence bounds of counts, also where a count is 0.

Poisson: Garwood 1936. Binomial: Clopper and Pearson 1934. Both are found by bisection on the
tail probability, which is monotonic, so that no table and no approximation is needed.
"""

import math
from collections.abc import Callable
from typing import Final

CONFIDENCE: Final = 0.95
# Enough bisections for the precision of a double.
_HALVINGS: Final = 200


def poisson_upper(count: int, *, confidence: float = CONFIDENCE) -> float:
    """Return the mean at which the probability of `count` or fewer is `1 - confidence`.

    This is the upper bound of the mean of a Poisson variable that was observed as `count` (≥ 0).
    """
    high = count + 10.0 * math.sqrt(count + 1.0) + 10.0
    return _root(lambda mean: _poisson_tail(count, mean) - (1.0 - confidence), 0.0, high)


def binomial_lower(hits: int, total: int, *, confidence: float = CONFIDENCE) -> float:
    """Return the share at which the probability of `hits` or more is `1 - confidence`.

    This is the lower bound of the share of hits in `total` trials. 0.0 if there are no hits or no
    trials.
    """
    if hits <= 0 or total <= 0:
        return 0.0
    return _root(lambda p: (1.0 - confidence) - _binomial_above(hits, total, p), 0.0, 1.0)


def rate_upper(count: int, exposure: float, *, per: float = 1000.0) -> float | None:
    """Return the 95 % upper bound of a rate per `per` units of exposure, None without exposure.

    `count` events were observed in `exposure` units, such as VM-days.
    """
    return None if exposure <= 0 else poisson_upper(count) * per / exposure


def _poisson_tail(count: int, mean: float) -> float:
    """Return P(X ≤ count) of a Poisson variable."""
    if mean <= 0:
        return 1.0
    log = math.log(mean)
    return math.fsum(math.exp(k * log - mean - math.lgamma(k + 1)) for k in range(count + 1))


def _binomial_above(hits: int, total: int, share: float) -> float:
    """Return P(X ≥ hits) of a binomial variable."""
    if share <= 0.0 or share >= 1.0:
        return float(share >= 1.0)
    log, rest = math.log(share), math.log1p(-share)
    whole = math.lgamma(total + 1)
    return math.fsum(
        math.exp(
            whole - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * log + (total - k) * rest
        )
        for k in range(hits, total + 1)
    )


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of a falling function."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2

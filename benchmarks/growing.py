"""Simulated growth of resources: five kinds, seeded, with the true day at which each was full."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.capacity.growth import first_passages

F64 = NDArray[np.float64]
Rng = np.random.Generator

HISTORY_DAYS: Final = (30, 60, 90)
_FUTURE_DAYS: Final = 730


class Growing(NamedTuple):
    """`used` up to today in shares of the limit, and the days until 1.0 was first reached."""

    kind: str
    used: F64
    truth: float


def _noise(rng: Rng, size: int, *, sigma: float, memory: float) -> F64:
    """Return autocorrelated noise with standard deviation `sigma`."""
    found = np.empty(size)
    value = rng.normal(0, sigma)
    for day in range(size):
        value = memory * value + rng.normal(0, sigma * np.sqrt(1 - memory**2))
        found[day] = value
    return found


def _linear(rng: Rng, days: F64, slope: float) -> F64:
    return slope * days + rng.normal(0, slope * rng.uniform(0.3, 1.5), len(days))


def _seasonal(rng: Rng, days: F64, slope: float) -> F64:
    week = rng.normal(0, 1, 7)
    use: F64 = slope * rng.uniform(1, 6) * (week - week.mean())[days.astype(int) % 7]
    return use + _linear(rng, days, slope)


def _step(rng: Rng, days: F64, slope: float) -> F64:
    each_days = rng.uniform(2, 5)
    jumps = rng.random(len(days)) < 1 / each_days
    sizes = rng.gamma(2.0, slope * each_days / 2.0, len(days))
    return np.cumsum(jumps * sizes) + rng.normal(0, slope * 0.2, len(days))


def _noisy(rng: Rng, days: F64, slope: float) -> F64:
    sigma = slope * rng.uniform(4, 10)
    return slope * days + _noise(rng, len(days), sigma=sigma, memory=rng.uniform(0, 0.4))


def _clean_up(rng: Rng, days: F64, slope: float) -> F64:
    """Return garbage that is deleted every few days, while the rest keeps growing."""
    period = int(rng.integers(5, 11))
    age = np.mod(days + float(rng.integers(period)), period)
    garbage = slope * rng.uniform(1, 4) * age
    return garbage * rng.uniform(0.9, 1.1, len(days)) + _linear(rng, days, slope)


KINDS: Final[dict[str, Callable[[Rng, F64, float], F64]]] = {
    "linear": _linear,
    "seasonal": _seasonal,
    "step": _step,
    "noisy": _noisy,
    "clean-up": _clean_up,
}


def grown(kind: str, *, seed: int) -> Growing:
    """Return one history of `kind` and its truth; full 10 to 250 days later by its slope."""
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    while True:
        size = int(rng.choice(HISTORY_DAYS))
        left = rng.uniform(10, 250)
        slope = rng.uniform(0.3, 0.9) / (size + left)
        days = np.arange(size + _FUTURE_DAYS, dtype=np.float64)
        use = KINDS[kind](rng, days, slope)
        use = use - use[size - 1] + 1 - slope * left
        if use[:size].max() < 1.0 and use[:size].min() > 0.0:
            return Growing(kind, use[:size], float(first_passages(use[None, size - 1 :], 1.0)[0]))

"""Time until full: when a growing, noisy, sometimes periodic use first reaches a limit.

Daily use is modelled as a random walk (wandering) with drift, a cycle of some days, and noise
(local level with drift; Harvey 1989). The ratio of wandering to noise, here called the share, is
unknown. So several shares are weighted by their likelihood, and paths are drawn from the posterior.
The result is the distribution of the day on which a path first reaches the limit.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# How far ahead use is simulated: daily use says too little about the time beyond two years.
HORIZON_DAYS: Final = 730
# Fewer days cannot separate a drift from noise.
LEAST_DAYS: Final = 7
# Older days say little about today's growth, and the cost grows with the cube of their number.
MOST_DAYS: Final = 180
_PATHS: Final = 1000
# The variance of one day's wandering divided by that of the noise: from no wandering to almost
# nothing but wandering.
_SHARES: Final = (0.0, 0.001, 0.004, 0.016, 0.06, 0.25, 1.0, 4.0, 16.0, 100.0, 1000.0)
# Prior weights of these shares: most series show either no wandering or almost only wandering.
_PRIOR: Final = np.array([20.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5])
# Possible lengths of a cycle in days, such as a week or the period of a clean-up job. At least
# three whole cycles must have been observed.
_PERIODS: Final = range(2, 15)
_ROUNDS: Final = 3
# A cycle is accepted if it explains more than this share of the detrended variance.
_HABIT_SHARE: Final = 0.35
_SEED: Final = 20_261_124


class DaysToFull(NamedTuple):
    """Days from the last day of the history until the limit is reached.

    `expected` is the median. `low` is the conservative bound: in 5 % of cases the limit is reached
    sooner. `high` is the aggressive bound: in 5 % of cases it is reached later. Infinite means not
    within two years.
    """

    expected: float
    low: float
    high: float


_NEVER: Final = DaysToFull(np.inf, np.inf, np.inf)
_NOW: Final = DaysToFull(0.0, 0.0, 0.0)


def days_to_full(used: F64, limit: float) -> DaysToFull | None:
    """Return when daily use reaches `limit`.

    Parameters
    ----------
    used
        Shape (days,): the peak of each day, oldest first; NaN is unknown. Only the last
        `MOST_DAYS` are used.
    limit
        In the same unit.

    Returns
    -------
    DaysToFull | None
        In days from the last of `used`, also if that day is unknown; 0 where the last known use
        is not below the limit. None where fewer than `LEAST_DAYS` days are known.
    """
    used = used[-MOST_DAYS:]
    known = np.flatnonzero(~np.isnan(used))
    if len(known) < LEAST_DAYS:
        return None
    if used[known[-1]] >= limit:
        return _NOW
    # Unknown days are interpolated.
    days = np.arange(known[0], known[-1] + 1)
    use = np.interp(days, known, used[known])
    waited = len(used) - 1 - int(known[-1])
    if np.ptp(use) == 0.0:
        return _NEVER
    habit = _habit(use)
    size = len(use)
    level, drift, wander, noise = _draws(use - habit[np.arange(size) % len(habit)])
    rng = np.random.default_rng(_SEED)
    ahead = np.arange(1, HORIZON_DAYS + 1)
    steps = rng.standard_normal((_PATHS, HORIZON_DAYS))
    paths = level[:, None] + drift[:, None] * ahead + wander[:, None] * np.cumsum(steps, axis=1)
    paths += noise[:, None] * rng.standard_normal((_PATHS, HORIZON_DAYS))
    paths += habit[(size - 1 + ahead) % len(habit)]
    first = first_passages(np.concatenate([np.full((_PATHS, 1), use[-1]), paths], axis=1), limit)
    low, expected, high = np.quantile(first, (0.05, 0.5, 0.95), method="nearest")
    return DaysToFull(*(max(float(day) - waited, 0.0) for day in (expected, low, high)))


def first_passages(paths: F64, limit: float) -> F64:
    """Return when each path first reaches `limit`, shape (n,), in days from its first value.

    Paths have shape (n, days) and start below the limit. Use is taken as linear between two days.
    Infinite means that the path does not reach the limit.
    """
    full = paths >= limit
    day = full.argmax(axis=1)
    row = np.arange(len(paths))
    before, after = paths[row, day - 1], paths[row, day]
    arrives = full.any(axis=1)
    rise = np.where(arrives, after - before, 1.0)
    return np.where(arrives, day - 1 + (limit - before) / rise, np.inf)


def _habit(use: F64) -> F64:
    """Return the deviation from the mean for each day of the cycle; a single 0 if there is none."""
    best, found = _HABIT_SHARE, np.zeros(1)
    size = len(use)
    trend = np.polyval(np.polyfit(np.arange(size), use, 1), np.arange(size))
    for period in _PERIODS:
        if size < _ROUNDS * period:
            break
        weights = np.ones(period) / period
        # Deviations are taken from a moving mean over one whole cycle, which itself shows no cycle.
        mean = np.convolve(use, weights, mode="valid")
        first = (period - 1) // 2
        rest = use[first : first + len(mean)] - mean
        phase = (np.arange(len(rest)) + first) % period
        total = float((rest**2).sum())
        if total <= 1e-12 * float((trend**2).sum() + 1.0):
            continue
        profile = np.array([np.median(rest[phase == k]) for k in range(period)])
        left = float(((rest - profile[phase]) ** 2).sum())
        # A profile has `period` free values, so it explains a part of the variance by chance. This
        # factor corrects for that part.
        freedom = max(len(rest) - period, 1) / len(rest)
        share = 1.0 - left / total / freedom
        if share > best:
            best, found = share, profile - profile.mean()
    return found


class _Shape(NamedTuple):
    """The parts of the regression that depend on the share and the number of days alone."""

    share: float
    inverse: F64
    whiten: F64
    spread: F64
    reach: F64
    constant: float


@lru_cache(maxsize=64)
def _shapes(size: int) -> tuple[_Shape, ...]:
    """Return the regression of each share on `size` days.

    The covariance of two days is the variance of the wandering up to the earlier one. On the
    diagonal, the variance of the noise is added.
    """
    days = np.arange(size, dtype=np.float64)
    design = np.stack([np.ones(size), days], axis=1)
    shapes = []
    for share in _SHARES:
        covariance = np.eye(size) + share * np.minimum.outer(days, days)
        inverse = np.asarray(np.linalg.inv(covariance), np.float64)
        information: F64 = design.T @ inverse @ design
        whiten = np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)), np.float64)
        _, log_det = np.linalg.slogdet(covariance)
        _, log_information = np.linalg.slogdet(information)
        spread = np.asarray(np.linalg.inv(information), np.float64)
        constant = -0.5 * float(log_det + log_information)
        shapes.append(_Shape(share, inverse, whiten, spread, share * days, constant))
    return tuple(shapes)


def _draws(use: F64) -> tuple[F64, F64, F64, F64]:
    """Return per path: today's level, drift, and standard deviations of wandering and noise."""
    size = len(use)
    days = np.arange(size, dtype=np.float64)
    design = np.stack([np.ones(size), days], axis=1)
    freedom = size - 2
    shapes = _shapes(size)
    trends = [one.spread @ (design.T @ (one.inverse @ use)) for one in shapes]
    rests = [use - design @ trend for trend in trends]
    variances = np.array(
        [float(r @ one.inverse @ r) / freedom for one, r in zip(shapes, rests, strict=True)]
    )
    variances = np.maximum(variances, 1e-30)
    constants = np.array([one.constant for one in shapes])
    likelihood = constants - 0.5 * freedom * np.log(variances) + np.log(_PRIOR)
    weights = np.exp(likelihood - likelihood.max())
    rng = np.random.default_rng(_SEED + 1)
    chosen = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(_PATHS))
    level, drift, wander, noise = np.empty((4, _PATHS))
    for index in np.unique(chosen):
        one, trend, rest = shapes[index], trends[index], rests[index]
        mine = np.flatnonzero(chosen == index)
        sure = _sureness(one.whiten @ rest, freedom)
        scale = np.sqrt(variances[index] * sure / rng.chisquare(sure, len(mine)))
        # How far the level has wandered until today, estimated from all days, and how uncertain
        # this is.
        gain = one.inverse @ one.reach
        wandered = float(gain @ rest)
        remains = np.array([1.0, days[-1]]) - design.T @ gain
        corner = one.share * days[-1] - float(one.reach @ gain)
        covariance = np.empty((2, 2))
        covariance[0, 0] = max(corner, 0.0) + float(remains @ one.spread @ remains)
        covariance[0, 1] = covariance[1, 0] = float(remains @ one.spread[:, 1])
        covariance[1, 1] = one.spread[1, 1]
        root = np.linalg.cholesky(covariance + 1e-12 * np.eye(2) * np.trace(covariance))
        errors = rng.standard_normal((len(mine), 2)) @ root.T * scale[:, None]
        level[mine] = trend[0] + trend[1] * days[-1] + wandered + errors[:, 0]
        drift[mine] = trend[1] + errors[:, 1]
        wander[mine] = np.sqrt(one.share) * scale
        noise[mine] = scale
    return level, drift, wander, noise


def _sureness(innovations: F64, freedom: int) -> float:
    """Return the effective degrees of freedom of a variance that is estimated from these values.

    They are fewer than `freedom` if a few large jumps dominate many quiet days: such a series says
    little about the size of jumps.
    """
    squares = innovations**2
    mean = float(squares.mean())
    if mean <= 0.0:
        return float(freedom)
    kurtosis = float((squares**2).mean()) / mean**2
    return float(np.clip(freedom * 2.0 / max(kurtosis - 1.0, 2.0), 4.0, freedom))

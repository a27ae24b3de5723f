"""Learn each VM's current normal: one fused pass from counters to rates and anomaly flags.

For four signals: rate from cumulative counters, winsorised exponentially weighted mean and
variance (Roberts 1959; Welford's update in the weighted form of Finch 2009, eq. 143) and
the z score against the state before the sample. For CPU and disk: Holt's linear
one-step expectation (Holt 1957) with its mean absolute error, and a two-sided CUSUM on z
(Page 1954) with k = 0.5, h = 8. The expectation of disks is for reads and writes together, their
CUSUM for writes alone.

Unknown is NaN and leaves the state unchanged.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.blocks import BLOCK_ROWS

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]

SIGNALS: Final = ("cpu_cores", "disk_rd_bytes_per_s", "disk_wr_bytes_per_s", "net_tx_bytes_per_s")
# Factor from a counter's unit to its signal: nanoseconds of CPU to cores.
UNITS: Final = (1e-9, 1.0, 1.0, 1.0)
# Added to the standard deviation of each signal, so that small changes of a constant signal give no
# large z score: the effect of sample jitter on an idle guest's CPU, and one 4 KiB page a second.
FLOORS: Final = (0.02, 4096.0, 4096.0, 1024.0)

MEAN, VARIANCE, COUNT = 0, 4, 8
HOLT_LEVEL, HOLT_TREND, HOLT_ERROR = 12, 14, 16
CUSUM_UP, CUSUM_DOWN = 18, 20
# The last field is unused: an earlier release stored a quantile there, and the snapshots of that
# release must still fit.
FIELD_COUNT: Final = 23

OUT: Final = {
    name: row
    for row, name in enumerate(
        (
            *SIGNALS,
            *(f"z_{name}" for name in SIGNALS),
            "cpu_cores_expected",
            "cpu_cores_error",
            "worst_z",
            "gate",
        )
    )
}
OUT_ROWS: Final = len(OUT)
_EXPECTED: Final = OUT["cpu_cores_expected"]
_ERROR: Final = OUT["cpu_cores_error"]
_WORST: Final = OUT["worst_z"]
_GATE: Final = OUT["gate"]

# Bits of `gate`: a z or residual beyond `_GATE_Z`, a CUSUM beyond `_CUSUM_LIMIT`.
GATE_SURPRISE: Final = 1
GATE_DRIFT: Final = 2

# Stored in place of a previous counter that is unknown.
NO_PREVIOUS: Final = np.uint64(2**64 - 1)
FLAG_SAME_EPOCH: Final = 0x80

# Time constants. The expectation follows a workload within a minute. Spikes are measured against
# the mean over an hour. Holt's trend must not follow noise.
MEAN_TAU_S: Final = 3600.0
LEVEL_TAU_S: Final = 60.0
TREND_TAU_S: Final = 600.0
ERROR_TAU_S: Final = 600.0

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_NAN: Final = np.float32(np.nan)
# A z score counts only after this many samples; before, the spread is not known.
_WARM_COUNT: Final = np.float32(10)
# A value beyond 4 standard deviations moves the mean no further than one at 4 (Huber).
_WINSOR_Z: Final = np.float32(4)
_CUSUM_SLACK: Final = np.float32(0.5)
_CUSUM_LIMIT: Final = np.float32(8)
_GATE_Z: Final = np.float32(6)
_UNIT_CPU: Final = np.float32(UNITS[0])

# Rows of the scratch block `work`, each of BLOCK_ROWS values: four rates; four z scores; the rate
# of disk reads and writes together; the largest z score or residual; the largest CUSUM.
_W_DISK: Final = 8 * BLOCK_ROWS
_W_WORST: Final = 9 * BLOCK_ROWS
_W_DRIFT: Final = 10 * BLOCK_ROWS
_W_SIZE: Final = 11 * BLOCK_ROWS

_FLOORS_F32: Final = np.array(FLOORS, np.float32)


def new_state(blocks: int) -> F32:
    """Return the state of new VMs, shape (blocks, FIELD_COUNT, BLOCK_ROWS)."""
    return np.zeros((blocks, FIELD_COUNT, BLOCK_ROWS), np.float32)


def new_previous(blocks: int) -> U64:
    """Return previous counters of new VMs, shape (4, blocks * BLOCK_ROWS)."""
    return np.full((len(SIGNALS), blocks * BLOCK_ROWS), NO_PREVIOUS, np.uint64)


def constants(dt_s: float) -> F32:
    """Return the weights for samples that are `dt_s` seconds apart, shape (5,).

    Order: 1/`dt_s`, then the weight of a sample in the mean, in Holt's level, trend and error.
    """
    taus = (MEAN_TAU_S, LEVEL_TAU_S, TREND_TAU_S, ERROR_TAU_S)
    return np.array([1 / dt_s, *(-math.expm1(-dt_s / tau) for tau in taus)], np.float32)


# The vectoriser requires the form of the loops below: flat arrays, unsigned indices (a signed one
# may be negative, which costs a test each time), field offsets known when compiling (`k` is a
# literal in each call and the parts are inlined), no branch, and results through a scratch block
# that stays in the first-level cache. `base` is the start of a block of the state, `first` its
# first row, `width` the length of one row of `out`.


@inlined
def _rates(
    counters: U64,
    previous: U64,
    flags: U8,
    work: F32,
    out: F32,
    first: np.uint64,
    width: np.uint64,
    k: int,
    per_s: np.float32,
) -> None:
    measured = np.uint8(1 << k)
    usable = np.uint8(FLAG_SAME_EPOCH | (1 << k))
    source = np.uint64(k) * width + first
    target = np.uint64(k * BLOCK_ROWS)
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        now = counters[source + index]
        before = previous[source + index]
        known = (
            ((flags[first + index] & usable) == usable) & (before <= now) & (before != NO_PREVIOUS)
        )
        # At least `before`, because a difference that wraps around warns in uncompiled code.
        growth = (now if now > before else before) - before
        rate = np.float32(growth) * per_s
        rate = rate if known else _NAN
        work[target + index] = rate
        out[source + index] = rate
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        here = (flags[first + index] & measured) != 0
        previous[source + index] = counters[source + index] if here else NO_PREVIOUS


@inlined
def _mean_and_z(
    state: F32,
    work: F32,
    out: F32,
    base: np.uint64,
    first: np.uint64,
    width: np.uint64,
    k: int,
    weight: np.float32,
    floor: np.float32,
) -> None:
    rates = np.uint64(k * BLOCK_ROWS)
    scores = np.uint64((4 + k) * BLOCK_ROWS)
    target = np.uint64(4 + k) * width + first
    means = base + np.uint64((MEAN + k) * BLOCK_ROWS)
    variances = base + np.uint64((VARIANCE + k) * BLOCK_ROWS)
    counts = base + np.uint64((COUNT + k) * BLOCK_ROWS)
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        x = work[rates + index]
        known = x == x
        mean = state[means + index]
        variance = state[variances + index]
        count = state[counts + index]
        spread = np.float32(math.sqrt(variance)) + floor
        warm = count >= _WARM_COUNT
        off = x - mean
        z = off / spread
        limit = _WINSOR_Z * spread
        bounded = limit if off > limit else off
        bounded = -limit if off < -limit else bounded
        step = bounded if warm else off
        # The first samples weigh 1/n, so that the mean does not start from zero.
        early = _ONE / (count + _ONE)
        share = weight if weight > early else early
        state[means + index] = mean + share * step if known else mean
        state[variances + index] = (
            (_ONE - share) * (variance + share * step * step) if known else variance
        )
        state[counts + index] = count + _ONE if known & (count < np.float32(1e6)) else count
        z = z if warm else _ZERO
        z = z if known else _NAN
        work[scores + index] = z
        out[target + index] = z


@inlined
def _worst(work: F32) -> None:
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        work[np.uint64(_W_DISK) + index] = (
            work[np.uint64(BLOCK_ROWS) + index] + work[np.uint64(2 * BLOCK_ROWS) + index]
        )
        worst = _ZERO
        for k in range(4, 8):
            z = abs(work[np.uint64(k * BLOCK_ROWS) + index])
            worst = z if z > worst else worst
        work[np.uint64(_W_WORST) + index] = worst
        work[np.uint64(_W_DRIFT) + index] = _ZERO


@inlined
def _expectation(
    state: F32,
    work: F32,
    out: F32,
    base: np.uint64,
    first: np.uint64,
    width: np.uint64,
    k: int,
    weights: F32,
    floor: np.float32,
) -> None:
    source = np.uint64(0 if k == 0 else _W_DISK)
    counts = base + np.uint64((COUNT + 2 * k) * BLOCK_ROWS)
    levels = base + np.uint64((HOLT_LEVEL + k) * BLOCK_ROWS)
    trends = base + np.uint64((HOLT_TREND + k) * BLOCK_ROWS)
    errors = base + np.uint64((HOLT_ERROR + k) * BLOCK_ROWS)
    expectations = np.uint64(_EXPECTED) * width + first
    sizes = np.uint64(_ERROR) * width + first
    level_weight, trend_weight, error_weight = weights[2], weights[2] * weights[3], weights[4]
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        x = work[source + index]
        known = x == x
        level = state[levels + index]
        trend = state[trends + index]
        error = state[errors + index]
        # `_mean_and_z` has already counted this sample: 1 means that there was none before it.
        count = state[counts + index]
        begun = count > _ONE
        expected = level + trend if begun else x
        miss = x - expected
        size = abs(miss)
        residual = miss / (error + floor)
        residual = residual if count > _WARM_COUNT else _ZERO
        if k == 0:
            out[expectations + index] = expected if begun else _NAN
            out[sizes + index] = error if begun else _NAN
        state[levels + index] = expected + level_weight * miss if known else level
        state[trends + index] = trend + trend_weight * miss if known else trend
        state[errors + index] = error + error_weight * (size - error) if known else error
        surprise = abs(residual)
        worst = work[np.uint64(_W_WORST) + index]
        work[np.uint64(_W_WORST) + index] = surprise if known & (surprise > worst) else worst


@inlined
def _cusum(state: F32, work: F32, base: np.uint64, k: int) -> None:
    source = np.uint64((4 + 2 * k) * BLOCK_ROWS)
    ups = base + np.uint64((CUSUM_UP + k) * BLOCK_ROWS)
    downs = base + np.uint64((CUSUM_DOWN + k) * BLOCK_ROWS)
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        z = work[source + index]
        known = z == z
        step = z if known else _ZERO
        slack = _CUSUM_SLACK if known else _ZERO
        up = state[ups + index] + step - slack
        down = state[downs + index] - step - slack
        up = up if up > _ZERO else _ZERO
        down = down if down > _ZERO else _ZERO
        height = up if up > down else down
        hit = height > _CUSUM_LIMIT
        state[ups + index] = _ZERO if hit else up
        state[downs + index] = _ZERO if hit else down
        drift = work[np.uint64(_W_DRIFT) + index]
        work[np.uint64(_W_DRIFT) + index] = height if height > drift else drift


@inlined
def _finish(work: F32, out: F32, first: np.uint64, width: np.uint64) -> int:
    # 32 bits, so that the count is as wide as the values and stays in their registers.
    gated = np.int32(0)
    surprises = np.uint64(_WORST) * width + first
    gates = np.uint64(_GATE) * width + first
    for index_ in range(BLOCK_ROWS):
        index = np.uint64(index_)
        worst = work[np.uint64(_W_WORST) + index]
        out[surprises + index] = worst
        surprised = np.int32(GATE_SURPRISE) if worst > _GATE_Z else np.int32(0)
        drift = work[np.uint64(_W_DRIFT) + index]
        drifted = np.int32(GATE_DRIFT) if drift > _CUSUM_LIMIT else np.int32(0)
        gate = surprised | drifted
        out[gates + index] = np.float32(gate)
        gated += np.int32(1) if gate > np.int32(0) else np.int32(0)
    return int(gated)


@kernel
def fold_counters(
    state: F32,
    previous: U64,
    counters: U64,
    flags: U8,
    weights: F32,
    out: F32,
) -> int:
    """Fold one sample of every row into its baseline, in place, and flag surprises.

    Parameters
    ----------
    state
        Shape (blocks, FIELD_COUNT, BLOCK_ROWS), updated.
    previous
        Shape (4, blocks * BLOCK_ROWS): the counters of the last sample, `NO_PREVIOUS` if
        none; updated.
    counters
        Shape (4, blocks * BLOCK_ROWS), in the order of `SIGNALS`: cpu_time_ns, block_rd_bytes,
        block_wr_bytes, net_tx_bytes; cumulative. A value below the previous one is a new
        epoch: no rate.
    flags
        Shape (blocks * BLOCK_ROWS): bit k set where signal k was measured, `FLAG_SAME_EPOCH`
        where the previous sample belongs to the same epoch.
    weights
        `constants(dt_s)`.
    out
        Shape (OUT_ROWS, blocks * BLOCK_ROWS), overwritten; rows as `OUT`, NaN is unknown. z scores,
        expectation and error use the state before the sample.

    Returns
    -------
    int
        Number of rows with a gate bit.
    """
    work = np.empty(_W_SIZE, np.float32)
    fields, rows = state.reshape(-1), out.reshape(-1)
    nows, befores = counters.reshape(-1), previous.reshape(-1)
    width = np.uint64(flags.shape[0])
    per_s = weights[0]
    gated = 0
    for block in range(state.shape[0]):
        base = np.uint64(block) * np.uint64(FIELD_COUNT * BLOCK_ROWS)
        first = np.uint64(block) * np.uint64(BLOCK_ROWS)
        _rates(nows, befores, flags, work, rows, first, width, 0, per_s * _UNIT_CPU)
        _mean_and_z(fields, work, rows, base, first, width, 0, weights[1], _FLOORS_F32[0])
        _rates(nows, befores, flags, work, rows, first, width, 1, per_s)
        _mean_and_z(fields, work, rows, base, first, width, 1, weights[1], _FLOORS_F32[1])
        _rates(nows, befores, flags, work, rows, first, width, 2, per_s)
        _mean_and_z(fields, work, rows, base, first, width, 2, weights[1], _FLOORS_F32[2])
        _rates(nows, befores, flags, work, rows, first, width, 3, per_s)
        _mean_and_z(fields, work, rows, base, first, width, 3, weights[1], _FLOORS_F32[3])
        _worst(work)
        _expectation(fields, work, rows, base, first, width, 0, weights, _FLOORS_F32[0])
        _cusum(fields, work, base, 0)
        _expectation(fields, work, rows, base, first, width, 1, weights, _FLOORS_F32[2])
        _cusum(fields, work, base, 1)
        gated += _finish(work, rows, first, width)
    return gated

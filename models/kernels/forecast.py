"""Forecast each series 5 min, 30 min and 24 h ahead from candidates weighted by past error.

A series is one metric of one VM or node on a grid of steps. Each horizon is a prediction with
expert advice. The experts are cheap candidates: 16 for the near horizons, 6 for 24 h. Two sets of
convex weights combine them, one learned in the current state of the series and one in all states.
Weights follow from the candidates' regret under absolute loss (MLpol with the gradient trick:
Gaillard, Stoltz & van Erven 2014). A final weighting combines both predictions and the last value
(three voices). Because the loss is absolute, the point forecast is a median, not a mean.

The bounds of an interval are quantiles of the error in units of its usual size in this state. They
are tracked online (Gibbs & Candes 2021, applied to quantiles): each miss widens the interval and
each hit narrows it, in the ratio that gives the nominal coverage, however the series behaves.

Unknown is NaN: it is not learned and gives no forecast.
"""

import math

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.forecast_candidates import (
    around,
    band5,
    band9,
    median_3,
    median_5,
    same_time,
    slot_at,
)
from flatline.models.kernels.forecast_level import begin, close_slot, follow
from flatline.models.kernels.forecast_row import (
    AGE,
    AWAY,
    BANDS,
    BASE,
    CELL,
    CELLS,
    DAY,
    ENOUGH_OUTCOMES,
    EW_FAST,
    EW_LONG,
    EW_MEDIUM,
    EW_SLOW,
    FAR_COUNT,
    FEW_OUTCOMES,
    FINAL,
    HOLT_LEVEL,
    HOLT_TREND,
    HORIZONS_S,
    HOUR,
    LAST,
    LEAST,
    MOVE,
    NEAR_COUNT,
    PART_BY_SLOT,
    PART_LATEST,
    PART_SORTED,
    PENDING,
    PREVIOUS,
    QUANTILES,
    RESOLUTION,
    SCALE,
    SLOT_S,
    SLOTS,
    STATE,
    STATES,
    UNIT,
    VOICES,
    WINDOW,
    Constants,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Added to each voice's regret, in standard deviations of it, so that all weigh the same at first.
_PRIOR = 1.0
_EPSILON = 1e-12
_EPSILON32 = np.float32(1e-12)
_ZERO = np.float32(0.0)
_CAP = 1e6
# How far one outcome moves the quantiles of the error of a forecast a day ahead, in units of the
# usual error; outer: 5 and 95 %, inner: 25 and 75 %. Both are small, because an outcome is known
# only 288 slots later; the inner one is smaller, because errors are denser there.
_FAR_PACE_OUTER = 0.007
_FAR_PACE_INNER = 0.002


@inlined
def _learn(
    row: F32,
    start: int,
    length: int,
    index: int,
    width: int,
    states: int,
    x: float,
    forget: float,
    gains: F32,
) -> None:
    """Learn the outcome `x` of the forecast made one horizon ago, if there was one.

    `start` is the index in `row` of the horizon's data; `length`, `width` and `states` are its
    numbers of steps (24 h: slots), candidates and states. The forecast is entry `index` of the
    ring: `at` is the index in `row` of its predictions, `more` that of its `PENDING` fields.
    """
    at = start + index * (width + PENDING)
    more = at + width
    final = np.float64(row[more + FINAL])
    if final != final:
        return
    regrets = start + length * (width + PENDING)
    state = int(row[more + STATE])
    forget32 = np.float32(forget)
    for voice in range(2):
        chosen = state if voice == 0 else states
        # Gradient trick: `opinion` is the combined prediction, `pull` the gradient of the loss at
        # it. The gain of a candidate is `pull` times the difference of the two predictions.
        opinion = row[more + voice]
        pull = np.float32(1.0 if opinion > x else -1.0 if opinion < x else 0.0)
        first = regrets + 2 * chosen * width
        for k in range(width):
            gains[k] = pull * (opinion - row[np.uintp(at + k)])
        for k in range(width):
            regret = np.uintp(first + k)
            row[regret] = forget32 * row[regret] + gains[k]
        for k in range(width):
            square = np.uintp(first + width + k)
            row[square] = forget32 * row[square] + gains[k] * gains[k]
    voices = regrets + 2 * (states + 1) * width
    # The same for the voices: `said` is the prediction of one, `side` the gradient at `final`.
    side = 1.0 if final > x else -1.0 if final < x else 0.0
    for voice in range(VOICES):
        said = np.float64(row[at if voice == 0 else more + voice - 1])
        gain = side * (final - said)
        row[voices + voice] = forget * row[voices + voice] + gain
        row[voices + VOICES + voice] = forget * row[voices + VOICES + voice] + gain * gain
    quantiles = voices + 2 * VOICES
    sizes = quantiles + QUANTILES
    scale = np.float64(row[more + SCALE])
    _learn_errors(row, quantiles, sizes, states, state, x - final, scale, length)


@inlined
def _learn_errors(
    row: F32,
    quantiles: int,
    sizes: int,
    states: int,
    state: int,
    error: float,
    scale: float,
    length: int,
) -> None:
    z = error / scale
    # An outcome is known `length` steps after its forecast: larger changes would make q oscillate.
    near_pace = min(0.03, 0.18 / length)
    for side in range(QUANTILES):
        q = np.float64(row[quantiles + side])
        level = 0.05 if side < 2 else 0.25
        far_pace = _FAR_PACE_OUTER if side < 2 else _FAR_PACE_INNER
        # Misses a day ahead come in runs: proportional changes would narrow more than they widen.
        pace = near_pace * max(abs(q), 0.3) if states > 1 else far_pace
        if side % 2 == 0:
            q += pace * (level - 1.0) if z < q else pace * level
        else:
            q -= pace * (level - 1.0) if z > q else pace * level
        row[quantiles + side] = q
    size = abs(error)
    for chosen in (state, states):
        count = np.float64(row[sizes + states + 1 + chosen])
        weight = max(0.01 if states > 1 else 0.002, 1.0 / (count + 1.0))
        usual = np.float64(row[sizes + chosen])
        # One spike must not make the next hundred intervals useless. This limit is not needed for
        # the far horizon, whose size moves too slowly.
        limit = 10.0 * usual + 30.0 * np.float64(row[RESOLUTION])
        bounded = min(size, limit) if count > 10.0 and states > 1 else size
        row[sizes + chosen] = usual + weight * (bounded - usual)
        row[sizes + states + 1 + chosen] = min(count + 1.0, _CAP)


@inlined
def _learn_cell(row: F32, start: int, length: int, index: int, x: float) -> None:
    """Update the cell of a near forecast with the movement from the median to the outcome `x`."""
    more = start + index * (NEAR_COUNT + PENDING) + NEAR_COUNT
    if row[more + FINAL] != row[more + FINAL]:
        return
    sets = STATES + 1
    fixed = start + length * (NEAR_COUNT + PENDING) + 2 * sets * NEAR_COUNT + 2 * VOICES
    cell = fixed + QUANTILES + 2 * sets + int(row[more + CELL])
    moved = (x - np.float64(row[more + BASE])) / np.float64(row[more + UNIT])
    count = np.float64(row[cell + CELLS])
    off = moved - np.float64(row[cell])
    # Steps of constant size converge to the median. Below a distance of 1 they are proportional to
    # it (Huber loss), so that the estimate settles.
    pull = min(max(off, -1.0), 1.0)
    row[cell] = np.float64(row[cell]) + max(0.02, 1.0 / (count + 4.0)) * pull
    row[cell + CELLS] = min(count + 1.0, _CAP)


@inlined
def _bands(row: F32, quantiles: int, final: float, scale: float, out: F32, at_out: int) -> None:
    """Write the bounds of the intervals around a forecast, in the order of `BANDS`."""
    for side in range(QUANTILES):
        q = np.float64(row[quantiles + side])
        out[at_out + 1 + side] = max(final + q * scale, 0.0)
    # Quantiles learned separately may cross. The 50 % interval must contain the forecast, and the
    # 90 % interval the 50 % one, also where most outcomes have the same value.
    one, other = out[at_out + 3], out[at_out + 4]
    out[at_out + 3] = min(out[at_out], min(one, other))
    out[at_out + 4] = max(out[at_out], max(one, other))
    low, high = out[at_out + 1], out[at_out + 2]
    out[at_out + 1] = min(out[at_out + 3], min(low, high))
    out[at_out + 2] = max(out[at_out + 4], max(low, high))


@inlined
def _forecast(
    row: F32,
    start: int,
    length: int,
    index: int,
    width: int,
    states: int,
    state: int,
    out: F32,
    at_out: int,
    gains: F32,
) -> float:
    """Combine the candidates at `index` of the ring, and return the point forecast.

    It is stored in the ring, and written with its bounds to `out`. Names are as in `_learn`.
    """
    at = start + index * (width + PENDING)
    more = at + width
    regrets = start + length * (width + PENDING)
    last = np.float64(row[at])
    for voice in range(2):
        # Where no regret in this state is positive, as in a new one, those of all states apply.
        total = 0.0
        value = 0.0
        for chosen in (state if voice == 0 else states, states):
            first = regrets + 2 * chosen * width
            for k in range(width):
                square = row[np.uintp(first + width + k)]
                gains[k] = max(row[np.uintp(first + k)], _ZERO) / (square + _EPSILON32)
            for k in range(width):
                total += np.float64(gains[k])
                value += np.float64(gains[k] * (row[np.uintp(at + k)] - row[np.uintp(at)]))
            if total > 0.0:
                break
        row[more + voice] = last + value / total if total > 0.0 else last
    voices = regrets + 2 * (states + 1) * width
    largest = 0.0
    for voice in range(VOICES):
        largest = max(largest, np.float64(row[voices + VOICES + voice]))
    total = 0.0
    value = 0.0
    for voice in range(VOICES):
        said = np.float64(row[at if voice == 0 else more + voice - 1])
        spread = np.float64(row[voices + VOICES + voice]) + 0.01 * largest + _EPSILON
        weight = max(np.float64(row[voices + voice]) / math.sqrt(spread) + _PRIOR, 0.0)
        total += weight * weight
        value += weight * weight * (said - last)
    # A trend or a change may point below zero, but no metric here is negative.
    final = max(last + value / total if total > 0.0 else last, 0.0)
    row[more + FINAL] = final
    row[more + STATE] = state
    quantiles = voices + 2 * VOICES
    sizes = quantiles + QUANTILES
    known = np.float64(row[sizes + states + 1 + state])
    overall = np.float64(row[sizes + states])
    mixed = (known * np.float64(row[sizes + state]) + 10.0 * overall) / (known + 10.0)
    scale = max(mixed, LEAST)
    row[more + SCALE] = scale
    out[at_out] = final
    # Until the usual error is known, an error may be as large as the level. Without a level, the
    # interval would have no width: then not even the point forecast is written.
    outcomes = np.float64(row[sizes + 2 * states + 1])
    if outcomes < FEW_OUTCOMES or (overall == 0.0 and outcomes < ENOUGH_OUTCOMES):
        scale = max(scale, np.float64(row[EW_LONG]))
        if scale <= LEAST:
            out[at_out : at_out + len(BANDS)] = np.nan
            return final
    _bands(row, quantiles, final, scale, out, at_out)
    return final


@inlined
def _near(
    row: F32,
    starts: tuple[int, int, int],
    lengths: tuple[int, int, int],
    number: int,
    slot: int,
    median_25: float,
    out: F32,
    gains: F32,
) -> None:
    """Forecast 5 and 30 min ahead; `now` and `then` are indices in the ring of slots."""
    x, previous = np.float64(row[LAST]), np.float64(row[PREVIOUS])
    p = PART_LATEST
    middle = median_5(row[p], row[p + 1], row[p + 2], row[p + 3], row[p + 4])
    away = np.float64(row[AWAY])
    move = np.float64(row[MOVE])
    off, step = x - median_25, x - previous
    jump, far = abs(step) / move, abs(off) / move
    state = (0 if jump < 0.5 else 1 if jump < 2.5 else 2) * 3 + (
        0 if far < 1.0 else 1 if far < 5.0 else 2
    )
    cell = band9(off / away) * 5 + band5((previous - median_25) / away)
    spiked = median_25 if abs(off) >= 2.0 * away else x
    next_step: float = x
    now = slot % SLOTS
    for horizon in range(2):
        start, length = starts[horizon], lengths[horizon]
        ahead = HORIZONS_S[horizon] // SLOT_S
        index = number % length
        at = start + index * (NEAR_COUNT + PENDING)
        then = now + ahead
        row[at] = x
        row[at + 1] = previous
        row[at + 2] = row[EW_FAST]
        row[at + 3] = row[EW_SLOW]
        row[at + 4] = np.float64(row[HOLT_LEVEL]) + length * np.float64(row[HOLT_TREND])
        row[at + 5] = middle
        row[at + 6] = median_25
        row[at + 7] = median_5(
            slot_at(row, then - HOUR),
            slot_at(row, then - 2 * HOUR),
            slot_at(row, then - 3 * HOUR),
            slot_at(row, then - 4 * HOUR),
            slot_at(row, then - 5 * HOUR),
        )
        row[at + 8] = same_time(row, then)
        row[at + 9] = x + median_3(
            slot_at(row, then - DAY) - slot_at(row, now - DAY),
            slot_at(row, then - 2 * DAY) - slot_at(row, now - 2 * DAY),
            slot_at(row, then - 3 * DAY) - slot_at(row, now - 3 * DAY),
        )
        sets = STATES + 1
        fixed = start + length * (NEAR_COUNT + PENDING) + 2 * sets * NEAR_COUNT + 2 * VOICES
        learned = np.float64(row[fixed + QUANTILES + 2 * sets + cell])
        row[at + 10] = median_25 + away * learned
        row[at + 11] = spiked
        row[at + 12] = next_step
        row[at + 13] = row[EW_MEDIUM]
        row[at + 14] = row[PART_BY_SLOT + (slot + ahead) % DAY]
        row[at + 15] = x if abs(off) >= 2.0 * away else median_25
        more = at + NEAR_COUNT
        row[more + CELL] = cell
        row[more + BASE] = median_25
        row[more + UNIT] = away
        next_step = _forecast(
            row, start, length, index, NEAR_COUNT, STATES, state, out, horizon * len(BANDS), gains
        )
    least = max(0.5 * np.float64(row[RESOLUTION]), LEAST)
    row[AWAY] = max(away + 0.01 * (min(abs(off), 10.0 * away) - away), least)


@inlined
def _far(row: F32, start: int, slot: int, median_25: float, out: F32, gains: F32) -> None:
    """Forecast the same slot of tomorrow."""
    index = slot % DAY
    at = start + index * (FAR_COUNT + PENDING)
    row[at] = row[LAST]
    row[at + 1] = median_25
    row[at + 2] = row[EW_SLOW]
    # `around` needs the slot after `now`, which is not known yet. Instead, today counts with the
    # mean of its last two slots.
    now = slot % SLOTS
    row[at + 3] = median_3(
        0.5 * (slot_at(row, now) + slot_at(row, now - 1)),
        around(row, now - DAY),
        around(row, now - 2 * DAY),
    )
    row[at + 4] = row[PART_BY_SLOT + index]
    row[at + 5] = row[EW_LONG]
    _forecast(row, start, DAY, index, FAR_COUNT, 1, 0, out, 2 * len(BANDS), gains)


@inlined
def _learn_near(
    row: F32,
    starts: tuple[int, int, int],
    lengths: tuple[int, int, int],
    number: int,
    x: float,
    forget: float,
    gains: F32,
) -> None:
    for horizon in range(2):
        start, length = starts[horizon], lengths[horizon]
        index = number % length
        _learn(row, start, length, index, NEAR_COUNT, STATES, x, forget, gains)
        _learn_cell(row, start, length, index, x)


@inlined
def _day_ahead(
    row: F32,
    start: int,
    slot: int,
    mean: float,
    median_25: float,
    forget: float,
    out: F32,
    gains: F32,
) -> None:
    """Learn the outcome of the forecast made a day ago, then forecast tomorrow."""
    index = slot % DAY
    if mean != mean:
        row[start + index * (FAR_COUNT + PENDING) + FAR_COUNT + FINAL] = np.nan
        return
    _learn(row, start, DAY, index, FAR_COUNT, 1, mean, forget, gains)
    usual = np.float64(row[PART_BY_SLOT + index])
    row[PART_BY_SLOT + index] = usual + 0.15 * (mean - usual)
    _far(row, start, slot, median_25, out, gains)


@inlined
def _begin_sizes(
    row: F32, starts: tuple[int, int, int], lengths: tuple[int, int, int], x: float
) -> None:
    """Convert the error sizes of a profile from shares of the level `x` to absolute sizes."""
    for horizon in range(3):
        width = NEAR_COUNT if horizon < 2 else FAR_COUNT
        states = STATES if horizon < 2 else 1
        regrets = starts[horizon] + lengths[horizon] * (width + PENDING)
        sizes = regrets + 2 * (states + 1) * width + 2 * VOICES + QUANTILES
        if x > LEAST:
            row[sizes + states] *= x
        else:
            # Shares of a level of zero give no size: the series begins without those of its class.
            row[sizes + states] = 0.0
            row[sizes + 2 * states + 1] = 0.0


@kernel
def fold_step(
    state: F32,
    values: F64,
    number: int,
    slots_closed: int,
    starts: tuple[int, int, int],
    lengths: tuple[int, int, int],
    weights: Constants,
    out: F32,
) -> None:
    """Fold one step of every series, in place, and forecast.

    Parameters
    ----------
    state
        Shape (n, layout.size), updated.
    values
        Shape (n,): the mean over the ended step, ≥ 0; NaN is unknown.
    number
        Number of the step: its end in s since the epoch, divided by `step_s`. Steps are
        folded in order and none is left out.
    slots_closed
        1 where a slot ends with this step, else 0.
    starts, lengths
        `layout.start` and `layout.steps`.
    weights
        `constants(step_s)`.
    out
        Shape (n, HORIZON_COUNT * len(BANDS)), overwritten: `BANDS` of each horizon; NaN is no
        forecast. The far horizon has forecasts only in steps that end a slot.
    """
    gains = np.empty(NEAR_COUNT, np.float32)
    per_slot = lengths[0]
    # Number of the slot that contains this step. The last step of a slot closes it.
    slot = (number + per_slot - 1) // per_slot
    for i in range(state.shape[0]):
        row, line, x = state[i], out[i], values[i]
        line[:] = np.nan
        known = x == x
        if row[AGE] == 0.0:
            if not known:
                continue
            begin(row, x)
            _begin_sizes(row, starts, lengths, x)
        if known:
            _learn_near(row, starts, lengths, number, x, weights.forget, gains)
            follow(row, x, weights.slow, weights.long)
        else:
            for horizon in range(2):
                at = starts[horizon] + number % lengths[horizon] * (NEAR_COUNT + PENDING)
                row[at + NEAR_COUNT + FINAL] = np.nan
        row[AGE] = min(row[AGE] + 1.0, _CAP)
        mean = close_slot(row, slot) if slots_closed else np.nan
        median_25 = np.float64(row[PART_SORTED + WINDOW // 2])
        if known:
            _near(row, starts, lengths, number, slot, median_25, line, gains)
        if slots_closed:
            _day_ahead(row, starts[2], slot, mean, median_25, weights.forget, line, gains)

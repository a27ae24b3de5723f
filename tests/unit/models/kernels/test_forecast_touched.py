import numpy as np
import pytest

from flatline.models.kernels import forecast
from flatline.models.kernels._jit import kernel
from flatline.models.kernels.forecast_row import (
    BANDS,
    DAY,
    HORIZON_COUNT,
    NEAR_COUNT,
    PENDING,
    SLOTS,
    STATES,
    constants,
    layout,
    new_series,
)
from flatline.models.kernels.forecast_touched import MOST_LINES, touched

START = 60_000_000


@kernel
def count_touched(indices, starts, lengths, number, slot, closes):
    return touched(indices, starts, lengths, number, slot, closes)


def touched_at(plan, number):
    indices = np.full(2 * MOST_LINES, -1)
    per_slot = plan.steps[0]
    slot, closes = -(-number // per_slot), int(number % per_slot == 0)
    count = count_touched(indices, plan.start, plan.steps, number, slot, closes)
    assert count <= MOST_LINES
    return indices[:count]


def of_a_state(plan):
    """Return the values that a series has learned in one state or the other."""
    found = np.zeros(plan.size, bool)
    for start, length in zip(plan.start[:2], plan.steps[:2], strict=True):
        first = start + length * (NEAR_COUNT + PENDING)
        found[first : first + 2 * STATES * NEAR_COUNT] = True
    return found


@pytest.mark.parametrize("step_s", [60, 300])
def test_places_of_every_step_fit_and_lie_in_the_row(step_s):
    plan = layout(step_s)
    for number in range(START, START + SLOTS * DAY * plan.steps[0] // 97, 97):
        indices = touched_at(plan, number)
        assert indices.min() >= 0
        # At the rings' ends the next part of the row is fetched in vain.
        assert indices.max() < plan.size + 128


@pytest.mark.parametrize("step_s", [60, 300])
def test_what_a_step_changes_was_fetched(step_s):
    plan, rng = layout(step_s), np.random.default_rng(5)
    state, weights = new_series(1, plan), constants(step_s)
    out = np.empty((1, HORIZON_COUNT * len(BANDS)), np.float32)
    per_state = of_a_state(plan)
    changed = 0
    for number in range(START, START + 700):
        before = state.copy()
        closes = int(number % plan.steps[0] == 0)
        values = rng.exponential(5, 1)
        forecast.fold_step(state, values, number, closes, plan.start, plan.steps, weights, out)
        if number == START:
            continue
        # NaN differs from itself, so that bits are compared.
        moved = np.flatnonzero((state.view(np.uint32) != before.view(np.uint32))[0] & ~per_state)
        away = np.abs(moved[:, None] - touched_at(plan, number)[None, :]).min(axis=1)
        assert away.max(initial=0) < 16
        changed += len(moved)
    assert changed > 10_000

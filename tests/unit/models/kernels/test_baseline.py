import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatline.models.kernels import baseline
from flatline.models.kernels.blocks import BLOCK_ROWS
from tests.reference.baseline_twin import BaselineTwin

DT_S = 2.0
# float32 against float64 over a few hundred samples.
RELATIVE_ERROR = 2e-3

FOLDS = pytest.mark.parametrize(
    "fold", [baseline.fold_counters, baseline.fold_counters.py_func], ids=["compiled", "python"]
)


class Fleet:
    def __init__(self, fold, *, blocks=1):
        self.fold = fold
        self.state = baseline.new_state(blocks)
        self.previous = baseline.new_previous(blocks)
        self.out = np.empty((baseline.OUT_ROWS, blocks * BLOCK_ROWS), np.float32)
        self.flags = np.full(blocks * BLOCK_ROWS, 0x8F, np.uint8)

    def sample(self, counters, *, dt_s=DT_S):
        return self.fold(
            self.state,
            self.previous,
            counters,
            self.flags,
            baseline.constants(dt_s),
            self.out,
        )

    def row(self, name, index=0):
        return self.out[baseline.OUT[name], index]


def counters_of(row_values):
    counters = np.zeros((4, BLOCK_ROWS), np.uint64)
    counters[:, : row_values.shape[1]] = row_values
    return counters


def assert_same(row, twin, *, name):
    if math.isnan(twin):
        assert math.isnan(row), name
    else:
        scale = max(1.0, abs(twin))
        assert abs(row - twin) <= RELATIVE_ERROR * scale, f"{name}: {row} against {twin}"


@FOLDS
def test_baseline_matches_reference_with_gaps_and_resets(fold):
    rng = np.random.default_rng(20261123)
    vms = 3
    fleet, twins = Fleet(fold), [BaselineTwin() for _ in range(vms)]
    totals = np.zeros((4, vms), np.uint64)
    steps = 250 if fold is baseline.fold_counters else 60
    for _ in range(steps):
        growth = rng.integers(0, [[10**9], [10**6], [10**6], [10**5]], (4, vms))
        # Constant values and spikes, so that zero rates and the winsorising are compared too.
        growth = growth * rng.choice([0, 1, 40], (4, vms), p=[0.1, 0.85, 0.05])
        totals += growth.astype(np.uint64)
        if rng.random() < 0.05:
            totals[:, rng.integers(vms)] = 0
        known = rng.random((4, vms)) > 0.05
        same_epoch = rng.random(vms) > 0.03
        fleet.flags[:] = 0x8F
        for vm in range(vms):
            bits = sum(1 << k for k in range(4) if known[k, vm])
            fleet.flags[vm] = bits | (0x80 if same_epoch[vm] else 0)
        fleet.sample(counters_of(totals))
        for vm, twin in enumerate(twins):
            values = [int(totals[k, vm]) if known[k, vm] else None for k in range(4)]
            expected = twin.learn_one(values, same_epoch=bool(same_epoch[vm]), dt_s=DT_S)
            for name, row in baseline.OUT.items():
                # A CUSUM or gate right at its limit may differ in float32.
                if name != "gate":
                    assert_same(fleet.out[row, vm], expected[name], name=name)


@FOLDS
def test_first_sample_has_no_rate(fold):
    fleet = Fleet(fold)
    fleet.sample(np.full((4, BLOCK_ROWS), 7, np.uint64))
    assert np.isnan(fleet.row("cpu_cores"))
    fleet.sample(np.full((4, BLOCK_ROWS), 2_000_000_007, np.uint64))
    assert fleet.row("cpu_cores") == pytest.approx(1.0)


@FOLDS
def test_counter_that_went_back_gives_no_rate_and_moves_nothing(fold):
    fleet = Fleet(fold)
    for k in range(4):
        fleet.sample(np.full((4, BLOCK_ROWS), k * 10**9, np.uint64))
    before = fleet.state.copy()
    fleet.sample(np.zeros((4, BLOCK_ROWS), np.uint64))
    assert np.isnan(fleet.out[: len(baseline.SIGNALS)]).all()
    assert np.array_equal(before, fleet.state)


@FOLDS
def test_missing_signal_is_unknown_for_two_samples_and_never_zero(fold):
    fleet = Fleet(fold)
    for k in range(3):
        fleet.sample(np.full((4, BLOCK_ROWS), k * 10**9, np.uint64))
    fleet.flags[0] = 0x8F & ~0x4
    fleet.sample(np.full((4, BLOCK_ROWS), 3 * 10**9, np.uint64))
    assert np.isnan(fleet.row("disk_wr_bytes_per_s"))
    fleet.flags[0] = 0x8F
    fleet.sample(np.full((4, BLOCK_ROWS), 9 * 10**9, np.uint64))
    # The previous value is unknown, so this one cannot be compared.
    assert np.isnan(fleet.row("disk_wr_bytes_per_s"))
    assert fleet.row("disk_wr_bytes_per_s", index=1) == pytest.approx(3e9)


def test_spike_after_a_quiet_hour_passes_the_gate():
    fleet = Fleet(baseline.fold_counters)
    rng = np.random.default_rng(1)
    total = 0
    for _ in range(1800):
        total += int(rng.normal(4e7, 4e6))
        assert fleet.sample(np.full((4, BLOCK_ROWS), total, np.uint64)) >= 0
    total += 2 * 10**9
    gated = fleet.sample(np.full((4, BLOCK_ROWS), total, np.uint64))
    assert gated == BLOCK_ROWS
    assert fleet.row("z_cpu_cores") > 6


def test_one_signature_is_compiled_for_production_types():
    Fleet(baseline.fold_counters, blocks=2).sample(np.zeros((4, 2 * BLOCK_ROWS), np.uint64))
    assert len(vars(baseline.fold_counters)["overloads"]) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 2), min_size=2, max_size=12))
def test_no_sequence_of_counters_gives_a_negative_rate(values):
    fleet = Fleet(baseline.fold_counters)
    for value in values:
        fleet.sample(np.full((4, BLOCK_ROWS), value, np.uint64))
        rates = fleet.out[: len(baseline.SIGNALS)]
        assert not (rates < 0).any()


def test_rows_do_not_touch_each_other():
    fleet = Fleet(baseline.fold_counters, blocks=2)
    alone = Fleet(baseline.fold_counters, blocks=2)
    rng = np.random.default_rng(5)
    totals = np.zeros((4, 2 * BLOCK_ROWS), np.uint64)
    for _ in range(40):
        totals += rng.integers(0, 10**9, totals.shape).astype(np.uint64)
        other = totals.copy()
        other[:, 1:] //= np.uint64(3)
        fleet.sample(totals)
        alone.sample(other)
        assert np.array_equal(fleet.out[:, 0], alone.out[:, 0], equal_nan=True)

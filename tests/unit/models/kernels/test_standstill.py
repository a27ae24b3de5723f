"""Idle vCPUs: the kernel gives the same results as its twin for one VM at a time."""

import numpy as np
import pytest

from flatline.models.kernels import silence_model, standstill
from flatline.models.kernels.blocks import BLOCK_ROWS
from flatline.models.kernels.standstill import NO_TIME
from tests.reference.standstill_twin import VcpusTwin

VMS = 60
STEP_S = 10.0
STEP_NS = STEP_S * 1e9
IDLE_NS = 0.1 * STEP_NS
SIGN = {
    None: silence_model.UNKNOWN,
    True: silence_model.ALIVE,
    False: silence_model.SILENT,
    "cut short": silence_model.CUT_SHORT,
}


class Kernel:
    """The kernel's state for some rows, updated as in `engine.detection.rates`."""

    def __init__(self, size):
        self.others, self.whole = silence_model.new_state(1), silence_model.new_state(1)
        self.counts = np.zeros(BLOCK_ROWS, np.int64)
        self.times = np.zeros(0, np.uint64)
        self.mover = np.full(BLOCK_ROWS, standstill.NO_MOVER, np.int64)
        self.size = size

    def fold(self, vcpus, judged=None, broken=None, rests=None):
        """Fold one frame; `vcpus` has a list of times for each VM, None for an unknown time."""
        flat = [NO_TIME if time is None else time for times in vcpus for time in times]
        counts = np.array([len(times) for times in vcpus], np.uint16)
        times = np.array(flat, np.uint64)
        judged = np.ones(BLOCK_ROWS, bool) if judged is None else judged
        broken = np.zeros(BLOCK_ROWS, bool) if broken is None else broken.copy()
        rests = np.ones(BLOCK_ROWS, bool) if rests is None else rests
        reported, signs = np.empty((2, BLOCK_ROWS), np.int8), np.empty((2, BLOCK_ROWS), np.int8)
        standstill.fold_vcpus(
            self.counts, self.times, counts, times, judged, broken, rests, IDLE_NS,
            self.others, self.whole, self.mover, reported, signs,
        )  # fmt: skip
        self.counts, self.times = standstill.keep_times(
            self.counts, self.times, counts, times, judged, broken
        )
        hold, out = np.zeros(BLOCK_ROWS, np.uint8), np.zeros((2, BLOCK_ROWS), np.float32)
        silence_model.fold_life(
            self.others, signs[0], hold, np.float32(STEP_S), out, standstill.SHARE
        )
        silence_model.fold_life(
            self.whole, signs[1], hold, np.float32(STEP_S), out, standstill.SHARE
        )
        return reported[:, : self.size], signs[:, : self.size]


def lives(rng):
    """Yield frames of VMs that idle, work, stop, lose values and are replugged."""
    sizes = rng.integers(1, 6, VMS)
    times = [[int(time) for time in rng.integers(0, 10**9, size)] for size in sizes]
    for _ in range(80):
        judged, broken = rng.random(BLOCK_ROWS) > 0.1, rng.random(BLOCK_ROWS) < 0.03
        reported = []
        for index in range(VMS):
            ticks = rng.integers(0, 3, len(times[index])) * (rng.random(len(times[index])) < 0.4)
            busy = (rng.random(len(times[index])) < 0.15) * rng.integers(0, 1000, len(times[index]))
            gains = (ticks + busy) * 10_000_000
            if rng.random() < 0.3:
                gains[rng.permutation(len(gains))[: rng.integers(0, len(gains) + 1)]] = 0
                gains[1:] = 0
            times[index] = [
                time + int(gain) for time, gain in zip(times[index], gains, strict=True)
            ]
            if rng.random() < 0.03:
                times[index] = [*times[index][: rng.integers(0, len(times[index])) + 1], 5]
            if rng.random() < 0.02:
                times[index][0] = 0
            shown = [None if rng.random() < 0.02 else time for time in times[index]]
            reported.append([] if rng.random() < 0.1 else shown)
        yield reported, judged, broken, rng.random(BLOCK_ROWS) < 0.5


@pytest.mark.parametrize("seed", [1, 2])
def test_the_kernel_says_what_its_twin_says(seed):
    kernel = Kernel(VMS)
    twins = [VcpusTwin(idle_ns=IDLE_NS) for _ in range(VMS)]
    seen = set()
    for reported, judged, broken, rests in lives(np.random.default_rng(seed)):
        says, signs = kernel.fold(reported, judged, broken, rests)
        for index, (twin, times) in enumerate(zip(twins, reported, strict=True)):
            stills, lived = twin.learn_one(
                times, judged=judged[index], broken=broken[index], rests=rests[index]
            )
            assert tuple(says[:, index]) == stills
            assert tuple(signs[:, index]) == tuple(SIGN[sign] for sign in lived)
            seen |= {("others", stills[0], lived[0]), ("whole", stills[1], lived[1])}
    assert len(seen) == 10  # each kind of result occurred


TICK = 10_000_000


def runs(kernel):
    return float(kernel.others[0, silence_model.RUN, 0]), float(
        kernel.whole[0, silence_model.RUN, 0]
    )


def test_one_vcpu_that_spins_alone_leaves_the_others_still_and_not_all():
    kernel = Kernel(1)
    for number in range(4):
        kernel.fold([[number * 1000 * TICK, 7 * TICK, 9 * TICK]])
    assert runs(kernel) == (30.0, 0.0)


def test_a_guest_that_computes_on_one_vcpu_and_ticks_on_another_never_stands_still():
    kernel = Kernel(1)
    for number in range(4):
        reported, _ = kernel.fold([[number * 1000 * TICK, number * 7 * TICK]])
    assert runs(kernel) == (0.0, 0.0)
    assert reported[0, 0] == standstill.MOVED


def test_vcpus_that_take_turns_have_both_moved():
    kernel = Kernel(1)
    a, b = 0, 0
    for number in range(6):
        a, b = (a + TICK, b) if number % 2 else (a, b + TICK)
        kernel.fold([[a, b]])
        assert runs(kernel)[0] <= STEP_S


def test_a_vm_that_is_not_reported_for_a_while_is_compared_over_the_sample_gap():
    kernel = Kernel(1)
    for times in ([0, 5], [1000 * TICK, 5], [2000 * TICK, 5], []):
        kernel.fold([times])
    assert runs(kernel)[0] == 20.0  # unknown time is no standstill, and does not end one
    kernel.fold([[4000 * TICK, 5 + TICK]])
    assert runs(kernel)[0] == 0.0


@pytest.mark.parametrize(
    "after", [[1000 * TICK, 5, 5], [1000 * TICK, None], [0, 5], [1000 * TICK]],
    ids=["plugged", "lost", "went_back", "unplugged"],
)  # fmt: skip
def test_vcpus_that_are_not_the_same_as_before_are_unknown_and_end_a_standstill(after):
    kernel = Kernel(1)
    for times in ([1, 5], [1000 * TICK, 5], after):
        reported, _ = kernel.fold([times])
    assert reported[:, 0].tolist() == [standstill.UNKNOWN] * 2
    assert runs(kernel) == (0.0, 0.0)
    assert kernel.others[0, silence_model.LIVE, 0] == 0  # and its end is not learned


def test_busy_vcpus_teach_nothing_of_idle_ones():
    kernel = Kernel(1)
    for number in range(50):
        kernel.fold([[number * 500 * TICK, number * 400 * TICK]])
    assert kernel.others[0, silence_model.LIVE, 0] == 0
    for number in range(50):
        kernel.fold([[10**6 * TICK + number * 3 * TICK, 10**6 * TICK + number * TICK]])
    assert kernel.others[0, silence_model.LIVE, 0] == 49


def test_what_a_working_vm_gives_its_vcpus_teaches_nothing_of_timers():
    kernel, works = Kernel(1), np.zeros(BLOCK_ROWS, bool)
    for number in range(20):  # 1 ‰ of a core each: served requests, or timers
        kernel.fold([[number * TICK, number * TICK]], rests=works)
    assert kernel.others[0, silence_model.LIVE, 0] == 0
    for number in range(20, 40):
        kernel.fold([[number * TICK, number * TICK]])
    assert kernel.others[0, silence_model.LIVE, 0] == 20


def exits(samples, *, rests=True):
    """Return the run, the lives learned and the last result after these (injected, served)."""
    state, _, reported = fold_exits(samples, rests=rests)
    return (
        float(state[0, silence_model.RUN, 0]),
        float(state[0, silence_model.LIVE, 0]),
        int(reported[0]),
    )


def fold_exits(samples, *, rests=True):
    state, before = silence_model.new_state(1), np.full((2, BLOCK_ROWS), NO_TIME, np.uint64)
    hold, out = np.zeros(BLOCK_ROWS, np.uint8), np.zeros((2, BLOCK_ROWS), np.float32)
    for injected, served in samples:
        now = np.array([[NO_TIME if one is None else one] for one in (injected, served)], np.uint64)
        reported, signs = np.empty(BLOCK_ROWS, np.int8), np.empty(BLOCK_ROWS, np.int8)
        judged, broken = np.ones(BLOCK_ROWS, bool), np.zeros(BLOCK_ROWS, bool)
        standstill.fold_exits(
            before, now, judged, broken, np.full(BLOCK_ROWS, rests), state, reported, signs
        )
        silence_model.fold_life(state, signs, hold, np.float32(STEP_S), out, standstill.SHARE)
    return state, out, reported


def test_a_kernel_that_takes_no_interrupt_and_serves_no_io_stands_still():
    assert exits([(5, 5), (9, 9), (9, 9), (9, 9)]) == (20.0, 1.0, standstill.STILL)


def test_interrupts_of_a_vm_that_works_teach_nothing():
    assert exits([(5, 5), (9, 5), (12, 5)], rests=False) == (0.0, 0.0, standstill.MOVED)
    assert exits([(5, 5), (9, 5), (12, 5)]) == (0.0, 2.0, standstill.MOVED)


def test_io_alone_ends_a_standstill_and_teaches_nothing():
    assert exits([(5, 5), (5, 9), (5, 12)]) == (0.0, 0.0, standstill.MOVED)
    assert exits([(5, 5), (5, 5), (5, 9)]) == (0.0, 0.0, standstill.MOVED)


@pytest.mark.parametrize("lost", [(None, 9), (9, None), (None, None)])
def test_counts_that_are_not_reported_are_unknown(lost):
    assert exits([(5, 5), (5, 5), lost]) == (10.0, 0.0, standstill.UNKNOWN)


def test_counts_that_went_back_are_another_qemu():
    assert exits([(5, 5), (5, 5), (1, 1)]) == (0.0, 0.0, standstill.UNKNOWN)


def learned(sign_of, rounds=400):
    """Return the nats of 200 s of a standstill after a life of standstills and their ends."""
    state, out = silence_model.new_state(1), np.zeros((2, BLOCK_ROWS), np.float32)
    hold = np.zeros(BLOCK_ROWS, np.uint8)

    def fold(sign):
        signs = np.full(BLOCK_ROWS, sign, np.int8)
        silence_model.fold_life(state, signs, hold, np.float32(STEP_S), out, standstill.SHARE)

    for _ in range(rounds):
        fold(silence_model.SILENT)
        fold(sign_of(state, 0))
    for _ in range(20):
        fold(silence_model.SILENT)
    return float(out[1, 0])


def test_standstills_that_work_alone_ended_surprise_by_no_length():
    """A tickless guest that sleeps until it works: its vCPUs and its I/O have one cause."""
    sign = standstill._sign_of_move
    assert learned(lambda state, index: sign(state, index, True)) > 6.0
    assert learned(lambda state, index: sign(state, index, False)) < 1.0


def test_counts_of_a_processor_that_delivers_interrupts_itself_surprise_by_no_length():
    served = [(0, 5 * (number // 2)) for number in range(200)]
    state, out, reported = fold_exits([*served, *[served[-1]] * 20])
    assert reported[0] == standstill.STILL
    assert state[0, silence_model.LIVE, 0] == 0
    assert out[1, 0] < 1.0

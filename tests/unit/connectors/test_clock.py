import time

import pytest

from flatline.connectors.clock import LoopClock, ManualClock, SystemClock
from flatline.connectors.simulator.virtual_time import VirtualLoop


def test_system_clock_reports_the_machines_time() -> None:
    clock = SystemClock()
    before_ms, before_ns = time.time_ns() // 1_000_000, time.monotonic_ns()
    assert before_ms <= clock.now_ms() <= time.time_ns() // 1_000_000
    assert before_ns <= clock.mono_ns() <= time.monotonic_ns()


def test_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(now_ms=1_000, mono_ns=5)
    assert (clock.now_ms(), clock.mono_ns()) == (1_000, 5)
    clock.advance(1.5)
    assert (clock.now_ms(), clock.mono_ns()) == (2_500, 1_500_000_005)


def test_a_corrected_wall_clock_leaves_monotonic_time_alone() -> None:
    clock = ManualClock(now_ms=10_000)
    clock.step_wall(-3.0)
    assert (clock.now_ms(), clock.mono_ns()) == (7_000, 0)


def test_manual_clock_refuses_to_let_time_pass_backwards() -> None:
    with pytest.raises(ValueError, match="step_wall"):
        ManualClock().advance(-1.0)


def test_many_small_steps_lose_nothing() -> None:
    clock = ManualClock()
    for _ in range(10_000):
        clock.advance(0.0001)
    assert clock.now_ms() == 1_000


def test_loop_clock_follows_virtual_time() -> None:
    loop = VirtualLoop()
    try:
        clock = LoopClock(epoch_ms=1_700_000_000_000, loop=loop)
        loop.call_later(3600.25, loop.stop)
        loop.run_forever()
        assert clock.now_ms() == 1_700_000_000_000 + 3_600_250
        assert clock.mono_ns() == 3_600_250_000_000
    finally:
        loop.close()

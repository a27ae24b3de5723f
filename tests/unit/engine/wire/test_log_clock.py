"""The engine follows the log's clock, but not its excursions."""

from flatline.engine.wire.log_clock import LogClock

START_MS = 1_790_000_000_000
LIMIT_MS = 20_000


def read(clock: LogClock, at_s: float, tick_s: float | None = None) -> int:
    tick_ms = None if tick_s is None else START_MS + round(1000 * tick_s)
    return clock.read(START_MS + round(1000 * at_s), limit_ms=LIMIT_MS, tick_ms=tick_ms)


def believed_s(clock: LogClock) -> float:
    return (clock.time_ms - START_MS) / 1000


def started() -> LogClock:
    clock = LogClock()
    for second in range(10):
        assert read(clock, second) == 0
    return clock


def test_a_short_excursion_ahead_lets_time_go_on_at_its_pace() -> None:
    clock = started()
    for second in range(20):
        assert read(clock, 3_000 + second) == 0
    assert 20 <= believed_s(clock) <= 30
    assert read(clock, 31) == 0
    assert believed_s(clock) == 31


def test_a_gap_is_believed_with_the_first_tick_or_after_a_minute() -> None:
    clock = started()
    assert read(clock, 600) == 0
    assert read(clock, 601, tick_s=601) > 0
    assert believed_s(clock) == 601
    other = started()
    jumps = [read(other, 600 + second) for second in range(70)]
    assert sum(jump > 0 for jump in jumps) == 1
    assert believed_s(other) == 669


def test_one_writer_whose_clock_is_ahead_moves_nobody_elses_time() -> None:
    clock = started()
    for second in range(10, 300):
        assert read(clock, second) == 0
        assert read(clock, second + 3_000) == 0
    assert believed_s(clock) == 299


def test_a_long_excursion_is_left_behind_within_two_minutes_of_its_end() -> None:
    clock = started()
    for second in range(300):
        read(clock, 3_000 + second)
    assert believed_s(clock) == 3_299
    jumps = [read(clock, 310 + second) for second in range(120)]
    assert sum(jump < -2_000_000 for jump in jumps) == 1
    assert believed_s(clock) == 429


def test_a_clock_that_stands_does_not_stop_the_time_of_who_reads() -> None:
    clock = started()
    for second in range(10, 100):
        read(clock, 9, tick_s=second)
    assert 85 <= believed_s(clock) <= 100

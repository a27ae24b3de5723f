import pytest

from flatline.connectors.kafka.progress import Progress
from flatline.engine.errors import LogError
from flatline.engine.ports import Record


def record(partition: int, offset: int) -> Record:
    return Record("t", partition, offset, 0, b"", b"")


def reading(*, checks: int = 3) -> Progress:
    progress = Progress("engine on frames", checks=checks)
    progress.assign({0, 1})
    progress.start_at({0: 10, 1: 0})
    return progress


def look(progress: Progress, ends: dict[int, int], times: int) -> None:
    for _ in range(times):
        progress.polled(())
        progress.check(ends)


def test_a_partition_that_stands_still_behind_its_end_is_stalled() -> None:
    progress = reading()
    look(progress, {0: 11, 1: 0}, 3)
    with pytest.raises(LogError, match=r"partition 0 stays at offset 10 .* 11.*restarted"):
        look(progress, {0: 11, 1: 0}, 1)


def test_one_record_from_the_partition_starts_the_count_anew() -> None:
    progress = reading()
    for offset in range(10, 20):
        look(progress, {0: 100, 1: 0}, 3)
        progress.polled((record(0, offset),))


def test_a_busy_neighbour_does_not_hide_a_still_partition() -> None:
    progress = reading()
    for offset in range(10, 13):
        progress.polled((record(0, offset),))
        progress.check({0: 100, 1: 5})
    progress.polled((record(0, 13),))
    with pytest.raises(LogError, match="partition 1 stays at offset 0"):
        progress.check({0: 100, 1: 5})


def test_a_reader_that_does_not_ask_is_busy_and_not_stalled() -> None:
    progress = reading()
    for _ in range(100):
        progress.check({0: 11, 1: 0})


def test_a_reader_at_the_end_is_not_stalled() -> None:
    look(reading(), {0: 10, 1: 0}, 100)


def test_where_a_partition_begins_must_be_known_before_it_can_stall() -> None:
    progress = Progress("engine on frames", checks=1)
    progress.assign({0})
    assert progress.unknown == {0}
    look(progress, {0: 50}, 10)
    progress.start_at({0: 50, 7: 3})
    assert progress.unknown == frozenset()
    look(progress, {0: 50}, 10)


def test_what_was_delivered_counts_more_than_where_the_group_began() -> None:
    progress = Progress("engine on frames", checks=1)
    progress.assign({0})
    progress.polled((record(0, 41),))
    progress.start_at({0: 3})
    assert progress.lag({0: 42}) == 0
    assert progress.lag({0: 50}) == 8


def test_a_new_assignment_forgets_the_old_one() -> None:
    progress = reading()
    look(progress, {0: 11, 1: 0}, 3)
    progress.assign({1})
    progress.start_at({1: 0})
    look(progress, {0: 11, 1: 0}, 10)
    assert progress.partitions == {1}

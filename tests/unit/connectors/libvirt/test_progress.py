"""A migration is aborted when its passes do not converge, and not because one of them was slow."""

import pytest

from flatline.connectors.libvirt.progress import PASSES, PATIENCE_S, Progress

MIB = 2**20


def after(*passes: tuple[int, float, int]) -> Progress:
    """Return the progress after passes: number, seconds since the beginning, MiB left."""
    progress = Progress()
    for number, at_s, left_mib in passes:
        progress = progress.seen(
            {
                "memory_iteration": number,
                "memory_remaining": left_mib * MIB,
                "time_elapsed": round(at_s * 1000),
            }
        )
    return progress


def test_passes_that_begin_with_less_each_time_converge_however_long_they_take() -> None:
    passes = [(1, 10.0, 4096), (2, 400.0, 900), (3, 500.0, 300), (4, 540.0, 90)]
    assert not after(*passes).stalled


def test_passes_that_begin_with_as_much_as_before_are_given_up() -> None:
    progress = after((1, 1.0, 96), (2, 12.0, 16), (3, 14.0, 16), (4, 20.0, 15), (5, 33.0, 16))
    assert progress.stalled
    assert progress.sentence == (
        "the migration does not converge: after 33 s, pass 5 over the memory began with 16 MiB "
        "left, while pass 2 had 16 MiB left"
    )


def test_a_burst_of_writes_on_a_fast_network_is_waited_out() -> None:
    passes = [(1, 0.1, 96), *((number, number * 0.3, 20) for number in range(2, 20))]
    assert after(*passes).number - after(*passes).best_number > PASSES
    assert not after(*passes).stalled


def test_one_slow_pass_is_no_reason_to_give_up() -> None:
    assert not after((1, 1.0, 65536), (1, 600.0, 10), (2, 601.0, 65000)).stalled


def test_what_is_left_in_the_middle_of_a_pass_says_nothing() -> None:
    progress = after((1, 1.0, 96), (1, 5.0, 1), (2, 6.0, 40), (3, 40.0, 20), (4, 41.0, 10))
    assert progress.best_number == 4
    assert not progress.stalled


@pytest.mark.parametrize("stats", [{}, {"memory_iteration": 2}, {"memory_remaining": 5}])
def test_a_job_that_reports_nothing_is_neither_better_nor_worse(stats: dict[str, int]) -> None:
    progress = after((1, 1.0, 96))
    assert progress.seen(stats) == progress
    assert PATIENCE_S > 0

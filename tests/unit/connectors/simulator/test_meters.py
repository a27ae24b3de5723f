import numpy as np
import pytest

from flatline.connectors.simulator.meters import READ, ROW, VCPUS, WRITE, Meters

S = 1_000_000_000
EVERYONE = slice(None)


def meters(size: int = 3) -> Meters:
    made = Meters(size, vcpus=2, step_ns=S)
    made.pace.events[WRITE] = 4
    gains = made.pace.gains
    gains[ROW["block_wr_bytes"]] = 4096
    gains[ROW["block_wr_ns"]] = 1000
    gains[ROW["cpu_time_ns"]] = 0.5
    gains[ROW["cpu_user_ns"]] = 0.4
    gains[VCPUS:] = 0.25
    return made


def shown(made: Meters, name: str, at_ns: int, index: int = 0) -> int:
    return int(made.counters(EVERYONE, at_ns)[ROW[name], index])


def test_a_step_completes_its_requests_and_no_part_of_one() -> None:
    made = meters()
    assert [shown(made, "block_wr_reqs", at) for at in (0, S // 4, S // 2, S - 1, S)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert shown(made, "block_wr_bytes", S // 2) == 2 * 4096
    assert shown(made, "block_wr_ns", S // 2) == 2 * 1000
    assert shown(made, "block_rd_reqs", S) == 0


def test_scheduler_ticks_are_shown_in_whole_ones() -> None:
    made = meters()
    assert shown(made, "cpu_time_ns", 37_000_000) == 18_500_000
    assert shown(made, "cpu_user_ns", 37_000_000) == 10_000_000


@pytest.mark.parametrize("indices", [slice(0, 2), np.array([0, 1])], ids=["slice", "indices"])
def test_a_change_in_between_loses_nothing_and_counts_nothing_twice(
    indices: slice | np.ndarray,
) -> None:
    made = meters()
    made.settle(indices, S // 2)
    made.pace.events[WRITE, indices] = 8
    made.pace.gains[ROW["cpu_time_ns"], indices] = 1.0
    assert shown(made, "block_wr_reqs", S) == 2 + 4
    assert shown(made, "cpu_time_ns", S) == 250_000_000 + 500_000_000
    assert shown(made, "block_wr_reqs", S, index=2) == 4


def test_many_settlements_show_what_none_would() -> None:
    often, never = meters(), meters()
    for at in range(0, S, 10_000_000):
        often.settle(EVERYONE, at)
    # Ticks are truncated when shown, not when settled; whole requests may only lag.
    assert shown(often, "cpu_user_ns", S) == shown(never, "cpu_user_ns", S)
    assert shown(often, "block_wr_reqs", S) <= shown(never, "block_wr_reqs", S)


def test_a_restart_begins_at_zero_and_spares_the_others() -> None:
    made = meters()
    made.settle(EVERYONE, S)
    made.restart(np.array([1]), S)
    assert [shown(made, "block_wr_reqs", S, index) for index in range(3)] == [4, 0, 4]
    assert [shown(made, "block_wr_reqs", 2 * S, index) for index in range(3)] == [8, 4, 8]


def test_an_aged_vm_looks_as_if_it_had_always_done_this() -> None:
    made = meters()
    made.age(np.array([0.0, 10.0, 100.0]))
    assert [shown(made, "block_wr_reqs", 0, index) for index in range(3)] == [0, 40, 400]
    assert shown(made, "cpu_time_ns", 0, index=2) == 50 * S


def test_reading_one_node_after_the_other_shows_what_reading_alone_shows() -> None:
    made, alone = meters(), meters()
    for indices in (slice(0, 1), np.array([1]), slice(1, 3)):
        counters, vcpus = made.read(indices, 300_000_000)
        assert np.array_equal(counters, alone.counters(EVERYONE, 300_000_000)[:, indices])
        assert vcpus.tolist() == [[75e6] * counters.shape[1]] * 2


def test_reading_again_after_a_change_shows_the_change() -> None:
    made = meters()
    for _ in range(3):
        made.read(EVERYONE, S)
    made.restart(np.array([0]), S)
    counters, vcpus = made.read(EVERYONE, S)
    assert counters[ROW["block_wr_reqs"]].tolist() == [0, 4, 4]
    assert vcpus[0].tolist() == [0.0, 0.25 * S, 0.25 * S]


def test_reads_and_writes_are_counted_apart() -> None:
    made = meters()
    made.pace.events[READ] = 1
    made.pace.gains[ROW["block_rd_bytes"]] = 512
    assert shown(made, "block_rd_bytes", S) == 512
    assert shown(made, "block_wr_bytes", S) == 4 * 4096

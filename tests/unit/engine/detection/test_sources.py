"""The order of frames: each source's sequence decides, and every frame is counted once."""

from itertools import permutations

import pytest

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.sources import (
    Arrival,
    Counters,
    Source,
    forget_ended,
    order,
    release,
)
from flatline.engine.wire.frame import Frame, Header, VmRows

CONFIGURATION = Configuration()


class Reader:
    """A partition's handling of frames, without folding them."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.counters = Counters()
        self.folded: list[int] = []

    def read(self, sequence: int, *, time_ms: int = 0, run: str = "run") -> None:
        frame = Frame(
            header=Header(
                site="site",
                zone="zone",
                cell="cell",
                node="node",
                role="collector",
                run=run,
                sequence=sequence,
                event_time_ns=0,
                mono_ns=0,
                interval_ms=1000,
            ),
            rows=VmRows.empty(),
        )
        self.counters.received += 1
        if order(self.sources, Arrival(frame, str(sequence).encode(), time_ms), self.counters):
            self.counters.processed += 1
            self.folded.append(sequence)
        self.wait_until(time_ms)

    def wait_until(self, time_ms: int) -> None:
        for source in self.sources.values():
            for waiting in release(
                source, self.counters, time_ms=time_ms, configuration=CONFIGURATION
            ):
                self.counters.processed += 1
                self.folded.append(waiting.sequence)

    def waiting(self) -> int:
        return sum(len(source.waiting) for source in self.sources.values())


@pytest.mark.parametrize("arrived", list(permutations(range(4))))
def test_shuffled_frames_are_folded_in_their_order(arrived: tuple[int, ...]) -> None:
    reader = Reader()
    for sequence in arrived:
        reader.read(sequence)
    assert reader.folded == [0, 1, 2, 3]
    assert reader.counters.balanced(0)


def test_a_frame_waits_for_its_gap_thirty_seconds_and_no_longer() -> None:
    reader = Reader()
    reader.read(0)
    reader.read(2, time_ms=1_000)
    reader.wait_until(30_999)
    assert reader.folded == [0]
    assert reader.counters.balanced(reader.waiting())
    reader.wait_until(31_000)
    assert reader.folded == [0, 2]


def test_a_frame_whose_gap_was_given_up_is_late_and_counted_once() -> None:
    reader = Reader()
    reader.read(0)
    reader.read(2, time_ms=1_000)
    reader.wait_until(31_000)
    reader.read(1, time_ms=31_500)
    reader.read(1, time_ms=31_600)
    assert reader.folded == [0, 2]
    assert (reader.counters.late, reader.counters.duplicate) == (1, 1)
    assert reader.counters.missing == 1
    assert reader.counters.balanced(0)


def test_a_repeated_frame_is_a_duplicate_whether_folded_or_waiting() -> None:
    reader = Reader()
    for sequence in (0, 0, 2, 2):
        reader.read(sequence)
    assert reader.counters.duplicate == 2
    assert reader.waiting() == 1
    assert reader.counters.balanced(1)


def test_how_many_frames_wait_is_bounded() -> None:
    reader = Reader()
    reader.read(0)
    for sequence in range(2, 200):
        reader.read(sequence)
    assert reader.waiting() <= CONFIGURATION.reorder_frames
    assert reader.counters.balanced(reader.waiting())


def test_a_source_joined_in_the_middle_waits_for_nothing() -> None:
    reader = Reader()
    reader.read(5_000)
    reader.read(4_999)
    assert reader.folded == [5_000]
    assert reader.counters.late == 1


def test_another_run_is_another_source() -> None:
    reader = Reader()
    reader.read(0)
    reader.read(0, run="next")
    assert reader.folded == [0, 0]


def test_a_run_that_was_followed_is_forgotten_but_not_while_frames_of_it_wait() -> None:
    reader = Reader()
    reader.read(0)
    reader.read(1, run="second")
    reader.read(0, time_ms=1, run="third")
    # Its last state is old, so time distinguishes its frames from new ones.
    marks = {"cell\x00node\x00collector": 700_000}
    forget_ended(reader.sources, marks, time_ms=700_000, configuration=CONFIGURATION)
    assert [key.rpartition("\x00")[2] for key in reader.sources] == ["second", "third"]


def test_a_run_that_was_quiet_for_a_week_goes_on_where_it_was() -> None:
    reader = Reader()
    week_ms = 7 * 86_400_000
    reader.read(0)
    reader.read(1)
    marks = {"cell\x00node\x00collector": week_ms}
    forget_ended(reader.sources, marks, time_ms=week_ms, configuration=CONFIGURATION)
    reader.read(2, time_ms=week_ms)
    assert reader.folded == [0, 1, 2]
    assert reader.counters.balanced(0)

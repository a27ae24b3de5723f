from collections import Counter

from benchmarks.disturbed import Disturbance, disturb
from benchmarks.same_ids import Told, row_of
from flatline.engine.ports import RecordedFrame
from flatline.engine.wire.frame import decode_frame
from tests.unit.engine.detection.frames_by_hand import cell


def moments() -> list[RecordedFrame]:
    bench, _ = cell(2, nodes=2)
    bench.run(1000.0)
    return [RecordedFrame(r.time_ms, decode_frame(r.value), 0, r.value) for r in bench.records]


def is_of_a_collector(one: RecordedFrame) -> bool:
    return one.frame is not None and one.frame.header.role != "shell"


def of_collectors(found: list[RecordedFrame]) -> list[RecordedFrame]:
    return [one for one in found if is_of_a_collector(one)]


def ticks(found: list[RecordedFrame]) -> list[tuple[int, bytes]]:
    return [(one.time_ms, one.value) for one in found if not is_of_a_collector(one)]


def test_a_network_loses_doubles_and_delays_frames_and_leaves_the_shells_ticks() -> None:
    fair = moments()
    foul = list(disturb(fair, Disturbance(lost=0.05, doubled=0.1, late_s=30.0), seed=1))
    times = [one.time_ms for one in foul]
    assert times == sorted(times)
    left = {one.value: one.time_ms for one in of_collectors(fair)}
    assert all(0 <= one.time_ms - left[one.value] <= 30_000 for one in of_collectors(foul))
    came = Counter(one.value for one in of_collectors(foul))
    assert 0.02 < 1 - len(came) / len(left) < 0.08
    assert 0.06 < sum(count == 2 for count in came.values()) / len(left) < 0.14
    assert ticks(fair)
    assert ticks(foul) == ticks(fair)


def test_a_loss_alone_shifts_no_other_frame() -> None:
    fair = moments()
    late = {one.value: one.time_ms for one in disturb(fair, Disturbance(late_s=30.0), seed=1)}
    both = disturb(fair, Disturbance(lost=0.2, late_s=30.0), seed=1)
    assert all(late[one.value] == one.time_ms for one in both)


def told(name: str, *, subject: str = "vm", onset_ms: int = 0) -> Told:
    return Told(
        id=name, scope="vm", subject=subject, kind="panic", onset_ms=onset_ms, node="", sequence=0
    )


def test_an_id_that_another_took_the_place_of_is_moved_and_not_gone() -> None:
    clean = [(1, told("a")), (1, told("b", subject="other")), (2, told("c")), (3, told("d"))]
    disturbed = [(1, told("a")), (1, told("e", subject="other")), (2, told("f", onset_ms=10**6))]
    row = row_of("all", clean, disturbed)
    assert row == {
        "alerts": "all",
        "ids": 4,
        "kept": 1,
        "share": 0.25,
        "moved": 1,
        "gone": 2,
        "new": 2,
    }

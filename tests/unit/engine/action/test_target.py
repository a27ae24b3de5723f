from collections.abc import Mapping

import pytest

from flatline.engine.action.catalogue import Limits
from flatline.engine.action.target import (
    MAX_CELLS,
    CellLoad,
    Mover,
    choose_target,
    has_room,
    with_load,
)
from tests.unit.engine.action.samples import NOW_MS

LIMITS = Limits(target_load_max_ratio=0.7, target_margin_ratio=0.15)


def choose(nodes: dict[str, float], *, age_ms: int = 0, avoid: frozenset[str] = frozenset()) -> str:
    choice = choose_target(
        CellLoad(NOW_MS - age_ms, nodes),
        cell="c0",
        source="n0",
        mover=Mover("vm"),
        limits=LIMITS,
        now_ms=NOW_MS,
        avoid=avoid,
    )
    assert (choice.target is None) == bool(choice.sentence)
    return choice.target or choice.rule


def test_the_least_loaded_other_node_is_chosen() -> None:
    assert choose({"n0": 0.9, "n1": 0.5, "n2": 0.3, "n3": 0.4}) == "n2"


def test_a_tie_goes_to_the_first_name() -> None:
    assert choose({"n0": 0.9, "n2": 0.3, "n1": 0.3}) == "n1"


@pytest.mark.parametrize(
    ("nodes", "rule"),
    [
        ({"n0": 0.9, "n1": 0.71}, "no_target_node"),
        ({"n0": 0.4, "n1": 0.26}, "no_target_node"),
        ({"n0": 0.9}, "no_target_node"),
        ({"n0": 0.9, "n1": float("nan")}, "no_target_node"),
        ({"n1": 0.1}, "no_source_load"),
        ({"n0": float("nan"), "n1": 0.1}, "no_source_load"),
    ],
)
def test_no_node_is_chosen_without_room_or_margin(nodes: dict[str, float], rule: str) -> None:
    assert choose(nodes) == rule


def test_a_node_that_people_work_on_is_avoided() -> None:
    assert choose({"n0": 0.9, "n1": 0.1, "n2": 0.2}, avoid=frozenset({"n1"})) == "n2"


def test_an_old_picture_chooses_nothing() -> None:
    assert choose({"n0": 0.9, "n1": 0.1}, age_ms=300_001) == "no_load"
    unseen = choose_target(
        None, cell="c0", source="n0", mover=Mover("vm"), limits=LIMITS, now_ms=NOW_MS
    )
    assert unseen.rule == "no_load"


@pytest.mark.parametrize("age_ms", [300_001, -5_001])
def test_a_minute_that_is_long_past_or_still_to_come_chooses_no_target(age_ms: int) -> None:
    assert choose({"n0": 0.9, "n1": 0.1}, age_ms=age_ms) == "no_load"


def told(*minutes_ms: int) -> CellLoad | None:
    loads: Mapping[str, CellLoad] = {}
    for place, minute_ms in enumerate(minutes_ms):
        loads = with_load(loads, "c0", CellLoad(minute_ms, {"n0": float(place)}), now_ms=NOW_MS)
    return loads.get("c0")


def test_a_copy_of_an_older_minute_does_not_replace_a_newer_one() -> None:
    known = told(NOW_MS - 60_000, NOW_MS - 120_000)
    assert known is not None
    assert known.minute_ms == NOW_MS - 60_000
    # A state that the log dated ahead is dropped.
    known = told(NOW_MS + 3_600_000, NOW_MS)
    assert known is not None
    assert known.minute_ms == NOW_MS
    assert told(NOW_MS - 7_200_000) is not None
    assert told(NOW_MS - 7_200_001) is None


def test_of_cells_beyond_the_bound_the_newest_wait_for_those_that_are_no_longer_reported() -> None:
    load = CellLoad(NOW_MS, {})
    full = {f"c{number}": load for number in range(MAX_CELLS)}
    assert has_room(full, "c7", now_ms=NOW_MS)
    assert not has_room(full, "new", now_ms=NOW_MS)
    assert with_load(full, "new", load, now_ms=NOW_MS) == full
    assert with_load(full, "c7", CellLoad(NOW_MS + 1, {}), now_ms=NOW_MS)["c7"] != load
    later_ms = NOW_MS + 7_200_001
    assert has_room(full, "new", now_ms=later_ms)
    assert list(with_load(full, "new", CellLoad(later_ms, {}), now_ms=later_ms)) == ["new"]

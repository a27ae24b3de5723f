import pytest

from engine.action.catalogue import Limits
from engine.action.target import CellLoad, Mover, choose_target
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

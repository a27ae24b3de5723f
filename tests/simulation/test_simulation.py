"""A small share of `make simulate`, and proof that violations would be detected."""

from collections.abc import Iterator
from typing import Any

import pytest

from flatline.engine.action.admit import Admission
from flatline.engine.action.preflight import Verdict
from flatline.engine.roles import act
from tests.simulation.invariants import Family, Result
from tests.simulation.seeded_run import ADVERSITIES, play
from tests.simulation.simulate import Sum, simulate

# One seed and its twin take 0.06 s (a storm 0.2 s): half a minute on two cores in all.
SEEDS: dict[Family, int] = {"mixed": 160, "storm": 40, "blackout": 20, "race": 200}


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEDS)
def test_no_seed_breaks_an_invariant_and_the_same_seeds_are_repaired(family: Family) -> None:
    total = simulate(family, first=0, seeds=SEEDS[family], workers=2, total=Sum())
    assert not total.failing
    assert total.repair_ratio() >= 0.95
    if family == "mixed":
        # Every declared fault occurred.
        assert set(total.adversities) == set(ADVERSITIES)
        assert {point.rpartition(", ")[0] for point in total.crashes} >= {
            "ledger", "reset", "append flatline.orders.v1", "append flatline.journal.v1",
        }  # fmt: skip
        assert set(total.outcomes) >= {
            "returned", "refused", "unknown", "expired", "not_attempted",
        }  # fmt: skip
    if family == "blackout":
        assert total.actions == 0


def test_a_seed_played_again_gives_the_same() -> None:
    for seed in range(3):
        assert play(seed, "mixed") == play(seed, "mixed")


def _played(family: Family, seeds: int) -> Iterator[Result]:
    for seed in range(seeds):
        yield play(seed, family)


def test_a_naive_actuator_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It executes every order, without a preflight check or admission."""

    def agrees(*_: Any, **__: Any) -> Verdict:
        return Verdict(True, "agreed", "Whatever.")

    def admits(*_: Any, **__: Any) -> Admission:
        return Admission(True, "admitted", "Whatever.")

    monkeypatch.setattr(act, "judge", agrees)
    monkeypatch.setattr(act, "admit", admits)
    monkeypatch.setattr("flatline.engine.action.ordering.admit", admits)
    found = {breach.split(" at ")[0] for one in _played("mixed", 25) for breach in one.breaches}
    assert any(breach.startswith("reset of a guest that is alive") for breach in found)
    assert any("actions of cell" in breach for breach in found)
    assert any("after its pause was read" in breach for breach in found)
    stormy = {breach for one in _played("storm", 3) for breach in one.breaches}
    assert any("actions of the site in 10 min" in breach for breach in stormy)

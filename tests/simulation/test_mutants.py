"""A few mutants of `make mutants`, and a check that each still has its guard."""

from pathlib import Path

import pytest

from tests import mutants
from tests.guards import MUTANTS, check

# One of each kind: a limit, a control command, the preflight check, the agent's last check, the
# storm.
FEW = (
    "admit without duplicate",
    "admit without words",
    "look without stands_still",
    "the agent does not ask once more before the call",
    "there is no storm breaker",
    "the naive actuator: the look always agrees",
)


def test_every_mutant_still_removes_something() -> None:
    assert not check()
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_guard_that_is_removed_is_missed_by_a_test(name: str, tmp_path: Path) -> None:
    (mutant,) = (one for one in MUTANTS if one.name == name)
    assert mutants.killer(mutant, mutants.tree(tmp_path))

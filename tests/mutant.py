"""A guard's mutant, and the tests that should fail with it."""

from collections.abc import Sequence
from typing import Final, NamedTuple

# The quick ones first: if a unit test covers the guard, this takes a second.
UNIT: Final = ("tests/unit/engine/action",)
ROLES: Final = (
    "tests/simulation/test_hostile.py",
    "tests/simulation/test_actuation.py",
    "tests/simulation/test_actuation_faults.py",
    "tests/unit/engine/roles/test_act.py",
    "tests/unit/engine/roles/test_act_memory.py",
)


class Mutant(NamedTuple):
    """The source without one guard: `old` in `file` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    suites: Sequence[str] = UNIT

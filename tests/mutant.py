"""What a guard's mutant is, and which tests are asked."""

from collections.abc import Sequence
from typing import Final, NamedTuple

# The quick ones first: a guard that a unit test holds costs a second.
UNIT: Final = ("tests/unit/engine/action",)
ROLES: Final = (
    "tests/simulation/test_hostile.py",
    "tests/simulation/test_actuation.py",
    "tests/simulation/test_actuation_faults.py",
    "tests/unit/engine/roles/test_act.py",
    "tests/unit/engine/roles/test_act_memory.py",
)


class Mutant(NamedTuple):
    """One guard less: `old` in `file` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    suites: Sequence[str] = UNIT

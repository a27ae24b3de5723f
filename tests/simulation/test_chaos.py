"""A short form of `python -m tests.simulation.chaos`."""

import pytest

from tests.simulation.chaos import failures


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 6, 318])
def test_ordinary_trouble_ends_no_role_and_a_restored_state_goes_on(seed: int) -> None:
    assert failures(seed, seconds=600.0) == []

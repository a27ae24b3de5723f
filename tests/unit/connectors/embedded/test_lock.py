import pytest

from connectors.embedded.lock import held_on_this_machine
from engine.errors import AlreadyRunning


def test_a_name_is_held_by_one_and_free_again_afterwards() -> None:
    with held_on_this_machine("test", what="agent of the test"):
        with (
            pytest.raises(AlreadyRunning, match="agent of the test already"),
            held_on_this_machine("test", what="agent of the test"),
        ):
            raise AssertionError("two hold it")
        with held_on_this_machine("another", what="agent of another"):
            pass
    with held_on_this_machine("test", what="agent of the test"):
        pass

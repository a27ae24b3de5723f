from pathlib import Path

import pytest

from flatline.connectors.embedded.lock import held_on_this_machine
from flatline.engine.errors import AlreadyRunning


def test_a_name_is_held_by_one_and_free_again_afterwards(tmp_path: Path) -> None:
    def held(name: str, folder: str = "a"):
        return held_on_this_machine(name, what=f"agent of {name}", folder=tmp_path / folder)

    with held("test"):
        with pytest.raises(AlreadyRunning, match="already is the agent of test"), held("test"):
            raise AssertionError("two hold it")
        with (
            pytest.raises(AlreadyRunning, match="already is the agent of test"),
            held("test", folder="b"),
        ):
            raise AssertionError("two hold it in two folders")
        with held("another"):
            pass
    with held("test"):
        pass


class Elsewhere:
    """A socket in a separate network namespace: every name is free there."""

    def bind(self, _address: str) -> None: ...
    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_error: object) -> None: ...


def test_a_name_is_held_by_one_in_all_network_namespaces_that_share_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket", lambda *_family: Elsewhere())
    with held_on_this_machine("test", what="agent of test", folder=tmp_path):
        with (
            pytest.raises(AlreadyRunning, match=r"^process \d+ already is the agent of test"),
            held_on_this_machine("test", what="agent of test", folder=tmp_path),
        ):
            raise AssertionError("two hold it")
        with held_on_this_machine("test", what="agent of test", folder=tmp_path / "other"):
            pass

"""Sources of keys, and the keys that are trusted."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.keys import public_key_pem
from flatline.engine.errors import SettingsError, StateUnwritable
from flatline.engine.keyring import own_key, trusted_keys
from flatline.engine.wire.order import key_id


def test_a_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first, second = own_key(folder, "planner"), own_key(folder, "planner")
    assert key_id(first.public_key()) == key_id(second.public_key())
    assert (folder / "planner.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["planner.key", "planner.pub"]


def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    own_key(tmp_path, "agent")
    (tmp_path / "agent.key").chmod(0o640)
    with pytest.raises(SettingsError, match=r"chmod 600 .*agent\.key"):
        own_key(tmp_path, "agent")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnwritable, match=r"set keys\.folder or state\.folder"):
        own_key(tmp_path / "file" / "keys", "planner")


def test_own_keys_count_only_where_both_roles_share_them(tmp_path: Path) -> None:
    nothing = trusted_keys(tmp_path / "trusted", own=tmp_path / "keys")
    assert not nothing.planners
    assert not (tmp_path / "keys").exists()
    planner, agent = own_key(tmp_path, "planner"), own_key(tmp_path, "agent")
    shared = trusted_keys(tmp_path / "trusted", own=tmp_path)
    assert set(shared.planners) == {key_id(planner.public_key())}
    assert set(shared.agents) == {key_id(agent.public_key())}
    alone = trusted_keys(tmp_path / "trusted", own=None)
    assert not alone.planners
    assert not alone.agents


def test_public_keys_are_trusted_for_the_role_in_their_name(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "agent-n1.pub").write_bytes(public_key_pem(key))
    keys = trusted_keys(tmp_path, own=None)
    assert set(keys.agents) == {key_id(key)}
    assert not keys.planners


def test_an_agent_s_key_is_bound_to_the_node_in_its_file_s_name(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    for node in ("n1.example.com", "n-2"):
        (tmp_path / f"agent-{node}.pub").write_bytes(public_key_pem(key))
    assert trusted_keys(tmp_path, own=None).nodes == {key_id(key): {"n1.example.com", "n-2"}}


@pytest.mark.parametrize("name", ["node7", "agent", "agent-", "agents-n1"])
def test_a_public_key_whose_name_says_no_role_or_node_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.pub").write_bytes(b"")
    with pytest.raises(
        SettingsError, match=rf"{name}\.pub has an invalid name. Rename it to planner-NAME\.pub"
    ):
        trusted_keys(tmp_path, own=None)

"""Who may write what says whose word counts, when keys end, and what is read again."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connectors.clock import ManualClock
from engine.action.keys import parse_public_key, public_key_pem
from engine.errors import SettingsError
from engine.key_files import labels_of, until_ms_of, with_end
from engine.keyring import WatchedKeys, trusted_keys
from engine.revoked import revoke
from engine.wire.order import key_id

NOW_MS = 1_790_000_000_000


def put(folder: Path, name: str, *, text: str = "") -> str:
    key = Ed25519PrivateKey.generate().public_key()
    (folder / name).write_text(text + public_key_pem(key).decode())
    (folder / name).chmod(0o644)
    return key_id(key)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_of_trusted_keys_that_others_may_write_is_refused(
    tmp_path: Path, mode: int
) -> None:
    put(tmp_path, "planner-p.pub")
    tmp_path.chmod(mode)
    with pytest.raises(SettingsError, match=r"The folder .* other users may write it: chmod go-w"):
        trusted_keys(tmp_path, own=None)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_trusted_key_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    put(tmp_path, "planner-p.pub")
    (tmp_path / "planner-p.pub").chmod(mode)
    with pytest.raises(SettingsError, match=r"The file .*planner-p\.pub says whose word counts"):
        trusted_keys(tmp_path, own=None)


def test_a_trusted_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "planner-p.pub")
    owner = tmp_path.stat().st_uid
    if owner == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(SettingsError, match="belongs to user"):
        trusted_keys(tmp_path, own=None)


def test_a_key_that_comes_or_goes_counts_within_a_second_without_a_restart(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=NOW_MS)
    first = put(tmp_path, "operator-ann.pub")
    watched = WatchedKeys(tmp_path, own=None, clock=clock)
    second = put(tmp_path, "operator-bob.pub")
    (tmp_path / "operator-ann.pub").unlink()
    clock.advance(0.9)
    assert set(watched.current().operators) == {first}
    clock.advance(0.2)
    assert set(watched.current().operators) == {second}
    assert watched.current().names == {second: "bob"}


def test_a_key_on_the_list_of_revoked_ones_ends_within_a_second_though_its_file_does_not_say_so(
    tmp_path: Path,
) -> None:
    clock, folder, keys = ManualClock(now_ms=NOW_MS), tmp_path / "trusted", tmp_path / "keys"
    folder.mkdir()
    keys.mkdir()
    name, other = put(folder, "operator-ann.pub"), put(folder, "agent-n1.pub")
    watched = WatchedKeys(folder, own=None, clock=clock, keys=keys)
    assert watched.current().until_ms == {}
    revoke(keys, what=f"key/{name}", now_ms=NOW_MS)
    revoke(keys, what=f"key/{name}", now_ms=NOW_MS + 5)
    revoke(keys, what=other, now_ms=NOW_MS)
    clock.advance(1.1)
    assert watched.current().until_ms == {name: NOW_MS, other: 0}


def test_a_folder_that_becomes_writable_for_others_adds_no_key_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock(now_ms=NOW_MS)
    first = put(tmp_path, "planner-p.pub")
    watched = WatchedKeys(tmp_path, own=None, clock=clock)
    tmp_path.chmod(0o777)
    put(tmp_path, "planner-q.pub")
    clock.advance(2.0)
    assert set(watched.current().planners) == {first}
    assert "those read before stay in force" in capsys.readouterr().out
    tmp_path.chmod(0o755)
    clock.advance(2.0)
    assert len(watched.current().planners) == 2


def test_a_folder_is_not_read_again_while_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(now_ms=NOW_MS)
    put(tmp_path, "planner-p.pub")
    watched = WatchedKeys(tmp_path, own=None, clock=clock)
    before = watched.current()
    clock.advance(3600.0)
    assert watched.current() is before


def test_a_key_ends_when_the_line_above_it_says_so(tmp_path: Path) -> None:
    text = "Not-After: 2027-01-15T08:00:00Z\n"
    name = put(tmp_path, "engine-e.pub", text=text)
    assert trusted_keys(tmp_path, own=None).until_ms == {name: 1_800_000_000_000}
    later = with_end((tmp_path / "engine-e.pub").read_text(), 1_800_000_001_000)
    (tmp_path / "engine-e.pub").write_text(later)
    assert trusted_keys(tmp_path, own=None).until_ms == {name: 1_800_000_001_000}
    assert parse_public_key(later.encode(), source="x") is not None


@pytest.mark.parametrize("text", ["tomorrow", "2027-13-01", ""])
def test_an_end_that_is_no_date_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, "engine-e.pub", text=f"Not-After: {text}\n")
    with pytest.raises(SettingsError, match=r"engine-e\.pub: Not-After: .* is no date"):
        trusted_keys(tmp_path, own=None)


def test_a_date_without_a_zone_is_utc() -> None:
    labels = labels_of("Not-After: 2027-01-15 08:00\n-----BEGIN X-----\nNot-After: 1970-01-01\n")
    assert until_ms_of(labels, source="x") == 1_800_000_000_000

"""Write permission on key files, the end of keys, and their reloading."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flatline.connectors.clock import ManualClock
from flatline.engine.action.keys import parse_public_key, public_key_pem
from flatline.engine.errors import SettingsError
from flatline.engine.key_files import Damaged, WatchedFolder, labels_of, until_ms_of, with_end
from flatline.engine.keyring import WatchedKeys, trusted_keys
from flatline.engine.revoked import revoke
from flatline.engine.wire.order import key_id

NOW_MS = 1_790_000_000_000
OTHER_KIND = (
    Ed448PrivateKey.generate()
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
# An elliptic curve by its number, 1.2.3.4, which no library has.
UNKNOWN_CURVE = b"""-----BEGIN PUBLIC KEY-----
MBQwDgYHKoZIzj0CAQYDKgMEAwIABA==
-----END PUBLIC KEY-----
"""


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
    with pytest.raises(SettingsError, match=r"The folder .* other users may write it.*chmod go-w"):
        trusted_keys(tmp_path, own=None)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_trusted_key_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    put(tmp_path, "planner-p.pub")
    (tmp_path / "planner-p.pub").chmod(mode)
    with pytest.raises(
        SettingsError, match=r"The file .*planner-p\.pub decides which records are trusted"
    ):
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
    said = capsys.readouterr().out
    assert "other users may write it" in said
    assert "planner-q.pub appeared or changed while other users may write there" in said
    # A key removed there is invalid, and one put in its place does not count.
    put(tmp_path, "planner-p.pub")
    clock.advance(2.0)
    assert not watched.current().planners
    tmp_path.chmod(0o755)
    clock.advance(2.0)
    assert len(watched.current().planners) == 2


DAMAGES = {
    "cut short": b"-----BEGIN PUBLIC KEY-----\nMCow",
    "no text": bytes(range(256)),
    "empty": b"",
    "a date that is none": b"Not-After: tomorrow\n",
    "another kind of key": OTHER_KIND,
    "a curve that nobody knows": UNKNOWN_CURVE,
}


@pytest.mark.parametrize("text", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_named_and_drops_its_own_key_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    clock, folder, keys = ManualClock(now_ms=NOW_MS), tmp_path / "trusted", tmp_path / "keys"
    folder.mkdir()
    keys.mkdir()
    ann, ben = put(folder, "operator-ann.pub"), put(folder, "operator-ben.pub")
    cleo, dan = put(folder, "operator-cleo.pub"), put(folder, "operator-dan.pub")
    watched = WatchedKeys(folder, own=None, clock=clock, keys=keys)
    (folder / "operator-ann.pub").write_bytes(text)
    (folder / "operator-ben.pub").unlink()
    revoke(keys, what=f"key/{cleo}", now_ms=NOW_MS)
    eve = put(folder, "operator-eve.pub")
    clock.advance(1.1)
    now = watched.current()
    assert set(now.operators) == {cleo, dan, eve}
    assert now.until_ms == {cleo: NOW_MS}
    assert "operator-ann.pub" in capsys.readouterr().out
    assert {ann, ben}.isdisjoint(now.names)


def test_a_key_of_which_one_file_is_damaged_does_not_count_by_another(tmp_path: Path) -> None:
    """The damaged file may have contained its end."""
    clock = ManualClock(now_ms=NOW_MS)
    put(tmp_path, "operator-ann.pub")
    text = (tmp_path / "operator-ann.pub").read_text()
    (tmp_path / "operator-copy.pub").write_text(text)
    (tmp_path / "operator-ann.pub").write_text(with_end(text, NOW_MS))
    watched = WatchedKeys(tmp_path, own=None, clock=clock)
    (tmp_path / "operator-ann.pub").write_text("")
    clock.advance(1.1)
    assert not watched.current().operators
    (tmp_path / "operator-ann.pub").unlink()
    clock.advance(1.1)
    assert len(watched.current().operators) == 1


def test_a_list_of_revoked_keys_counts_line_by_line_and_forgets_nothing_while_it_is_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, folder, keys = ManualClock(now_ms=NOW_MS), tmp_path / "trusted", tmp_path / "keys"
    folder.mkdir()
    keys.mkdir()
    ann, ben = put(folder, "operator-ann.pub"), put(folder, "operator-ben.pub")
    revoke(keys, what=f"key/{ann}", now_ms=NOW_MS)
    watched = WatchedKeys(folder, own=None, clock=clock, keys=keys)
    for text in (b"", b"\xff\xfe key\n", b"key/x " + b"9" * 5000, b"key/x\n"):
        (keys / "revoked").write_bytes(text + f"\nkey/{ben} {NOW_MS + 1}\n".encode())
        clock.advance(1.1)
        assert watched.current().until_ms == {ann: NOW_MS, ben: NOW_MS + 1}
    assert "revoked, line 1" in capsys.readouterr().out
    (keys / "revoked").chmod(0o666)
    clock.advance(1.1)
    assert watched.current().until_ms == {ann: NOW_MS, ben: NOW_MS + 1}


def test_an_own_key_that_is_damaged_later_leaves_the_others_and_the_list_in_force(
    tmp_path: Path,
) -> None:
    clock, folder, keys = ManualClock(now_ms=NOW_MS), tmp_path / "trusted", tmp_path / "keys"
    folder.mkdir()
    ann = put(folder, "operator-ann.pub")
    watched = WatchedKeys(folder, own=keys, clock=clock, keys=keys)
    assert len(watched.current().planners) == 1
    (keys / "planner.key").write_text("")
    revoke(keys, what=f"key/{ann}", now_ms=NOW_MS)
    clock.advance(1.1)
    now = watched.current()
    assert (len(now.planners), len(now.agents)) == (0, 1)
    assert now.until_ms == {ann: NOW_MS}


def test_what_changes_during_the_first_reading_is_read_again(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=NOW_MS)
    path = tmp_path / "file"
    path.write_text("old")

    def read(_: Damaged) -> str:
        text = path.read_text()
        if text == "old":
            path.write_text("newer")
        return text

    watched = WatchedFolder(tmp_path, read, mono_ns=clock.mono_ns)
    assert watched.current() == "old"
    clock.advance(1.1)
    assert watched.current() == "newer"


def test_a_link_to_nothing_hides_no_change_of_other_files(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=NOW_MS)
    put(tmp_path, "operator-ann.pub")
    watched = WatchedKeys(tmp_path, own=None, clock=clock)
    (tmp_path / "operator-zoe.pub").symlink_to(tmp_path / "nowhere")
    clock.advance(1.1)
    assert len(watched.current().operators) == 1
    (tmp_path / "operator-ann.pub").unlink()
    clock.advance(1.1)
    assert not watched.current().operators


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
    with pytest.raises(SettingsError, match=r"engine-e\.pub: Not-After: .* is not a date"):
        trusted_keys(tmp_path, own=None)


def test_a_date_without_a_zone_is_utc() -> None:
    labels = labels_of("Not-After: 2027-01-15 08:00\n-----BEGIN X-----\nNot-After: 1970-01-01\n")
    assert until_ms_of(labels, source="x") == 1_800_000_000_000

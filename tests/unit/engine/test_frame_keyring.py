"""Frame keys on disk: creation, verification, and rotation."""

from pathlib import Path

import pytest

from flatline.connectors.clock import ManualClock
from flatline.engine.errors import KeyDamaged, RecordRejected, SettingsError
from flatline.engine.frame_keyring import (
    FrameKeyring,
    make_name,
    make_site_key,
    name_key_path,
    newest_site_key,
    read_name_key,
    read_site_keys,
    site_key_path,
    write_name_key,
    write_site_key,
)
from flatline.engine.revoked import read_revoked, revoke
from flatline.engine.wire.frame_mac import FrameKeys, KeyName, SiteKey, made_ms

NOW_MS = 1_790_000_000_000


def clock() -> ManualClock:
    return ManualClock(now_ms=NOW_MS)


def later(clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)


def writer(keys: FrameKeys, headers: tuple[tuple[str, bytes], ...], time_ms: int) -> KeyName | None:
    return keys.writer(b"frame", record_key=b"c", headers=headers, time_ms=time_ms)


def test_a_site_of_one_machine_needs_no_setup(tmp_path: Path) -> None:
    ring = FrameKeyring(tmp_path / "keys", clock(), making=True)
    sign, keys = ring.signer("node", "n1"), ring.reader()
    name = writer(keys(), sign(b"c", b"frame"), NOW_MS)
    assert name is not None
    assert (name.kind, name.name) == ("node", "n1")
    (path,) = (tmp_path / "keys").glob("site-*.key")
    assert path.stat().st_mode & 0o777 == 0o600
    # A second start finds the same one.
    again = FrameKeyring(tmp_path / "keys", clock(), making=True).signer("node", "n1")
    assert writer(keys(), again(b"c", b"frame"), NOW_MS) is not None


def test_elsewhere_a_start_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    ring = FrameKeyring(tmp_path, clock())
    with pytest.raises(SettingsError, match=r"flatline keys create node n1.*keys\.frames"):
        ring.signer("node", "n1")
    with pytest.raises(SettingsError, match=r"no site key in .*flatline keys create site"):
        ring.reader()


def test_during_an_upgrade_frames_go_out_and_in_without_one(tmp_path: Path) -> None:
    ring = FrameKeyring(tmp_path, clock(), requiring=False)
    assert ring.signer("node", "n1")(b"c", b"frame") == ()
    assert writer(ring.reader()(), (), NOW_MS) is None


def test_a_node_signs_with_the_file_that_was_made_for_it(tmp_path: Path) -> None:
    site, node = tmp_path / "site", tmp_path / "node"
    site_key = make_site_key(site, now_ms=NOW_MS)
    name = make_name("node", "n1", site_key=site_key, now_ms=NOW_MS)
    write_name_key(name_key_path(node, "node", "n1"), name, read_site_keys(site)[site_key])
    sign = FrameKeyring(node, clock()).signer("node", "n1")
    assert writer(FrameKeyring(site, clock()).reader()(), sign(b"c", b"frame"), NOW_MS) == name
    assert name_key_path(node, "node", "n1").stat().st_mode & 0o777 == 0o600
    assert read_name_key(name_key_path(node, "node", "n1"))[0] == name


def test_the_file_of_another_node_is_refused(tmp_path: Path) -> None:
    site_key = make_site_key(tmp_path / "site", now_ms=NOW_MS)
    secret = read_site_keys(tmp_path / "site")[site_key]
    name = make_name("node", "n2", site_key=site_key, now_ms=NOW_MS)
    write_name_key(name_key_path(tmp_path, "node", "n1"), name, secret)
    with pytest.raises(KeyDamaged, match="is the key of node n2"):
        FrameKeyring(tmp_path, clock()).signer("node", "n1")


@pytest.mark.parametrize("text", ["", "nonsense", "Key-Id: x\n-----BEGIN FLATLINE FRAME KEY-----"])
def test_a_damaged_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = site_key_path(tmp_path, "0" * 16)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyDamaged, match=r"site-0000000000000000\.key is not a frame key"):
        read_site_keys(tmp_path)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = site_key_path(tmp_path, make_site_key(tmp_path, now_ms=NOW_MS))
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_site_keys(tmp_path)


def test_a_folder_of_keys_that_others_may_write_is_refused(tmp_path: Path) -> None:
    make_site_key(tmp_path, now_ms=NOW_MS)
    tmp_path.chmod(0o770)
    with pytest.raises(SettingsError, match="other users may write it"):
        FrameKeyring(tmp_path, clock()).reader()


def test_writers_take_a_new_site_key_when_every_reader_has_seen_it() -> None:
    old, new = "0" * 11 + "1" + "0000", "0" * 8 + "ffff" + "0000"
    keys = {old: SiteKey(bytes(32)), new: SiteKey(bytes(32))}
    assert newest_site_key(keys, now_ms=made_ms(new) + 9_999) == old
    assert newest_site_key(keys, now_ms=made_ms(new) + 10_000) == new
    assert newest_site_key({new: SiteKey(bytes(32))}, now_ms=made_ms(new)) == new
    ended = {old: SiteKey(bytes(32)), new: SiteKey(bytes(32), until_ms=1)}
    assert newest_site_key(ended, now_ms=made_ms(new) + 10_000) == old
    assert newest_site_key({}, now_ms=0) is None


def test_no_frame_is_refused_while_site_keys_are_rotated(tmp_path: Path) -> None:
    """Writers and readers check the folder at different times; a frame every tenth of a second."""
    folder, writing, reading = tmp_path, clock(), clock()
    old = make_site_key(folder, now_ms=NOW_MS - 60_000)
    sign = FrameKeyring(folder, writing).signer("node", "n1")
    keys = FrameKeyring(folder, reading).reader()
    used: list[str] = []
    for step in range(400):
        if step == 100:
            make_site_key(folder, now_ms=writing.now_ms())
        headers = sign(b"c", b"frame")
        # The reader is a second behind, and its own clock counts.
        name = writer(keys(), headers, reading.now_ms())
        assert name is not None
        used.append(name.site_key)
        writing.advance(0.1)
        if step > 10:
            reading.advance(0.1)
    assert used[0] == old
    assert used[-1] != old
    assert len(set(used)) == 2


def test_what_was_revoked_counts_no_more_within_a_second(tmp_path: Path) -> None:
    time = clock()
    site_key = make_site_key(tmp_path, now_ms=NOW_MS)
    ring = FrameKeyring(tmp_path, time)
    sign, other, keys = ring.signer("node", "n1"), ring.signer("node", "n2"), ring.reader()
    headers = sign(b"c", b"frame")
    revoke(tmp_path, what="node/n1", now_ms=NOW_MS)
    time.advance(1.0)
    with pytest.raises(RecordRejected, match="is revoked"):
        writer(keys(), headers, NOW_MS)
    assert writer(keys(), other(b"c", b"frame"), NOW_MS) is not None
    revoke(tmp_path, what=site_key, now_ms=NOW_MS)
    time.advance(1.0)
    with pytest.raises(RecordRejected, match="is revoked"):
        writer(keys(), other(b"c", b"frame"), NOW_MS)
    assert read_revoked(tmp_path).names == {"node/n1": NOW_MS}


def test_a_list_of_revoked_keys_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "revoked").write_text("0123456789abcdef\nwhat is this\n")
    with pytest.raises(SettingsError, match=r"revoked, line 2: 'what is this'"):
        read_revoked(tmp_path)


def test_the_end_of_a_site_key_survives_its_file(tmp_path: Path) -> None:
    key_id = make_site_key(tmp_path, now_ms=NOW_MS)
    key = read_site_keys(tmp_path)[key_id]
    write_site_key(tmp_path, key_id, SiteKey(key.secret, until_ms=NOW_MS))
    assert read_site_keys(tmp_path)[key_id] == SiteKey(key.secret, until_ms=NOW_MS)


def test_a_half_written_site_key_is_named_and_hides_neither_other_keys_nor_the_revoked_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time = clock()
    make_site_key(tmp_path, now_ms=NOW_MS - 60_000)
    ring = FrameKeyring(tmp_path, time)
    sign, other, keys = ring.signer("node", "n1"), ring.signer("node", "n2"), ring.reader()
    headers, others = sign(b"c", b"frame"), other(b"c", b"frame")
    newer = make_site_key(tmp_path, now_ms=NOW_MS)
    path = site_key_path(tmp_path, newer)
    path.write_text(path.read_text()[:60])
    revoke(tmp_path, what="node/n1", now_ms=NOW_MS)
    time.advance(1.1)
    with pytest.raises(RecordRejected, match="is revoked"):
        writer(keys(), headers, NOW_MS)
    assert writer(keys(), others, NOW_MS) is not None
    assert path.name in capsys.readouterr().out


def test_without_a_site_key_that_can_be_read_no_frame_is_believed_and_the_reader_goes_on(
    tmp_path: Path,
) -> None:
    time = clock()
    path = site_key_path(tmp_path, make_site_key(tmp_path, now_ms=NOW_MS - 60_000))
    ring = FrameKeyring(tmp_path, time)
    sign, keys = ring.signer("node", "n1"), ring.reader()
    headers, whole = sign(b"c", b"frame"), path.read_text()
    path.write_text(whole[:60])
    time.advance(1.1)
    with pytest.raises(RecordRejected, match="which this machine does not have"):
        writer(keys(), headers, NOW_MS)
    # A signer continues with its old key, and is accepted as soon as the file is complete.
    assert sign(b"c", b"frame")
    path.write_text(whole)
    time.advance(1.1)
    assert writer(keys(), sign(b"c", b"frame"), NOW_MS) is not None

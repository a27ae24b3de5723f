"""Keys from the command line: made, shown, rotated, revoked and exported, never printed."""

import re
from pathlib import Path

import pytest

from connectors.clock import SystemClock
from engine.errors import RecordRejected
from engine.frame_keyring import FrameKeyring, read_site_keys
from engine.keyring import own_key, trusted_keys
from engine.wire.frame_mac import KeyName
from engine.wire.order import key_id
from tests.unit.engine.cli.conftest import Flatline


def secrets_in(folder: Path) -> set[str]:
    """Return every line of key material below a folder."""
    lines = {
        line
        for path in folder.rglob("*.key")
        for line in path.read_text().splitlines()
        if re.fullmatch(r"[A-Za-z0-9+/]{40,}={0,2}", line)
    }
    assert lines
    return lines


def verified(site: Path, headers: tuple[tuple[str, bytes], ...]) -> KeyName | None:
    keys = FrameKeyring(site, SystemClock()).reader()()
    now_ms = SystemClock().now_ms()
    return keys.writer(b"frame", record_key=b"c", headers=headers, time_ms=now_ms)


def signed(folder: Path, name: str) -> tuple[tuple[str, bytes], ...]:
    return FrameKeyring(folder, SystemClock()).signer("node", name)(b"c", b"frame")


def test_one_engine_machine_and_two_nodes(flatline: Flatline, state: Path, tmp_path: Path) -> None:
    """The steps of the runbook."""
    site = state / "keys"
    assert flatline("keys", "create", "site").code == 0
    nodes = {}
    for name in ("n1", "n2"):
        folder = nodes[name] = tmp_path / name
        said = flatline("keys", "create", "node", name, "--out", str(folder / f"node-{name}.key"))
        assert said.code == 0
        assert (folder / f"node-{name}.key").stat().st_mode & 0o777 == 0o600
    before = {name: signed(folder, name) for name, folder in nodes.items()}
    for name, headers in before.items():
        found = verified(site, headers)
        assert found is not None
        assert found.name == name
    # A node is compromised: its key counts no more, until it gets another.
    assert flatline("keys", "revoke", "node", "n1").code == 0
    with pytest.raises(RecordRejected, match=r"key .* of node n1 is revoked"):
        verified(site, before["n1"])
    assert verified(site, before["n2"]) is not None
    flatline("keys", "create", "node", "n1", "--out", str(nodes["n1"] / "node-n1.key"))
    assert verified(site, signed(nodes["n1"], "n1")) is not None


def test_rotating_the_site_key_keeps_the_older_one_for_a_while(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "site")
    (old,) = read_site_keys(state / "keys")
    headers = signed(state / "keys", "n1")
    said = flatline("keys", "rotate", "--overlap-days", "1")
    assert said.code == 0
    found = read_site_keys(state / "keys")
    assert len(found) == 2
    assert found[old].until_ms is not None
    assert verified(state / "keys", headers) is not None
    assert flatline("keys", "revoke", old).code == 0
    with pytest.raises(RecordRejected, match="is revoked"):
        verified(state / "keys", headers)


def test_no_private_key_is_ever_printed(flatline: Flatline, state: Path, tmp_path: Path) -> None:
    said = [
        flatline("keys", "create", "site"),
        flatline("keys", "create", "node", "n1"),
        flatline("keys", "create", "owner", "portal", "--days", "30"),
        *(flatline("keys", "create", kind, "x") for kind in ("planner", "agent", "engine")),
        flatline("keys", "create", "operator", "ann", "--days", "365"),
        flatline("keys", "export", "node", "n1", str(tmp_path / "carried")),
        flatline("keys", "rotate"),
        flatline("keys", "show"),
    ]
    assert [one.code for one in said] == [0] * len(said)
    printed = "".join(one.out + one.err for one in said)
    for secret in secrets_in(state):
        assert secret not in printed
    assert (tmp_path / "carried").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "carried").read_text() == (state / "keys" / "node-n1.key").read_text()
    shown = said[-1].out
    for word in ("portal", "n1", "accepted", "signs", "never"):
        assert word in shown


def test_an_operator_s_key_is_made_to_be_copied_and_ends_when_it_is_revoked(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "operator", "ann", "--days", "1")
    public = state / "keys" / "operator-ann.pub"
    trusted = state / "trusted"
    trusted.mkdir(mode=0o755)
    (trusted / public.name).write_bytes(public.read_bytes())
    name = key_id(own_key(state / "keys", "operator").public_key())
    before = trusted_keys(trusted, own=None)
    assert before.names == {name: "ann"}
    assert flatline("keys", "revoke", name).code == 0
    after = trusted_keys(trusted, own=None)
    assert after.until_ms[name] <= SystemClock().now_ms() < before.until_ms[name]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("create", "node", "n1"), "has no site key, from which others are derived"),
        (("create", "nonsense"), "is no kind of key"),
        (("create", "operator"), "Whose key of kind operator"),
        (("create", "operator", "../x"), "Whose key of kind operator"),
        (("rotate",), "has no site key to be rotated"),
        (("revoke", "nobody"), "There is no trusted key of nobody"),
        (("export", "node", "n1", "f"), "is not there"),
        (("export", "planner", "p", "f"), "cannot be exported"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_cure(
    flatline: Flatline, words: tuple[str, ...], told: str
) -> None:
    said = flatline("keys", *words)
    assert said.code == 2
    assert told in " ".join(said.err.split())


def test_a_second_site_key_and_an_export_over_a_file_are_refused(
    flatline: Flatline, state: Path, tmp_path: Path
) -> None:
    flatline("keys", "create", "site")
    again = flatline("keys", "create", "site")
    assert (again.code, "flatline keys rotate" in again.err) == (2, True)
    (key,) = read_site_keys(state / "keys")
    (tmp_path / "there").write_text("precious")
    over = flatline("keys", "export", "site", key, str(tmp_path / "there"))
    assert (over.code, (tmp_path / "there").read_text()) == (2, "precious")

"""Keys from the command line: created, shown, rotated, revoked and exported, never printed."""

import re
from pathlib import Path

import pytest

from flatline.connectors.clock import SystemClock
from flatline.engine.errors import RecordRejected
from flatline.engine.frame_keyring import FrameKeyring, read_site_keys
from flatline.engine.key_files import with_end
from flatline.engine.keyring import own_key, trusted_keys
from flatline.engine.revoked import read_revoked
from flatline.engine.settings import load_settings
from flatline.engine.wire.frame_mac import KeyName
from flatline.engine.wire.order import key_id
from flatline.engine.wiring import trusted_now
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


def trust(state: Path, name: str) -> Path:
    """Copy a public key of this machine to its trusted folder, as an operator does."""
    folder = state / "trusted"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / name).write_bytes((state / "keys" / name).read_bytes())
    return folder


def own_id(state: Path) -> str:
    return key_id(own_key(state / "keys", "operator").public_key())


def signed(folder: Path, name: str) -> tuple[tuple[str, bytes], ...]:
    return FrameKeyring(folder, SystemClock()).signer("node", name)(b"c", b"frame")


def test_one_engine_machine_and_two_nodes(flatline: Flatline, state: Path, tmp_path: Path) -> None:
    """The steps of the runbook."""
    site = state / "keys"
    assert flatline("keys", "create", "site").code == 0
    nodes = {}
    for name in ("n1", "n2"):
        folder = nodes[name] = tmp_path / name
        folder.mkdir()
        said = flatline("keys", "create", "node", name, "--out", str(folder / f"node-{name}.key"))
        assert said.code == 0
        assert (folder / f"node-{name}.key").stat().st_mode & 0o777 == 0o600
    before = {name: signed(folder, name) for name, folder in nodes.items()}
    for name, headers in before.items():
        found = verified(site, headers)
        assert found is not None
        assert found.name == name
    # A node is compromised: its key is invalid until it gets another.
    assert flatline("keys", "revoke", "node", "n1").code == 0
    with pytest.raises(RecordRejected, match=r"key .* of node n1 is revoked"):
        verified(site, before["n1"])
    assert verified(site, before["n2"]) is not None
    again = ("keys", "create", "node", "n1", "--out", str(nodes["n1"] / "node-n1.key"))
    assert flatline(*again).code == 2
    (nodes["n1"] / "node-n1.key").unlink()
    assert flatline(*again).code == 0
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
    for words in ("portal", "n1", "accepted", "signs", "never"):
        assert words in shown


def test_an_operator_s_key_is_made_to_be_copied_and_ends_when_it_is_revoked(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "operator", "ann", "--days", "1")
    trusted = trust(state, "operator-ann.pub")
    name = key_id(own_key(state / "keys", "operator").public_key())
    before = trusted_keys(trusted, own=None)
    assert before.names == {name: "ann"}
    assert flatline("keys", "revoke", name).code == 0
    after = trusted_keys(trusted, own=None)
    assert after.until_ms[name] <= SystemClock().now_ms() < before.until_ms[name]


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("create", "node", "n1"), "has no site key, from which other keys are derived"),
        (("create", "nonsense"), "is not a kind of key"),
        (("create", "operator"), "A key of kind operator requires a name"),
        (("create", "operator", "../x"), "A key of kind operator requires a name"),
        (("rotate",), "has no site key to rotate"),
        (("revoke", "nobody"), "There is no trusted key of nobody"),
        (("export", "node", "n1", "f"), "does not exist"),
        (("export", "planner", "p", "f"), "cannot be exported"),
        (("create", "engine", "e", "--out", "f"), "A key of kind engine stays in"),
        (("create", "site", "--out", "f"), "A key of kind site stays in"),
    ],
)
def test_what_cannot_be_done_is_reported_with_the_cure(
    flatline: Flatline, words: tuple[str, ...], reported: str
) -> None:
    said = flatline("keys", *words)
    assert said.code == 2
    assert reported in " ".join(said.err.split())


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


def test_a_revoked_operator_gets_another_key_and_a_copy_of_the_old_one_stays_dead(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "operator", "ann")
    trusted = trust(state, "operator-ann.pub")
    old, copy = own_id(state), (trusted / "operator-ann.pub").read_bytes()
    assert flatline("keys", "revoke", "operator", "ann").code == 0
    assert re.search(r"operator +\S* +\S+ .* ended", flatline("keys", "show").out)
    (trusted / "operator-ann.pub").write_bytes(copy)
    settings = load_settings()[0]
    assert trusted_now(settings).until_ms[old] <= SystemClock().now_ms()
    assert re.search(r"operator +\S* *ann .* revoked", flatline("keys", "show").out)
    said = flatline("keys", "create", "operator", "ann")
    assert said.code == 0
    assert f"The former key {old} has expired" in said.out
    new = own_id(state)
    assert new != old
    assert flatline("keys", "create", "operator", "ann").code == 0
    assert own_id(state) == new
    trust(state, "operator-ann.pub")
    believed = trusted_now(settings)
    assert believed.names[new] == "ann"
    assert new not in believed.until_ms


def test_a_key_whose_days_are_over_is_replaced(flatline: Flatline, state: Path) -> None:
    flatline("keys", "create", "operator", "ann", "--days", "1")
    public, old = state / "keys" / "operator-ann.pub", own_id(state)
    public.write_text(with_end(public.read_text(), SystemClock().now_ms() - 1000))
    assert flatline("keys", "create", "operator", "ann").code == 0
    assert own_id(state) != old


def test_a_key_has_one_name(flatline: Flatline, state: Path) -> None:
    flatline("keys", "create", "operator", "ann")
    said = flatline("keys", "create", "operator", "zed")
    reported = " ".join(said.err.split())
    assert said.code == 2
    assert f"The operator key {own_id(state)} of this machine belongs to ann" in reported
    assert "--set keys.folder=FOLDER" in reported
    assert not (state / "keys" / "operator-zed.pub").exists()


def test_a_signer_is_revoked_by_its_id_where_its_file_is_not_trusted_yet(
    flatline: Flatline, state: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    flatline("keys", "create", "operator", "ann", "--set", f"keys.folder={elsewhere}")
    name = key_id(own_key(elsewhere, "operator").public_key())
    said = flatline("keys", "revoke", name)
    assert said.code == 0
    assert "records signed by it are rejected" in " ".join(said.out.split())
    (state / "trusted").mkdir(mode=0o755)
    file = state / "trusted" / "operator-ann.pub"
    file.write_bytes((elsewhere / file.name).read_bytes())
    now_ms = SystemClock().now_ms()
    until_ms = trusted_now(load_settings()[0]).until_ms[name]
    assert now_ms - 600_000 < until_ms <= now_ms


def test_a_key_that_ended_before_does_not_live_until_it_is_revoked(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "operator", "ann")
    file = trust(state, "operator-ann.pub") / "operator-ann.pub"
    file.write_text(with_end(file.read_text(), 1_790_000_000_000))
    assert flatline("keys", "revoke", "operator", "ann").code == 0
    assert "Not-After: 2026-09-21T14:13:20Z" in file.read_text()


def test_an_engine_that_is_revoked_loses_its_signature_and_its_frames(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "engine", "e1")
    trust(state, "engine-e1.pub")
    assert flatline("keys", "revoke", "engine", "e1").code == 0
    assert "engine/e1" in read_revoked(state / "keys").names


def test_a_private_key_is_not_written_where_it_cannot_be_and_the_place_is_named(
    flatline: Flatline, state: Path, tmp_path: Path
) -> None:
    flatline("keys", "create", "site")
    (key,) = read_site_keys(state / "keys")
    place = str(tmp_path / "no" / "dir" / "f")
    for words in (("export", "site", key, place), ("create", "node", "n1", "--out", place)):
        said = flatline("keys", *words)
        assert said.code == 5
        assert f"{place} cannot be written" in " ".join(said.err.split())


def test_a_rotation_names_what_is_made_again_and_warns_where_nothing_overlaps(
    flatline: Flatline, state: Path
) -> None:
    flatline("keys", "create", "site")
    (site,) = read_site_keys(state / "keys")
    flatline("keys", "create", "owner", "portal")
    flatline("keys", "create", "node", "n1")
    assert f"under {site}" in flatline("keys", "show").out
    reported = " ".join(flatline("keys", "rotate").out.split())
    assert "flatline keys create owner NAME" in reported
    assert "again: node n1, owner portal" in reported
    reported = " ".join(flatline("keys", "rotate", "--overlap-days", "0").out.split())
    assert "are rejected from now on" in reported

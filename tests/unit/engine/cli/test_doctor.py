"""The doctor's findings and its advice."""

import asyncio
import getpass
import os
import re
import sys
from pathlib import Path

import msgspec
import pytest

from flatline.connectors.clock import SystemClock
from flatline.engine.cli.doctor import Check, examine
from flatline.engine.faults import of_family
from flatline.engine.frame_keyring import make_site_key, read_site_keys, write_site_key
from flatline.engine.keyring import SIGNERS, own_key
from flatline.engine.settings import load_settings
from flatline.engine.wire.alert import encode_alert
from flatline.engine.wire.frame_mac import SiteKey
from flatline.engine.wire.rejected import encode_rejected
from flatline.engine.wire.topics import ALERTS, REJECTED
from flatline.engine.wiring import open_log, process
from tests.unit.engine.action.samples import alert
from tests.unit.engine.cli.conftest import Flatline
from tests.unit.engine.cli.test_app import VM

FAR_AHEAD_S = 4_000_000_000


def checks(**flags: str) -> dict[str, Check]:
    async def all_checks() -> dict[str, Check]:
        settings, _ = load_settings(flags={k.replace("__", "."): v for k, v in flags.items()})
        return {check.part: check async for check in examine(settings)}

    return asyncio.run(all_checks())


@pytest.fixture(autouse=True)
def _no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    # The result must not depend on the rights of the user who runs the tests.
    monkeypatch.setattr("flatline.connectors.probe.prober.may_probe", lambda: "")


@pytest.mark.usefixtures("flatline")
def test_a_new_installation_on_one_machine_is_well() -> None:
    found = checks()
    assert {part: check.finding for part, check in found.items()} == {
        "state folder": "OK",
        "clock": "OK",
        "policy": "OK",
        "keys": "OK",
        "frame keys": "OK",
        "engine's libraries": "OK",
        "probe": "OK",
        "log": "OK",
        "log's clock": "OK",
        "pauses": "OK",
        "witnesses": "OK",
        "sources": "OK",
        "rejected": "OK",
        "libvirt": "WARN",
    }
    assert "allows no action" in found["policy"].sentence
    assert "pip install 'flatline[libvirt]'" in found["libvirt"].sentence


@pytest.mark.usefixtures("flatline")
def test_a_state_folder_that_cannot_be_written_is_ill_and_the_rest_is_still_examined(
    state: Path,
) -> None:
    state.write_text("")
    found = checks()
    assert found["state folder"].finding == "FAIL"
    assert str(state) in found["state folder"].sentence
    assert "state.folder" in found["state folder"].sentence
    assert found["policy"].finding == "OK"


@pytest.mark.usefixtures("flatline")
def test_a_missing_right_to_probe_is_noted_with_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "flatline.connectors.probe.prober.may_probe",
        lambda: "the capability CAP_NET_RAW is missing",
    )
    check = checks()["probe"]
    assert check.finding == "WARN"
    assert check.sentence.startswith(
        "Guests are not probed for signs of life: the capability CAP_NET_RAW is"
    )
    assert "flatline-agent.service" in check.sentence


@pytest.mark.usefixtures("flatline")
def test_a_clock_behind_what_was_written_is_reported(state: Path) -> None:
    state.mkdir()
    (state / "ledger").write_text("")
    os.utime(state / "ledger", (FAR_AHEAD_S, FAR_AHEAD_S))
    check = checks()["clock"]
    assert check.finding == "FAIL"
    assert "it was set back" in check.sentence


@pytest.mark.usefixtures("flatline")
def test_an_absent_broker_and_missing_keys_are_reported_with_the_cure(state: Path) -> None:
    found = checks(log__kind="kafka", log__kafka__bootstrap="127.0.0.1:1")
    assert "127.0.0.1:1 is unavailable" in found["log"].sentence
    assert "pauses" not in found
    named = f"{state}/trusted as planner-NAME.pub and agent-NODE.pub and engine-NAME.pub"
    assert named in found["keys"].sentence
    assert "flatline keys create node" in found["frame keys"].sentence


@pytest.mark.usefixtures("flatline")
def test_frames_that_anybody_may_write_and_keys_that_end_soon_are_reported(state: Path) -> None:
    kafka = {"log__kind": "kafka", "log__kafka__bootstrap": "127.0.0.1:1"}
    accepting = checks(**kafka, keys__frames="accept")["frame keys"]
    assert accepting.finding == "WARN"
    assert "anyone who may write the topic can send frames for any node" in accepting.sentence
    now_ms = SystemClock().now_ms()
    key = make_site_key(state / "keys", now_ms=now_ms)
    assert checks(**kafka)["frame keys"].finding == "OK"
    secret = read_site_keys(state / "keys")[key].secret
    write_site_key(state / "keys", key, SiteKey(secret, until_ms=now_ms + 86_400_000))
    assert "flatline keys rotate" in checks(**kafka)["frame keys"].sentence


@pytest.mark.usefixtures("flatline")
def test_a_key_that_is_trusted_under_another_node_s_name_is_reported(state: Path) -> None:
    kafka = {"log__kind": "kafka", "log__kafka__bootstrap": "127.0.0.1:1", "site__node": "n1"}
    for signer in SIGNERS:
        own_key(state / "keys", signer)
    (state / "trusted").mkdir()
    for signer, name in (("planner", "p"), ("engine", "e"), ("agent", "n2")):
        public = (state / "keys" / f"{signer}.pub").read_bytes()
        (state / "trusted" / f"{signer}-{name}.pub").write_bytes(public)
    check = checks(**kafka)["keys"]
    assert check.finding == "FAIL"
    assert "trusted for n2" in check.sentence
    assert "agent-n1.pub" in check.sentence
    (state / "trusted" / "agent-n2.pub").rename(state / "trusted" / "agent-n1.pub")
    assert checks(**kafka)["keys"].finding == "OK"


@pytest.mark.usefixtures("flatline")
@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_the_doctor_makes_no_key(state: Path, kind: str) -> None:
    checks(log__kind=kind, log__kafka__bootstrap="127.0.0.1:1")
    assert not (state / "keys").exists()


@pytest.mark.usefixtures("flatline")
def test_a_policy_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("version = 2\n")
    check = checks(policy__file=str(tmp_path / "policy.toml"))["policy"]
    assert check.finding == "FAIL"
    assert "policy.toml" in check.sentence


def test_what_no_machine_may_touch_is_reported_with_who_said_so_and_how_it_ends(
    flatline: Flatline,
) -> None:
    flatline("pause", "on", "cell:c1", "--reason", "storage work", "--minutes", "5")
    flatline("event", "maintenance", VM)
    flatline("pause", "on", "site", "--reason", "audit")
    flatline("approve", "a" * 32, "--reason", "an approval stops nothing")
    check = checks()["pauses"]
    assert check.finding == "WARN"
    site, cell, vm = check.sentence.split("; ")
    me = getpass.getuser()
    assert (
        site == f"Actions are paused on site until `flatline pause off site` (pause by {me}: audit)"
    )
    assert re.fullmatch(rf"cell:c1 until 20\S+\+00:00 \(pause by {me}: storage work\)", cell)
    assert f"(maintenance by {me}: owner_maintenance)." in vm
    flatline("pause", "off", "site")
    assert "site" not in checks()["pauses"].sentence


def test_of_many_stops_the_widest_are_shown_and_the_others_counted(flatline: Flatline) -> None:
    for number in range(6):
        flatline("pause", "on", f"tenant:t{number}", "--reason", "r")
    flatline("pause", "on", "zone:z1", "--reason", "r")
    reported = checks()["pauses"].sentence
    assert reported.startswith("Actions are paused on zone:z1 until")
    assert reported.endswith("; and 2 more: `flatline pause show` lists all.")


def appended(topic: str, value: bytes) -> None:
    """Append a record to the log of this machine."""

    async def append() -> None:
        settings, _ = load_settings(flags={})
        async with open_log(process(settings)) as log:
            await log.append(topic, key=b"c0", value=value)

    asyncio.run(append())


@pytest.mark.usefixtures("flatline")
@pytest.mark.parametrize("kind", sorted(of_family("notice")))
def test_clocks_that_step_rival_sources_and_skipped_records_are_reported_until_they_end(
    kind: str,
) -> None:
    checks()  # creates the topics
    reported = alert(kind=kind, scope="host", subject="n7", sentence="Node n7 is two nodes.")
    appended(ALERTS.name, encode_alert(reported)[0])
    check = checks()["sources"]
    assert (check.finding, check.sentence) == ("WARN", f"{kind}: Node n7 is two nodes.")
    ended = msgspec.structs.replace(reported, state="resolved", transition=reported.transition + 1)
    appended(ALERTS.name, encode_alert(ended)[0])
    assert checks()["sources"].finding == "OK"


@pytest.mark.usefixtures("flatline")
def test_records_that_were_set_aside_are_counted_by_reason_with_the_last_one() -> None:
    checks()
    for offset, reason in ((3, "poison"), (4, "replayed"), (9, "poison")):
        value = encode_rejected(
            b"x", topic="frames", partition=2, offset=offset, reason=reason, detail="why"
        )
        appended(REJECTED.name, value)
    appended(REJECTED.name, b"no record of ours")
    check = checks()["rejected"]
    assert check.finding == "WARN"
    assert "2 poison (last: frames/2 at 9: why)" in check.sentence
    assert "1 replayed (last: frames/2 at 4: why)" in check.sentence
    assert "deploy/RUNBOOK.md" in check.sentence


def test_the_exit_code_says_whether_anything_is_ill(flatline: Flatline, state: Path) -> None:
    assert flatline("doctor").code == 0
    said = flatline("doctor", "--set", f"policy.file={state}/gone.toml")
    assert said.code == 1
    assert "gone.toml" in said.out

"""Commands and their output."""

import asyncio
import json
import os
import re
import sqlite3
from importlib import metadata
from pathlib import Path
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator

from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.embedded.lock import held_in
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.action.admit import admit
from flatline.engine.action.catalogue import SHIPPED, parse_policy, read_shipped
from flatline.engine.action.chain import Head, extend
from flatline.engine.action.storm import Trouble, storm_pause
from flatline.engine.wire.control import Control, decode_control, encode_control
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.journal import encode_entry
from flatline.engine.wire.topics import CONTROL, FRAMES, JOURNAL
from tests.unit.engine.action.samples import NOW_MS, POLICY, order, past
from tests.unit.engine.cli.conftest import Flatline, append

VM = "6f0c9a1e-8a77-4c6f-9c4e-1a2b3c4d5e6f"
MAKE_LOG = ("pause", "on", "vm:" + VM, "--reason", "a test")
NOBODY = ("--set", "log.kind=kafka", "--set", "log.kafka.bootstrap=127.0.0.1:1")


@pytest.mark.parametrize("name", ["frame", "alert", "order", "journal", "control"])
def test_the_schema_of_every_record_is_a_schema(flatline: Flatline, name: str) -> None:
    Draft202012Validator.check_schema(json.loads(flatline("config", "schema", name).out))


def test_a_schema_of_nothing_is_refused_with_those_there_are(flatline: Flatline) -> None:
    said = flatline("config", "schema", "frames")
    assert said.code == 2
    assert "'frames' has no schema. Known names: settings, frame, alert" in said.err


def test_settings_are_shown_with_secrets_masked(flatline: Flatline) -> None:
    said = flatline("config", "show", "--set", "log.kafka.password=open sesame")
    assert said.code == 0
    assert json.loads(said.out)["log"]["kafka"]["password"] == "**********"
    assert "sesame" not in said.out


def test_the_schema_of_settings_is_a_schema(flatline: Flatline) -> None:
    said = flatline("config", "schema")
    Draft202012Validator.check_schema(json.loads(said.out))
    assert "10 s finds a dead guest" in said.out


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("--set", "log.knd=kafka"), "unknown setting 'log.knd'. Did you mean log.kind?"),
        (("--set", "collect.interval_s=soon"), "should be a valid number"),
        (("--set", "collect"), "use NAME=VALUE"),
        (("--set", "=x"), "use NAME=VALUE"),
        (("--set", "log=kafka"), "log is a section. Use one of its settings: log.kind"),
        (("--config", "gone.toml"), "gone.toml cannot be read"),
    ],
    ids=["name", "type", "form", "nameless", "section", "file"],
)
@pytest.mark.parametrize("command", ["collect", "engine", "plan", "act", "run"])
def test_every_role_refuses_wrong_settings_with_code_2(
    flatline: Flatline, command: str, words: tuple[str, ...], reported: str
) -> None:
    said = flatline(command, *words)
    assert said.code == 2
    assert said.err.startswith("flatline: ")
    assert reported in said.err


def test_the_version_is_that_of_the_installed_distribution(flatline: Flatline) -> None:
    said = flatline("--version")
    assert (said.code, said.out) == (0, f"flatline {metadata.version('flatline')}\n")


def test_an_unknown_subcommand_ends_with_code_2(flatline: Flatline) -> None:
    assert flatline("colect").code == 2


def test_acting_without_a_libvirt_is_refused(flatline: Flatline) -> None:
    said = flatline("run", "--act")
    assert said.code == 2
    assert "--act requires --libvirt-uri" in said.err


def test_a_pause_is_shown_until_it_is_taken_back(flatline: Flatline) -> None:
    said = flatline("pause", "on", "cell:c1", "--reason", "storage work").out
    assert "until `flatline pause off cell:c1`" in said
    shown = flatline("pause", "show").out
    assert "cell:c1" in shown
    assert "storage work" in shown
    assert flatline("pause", "off", "cell:c1").code == 0
    assert flatline("pause", "show").out == "Nothing is paused.\n"


def test_an_unreadable_command_is_listed_as_a_pause_and_ends_with_the_site_s(
    flatline: Flatline, state: Path
) -> None:
    flatline(*MAKE_LOG)
    append(state, CONTROL, (b"pause/rack/r1/", b'{"v":2}'))
    shown = flatline("pause", "show")
    assert shown.code == 0
    words = " ".join(shown.out.split())
    assert "site" in words
    assert "unreadable" in words
    assert flatline("pause", "off", "cell:c1").code == 1
    assert flatline("pause", "off", "site").code == 0
    assert "unreadable" not in flatline("pause", "show").out
    assert "a test" in flatline("pause", "show").out


def test_a_pause_without_an_end_is_not_shown_as_taken_back(flatline: Flatline) -> None:
    flatline("pause", "on", "site", "--reason", "storage work")
    assert "until ended" in " ".join(flatline("pause", "show").out.split())


def test_a_pause_with_an_end_does_not_shorten_one_that_holds_longer(flatline: Flatline) -> None:
    flatline("pause", "on", "site", "--reason", "storage work")
    said = flatline("pause", "on", "site", "--reason", "a short look", "--minutes", "10")
    assert "until `flatline pause off site`" in " ".join(said.out.split())
    assert "storage work" in said.out
    shown = " ".join(flatline("pause", "show").out.split())
    assert "until ended" in shown
    assert "a short look" not in shown


def test_a_longer_pause_replaces_a_shorter_one(flatline: Flatline) -> None:
    flatline("pause", "on", "site", "--reason", "a short look", "--minutes", "10")
    flatline("pause", "on", "site", "--reason", "a longer look", "--minutes", "20")
    assert "a longer look" in flatline("pause", "show").out
    flatline("pause", "on", "site", "--reason", "storage work")
    assert "until ended" in " ".join(flatline("pause", "show").out.split())


def test_taking_back_a_pause_that_is_not_there_is_said(flatline: Flatline) -> None:
    said = flatline("pause", "off", "cell:c2")
    assert said.code == 1
    assert "cell:c2 is not paused" in said.out


@pytest.mark.parametrize(
    "words",
    [
        ("pause", "on", "node:a b", "--reason", "x"),
        ("pause", "off", "cell:-c1"),
        ("event", "reboot", VM, "--cell", "a b"),
    ],
)
def test_a_stop_that_nothing_can_match_is_refused(flatline: Flatline, words: tuple[str]) -> None:
    said = flatline(*words)
    assert said.code == 2
    assert "names have letters, digits" in said.err


def test_a_journal_that_is_not_there_is_not_called_well(flatline: Flatline, state: Path) -> None:
    said = flatline("audit", "verify")
    assert said.code == 3
    assert str(state / "log") in said.err
    assert not state.exists()
    flatline(*MAKE_LOG)
    said = flatline("audit", "verify")
    assert said.code == 1
    assert "so nothing was verified" in " ".join(said.out.split())


def test_settings_are_checked_with_the_policy_they_name(flatline: Flatline) -> None:
    said = flatline("config", "check", "--set", "policy.file=gone.toml")
    assert said.code == 2
    assert "gone.toml cannot be read" in said.err
    assert "no file was read" in flatline("config", "check").out


def test_taking_a_pause_back_ends_the_storm_breaker_s_too(flatline: Flatline, state: Path) -> None:
    storm = storm_pause(
        Trouble(dict.fromkeys("abc", SystemClock().now_ms())),
        site="site",
        place=("cell", "c1"),
        vm_count=0,
        controls={},
        now_ms=SystemClock().now_ms(),
    )
    assert storm is not None
    append(state, CONTROL, (storm.key(), encode_control(storm)))
    assert flatline("pause", "on", "cell:c1", "--reason", "storage work").code == 0
    shown = flatline("pause", "show").out
    assert "storm breaker" in shown
    assert "storage work" in shown
    assert flatline("pause", "off", "cell:c1").code == 0
    assert flatline("pause", "show").out == "Nothing is paused.\n"


@pytest.mark.parametrize("scope", ["sites", "cell", "cell:", "site:x", "vm:web1"])
def test_a_scope_that_is_none_is_refused(flatline: Flatline, scope: str) -> None:
    said = flatline("pause", "on", scope, "--reason", "why")
    assert said.code == 2
    assert repr(scope) in said.err or "Use its UUID" in said.err


@pytest.mark.parametrize("word", ["reboot", "maintenance"])
def test_an_owners_command_stands_in_the_frames_of_its_cell(
    flatline: Flatline, state: Path, word: str
) -> None:
    said = flatline("event", word, VM, "--cell", "c7", "--minutes", "5")
    assert said.code == 0

    async def frames() -> list[bytes]:
        config = EmbeddedConfig(folder=state / "log", partitions=8)
        async with EmbeddedLog(config, clock=SystemClock()) as log:
            return [
                record.value
                for partition in range(8)
                for record in await log.read_to_end(FRAMES.name, partition, offset=0)
            ]

    (frame,) = [decode_frame(value) for value in asyncio.run(frames())]
    assert frame.header.cell == "c7"
    assert frame.header.role == "owner"
    (event,) = frame.events
    assert event.kind == f"owner_{word}"
    assert event.vm == UUID(VM).bytes
    assert int(event.detail["until_ms"]) == event.time_ns // 10**6 + 300_000


def test_an_owners_commands_hold_every_agent_off_the_vm(flatline: Flatline, state: Path) -> None:
    assert flatline("event", "maintenance", VM.upper(), "--minutes", "60").code == 0
    assert flatline("event", "reboot", VM, "--minutes", "5").code == 0

    async def words() -> list[Control]:
        config = EmbeddedConfig(folder=state / "log", partitions=8)
        async with EmbeddedLog(config, clock=SystemClock()) as log:
            records = await log.read_to_end(CONTROL.name, 0, offset=0)
            return [decode_control(record.value) for record in records]

    hour, moment = asyncio.run(words())
    controls = {command.key(): command for command in (hour, moment)}
    for minutes, admitted in ((0, False), (10, False), (61, True)):
        now_ms = hour.time_ms + 60_000 * minutes
        given = past(order(vm=VM), ago_s=(NOW_MS - now_ms) / 1000, opened_ms=now_ms)
        admission = admit(given, (), POLICY, at_ms=now_ms, now_ms=now_ms, controls=controls)
        assert admission.admitted == admitted
        assert admission.rule == ("admitted" if admitted else "maintenance")


def test_a_vm_that_is_no_uuid_is_refused(flatline: Flatline) -> None:
    said = flatline("event", "reboot", "web1")
    assert said.code == 2
    assert "virsh domuuid" in said.err


def test_the_shipped_policy_passes_its_check(flatline: Flatline, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(read_shipped("demo"))
    said = flatline("policy", "check", str(file))
    assert said.code == 0
    assert "'demo' is valid" in said.out


POLICY_OF_MY_OWN = """
version = 1
name = "mine"

[modes]
actions = { reset = "auto" }
tenants.acme = { migrate = "approve", reset = "observe" }

[limits]
vm_per_24h = 1
backoff_s = [700, 1800, 7200]

[pools]
nfs1 = ["ceph1", "nfs2"]

[ladders]
panic_spin = [
  { action = "reset", grace_s = 20, needs = ["activity", "vcpus"] },
  { action = "notify" },
]
"""
EXPLAINED = """  purpose: production: all values are within the hard limits.
  every tenant: reset is executed without approval; every other action is limited to dry runs.
  tenant acme: migration is executed after approval by a person; reset, every other action are
  limited to dry runs.
  a VM without a tenant: every action is limited to dry runs.
  limits: vm_per_24h 1 (default 3), backoff_s 700, 1800, 7200 (default 600, 1800, 7200).
  panic_spin: reset after 20 s of grace if activity and vcpus agree (recovered for 60 s
  within 300 s), then notify people.
  any other kind of fault: alert only.
  disks of pool nfs1 may go to ceph1, else nfs2.
"""


def test_a_policy_is_explained_by_what_it_lets_be_done_to_whom(
    flatline: Flatline, tmp_path: Path
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY_OF_MY_OWN)
    said = flatline("policy", "check", str(file))
    assert said.code == 0
    verdict, explained = said.out.split("  purpose", 1)
    assert "'mine' is valid" in verdict
    # The terminal's width determines the line breaks.
    assert f"purpose{explained}".split() == EXPLAINED.split()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_is_explained_with_each_of_its_ladders(
    flatline: Flatline, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(read_shipped(name))
    reported = flatline("policy", "check", str(file)).out
    shipped = parse_policy(read_shipped(name), source=name)
    assert all(f"  {kind}: " in reported for kind in shipped.ladders)
    assert ("limits: the default ones." in reported) == (name == "default")


def test_a_policy_with_a_wrong_name_is_refused(flatline: Flatline, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(read_shipped("demo").replace("[limits]", "[limitz]"))
    said = flatline("policy", "check", str(file))
    assert said.code == 2
    assert "limits" in said.err


def write_journal(state: Path, *, edited: bool = False, unreadable: bool = False) -> None:
    head, records = Head("plan/p/1"), []
    for number in range(3):
        head, entry = extend(
            head, time_ms=1000 * number, kind="decision", sentence=f"Word {number}."
        )
        value = encode_entry(entry)
        if edited and number == 1:
            value = value.replace(b"Word 1", b"Word 9")
        if unreadable and number == 1:
            value = b"\x00\xff"
        records.append((f"c{number}".encode(), value))
    append(state, JOURNAL, *records)


def test_a_journal_as_written_is_verified_whatever_partitions_it_stands_in(
    flatline: Flatline, state: Path
) -> None:
    write_journal(state)
    assert flatline("audit", "verify").code == 0
    said = flatline("audit", "verify")
    assert said.code == 0
    assert said.out == "3 entries of 1 writers: no errors found.\n"
    assert "Word 0.\n" in flatline("audit", "show").out


def test_an_end_that_was_cut_off_since_the_last_check_is_found(
    flatline: Flatline, state: Path
) -> None:
    write_journal(state)
    assert flatline("audit", "verify").code == 0
    heads = state / "audit-heads.json"
    (head,) = json.loads(heads.read_text())
    heads.write_text(json.dumps([head | {"sequence": 4}]))
    said = flatline("audit", "verify")
    assert said.code == 1
    assert "the chain does not contain entry 3 as recorded" in " ".join(said.out.split())
    heads.write_text("{")
    assert "unknown whether the journal was truncated" in flatline("audit", "verify").err


def test_an_edited_journal_is_found_out_with_code_1(flatline: Flatline, state: Path) -> None:
    write_journal(state, edited=True)
    said = flatline("audit", "verify")
    assert said.code == 1
    assert "entry 1: the content does not match its hash" in said.out


def test_a_check_without_an_earlier_note_says_what_it_cannot_see(
    flatline: Flatline, state: Path, tmp_path: Path
) -> None:
    write_journal(state)
    note = tmp_path / "heads.json"
    said = flatline("audit", "verify", "--heads", str(note))
    assert said.code == 0
    reported = (
        f"There was no earlier record of chain ends at {note}, so an earlier truncation cannot be "
        "detected."
    )
    assert reported.split() == said.out.split()[: len(reported.split())]
    assert "no earlier record" not in flatline("audit", "verify", "--heads", str(note)).out


def test_an_entry_that_cannot_be_read_is_a_finding_and_hides_no_other(
    flatline: Flatline, state: Path
) -> None:
    write_journal(state, unreadable=True)
    said = flatline("audit", "verify")
    assert said.code == 1
    place = re.search(r"Partition \d, offset 0: the entry cannot be decoded: malformed: ", said.out)
    assert place
    reported = " ".join(said.out.split())
    assert "entry 2: entry 1 was expected" in reported
    assert "2 entries of 1 writers: 2 findings." in reported
    assert not (state / "audit-heads.json").exists()
    shown = flatline("audit", "show")
    assert shown.code == 0
    assert all(part in shown.out for part in ("Word 0.", place[0], "Word 2."))


def test_a_journal_of_which_nothing_can_be_read_is_not_called_empty(
    flatline: Flatline, state: Path
) -> None:
    append(state, JOURNAL, (b"c", b"\x00\xff"))
    said = flatline("audit", "verify")
    assert said.code == 1
    assert "0 entries of 0 writers: 1 findings." in said.out
    assert "no entries yet" not in flatline("audit", "show").out


def test_a_log_that_nobody_answers_for_is_reported_with_code_3(
    flatline: Flatline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatline.engine.cli.control_commands.PATIENCE_S", 2.0)
    said = flatline("pause", "show", *NOBODY)
    assert said.code == 3
    assert "127.0.0.1:1 is unavailable" in said.err
    assert "did not answer within" in said.err


def test_a_state_folder_that_cannot_be_written_ends_with_code_5(
    flatline: Flatline, state: Path
) -> None:
    state.write_text("a file stands where the folder should be")
    for command in (("plan",), ("act",), ("run",), MAKE_LOG):
        said = flatline(*command)
        assert said.code == 5
        assert str(state) in said.err


def test_a_second_agent_on_a_node_is_refused_with_code_5(flatline: Flatline, state: Path) -> None:
    with EmbeddedLedger(state / "agent-n1.sqlite"):
        said = flatline("act", "--set", "site.node=n1", "--set", "act.libvirt_uri=test:///default")
    assert said.code == 5
    assert "n1" in said.err


@pytest.mark.parametrize(
    "more",
    [(), ("--libvirt-uri", "test:///default"), ("--set", "hypervisor.kind=libvirt", "--act")],
)
def test_a_second_run_on_a_state_folder_is_refused_at_once_with_code_5(
    flatline: Flatline, state: Path, more: tuple[str, ...]
) -> None:
    with held_in(state, "run", what="runs all roles"):
        said = flatline("run", *more)
    assert said.code == 5
    reported = " ".join(said.err.split())
    assert f"process {os.getpid()} already runs all roles on the state folder {state}" in reported
    assert "set state.folder" in reported
    assert "Compiling" not in said.out


def test_a_log_folder_of_another_shape_is_refused(flatline: Flatline, state: Path) -> None:
    assert flatline(*MAKE_LOG).code == 0
    said = flatline("pause", "show", "--set", "log.partitions=3")
    assert said.code in {2, 5}
    assert "partitions" in said.err


def test_a_damaged_log_is_reported_by_its_file(flatline: Flatline, state: Path) -> None:
    assert flatline(*MAKE_LOG).code == 0
    path = state / "log" / "flatline.control.v1.sqlite"
    path.write_bytes(b"not a database, " * 512)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT 1 FROM sqlite_master")
    said = flatline("pause", "show")
    assert said.code == 5
    assert "flatline.control.v1.sqlite" in said.err


def test_addresses_are_shown_without_their_secrets(flatline: Flatline) -> None:
    words = (
        "--set", "notify.url=https://hooks.example/T0/s3cr3t",
        "--set", "history.influxdb.url=https://me:s3cr3t@influx:8086/?token=s3cr3t",
    )  # fmt: skip
    said = flatline("config", "show", *words)
    assert said.code == 0
    shown = json.loads(said.out)
    assert shown["notify"]["url"] == "https://hooks.example/***"
    assert shown["history"]["influxdb"]["url"] == "https://***@influx:8086/***"
    for one in (said, flatline("config", "check", *words), flatline("doctor", *words)):
        assert "s3cr3t" not in one.out + one.err
    wrong = flatline("config", "check", "--set", "notify.url=ftp://s3cr3t")
    assert wrong.code == 2
    assert "s3cr3t" not in wrong.err

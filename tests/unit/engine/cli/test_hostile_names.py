"""Names and texts of guests' owners are plain text in the output of every command."""

import csv
import io
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import typer

import flatline.engine.cli.app as typer_app
from flatline.engine.action.chain import Head, extend
from flatline.engine.cli.app import app
from flatline.engine.plain_text import in_csv, one_line
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.journal import encode_entry
from flatline.engine.wire.topics import CONTROL, JOURNAL
from tests.unit.connectors.traces.conftest import GAUGES
from tests.unit.engine.cli.conftest import Flatline, append

HOSTILE = (
    "[/prod]web",
    "[bold red]x[/]",
    "\x1b]0;owned\x07\x1b[2J",
    "a\n2026-01-01T00:00:00  order     VM b was reset.",
    "=HYPERLINK(1)",
    "../../../../tmp/owned",
    "<script>alert(1)</script>' onload='x",
    ":smile:",
    "gpj.\u202eexe",
    "\x9b31mred",
    "n" * 250,
)
# Commands that show names or texts of guests' owners, and their arguments here.
SHOWING = {
    "replay", "evaluate", "forecast", "capacity report", "capacity whatif", "audit show",
    "audit verify", "pause show", "doctor",
}  # fmt: skip
# Commands that show only their caller's texts, or none.
OTHERS = {
    "collect", "engine", "plan", "act", "run", "demo", "approve", "history", "history setup",
    "policy check", "audit rules", "config show", "config check", "config schema",
    "event reboot", "event maintenance", "forget", "pause on", "pause off", "pause adopt",
    "keys create", "keys export", "keys revoke", "keys rotate", "keys show",
}  # fmt: skip
SLOTS = 40


def commands() -> set[str]:
    found: set[str] = set()

    def walk(group: typer.Typer, prefix: str) -> None:
        for command in group.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__.replace("_", "-")
            found.add(f"{prefix}{name}")
        for inner in group.registered_groups:
            assert inner.typer_instance is not None
            walk(inner.typer_instance, f"{prefix}{inner.name} ")
            if inner.typer_instance.info.invoke_without_command is True:
                found.add(f"{prefix}{inner.name}")

    walk(app, "")
    return found


def test_each_command_is_either_shown_hostile_names_or_shows_none() -> None:
    # A new command must be listed here, by whether it shows names.
    assert not SHOWING & OTHERS
    assert commands() >= SHOWING
    assert commands() <= SHOWING | OTHERS


def test_nobody_asks_for_markup() -> None:
    """The console treats each string as text; styled output must be a `rich.text.Text`."""
    folder = Path(typer_app.__file__).parent
    assert not [p.name for p in folder.rglob("*.py") if "rich.markup" in p.read_text()]


def require_harmless(text: str) -> None:
    """Check that no character but a line end moves the cursor, and no text is reversed."""
    wrong = {
        character
        for character in text
        if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"} and character != "\n"
    }
    assert not wrong, f"{wrong} in {text!r}"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a dataset whose VMs and hosts have hostile names, and whose last VM dies."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(5)
    with (folder / "pack_traces.csv").open("w", newline="") as file:
        file.write(f"{GAUGES}\n")
        writer = csv.writer(file)
        for slot in range(SLOTS):
            for vm in HOSTILE:
                values = rng.uniform(5, 20, 6).round(3).tolist()
                writer.writerow([1_700_000_000 + 300 * slot, vm, *values])
    with (folder / "pack_vms.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["vm", "host", "ncpu", "mem_capacity_mb"])
        for vm in HOSTILE:
            writer.writerow([vm, f"host {vm[:200]}", 2, 4096])
    with (folder / "pack_events.csv").open("w", newline="") as file:
        file.write("vm,host,t_start,t_end,kind,class,expected_action,note\n")
        writer = csv.writer(file)
        for vm in HOSTILE:
            start = 1_700_000_000 + 300 * 20
            writer.writerow([vm, "h", start, start + 900, "panic_spin", "fault", "reset",
                             f"busy_cores=1;pre_active=1;x={vm}"])  # fmt: skip
    return str(folder / "pack")


def test_datasets_with_hostile_names_are_replayed_and_judged(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = flatline("replay", prefix, "--out", str(out))
    assert said.code == 0, said.err
    require_harmless(said.out + said.err)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["vm_days_by_vm"]) == set(HOSTILE)
    said = flatline("evaluate", str(out), "--events", f"{prefix}_events.csv")
    assert said.code == 0, said.err
    require_harmless(said.out + said.err)
    pages = sorted((out / "pages").iterdir())
    assert len(pages) == len(HOSTILE)
    assert all(path.suffix == ".html" and len(path.name) < 200 for path in pages)
    assert not (Path("/tmp") / "owned").exists()
    texts = "".join(path.read_text() for path in pages)
    assert not re.search(r"<script|<[^>]* onload", texts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in texts
    require_harmless(texts)


def test_forecasts_of_hostile_names_are_a_table_without_formulas(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    said = flatline("forecast", prefix, "--out", str(tmp_path / "out.csv"))
    assert said.code == 0, said.err
    require_harmless(said.out + said.err)
    text = (tmp_path / "out.csv").read_text()
    require_harmless(text)
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    assert {row["vm"] for row in rows} == {in_csv(vm) for vm in HOSTILE}
    assert not any(row["vm"].startswith(("=", "+", "-", "@")) for row in rows)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_capacity_of_hostile_names(flatline: Flatline, prefix: str, form: str) -> None:
    said = flatline("capacity", "report", prefix, "--format", form)
    assert said.code == 0, said.err
    require_harmless(said.out + said.err)
    if form == "csv":
        fields = [field for row in csv.reader(io.StringIO(said.out)) for field in row]
        assert not any(field.startswith(("=", "@")) for field in fields)
    if form == "json":
        assert {node["subject"] for node in json.loads(said.out)["scopes"]} >= {"host [/prod]web"}
    said = flatline("capacity", "whatif", prefix, "--lost", f"host {HOSTILE[2]}", "--format", form)
    require_harmless(said.out + said.err)
    said = flatline("capacity", "whatif", prefix, "--lost", "nobody", "--format", form)
    assert said.code == 2
    require_harmless(said.out + said.err)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_journal_and_what_is_paused_are_shown_as_they_were_written(
    flatline: Flatline, state: Path, text: str
) -> None:
    _, entry = extend(
        Head(f"planner {text}"), time_ms=1_790_000_000_000, kind="refusal",
        sentence=f"VM {text} is not touched.",
    )  # fmt: skip
    _, lost = extend(
        Head(f"planner {text}", sequence=4, link="x"), time_ms=1_790_000_000_000, kind="refusal",
        sentence="A part is gone.",
    )  # fmt: skip
    append(state, JOURNAL, (b"c0", encode_entry(entry)), (b"c0", encode_entry(lost)))
    append(state, JOURNAL, (b"c0", f"no entry {text}".encode()))
    command = Control(
        kind="pause", scope="tenant", subject=text, active=True, by=f"by {text}",
        reason=f"because {text}", time_ms=1_790_000_000_000,
    )  # fmt: skip
    append(state, CONTROL, (command.key(), encode_control(command)))
    said = flatline("audit", "show")
    assert said.code == 0, said.err
    assert f"VM {one_line(text)} is not touched." in said.out.replace("\n", "")
    assert len(re.findall("^20", said.out, re.MULTILINE)) == 3
    outputs = [said, flatline("audit", "verify"), flatline("pause", "show"), flatline("doctor")]
    for one in outputs:
        assert one.code in (0, 1), one.err
        require_harmless(one.out + one.err)
        assert "Traceback" not in one.err
    shown = re.sub(r"[\s│]", "", outputs[2].out)
    assert re.sub(r"\s", "", one_line(text))[:12] in shown

"""The subcommands of `flatline`, one function each.

Each function imports its dependencies when it is called, so that other commands start fast.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from flatline.engine.cli import command_line, planning
from flatline.engine.cli.history import history
from flatline.engine.cli.key_commands import keys
from flatline.engine.cli.options import File, Sets, console, flags_of, moment, settings_of
from flatline.engine.errors import SettingsError
from flatline.engine.plain_text import in_json
from flatline.engine.settings import Settings, load_settings

app = typer.Typer(
    name="flatline",
    help="Detects dead virtual machines by their telemetry, and restores them without staff.",
    epilog=(
        "Exit codes: 0 success, 1 failure, 2 settings, command line or missing library, 3 log, "
        "4 hypervisor, 5 state or keys on disk, 6 history, 130 Ctrl-C."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
policy = typer.Typer(
    help="Show which actions the policy allows on which VMs.", no_args_is_help=True
)
audit = typer.Typer(help="Read the journal and verify its hash chains.", no_args_is_help=True)
config = typer.Typer(help="Show and check settings.", no_args_is_help=True)
for name, group in (
    ("capacity", planning.capacity),
    ("event", command_line.event),
    ("pause", command_line.pause),
    ("policy", policy),
    ("audit", audit),
    ("config", config),
    ("history", history),
    ("keys", keys),
):
    app.add_typer(group, name=name)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"flatline {version('flatline')}")
        raise typer.Exit


@app.callback()
def flatline(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the release and exit."
        ),
    ] = False,
) -> None:
    """Handle the options before the subcommand."""


@app.command()
def collect(file: File = None, sets: Sets = None) -> None:
    """Sample this node's VMs into the log."""
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import collect_opener, frame_keyring, open_log, process, this_node

    settings = settings_of(file, sets)
    here = process(settings)
    frames = frame_keyring(settings, here.clock)
    opener = collect_opener(here, lambda: open_log(here), this_node(settings), frames)
    raise typer.Exit(serve(here, {"collect": opener}))


@app.command()
def engine(file: File = None, sets: Sets = None) -> None:
    """Find faults in the frames and publish alerts."""
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import authority, engine_opener, open_log, process

    settings = settings_of(file, sets)
    here = process(settings)
    opener = engine_opener(here, lambda: open_log(here, frames=True), authority(settings))
    raise typer.Exit(serve(here, {"engine": opener}))


@app.command()
def plan(file: File = None, sets: Sets = None) -> None:
    """Turn alerts into orders under the policy, and notify people."""
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import authority, notify_opener, open_log, plan_opener, process

    settings = settings_of(file, sets)
    here = process(settings)
    opener = plan_opener(here, lambda: open_log(here), authority(settings))
    reporting = notify_opener(here, lambda: open_log(here))
    raise typer.Exit(serve(here, {"plan": opener, **reporting}))


@app.command()
def act(file: File = None, sets: Sets = None) -> None:
    """Carry out the orders for this node."""
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import act_opener, authority, open_log, process, this_node

    settings = settings_of(file, sets)
    here = process(settings)
    node = this_node(settings)
    opener = act_opener(here, lambda: open_log(here), node, authority(settings))
    raise typer.Exit(serve(here, {"act": opener}))


@app.command()
def run(
    file: File = None,
    sets: Sets = None,
    libvirt_uri: Annotated[
        str | None, typer.Option(help="Connect to this libvirt instead of a simulated fleet.")
    ] = None,
    acting: Annotated[
        bool, typer.Option("--act", help="Act on the VMs of that hypervisor, as the policy allows.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the simulated fleet.")] = 1,
) -> None:
    """Run all roles in this process, on the embedded log.

    Without --libvirt-uri, and without hypervisor.kind in the settings, the fleet is simulated. A
    real hypervisor is only read unless --act is given; the policy still says what may be done.
    """
    from flatline.engine.cli.all_in_one import run_all_in_one

    here = ["log.kind=embedded"]
    if libvirt_uri is not None:
        uri = f"libvirt_uri={json.dumps(libvirt_uri)}"
        here += ["hypervisor.kind=libvirt", f"collect.{uri}", f"act.{uri}"]
    settings = settings_of(file, [*(sets or []), *here])
    simulated = "kind" not in settings.hypervisor.model_fields_set
    if acting and simulated:
        raise SettingsError(
            "--act requires --libvirt-uri or hypervisor.kind: a simulated fleet is always acted on."
        )
    raise typer.Exit(run_all_in_one(settings, simulated=simulated, acting=acting, seed=seed))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the fleet and its faults.")] = 1,
    speed: Annotated[
        float, typer.Option(min=0.1, help="Largest number of simulated seconds per real second.")
    ] = 12.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines instead of a live view.")
    ] = False,
) -> None:
    """Watch 200 simulated VMs fail and be repaired. Ends by itself with a summary."""
    from flatline.engine.cli.demo import run_demo

    raise typer.Exit(run_demo(seed=seed, speed=speed, plain=plain))


@app.command()
def replay(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Path prefix of a dataset (PREFIX_traces.csv.gz or PREFIX_stream.csv.gz), or the"
            " folder of an embedded log with recorded frames."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for alerts, orders and the summary.")],
    policy_file: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE", help="Policy file. By default every action class is auto."
        ),
    ] = None,
    compared: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="Report what this policy would have done."),
    ] = None,
) -> None:
    """Run a recorded dataset through engine and planner. As fast as this machine can."""
    from flatline.engine.cli.replay_command import run_replay, summary_lines
    from flatline.engine.cli.usable import require_rows
    from flatline.engine.wiring import open_recording

    summary = run_replay(
        open_recording(dataset), source=dataset, out=out, policy=policy_file, compared=compared
    )
    for sentence in summary_lines(summary):
        console().print(sentence)
    require_rows(summary.rows)


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output folder of `flatline replay`.")
    ],
    events: Annotated[
        Path, typer.Option(help="PREFIX_events.csv: the events that really happened.")
    ],
    drawing: Annotated[
        bool,
        typer.Option("--pages/--no-pages", help="Draw a page for each miss and false alarm."),
    ] = True,
) -> None:
    """Compare a replay with what really happened: recall, delay, false alarms, kinds."""
    from flatline.engine.cli.evaluate import PAGES, run_evaluation, tables

    evaluation = run_evaluation(folder, events=events, drawing=drawing)
    for table in tables(evaluation):
        console().print(table)
    if evaluation.strangers:
        console(stderr=True).print(
            f"{len(evaluation.strangers)} events are not covered by this replay and count as "
            f"missed if they are faults. Example: {evaluation.strangers[0]}."
        )
    if evaluation.pages:
        console().print(
            f"{evaluation.pages} pages on misses and false alarms are in {folder / PAGES}."
        )


app.command()(planning.forecast)
app.command()(command_line.forget)
app.command()(command_line.approve)


@policy.command("check")
def policy_check(file: Annotated[Path, typer.Argument(help="Policy file in TOML.")]) -> None:
    """Check a policy file and say what it allows. It must keep the schema and the hard limits."""
    from flatline.engine.cli.policy import explained
    from flatline.engine.wiring import read_policy

    checked = read_policy(file)
    console().print(f"{file}: policy {checked.name!r} is valid; its hash is {checked.hash}.")
    for line in explained(checked):
        console().print(f"  {line}.")


@audit.command("verify")
def audit_verify(
    heads: Annotated[
        Path | None,
        typer.Option(
            help="File with the last known end of each chain; by default in the state folder."
        ),
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Check each writer's chain for edits, gaps and truncation. Exit code 1 if any is found.

    A record that cannot be read counts as a finding.

    The end of each chain is written to `--heads`, so that the next check detects a later
    truncation. Copy that file to another machine: a person who edits the log may also edit the file
    here.
    """
    from flatline.engine.action.chain import verify
    from flatline.engine.cli.audit import HEADS_FILE, journal_and_cut, known_heads, write_heads
    from flatline.engine.cli.control_commands import name_of, with_log

    settings = settings_of(file, sets)
    (entries, unreadable), cut_ms = with_log(settings, journal_and_cut, reading=True)
    if not entries and not unreadable:
        console().print(
            f"The journal is empty, so nothing was verified: {name_of(settings)}. Check that this "
            "is the right log."
        )
        raise typer.Exit(1)
    place = heads or settings.state.folder / HEADS_FILE
    if not place.exists():
        console().print(
            f"There was no earlier record of chain ends at {place}, so an earlier truncation "
            "cannot be detected."
        )
    findings = [record.sentence for record in unreadable]
    findings += verify(entries, heads=known_heads(place), cut_ms=cut_ms)
    if not findings:
        write_heads(place, entries)
    for finding in findings:
        console().print(finding)
    writers = len({entry.writer for entry in entries})
    verdict = f"{len(findings)} findings" if findings else "no errors found"
    console().print(f"{len(entries)} entries of {writers} writers: {verdict}.")
    raise typer.Exit(1 if findings else 0)


@audit.command("show")
def audit_show(
    last: Annotated[
        int, typer.Option(min=1, help="Number of entries to show, the newest ones.")
    ] = 50,
    vm: Annotated[str | None, typer.Option(help="Show only entries of this VM.")] = None,
    incident: Annotated[
        str | None, typer.Option(help="Show only entries of this incident.")
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Show decisions, refusals, calls and outcomes, oldest first.

    A record that cannot be read is always shown, because its subject is unknown.
    """
    from flatline.engine.cli.audit import read_journal
    from flatline.engine.cli.control_commands import with_log

    entries, unreadable = with_log(settings_of(file, sets), read_journal, reading=True)
    lines: list[tuple[int, str, str]] = [
        (entry.time_ms, entry.kind, entry.sentence)
        for entry in entries
        if vm in (None, entry.vm) and incident in (None, entry.incident)
    ]
    lines += [(record.time_ms, "damaged", record.sentence) for record in unreadable]
    if not lines:
        sentence = (
            "The journal has no entries yet."
            if not entries
            else ("The journal has no matching entry.")
        )
        console().print(sentence)
    # A stable sort: entries with equal times keep the order of their chain.
    for time_ms, kind, sentence in sorted(lines, key=lambda line: line[0])[-last:]:
        console().print(f"{moment(time_ms)}  {kind:8}  {sentence}")


@audit.command("rules")
def audit_rules() -> None:
    """List every sentence of a decision or refusal. The runbook explains them."""
    from flatline.engine.roles.all_sentences import SENTENCES

    table = Table("rule", "sentence")
    for rule, sentence in SENTENCES.items():
        table.add_row(rule, sentence)
    console().print(table)


@app.command()
def doctor(
    creating_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create the topics that are missing on Kafka.")
    ] = False,
    witnesses: Annotated[
        bool,
        typer.Option(
            "--witnesses", help="List the witnesses of each VM that could confirm its death."
        ),
    ] = False,
    acting_as: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="ROLE",
            help="Compare the rights of this principal with those of a role.",
        ),
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Check each part of the installation and say what to do. Exit code 1 if a check fails."""
    from flatline.engine.cli.doctor import Check, examine
    from flatline.engine.wire.rights import ROLES

    settings = settings_of(file, sets)
    if witnesses:
        _print_witnesses(settings)
        return
    roles = [role for role in ROLES if role in (acting_as or [])]
    if len(roles) != len(acting_as or []):
        raise SettingsError(f"--as: unknown role. Known roles: {', '.join(ROLES)}.")

    async def all_checks() -> list[Check]:
        return [
            check async for check in examine(settings, creating_topics=creating_topics, roles=roles)
        ]

    checks = asyncio.run(all_checks())
    table = Table("part", "", "result and remedy")
    for check in checks:
        style = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}[check.finding]
        table.add_row(check.part, Text(check.finding, style=style), check.sentence)
    console().print(table)
    raise typer.Exit(1 if any(check.finding == "FAIL" for check in checks) else 0)


def _print_witnesses(settings: Settings) -> None:
    from flatline.engine.cli.control_commands import with_log
    from flatline.engine.cli.covered import covered

    table = Table("VM", "cell", "witnesses", "after its death", "remedy")
    for one in with_log(settings, covered, patient=True, reading=True):
        what = "ordered" if one.orderable else "alert only"
        if not one.actionable:
            what = "alert only, because it is not actionable"
        table.add_row(one.vm, one.cell, ", ".join(one.witnesses) or "none", what, one.advice)
    console().print(table)


@config.command("show")
def config_show(file: File = None, sets: Sets = None) -> None:
    """Print the settings in force as JSON, with secrets masked."""
    typer.echo(in_json(settings_of(file, sets).model_dump_json(indent=2)))


@config.command("check")
def config_check(file: File = None, sets: Sets = None) -> None:
    """Check the settings and the policy they name. Prints which file was read."""
    from flatline.engine.settings import DEFAULT_FILE
    from flatline.engine.wiring import policy_of

    settings, read = load_settings(file, flags=flags_of(sets))
    settings.log.kafka.secret()
    policy_of(settings)
    whence = (
        f"{read} was read" if read else (f"no file was read, because {DEFAULT_FILE} does not exist")
    )
    console().print(f"The settings are valid; {whence}.")


@config.command("schema")
def config_schema(
    of: Annotated[
        str, typer.Argument(help="settings, or a record: frame, alert, order, journal, ...")
    ] = "settings",
) -> None:
    """Print the JSON Schema of the settings or of a record."""
    from flatline.engine.wire.schemas import CONTRACTS, schema

    if of != "settings" and of not in CONTRACTS:
        raise SettingsError(f"{of!r} has no schema. Known names: settings, {', '.join(CONTRACTS)}.")
    found = Settings.model_json_schema() if of == "settings" else schema(of)
    typer.echo(json.dumps(found, indent=2))

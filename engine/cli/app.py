"""The subcommands of `flatline`, one function each; what they need is imported when asked for."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from engine.cli import planning
from engine.cli.history import history
from engine.cli.options import File, Sets, console, flags_of, settings_of
from engine.errors import FlatlineError, SettingsError
from engine.settings import Settings, load_settings

app = typer.Typer(
    name="flatline",
    help="Finds dead virtual machines by their vital signs, and brings them back without staff.",
    epilog="Exit codes: 0 well, 1 failed, 2 settings or command line, 3 log, 4 hypervisor,"
    " 5 state or keys on disk, 6 history, 130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
event = typer.Typer(help="Tell Flatline what an owner does to a VM.", no_args_is_help=True)
pause = typer.Typer(help="Stop machines from acting, and let them again.", no_args_is_help=True)
policy = typer.Typer(help="Read what may be done to whom.", no_args_is_help=True)
audit = typer.Typer(help="Read the journal and check its chains.", no_args_is_help=True)
config = typer.Typer(help="Show and check settings.", no_args_is_help=True)
for name, group in (
    ("capacity", planning.capacity),
    ("event", event),
    ("pause", pause),
    ("policy", policy),
    ("audit", audit),
    ("config", config),
    ("history", history),
):
    app.add_typer(group, name=name)

Minutes = Annotated[float, typer.Option(min=0.1, max=7 * 24 * 60, help="How long, in minutes.")]


@app.command()
def collect(file: File = None, sets: Sets = None) -> None:
    """Sample this node's VMs into the log."""
    from engine.cli.process import serve
    from engine.wiring import collect_opener, libvirt_node, open_log, process

    settings = settings_of(file, sets)
    here = process(settings)
    opener = collect_opener(here, lambda: open_log(here), libvirt_node(settings))
    raise typer.Exit(serve(here, {"collect": opener}))


@app.command()
def engine(file: File = None, sets: Sets = None) -> None:
    """Find faults in the frames and publish alerts."""
    from engine.cli.process import serve
    from engine.wiring import engine_opener, open_log, process

    here = process(settings_of(file, sets))
    opener = engine_opener(here, lambda: open_log(here, frames=True))
    raise typer.Exit(serve(here, {"engine": opener}))


@app.command()
def plan(file: File = None, sets: Sets = None) -> None:
    """Turn alerts into orders under the policy, and tell people."""
    from engine.cli.process import serve
    from engine.wiring import authority, notify_opener, open_log, plan_opener, process

    settings = settings_of(file, sets)
    here = process(settings)
    opener = plan_opener(here, lambda: open_log(here), authority(settings))
    telling = notify_opener(here, lambda: open_log(here))
    raise typer.Exit(serve(here, {"plan": opener, **telling}))


@app.command()
def act(file: File = None, sets: Sets = None) -> None:
    """Carry out the orders for this node."""
    from engine.cli.process import serve
    from engine.wiring import act_opener, authority, libvirt_node, open_log, process

    settings = settings_of(file, sets)
    here = process(settings)
    node = libvirt_node(settings)
    opener = act_opener(here, lambda: open_log(here), node, authority(settings))
    raise typer.Exit(serve(here, {"act": opener}))


@app.command()
def run(
    file: File = None,
    sets: Sets = None,
    libvirt_uri: Annotated[
        str | None, typer.Option(help="Watch this libvirt instead of a simulated fleet.")
    ] = None,
    acting: Annotated[
        bool, typer.Option("--act", help="Touch the VMs of that libvirt, as the policy allows.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which simulated fleet.")] = 1,
) -> None:
    """Run all roles in this process, on the embedded log.

    Without --libvirt-uri the fleet is simulated. A real libvirt is only read unless --act is
    given; the policy still says what may be done.
    """
    from engine.cli.everything import run_everything

    settings = settings_of(file, [*(sets or []), "log.kind=embedded"])
    if acting and libvirt_uri is None:
        raise SettingsError("--act needs --libvirt-uri: a simulated fleet is acted on anyway.")
    raise typer.Exit(run_everything(settings, libvirt_uri=libvirt_uri, acting=acting, seed=seed))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Which fleet and which faults.")] = 1,
    speed: Annotated[
        float, typer.Option(min=0.1, help="Simulated seconds in a real one, at most.")
    ] = 12.0,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live view.")] = False,
) -> None:
    """Watch 200 simulated VMs fail and be repaired. Ends by itself with a summary."""
    from engine.cli.demo import run_demo

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
        typer.Option("--policy", metavar="FILE", help="By default every action class is auto."),
    ] = None,
    compared: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="What would this policy have done?"),
    ] = None,
) -> None:
    """Run a recorded dataset through engine and planner. As fast as this machine can."""
    from engine.cli.replay import run_replay, told
    from engine.wiring import open_recording

    summary = run_replay(
        open_recording(dataset), source=dataset, out=out, policy=policy_file, compared=compared
    )
    for sentence in told(summary):
        console().print(sentence)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `flatline replay` wrote.")],
    events: Annotated[Path, typer.Option(help="PREFIX_events.csv: what really happened.")],
    drawing: Annotated[
        bool,
        typer.Option("--pages/--no-pages", help="Draw a page for each miss and false alarm."),
    ] = True,
) -> None:
    """Hold a replay against the truth. Tells recall, delay, false alarms and kinds."""
    from engine.cli.evaluate import PAGES, run_evaluation, tables

    evaluation = run_evaluation(folder, events=events, drawing=drawing)
    for table in tables(evaluation):
        console().print(table)
    if evaluation.pages:
        console().print(f"{evaluation.pages} pages of what went wrong in {folder / PAGES}.")


app.command()(planning.forecast)

Vm = Annotated[str, typer.Argument(help="UUID of the VM.")]
Cell = Annotated[
    str | None, typer.Option(help="Cell in which the VM runs; by default this node's.")
]


@event.command("reboot")
def event_reboot(
    vm: Vm, cell: Cell = None, minutes: Minutes = 10.0, file: File = None, sets: Sets = None
) -> None:
    """Say that the owner reboots a VM now. Its silence then means nothing."""
    _owner_event("owner_reboot", vm, cell=cell, minutes=minutes, file=file, sets=sets)


@event.command("maintenance")
def event_maintenance(
    vm: Vm, cell: Cell = None, minutes: Minutes = 60.0, file: File = None, sets: Sets = None
) -> None:
    """Say that the owner works on a VM. Nothing it does then leads to an action."""
    _owner_event("owner_maintenance", vm, cell=cell, minutes=minutes, file=file, sets=sets)


def _owner_event(
    kind: str,
    vm: str,
    *,
    cell: str | None,
    minutes: float,
    file: Path | None,
    sets: list[str] | None,
) -> None:
    from engine.cli.words import append_owner_event, parse_name, parse_vm, with_log

    settings = settings_of(file, sets)
    where, uuid = parse_name(cell or settings.site.cell, what="cell"), parse_vm(vm)
    with_log(
        settings,
        lambda here, log: append_owner_event(
            here, log, kind=kind, vm=uuid, cell=where, minutes=minutes
        ),
    )
    console().print(f"{kind} of VM {vm} stands in the log of cell {where} for {minutes:g} min.")


Scope = Annotated[
    str,
    typer.Argument(
        help="site, or zone:, cell:, node:, pool:, network: or tenant:NAME, or vm:UUID."
    ),
]


@pause.command("on")
def pause_on(
    scope: Scope,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds it.")],
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Ends by itself; without it, by `pause off`.")
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Let no machine act in a scope; alerts go on."""
    from engine.cli.words import append_pause, nearest_names, with_log

    settings = settings_of(file, sets)
    held = with_log(
        settings,
        lambda here, log: append_pause(here, log, scope=scope, reason=reason, minutes=minutes),
    )
    ends = held.until_ms
    until = f"`flatline pause off {scope}`" if ends is None else _moment(ends)
    console().print(f"Nothing is done to {scope} until {until} ({held.by}: {held.reason}).")
    # The pause stands already: who cannot look now must be able to stop machines all the same.
    with suppress(FlatlineError):
        nearest = with_log(settings, lambda here, log: nearest_names(here, log, scope=scope))
        if nearest is not None:
            like = f" (the nearest: {', '.join(nearest)})" if nearest else ""
            console(stderr=True).print(
                f"But no engine told of {scope} in the last five minutes{like}. The pause stands;"
                " if you meant another, pause that too."
            )


@pause.command("off")
def pause_off(
    scope: Scope,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    file: File = None,
    sets: Sets = None,
) -> None:
    """Take a pause back; exit code 1 if there was none."""
    from engine.cli.words import end_pause, with_log

    was_paused = with_log(
        settings_of(file, sets), lambda here, log: end_pause(here, log, scope=scope, reason=reason)
    )
    if not was_paused:
        console().print(f"{scope} was not paused: `flatline pause show` lists what is.")
        raise typer.Exit(1)
    console().print(f"The pause of {scope} is over.")


@pause.command("show")
def pause_show(file: File = None, sets: Sets = None) -> None:
    """List every pause and other word that holds now."""
    from engine.cli.words import controls_in_force, with_log

    controls = with_log(settings_of(file, sets), controls_in_force, reading=True)
    if not controls:
        console().print("Nothing is paused.")
        return
    table = Table("kind", "scope", "holds", "by", "reason")
    for control in controls:
        scope = f"{control.scope}:{control.subject}" if control.subject else control.scope
        until = "taken back" if control.until_ms is None else _moment(control.until_ms)
        row = (control.kind, scope, f"until {until}", control.by, control.reason)
        table.add_row(*map(escape, row))
    console().print(table)


def _moment(time_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


@app.command()
def approve(
    incident: Annotated[str, typer.Argument(help="The incident's id, as the refusal names it.")],
    reason: Annotated[str, typer.Option(help="Why, for the journal.")],
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="For how long.")] = 60.0,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Approve the steps of one incident. Those that the policy leaves to a person."""
    from engine.cli.words import append_approval, with_log

    with_log(
        settings_of(file, sets),
        lambda here, log: append_approval(
            here, log, incident=incident, reason=reason, minutes=minutes
        ),
    )
    console().print(f"The steps of incident {incident} may be taken for {minutes:g} min.")


@policy.command("check")
def policy_check(file: Annotated[Path, typer.Argument(help="Policy in TOML.")]) -> None:
    """Check a policy file and say what it allows. It must keep the schema and the hard limits."""
    from engine.cli.policy import explained
    from engine.wiring import read_policy

    checked = read_policy(file)
    console().print(f"{file}: policy {checked.name!r} can be used; its hash is {checked.hash}.")
    for line in explained(checked):
        console().print(f"  {line}.")


@audit.command("verify")
def audit_verify(
    heads: Annotated[
        Path | None, typer.Option(help="Where the chains stood; by default in the state folder.")
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Check each writer's chain for edits, gaps and cuts. Exit code 1 if there are any.

    A record that cannot be read is one too.

    Where each chain stood is written to `--heads`, so that the next check sees what was cut
    since. Copy that file to another machine: who can edit the log may reach it here.
    """
    from engine.action.chain import verify
    from engine.cli.audit import HEADS_FILE, journal_and_cut, known_heads, write_heads
    from engine.cli.words import name_of, with_log

    settings = settings_of(file, sets)
    (entries, unreadable), cut_ms = with_log(settings, journal_and_cut, reading=True)
    if not entries and not unreadable:
        console().print(
            f"The journal is empty, so nothing was checked: {name_of(settings)}. Is it the one"
            " you mean?"
        )
        raise typer.Exit(1)
    place = heads or settings.state.folder / HEADS_FILE
    if not place.exists():
        console().print(
            f"There was no earlier note at {place}, so what was cut off before now cannot be seen."
        )
    findings = [record.sentence for record in unreadable]
    findings += verify(entries, heads=known_heads(place), cut_ms=cut_ms)
    if not findings:
        write_heads(place, entries)
    for finding in findings:
        console().print(finding)
    writers = len({entry.writer for entry in entries})
    verdict = f"{len(findings)} findings" if findings else "all as written"
    console().print(f"{len(entries)} entries of {writers} writers: {verdict}.")
    raise typer.Exit(1 if findings else 0)


@audit.command("show")
def audit_show(
    last: Annotated[int, typer.Option(min=1, help="How many entries, the newest.")] = 50,
    vm: Annotated[str | None, typer.Option(help="Only of this VM.")] = None,
    incident: Annotated[str | None, typer.Option(help="Only of this incident.")] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Show decisions, refusals, calls and outcomes, oldest first.

    A record that cannot be read is shown whatever is asked for: nobody knows what it was about.
    """
    from engine.cli.audit import read_journal
    from engine.cli.words import with_log

    entries, unreadable = with_log(settings_of(file, sets), read_journal, reading=True)
    lines: list[tuple[int, str, str]] = [
        (entry.time_ms, entry.kind, entry.sentence)
        for entry in entries
        if vm in (None, entry.vm) and incident in (None, entry.incident)
    ]
    lines += [(record.time_ms, "damaged", record.sentence) for record in unreadable]
    if not lines:
        told = "The journal has no entry yet." if not entries else "No entry is about that."
        console().print(told)
    # Stable: entries of one moment keep the order of their chain.
    for time_ms, kind, sentence in sorted(lines, key=lambda line: line[0])[-last:]:
        console().print(f"{_moment(time_ms)}  {kind:8}  {sentence}")


@audit.command("rules")
def audit_rules() -> None:
    """List every sentence of a decision or refusal. The runbook explains them."""
    from engine.roles.sentences import SENTENCES

    table = Table("rule", "sentence")
    for rule, sentence in SENTENCES.items():
        table.add_row(rule, sentence)
    console().print(table)


@app.command()
def doctor(
    creating_topics: Annotated[
        bool, typer.Option("--create-topics", help="Make the topics that Kafka lacks.")
    ] = False,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Look at each part and say what to do. Exit code 1 if any is ill."""
    from engine.cli.doctor import Check, examine

    settings = settings_of(file, sets)

    async def all_checks() -> list[Check]:
        return [check async for check in examine(settings, creating_topics=creating_topics)]

    checks = asyncio.run(all_checks())
    table = Table("part", "", "what to know or do")
    for check in checks:
        style = {"well": "green", "note": "yellow", "ill": "bold red"}[check.finding]
        table.add_row(check.part, f"[{style}]{check.finding}[/]", escape(check.sentence))
    console().print(table)
    raise typer.Exit(1 if any(check.finding == "ill" for check in checks) else 0)


@config.command("show")
def config_show(file: File = None, sets: Sets = None) -> None:
    """Print the settings that hold, secrets masked, as JSON."""
    typer.echo(settings_of(file, sets).model_dump_json(indent=2))


@config.command("check")
def config_check(file: File = None, sets: Sets = None) -> None:
    """Check settings and what they name. Says which file was read."""
    from engine.settings import DEFAULT_FILE
    from engine.wiring import policy_of

    settings, read = load_settings(file, flags=flags_of(sets))
    settings.log.kafka.secret()
    policy_of(settings)
    whence = f"{read} was read" if read else f"no file was read, and {DEFAULT_FILE} is not there"
    console().print(f"The settings can be used; {whence}.")


@config.command("schema")
def config_schema(
    of: Annotated[
        str, typer.Argument(help="settings, or a record: frame, alert, order, journal, ...")
    ] = "settings",
) -> None:
    """Print the JSON Schema of the settings or of a record."""
    from engine.wire.schemas import CONTRACTS, schema

    if of != "settings" and of not in CONTRACTS:
        raise SettingsError(f"{of!r} has no schema: settings, {', '.join(CONTRACTS)}.")
    found = Settings.model_json_schema() if of == "settings" else schema(of)
    typer.echo(json.dumps(found, indent=2))

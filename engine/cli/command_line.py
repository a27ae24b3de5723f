"""The subcommands for reports and commands of people: owner's work, pauses, approvals."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flatline.engine.cli.options import File, Sets, console, moment, settings_of

event = typer.Typer(help="Report to Flatline what an owner does to a VM.", no_args_is_help=True)
pause = typer.Typer(help="Pause the actions of Flatline, and resume them.", no_args_is_help=True)

Minutes = Annotated[float, typer.Option(min=0.1, max=7 * 24 * 60, help="Duration in minutes.")]
Vm = Annotated[str, typer.Argument(help="UUID of the VM.")]
Cell = Annotated[
    str | None, typer.Option(help="Cell in which the VM runs; by default the cell of this node.")
]


@event.command("reboot")
def event_reboot(
    vm: Vm, cell: Cell = None, minutes: Minutes = 10.0, file: File = None, sets: Sets = None
) -> None:
    """Report that the owner reboots a VM now. Its silence is then not a fault."""
    _owner_event("owner_reboot", vm, cell=cell, minutes=minutes, file=file, sets=sets)


@event.command("maintenance")
def event_maintenance(
    vm: Vm, cell: Cell = None, minutes: Minutes = 60.0, file: File = None, sets: Sets = None
) -> None:
    """Report that the owner works on a VM. No action on it is allowed meanwhile."""
    _owner_event("owner_maintenance", vm, cell=cell, minutes=minutes, file=file, sets=sets)


class Gone(StrEnum):
    """Kinds of objects that may be forgotten."""

    NODE = "node"
    VM = "vm"
    POOL = "pool"
    NETWORK = "network"


def forget(
    what: Annotated[Gone, typer.Argument(help="Kind of the removed subject.")],
    name: Annotated[str, typer.Argument(help="Name of the subject; of a VM its UUID.")],
    cell: Cell = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """End the alerts on a node, VM, pool or network that is gone for good.

    If the subject reports again, it is monitored again.
    """
    from uuid import UUID

    from flatline.engine.cli.control_commands import append_forget, parse_name, parse_vm, with_log
    from flatline.engine.cli.validation import print_warning, scope_warning

    settings = settings_of(file, sets)
    where = parse_name(cell or settings.site.cell, what="cell")
    gone = str(UUID(bytes=parse_vm(name))) if what is Gone.VM else name
    with_log(
        settings,
        lambda here, log: append_forget(here, log, scope=what.value, name=gone, cell=where),
    )
    console().print(
        f"The engine of cell {where} is asked to forget {what.value} {gone}. Its alerts will end.",
        markup=False,
    )
    print_warning(
        settings,
        lambda here, log: scope_warning(here, log, scope=f"{what.value}:{gone}"),
        "The command is in force. If the name is wrong, repeat it with the right name.",
    )


def _owner_event(
    kind: str,
    vm: str,
    *,
    cell: str | None,
    minutes: float,
    file: Path | None,
    sets: list[str] | None,
) -> None:
    from flatline.engine.cli.control_commands import (
        append_owner_event,
        parse_name,
        parse_vm,
        with_log,
    )
    from flatline.engine.cli.validation import print_warning, vm_warning

    settings = settings_of(file, sets)
    where, uuid = parse_name(cell or settings.site.cell, what="cell"), parse_vm(vm)
    with_log(
        settings,
        lambda here, log: append_owner_event(
            here, log, kind=kind, vm=uuid, cell=where, minutes=minutes
        ),
    )
    console().print(
        f"{kind} of VM {vm} is recorded in the log of cell {where} for {minutes:g} min."
    )
    print_warning(
        settings,
        lambda here, log: vm_warning(here, log, vm=uuid, cell=where),
        "The command is in force. If the name is wrong, repeat it with the right name.",
    )


Scope = Annotated[
    str,
    typer.Argument(
        help="site, or zone:, cell:, node:, pool:, network: or tenant:NAME, or vm:UUID."
    ),
]


@pause.command("on")
def pause_on(
    scope: Scope,
    reason: Annotated[str, typer.Option(help="Reason, shown to others.")],
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Minutes until the pause ends; by default it lasts until `pause off`."
        ),
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Forbid automatic actions in a scope; alerts continue."""
    from flatline.engine.cli.control_commands import append_pause, with_log
    from flatline.engine.cli.validation import print_warning, scope_warning

    settings = settings_of(file, sets)
    held = with_log(
        settings,
        lambda here, log: append_pause(here, log, scope=scope, reason=reason, minutes=minutes),
    )
    ends = held.until_ms
    until = f"`flatline pause off {scope}`" if ends is None else moment(ends)
    console().print(f"Actions on {scope} are paused until {until} ({held.by}: {held.reason}).")
    print_warning(
        settings,
        lambda here, log: scope_warning(here, log, scope=scope),
        "The pause is in force. If the name is wrong, also pause the right scope.",
    )


@pause.command("off")
def pause_off(
    scope: Scope,
    reason: Annotated[str, typer.Option(help="Reason.")] = "",
    file: File = None,
    sets: Sets = None,
) -> None:
    """End a pause; exit code 1 if there was none."""
    from flatline.engine.cli.control_commands import end_pause, with_log

    was_paused = with_log(
        settings_of(file, sets), lambda here, log: end_pause(here, log, scope=scope, reason=reason)
    )
    if not was_paused:
        console().print(f"{scope} is not paused. `flatline pause show` lists all pauses.")
        raise typer.Exit(1)
    console().print(f"The pause of {scope} has ended.")


@pause.command("adopt")
def pause_adopt(file: File = None, sets: Sets = None) -> None:
    """Sign the ends of pauses that an earlier release left unsigned, after an upgrade.

    A pause whose end was not signed stays in force until an operator signs it.
    """
    from flatline.engine.cli.control_commands import adopt, scope_of, with_log

    ended = with_log(settings_of(file, sets), adopt)
    for command in ended:
        console().print(f"The {command.kind} of {scope_of(command)} has ended.", markup=False)
    console().print(f"{len(ended)} ends of pauses were signed.")


@pause.command("show")
def pause_show(file: File = None, sets: Sets = None) -> None:
    """List every pause and other control command in force."""
    from shlex import quote

    from flatline.engine.cli.control_commands import controls_in_force, rows_of, with_log
    from flatline.engine.wire.control import RESTRICTIONS

    controls = with_log(settings_of(file, sets), controls_in_force, reading=True)
    if not controls:
        console().print("Nothing is paused.")
        return
    table = Table("kind", "scope", "holds", "by", "reason")
    endless = set()
    for control, scope in rows_of(controls):
        until = "ended" if control.until_ms is None else moment(control.until_ms)
        table.add_row(control.kind, scope, f"until {until}", control.by, control.reason)
        stops = control.kind in {"pause", "quarantine"} or control.source in RESTRICTIONS
        if control.until_ms is None and stops:
            endless.add(scope)
    console().print(table)
    for scope in sorted(endless):
        console().print(f"To end the restrictions on {scope}: flatline pause off {quote(scope)}")


def approve(
    incident: Annotated[str, typer.Argument(help="Id of the incident, as in the refusal.")],
    reason: Annotated[str, typer.Option(help="Reason, for the journal.")],
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Validity in minutes.")] = 60.0,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Approve the steps of one incident. The policy leaves these steps to a person."""
    from flatline.engine.cli.control_commands import append_approval, with_log
    from flatline.engine.cli.validation import incident_warning, print_warning

    settings = settings_of(file, sets)
    with_log(
        settings,
        lambda here, log: append_approval(
            here, log, incident=incident, reason=reason, minutes=minutes
        ),
    )
    console().print(f"The steps of incident {incident} are approved for {minutes:g} min.")
    print_warning(
        settings,
        lambda here, log: incident_warning(here, log, incident=incident),
        "The approval is in force. If the incident is wrong, also approve the right one.",
    )

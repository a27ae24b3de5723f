"""Control commands of people: owners about their VMs, operators about pauses."""

import asyncio
import getpass
import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.commands import fold_command, hear, loosens
from flatline.engine.action.storm import SOURCE
from flatline.engine.cli.logs import set_up_logs
from flatline.engine.errors import CommandRefused, LogUnreachable, RecordRejected, SettingsError
from flatline.engine.key_files import date_of
from flatline.engine.keyring import own_key
from flatline.engine.ports import Headers, Log
from flatline.engine.settings import NAME_PATTERN, Settings
from flatline.engine.wire.control import (
    REFUSED,
    RESTRICTIONS,
    Control,
    ControlScope,
    encode_control,
    held_key,
    restriction_key,
)
from flatline.engine.wire.frame import Event, Frame, Header, VmRows, encode_frame
from flatline.engine.wire.order import key_id, signed
from flatline.engine.wire.topics import CONTROL, FRAMES
from flatline.engine.wiring import Process, frame_keyring, open_log, process, trusted_now

# A person waits for the command. A log that restarts is back within this time; a longer outage is
# reported instead of waited for.
PATIENCE_S: Final = 15.0
MINUTE_MS: Final = 60_000
# Scopes whose names come from settings. A name that no setting may have is a typing error.
PLACES: Final = ("zone", "cell", "node")

# The format of `engine.wire.alert.alert_id`.
_INCIDENT: Final = "[0-9a-f]{32}"

_NO_HEADERS: Final[Headers] = ()

T = TypeVar("T")


def with_log(
    settings: Settings,
    use: Callable[[Process, Log], Coroutine[Any, Any, T]],
    *,
    patient: bool = False,
    reading: bool = False,
) -> T:
    """Open the site's log for one command and return the result of `use`, or raise its error.

    Parameters
    ----------
    patient
        Whether `use` may take longer than `PATIENCE_S`, because it reads many records.
    reading
        Whether `use` only reads the log. Then a missing embedded log is not created.

    Raises
    ------
    LogUnreachable
        The log did not answer within `PATIENCE_S`, or there is none to read.
    """
    set_up_logs(level=logging.WARNING)
    if reading and settings.log.kind == "embedded" and not settings.log_folder.exists():
        raise LogUnreachable(
            f"{name_of(settings)} does not exist yet: a role creates it when it starts. Check "
            "log.folder and state.folder."
        )

    async def main() -> T:
        here = process(settings)
        try:
            async with asyncio.timeout(PATIENCE_S) as limit, open_log(here) as log:
                if patient:
                    limit.reschedule(None)
                return await use(here, log)
        except TimeoutError as error:
            raise LogUnreachable(
                f"The {name_of(settings)} did not answer within {PATIENCE_S:.0f} s. Check that it "
                "runs and that the settings name the right one."
            ) from error

    return asyncio.run(main())


def name_of(settings: Settings) -> str:
    """Return the address of the site's log, for a message."""
    if settings.log.kind == "embedded":
        return f"log in {settings.log_folder}"
    return f"log on Kafka at {settings.log.kafka.bootstrap} (log.kafka.bootstrap)"


def parse_vm(text: str) -> bytes:
    """Return the UUID that a person typed, as 16 bytes; raise SettingsError if it is none."""
    try:
        return UUID(text).bytes
    except ValueError as error:
        raise SettingsError(
            f"{text!r} is not a VM. Use its UUID, as `virsh domuuid NAME` prints it."
        ) from error


def parse_name(text: str, *, what: str) -> str:
    """Return the name of a zone, cell or node, in the form that settings allow.

    `what` names the kind of object in the message of the SettingsError for any other text.
    """
    if not re.fullmatch(NAME_PATTERN, text):
        raise SettingsError(
            f"{text!r} is not a valid {what}: names have letters, digits, dots, dashes and "
            "underscores."
        )
    return text


async def append_owner_event(
    here: Process, log: Log, *, kind: str, vm: bytes, cell: str, minutes: float
) -> None:
    """Append an owner's report on a VM to the log of its cell, and forbid actions on the VM.

    `kind` is that of the event, such as `owner_reboot`; `vm` has 16 bytes.

    Raises
    ------
    SettingsError, StateError
        A key that must sign the report or the command is missing or cannot be used.
    CommandRefused
        The command shortens one in force, and the operator's signature on it is not accepted.
    """
    place, now_ms = here.settings.site, here.clock.now_ms()
    # The key is read before any append, so that nothing is written if the caller has no key.
    sign = frame_keyring(here.settings, here.clock).signer("owner", place.node)
    until_ms = now_ms + round(minutes * MINUTE_MS)
    event = Event(
        id=f"{here.run}/0",
        kind=kind,
        time_ns=now_ms * 1_000_000,
        vm=vm,
        detail={"until_ms": str(until_ms), "by": getpass.getuser()},
    )
    control = Control(
        kind="maintenance",
        scope="vm",
        subject=str(UUID(bytes=vm)),
        active=True,
        by=getpass.getuser(),
        reason=kind,
        time_ms=now_ms,
        until_ms=until_ms,
        # The source is part of the record key. So a report of a reboot (10 min) does not replace a
        # report of maintenance (1 h).
        source=kind,
    )
    # The control record is appended before the frame: an agent reads it before its call, and an
    # order may already be on its way.
    held = (await _commands_by_key(here, log)).get(control.key())
    await _say(here, log, control, signing=loosens(control, held))
    key, value = cell.encode(), _owner_frame(here, event, cell=cell)
    await log.append(FRAMES.name, key=key, value=value, headers=sign(key, value))


def _owner_frame(here: Process, event: Event, *, cell: str) -> bytes:
    """Return the frame that carries an owner's report to the engine of a cell."""
    place = here.settings.site
    header = Header(
        site=place.name,
        zone=place.zone,
        cell=cell,
        node=place.node,
        role="owner",
        run=here.run,
        sequence=0,
        event_time_ns=event.time_ns,
        mono_ns=here.clock.mono_ns(),
        interval_ms=1000,
    )
    return encode_frame(Frame(header=header, rows=VmRows.empty(), events=(event,)))


async def append_forget(here: Process, log: Log, *, scope: str, name: str, cell: str) -> None:
    """Append an owner's report that a node, VM, pool or network is gone permanently.

    `scope` is that kind of object; `name` is its name, of a VM the UUID text. SettingsError or
    StateError are raised if the owner's key is missing or cannot be used.
    """
    sign = frame_keyring(here.settings, here.clock).signer("owner", here.settings.site.node)
    event = Event(
        id=f"{here.run}/0",
        kind="owner_forget",
        time_ns=here.clock.now_ms() * 1_000_000,
        detail={"scope": scope, "name": name, "by": getpass.getuser()},
    )
    key, value = cell.encode(), _owner_frame(here, event, cell=cell)
    await log.append(FRAMES.name, key=key, value=value, headers=sign(key, value))


def _has_operator_key(settings: Settings) -> bool:
    """Return whether this installation can sign as an operator.

    On the embedded log it always can, because a missing key is created.
    """
    return settings.log.kind == "embedded" or (settings.key_folder / "operator.key").exists()


async def _say(
    here: Process, log: Log, control: Control, *, signing: bool, key: bytes | None = None
) -> None:
    """Append one control record, signed if this installation has an operator's key.

    Parameters
    ----------
    signing
        Whether the record is valid only with an operator's signature.
    key
        Record key to write under; None is `control.key()`. A record ends only one with its key.

    Raises
    ------
    SettingsError
        The record must be signed, and this installation has no operator's key.
    CommandRefused
        The record must be signed, and planners and agents do not accept its signature.
    """
    key, headers = control.key() if key is None else key, _NO_HEADERS
    value = encode_control(control)
    if _has_operator_key(here.settings):
        operator = own_key(here.settings.key_folder, "operator")
        if signing:
            _require_believed(here, operator)
            value = encode_control(_dated(control, key, (await _fold(here, log))[0]))
        headers = signed(value, operator)
    elif signing:
        raise SettingsError(
            "A command that ends a restriction requires an operator key, and "
            f"{here.settings.key_folder} has none. Create one with `flatline keys create operator "
            "NAME`, and copy operator-NAME.pub to the trusted folder of every planner and agent."
        )
    position = await log.append(CONTROL.name, key=key, value=value, headers=headers)
    if not signing:
        return
    # The rules of planners and agents are applied here too, so that a record which they reject is
    # not reported as a success.
    fault = (await _fold(here, log))[1].get(position.offset)
    if fault is not None:
        raise CommandRefused(
            f"The log has the command, but planners and agents reject it: {fault.detail}. Nothing "
            "changed. Check the clock of this machine and `flatline keys show`, then repeat the "
            "command. `flatline pause show` lists what is in force."
        )


def _dated(control: Control, key: bytes, commands: Mapping[bytes, Control]) -> Control:
    """Return the record dated no earlier than the record it ends.

    This machine's clock may be slow, and readers reject a command that is older than what it ends.
    """
    ended = [
        commands[one].time_ms for one in (control.key(), restriction_key(key)) if one in commands
    ]
    return msgspec.structs.replace(control, time_ms=max(control.time_ms, *ended, 0))


def _require_believed(here: Process, operator: Ed25519PrivateKey) -> None:
    """Refuse to sign with an operator's key that this machine itself does not trust.

    Planners and agents that trust the same keys would reject the record.

    Raises
    ------
    CommandRefused
        The operator's key of this machine is not trusted, or it has expired or was revoked.
    """
    settings, name = here.settings, key_id(operator.public_key())
    trusted = trusted_now(settings)
    cure = (
        f"copy operator-NAME.pub from {settings.key_folder} to the trusted folder of every planner,"
        " agent and operator"
    )
    if name not in trusted.operators:
        raise CommandRefused(
            f"Nothing was written: the operator key {name} of this machine is not trusted in "
            f"{settings.trusted_folder}, so the command would be rejected. Let an operator with a "
            f"trusted key repeat it, or {cure}."
        )
    until_ms = trusted.until_ms.get(name)
    if until_ms is not None and until_ms <= here.clock.now_ms():
        raise CommandRefused(
            f"Nothing was written: the operator key {name} ({trusted.names.get(name, 'unnamed')}) "
            f"of this machine expired at {date_of(until_ms)}, so the command would be rejected. "
            "Let another operator repeat it, or create another key with `flatline keys create "
            f"operator NAME` and {cure}."
        )


def parse_scope(text: str) -> tuple[ControlScope, str]:
    """Return scope and subject of a text such as `site`, `cell:c1` or `vm:UUID`.

    The subject of `site` is empty. SettingsError is raised for any other text.
    """
    scope, _, subject = text.partition(":")
    known: tuple[ControlScope, ...] = get_args(ControlScope)
    for name in known:
        if name == scope and bool(subject) == (scope != "site"):
            return name, _subject(name, subject)
    raise SettingsError(
        f"{text!r} is not a scope. Use site, or one of "
        f"{', '.join(f'{name}:NAME' for name in known if name not in ('site', 'vm'))}, vm:UUID."
    )


def _subject(scope: ControlScope, text: str) -> str:
    """Return the NAME or UUID of a scope; raise SettingsError if no object can have it."""
    if scope == "vm":
        return str(UUID(bytes=parse_vm(text)))
    return parse_name(text, what=scope) if scope in PLACES else text


def scope_of(control: Control) -> str:
    """Return the scope of a control record as a person types it."""
    return f"{control.scope}:{control.subject}" if control.subject else control.scope


def rows_of(controls: Iterable[Control]) -> Iterator[tuple[Control, str]]:
    """Yield the records in force and their scopes, for display.

    A restriction that replaces a rejected or unreadable record is shown once per scope, with a text
    that says how an operator ends it.
    """
    shown: set[str] = set()
    for control in controls:
        scope = scope_of(control)
        if control.source not in RESTRICTIONS:
            yield control, scope
        elif scope not in shown:
            shown.add(scope)
            why = (
                f"A control record for it was {control.source}, so actions on it are paused until "
                f"an operator ends this. Record: {control.reason}"
            )
            yield msgspec.structs.replace(control, by="safety hold", reason=why), scope


async def append_pause(
    here: Process, log: Log, *, scope: str, reason: str, minutes: float | None
) -> Control:
    """Append a pause, and return the pause in force.

    If an existing pause lasts longer, it stays in force and nothing is appended: a pause of ten
    minutes must not shorten a pause without an end. `minutes` of None is without an end. `scope` is
    as in `parse_scope`, which raises SettingsError.
    """
    pause = _pause(here, scope, reason=reason)
    if minutes is not None:
        pause = msgspec.structs.replace(pause, until_ms=pause.time_ms + round(minutes * MINUTE_MS))
        held = (await _commands_by_key(here, log)).get(pause.key())
        if held is not None and held.source == pause.source and _outlasts(held, pause):
            return held
    await _say(here, log, pause, signing=False)
    return pause


def _outlasts(held: Control, command: Control) -> bool:
    return held.until_ms is None or (
        command.until_ms is not None and held.until_ms > command.until_ms
    )


async def end_pause(here: Process, log: Log, *, scope: str, reason: str) -> bool:
    """Append the end of a pause, and return whether there was one.

    `scope` is as in `parse_scope`; errors are those of `append_approval`.
    """
    over = msgspec.structs.replace(_pause(here, scope, reason=reason), active=False)
    in_force = await _commands_by_key(here, log)
    # The command also ends the pauses that planners have set.
    commands = [msgspec.structs.replace(over, source=SOURCE), over]
    if over.scope == "vm":
        commands.insert(0, msgspec.structs.replace(over, kind="quarantine"))
    # The ends are written even if no pause was read: a pause may have been appended since.
    keys = {command.key(): command for command in commands}
    # The restriction for a rejected or unreadable record ends only with an operator's record under
    # the key of that record.
    holds = [
        key
        for key, command in in_force.items()
        if command.source in RESTRICTIONS
        and (command.scope, command.subject) == (over.scope, over.subject)
    ]
    keys |= {held_key(key): over for key in holds}
    for key, command in keys.items():
        await _say(here, log, command, signing=True, key=key)
    return bool(holds) or any(key in in_force for key in keys)


async def adopt(here: Process, log: Log) -> list[Control]:
    """Sign the ends of commands that an earlier release left unsigned; return these commands.

    Errors are those of `append_approval`.
    """
    in_force = await _commands_by_key(here, log)
    holds = {key: command for key, command in in_force.items() if command.source == REFUSED}
    for key, command in holds.items():
        over = msgspec.structs.replace(
            command,
            active=False,
            by=getpass.getuser(),
            reason="its end was not signed, and is signed now",
            time_ms=here.clock.now_ms(),
            source="",
        )
        await _say(here, log, over, signing=True, key=held_key(key))
    return list(holds.values())


def _pause(here: Process, scope: str, *, reason: str) -> Control:
    kind, subject = parse_scope(scope)
    return Control(
        kind="pause",
        scope=kind,
        subject=subject,
        active=True,
        by=getpass.getuser(),
        reason=reason,
        time_ms=here.clock.now_ms(),
    )


async def append_approval(
    here: Process, log: Log, *, incident: str, reason: str, minutes: float
) -> Control:
    """Append a signed approval of the steps of one incident that need a person's consent.

    Raises
    ------
    SettingsError, StateError
        `incident` is not 32 hex digits, or there is no operator's key that can be used.
    CommandRefused
        Planners and agents do not accept the signature.
    """
    if not re.fullmatch(_INCIDENT, incident):
        raise SettingsError(
            f"{incident!r} is not an incident. Use its 32 hex digits, as `flatline audit show` "
            "prints them for a step that requires approval."
        )
    now_ms = here.clock.now_ms()
    control = Control(
        kind="approval",
        scope="vm",
        subject=incident,
        active=True,
        by=getpass.getuser(),
        reason=reason,
        time_ms=now_ms,
        until_ms=now_ms + round(minutes * MINUTE_MS),
    )
    await _say(here, log, control, signing=True)
    return control


async def controls_in_force(here: Process, log: Log) -> list[Control]:
    """Return every control command in force; an unreadable record counts as a pause of the site."""
    return list((await _commands_by_key(here, log)).values())


async def _commands_by_key(here: Process, log: Log) -> dict[bytes, Control]:
    commands, _ = await _fold(here, log)
    now_ms = here.clock.now_ms()
    return {key: command for key, command in commands.items() if command.holds(now_ms=now_ms)}


async def _fold(
    here: Process, log: Log
) -> tuple[Mapping[bytes, Control], dict[int, RecordRejected]]:
    """Return the control commands by key, and the reasons of rejected records by offset."""
    commands: Mapping[bytes, Control] = {}
    refused: dict[int, RecordRejected] = {}
    trusted = trusted_now(here.settings)
    for record in await log.read_to_end(CONTROL.name, 0, offset=0):
        heard = hear(
            record.key,
            record.value,
            record.headers,
            time_ms=record.time_ms,
            trusted=trusted,
            controls=commands,
        )
        commands = fold_command(commands, record.key, heard)
        if heard.rejected is not None:
            refused[record.offset] = heard.rejected
    return commands, refused

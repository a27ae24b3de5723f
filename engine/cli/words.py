"""What people tell Flatline: owners about their VMs, operators about pauses."""

import asyncio
import getpass
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, get_args
from uuid import UUID

import msgspec

from engine.action.storm import SOURCE
from engine.cli.logs import set_up_logs
from engine.errors import LogUnreachable, RecordRejected, SettingsError
from engine.keyring import own_key
from engine.ports import Log
from engine.settings import NAME_PATTERN, Settings
from engine.wire.control import (
    UNREADABLE,
    Control,
    ControlScope,
    decode_control,
    encode_control,
    unreadable,
    with_word,
)
from engine.wire.frame import Event, Frame, Header, VmRows, encode_frame
from engine.wire.order import signed
from engine.wire.topics import CONTROL, FRAMES
from engine.wiring import Process, open_log, process

# Whoever types a command waits for it: a log that restarts is back within this, and one
# that is away for longer is better told than waited for.
PATIENCE_S: Final = 15.0
MINUTE_MS: Final = 60_000
# What settings name, so that a name which no setting may have is a slip of the hand.
PLACES: Final = ("zone", "cell", "node")

# As `engine.wire.alert.alert_id` makes them.
_INCIDENT: Final = "[0-9a-f]{32}"

T = TypeVar("T")


def with_log(
    settings: Settings,
    use: Callable[[Process, Log], Coroutine[Any, Any, T]],
    *,
    patient: bool = False,
    reading: bool = False,
) -> T:
    """Open the site's log for one command and return what `use` returns.

    Parameters
    ----------
    patient
        Whether `use` may take its time, because it reads much.
    reading
        Whether a log is only read: an embedded one that is not there is then not made.

    Raises
    ------
    LogUnreachable
        The log did not answer within `PATIENCE_S`, or there is none to read.
    """
    set_up_logs(level=logging.WARNING)
    if reading and settings.log.kind == "embedded" and not settings.log_folder.exists():
        raise LogUnreachable(
            f"There is no {name_of(settings)} yet: a role makes it when it starts. Is it the one"
            " you mean (log.folder, state.folder)?"
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
                f"The {name_of(settings)} gave no answer within {PATIENCE_S:.0f} s. Is it"
                " running, and is it the one you mean?"
            ) from error

    return asyncio.run(main())


def name_of(settings: Settings) -> str:
    """Return where the site's log is, for a message."""
    if settings.log.kind == "embedded":
        return f"log in {settings.log_folder}"
    return f"log on Kafka at {settings.log.kafka.bootstrap} (log.kafka.bootstrap)"


def parse_vm(text: str) -> bytes:
    """Return the UUID that a person typed, as 16 bytes."""
    try:
        return UUID(text).bytes
    except ValueError as error:
        raise SettingsError(
            f"{text!r} is no VM: give its UUID, as `virsh domuuid NAME` shows it."
        ) from error


def parse_name(text: str, *, what: str) -> str:
    """Return the name of a zone, cell or node, as settings allow it."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise SettingsError(
            f"{text!r} can be no {what}: names are letters, digits, dots, dashes and underscores."
        )
    return text


async def append_owner_event(
    here: Process, log: Log, *, kind: str, vm: bytes, cell: str, minutes: float
) -> None:
    """Make an owner's word on a VM stand in the log of its cell, and hold every agent off it."""
    place, now_ms = here.settings.site, here.clock.now_ms()
    until_ms = now_ms + round(minutes * MINUTE_MS)
    event = Event(
        id=f"{here.run}/0",
        kind=kind,
        time_ns=now_ms * 1_000_000,
        vm=vm,
        detail={"until_ms": str(until_ms), "by": getpass.getuser()},
    )
    header = Header(
        site=place.name,
        zone=place.zone,
        cell=cell,
        node=place.node,
        role="owner",
        run=here.run,
        sequence=0,
        event_time_ns=now_ms * 1_000_000,
        mono_ns=here.clock.mono_ns(),
        interval_ms=1000,
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
        # A reboot of ten minutes must not shorten a maintenance of an hour.
        source=kind,
    )
    # First the word that an agent reads before its call: an order may be on its way already.
    await log.append(CONTROL.name, key=control.key(), value=encode_control(control))
    frame = Frame(header=header, rows=VmRows.empty(), events=(event,))
    await log.append(FRAMES.name, key=cell.encode(), value=encode_frame(frame))


def parse_scope(text: str) -> tuple[ControlScope, str]:
    """Return scope and subject of `site`, `cell:c1`, `vm:UUID` and the like."""
    scope, _, subject = text.partition(":")
    known: tuple[ControlScope, ...] = get_args(ControlScope)
    for name in known:
        if name == scope and bool(subject) == (scope != "site"):
            return name, _subject(name, subject)
    raise SettingsError(
        f"{text!r} is no scope: write site, or one of"
        f" {', '.join(f'{name}:NAME' for name in known if name not in ('site', 'vm'))}, vm:UUID."
    )


def _subject(scope: ControlScope, text: str) -> str:
    """Return what a scope names: a stop that nothing can match must not look like one."""
    if scope == "vm":
        return str(UUID(bytes=parse_vm(text)))
    return parse_name(text, what=scope) if scope in PLACES else text


def scope_of(control: Control) -> str:
    """Return the scope of a word as a person types it."""
    return f"{control.scope}:{control.subject}" if control.subject else control.scope


async def append_pause(
    here: Process, log: Log, *, scope: str, reason: str, minutes: float | None
) -> Control:
    """Make a pause stand in the log, and return the one that holds.

    One that holds longer stays: somebody's ten minutes must not end a stop without an end.
    """
    pause = _pause(here, scope, reason=reason)
    if minutes is not None:
        pause = msgspec.structs.replace(pause, until_ms=pause.time_ms + round(minutes * MINUTE_MS))
        held = (await _words_by_key(here, log)).get(pause.key())
        if held is not None and held.source == pause.source and _outlasts(held, pause):
            return held
    await log.append(CONTROL.name, key=pause.key(), value=encode_control(pause))
    return pause


def _outlasts(held: Control, word: Control) -> bool:
    return held.until_ms is None or (word.until_ms is not None and held.until_ms > word.until_ms)


async def end_pause(here: Process, log: Log, *, scope: str, reason: str) -> bool:
    """Make the end of a pause stand in the log, and return whether there was one."""
    over = msgspec.structs.replace(_pause(here, scope, reason=reason), active=False)
    in_force = await _words_by_key(here, log)
    # What a person ends is over, also where a machine said the same.
    words = [msgspec.structs.replace(over, source=SOURCE), over]
    if over.scope == "vm":
        words.insert(0, msgspec.structs.replace(over, kind="quarantine"))
    # Said in any case: who wants machines to go on must not depend on what was read just now.
    keys = {word.key(): word for word in words}
    if over.scope == "site":
        # Each holds as a pause of the site, and only a word under the same key ends it.
        keys |= {key: over for key, word in in_force.items() if word.source == UNREADABLE}
    for key, word in keys.items():
        await log.append(CONTROL.name, key=key, value=encode_control(word))
    return any(key in in_force for key in keys)


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
    """Let machines take the steps of one incident that wait for a person's word, and sign it."""
    if not re.fullmatch(_INCIDENT, incident):
        raise SettingsError(
            f"{incident!r} is no incident: give its 32 hex digits, as `flatline audit show` has"
            " them where a step waits for a person's word."
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
    value = encode_control(control)
    headers = signed(value, own_key(here.settings.key_folder, "operator"))
    await log.append(CONTROL.name, key=control.key(), value=value, headers=headers)
    return control


async def controls_in_force(here: Process, log: Log) -> list[Control]:
    """Return every word that holds now, and a pause of the site for each that is unreadable."""
    return list((await _words_by_key(here, log)).values())


async def _words_by_key(here: Process, log: Log) -> dict[bytes, Control]:
    words: dict[bytes, Control] = {}
    for record in await log.read_to_end(CONTROL.name, 0, offset=0):
        try:
            word = decode_control(record.value)
        except RecordRejected as error:
            word = unreadable(record.key, time_ms=record.time_ms, why=error.detail)
        words = with_word(words, record.key, word)
    now_ms = here.clock.now_ms()
    return {key: word for key, word in words.items() if word.holds(now_ms=now_ms)}

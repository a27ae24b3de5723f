"""What people tell Flatline: owners about their VMs, operators about pauses."""

import asyncio
import getpass
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, get_args
from uuid import UUID

import msgspec

from engine.action.storm import SOURCE
from engine.cli.logs import set_up_logs
from engine.errors import LogUnreachable, SettingsError
from engine.keyring import own_key
from engine.ports import Log
from engine.settings import Settings
from engine.wire.control import Control, ControlScope, decode_control, encode_control
from engine.wire.frame import Event, Frame, Header, VmRows, encode_frame
from engine.wire.order import signed
from engine.wire.topics import CONTROL, FRAMES
from engine.wiring import Process, open_log, process

# Whoever types a command waits for it: a log that restarts is back within this, and one
# that is away for longer is better told than waited for.
PATIENCE_S: Final = 15.0
MINUTE_MS: Final = 60_000

T = TypeVar("T")


def with_log(
    settings: Settings,
    use: Callable[[Process, Log], Coroutine[Any, Any, T]],
    *,
    patient: bool = False,
) -> T:
    """Open the site's log for one command and return what `use` returns.

    Parameters
    ----------
    patient
        Whether `use` may take its time, because it reads much.

    Raises
    ------
    LogUnreachable
        The log did not answer within `PATIENCE_S`.
    """
    set_up_logs(level=logging.WARNING)

    async def main() -> T:
        here = process(settings)
        try:
            async with asyncio.timeout(PATIENCE_S) as limit, open_log(here) as log:
                if patient:
                    limit.reschedule(None)
                return await use(here, log)
        except TimeoutError as error:
            raise LogUnreachable(
                f"The log gave no answer within {PATIENCE_S:.0f} s. Is it running, and is it"
                " the one that `flatline config show` names?"
            ) from error

    return asyncio.run(main())


def parse_vm(text: str) -> bytes:
    """Return the UUID that a person typed, as 16 bytes."""
    try:
        return UUID(text).bytes
    except ValueError as error:
        raise SettingsError(
            f"{text!r} is no VM: give its UUID, as `virsh domuuid NAME` shows it."
        ) from error


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
            return name, str(UUID(bytes=parse_vm(subject))) if name == "vm" else subject
    raise SettingsError(
        f"{text!r} is no scope: write site, or one of"
        f" {', '.join(f'{name}:NAME' for name in known if name != 'site')}."
    )


async def append_pause(
    here: Process, log: Log, *, scope: str, active: bool, reason: str, minutes: float | None
) -> Control:
    """Make a pause, or its end, stand in the log, and return it."""
    now_ms = here.clock.now_ms()
    kind, subject = parse_scope(scope)
    control = Control(
        kind="pause",
        scope=kind,
        subject=subject,
        active=active,
        by=getpass.getuser(),
        reason=reason,
        time_ms=now_ms,
        until_ms=None if minutes is None else now_ms + round(minutes * MINUTE_MS),
    )
    words = [control]
    if not active:
        # What a person ends is over, also where the storm breaker said the same.
        words.insert(0, msgspec.structs.replace(control, source=SOURCE))
        if kind == "vm":
            words.insert(0, msgspec.structs.replace(control, kind="quarantine"))
    for word in words:
        await log.append(CONTROL.name, key=word.key(), value=encode_control(word))
    return control


async def append_approval(
    here: Process, log: Log, *, incident: str, reason: str, minutes: float
) -> Control:
    """Let machines take the steps of one incident that wait for a person's word, and sign it."""
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
    """Return every word that holds now, in the order in which they were said."""
    last: dict[bytes, Control] = {}
    for record in await log.read_to_end(CONTROL.name, 0, offset=0):
        if record.value:
            last[record.key] = decode_control(record.value)
    now_ms = here.clock.now_ms()
    return [control for control in last.values() if control.holds(now_ms=now_ms)]

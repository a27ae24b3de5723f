"""Validation warnings: a command names an object that no engine has reported lately.

Such a name may be a typing error, so the user is warned, but the command is executed.
"""

from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final, TypeVar
from uuid import UUID

from flatline.engine.cli.control_commands import MINUTE_MS, parse_scope, with_log
from flatline.engine.cli.options import console
from flatline.engine.errors import FlatlineError, RecordRejected
from flatline.engine.ports import Log
from flatline.engine.settings import Settings
from flatline.engine.wire.alert import decode_alert
from flatline.engine.wire.control import ControlScope
from flatline.engine.wire.frame import UUID_BYTES
from flatline.engine.wire.score import Scores, decode_scores
from flatline.engine.wire.topics import ALERTS, SCORES
from flatline.engine.wiring import Process

# Scores and firing alerts are published once a minute; a single missed one must cause no warning.
_SEEN_MS: Final = 5 * MINUTE_MS

T = TypeVar("T")
Asking = Callable[[Process, Log], Coroutine[Any, Any, str | None]]


def print_warning(settings: Settings, asking: Asking, stands: str) -> None:
    """Print why an appended record may have no effect, followed by `stands`; or nothing.

    `asking` returns the reason, None for none. If it or the log fails with a FlatlineError, nothing
    is printed.
    """
    # The check is optional: the command must also work where it is not possible.
    with suppress(FlatlineError):
        why = with_log(settings, asking)
        if why is not None:
            console(stderr=True).print(f"Warning: {why}. {stands}")


async def scope_warning(here: Process, log: Log, *, scope: str) -> str | None:
    """Return why a control record for a scope may have no effect.

    None if an engine has reported the scope lately, or if no engine has reported any such object.
    `scope` is as in `parse_scope`, which raises SettingsError.
    """
    kind, subject = parse_scope(scope)
    if kind in {"site", "zone", "tenant"}:
        return None  # scores do not name sites, zones and tenants
    reported = await latest(here, log, SCORES.name, decode_scores)
    return _warning(scope, subject, (name for scores in reported for name in _named(scores, kind)))


async def vm_warning(here: Process, log: Log, *, vm: bytes, cell: str) -> str | None:
    """Return why a record for a VM in a cell may have no effect; None as in `scope_warning`.

    `vm` is the VM's UUID, 16 bytes.
    """
    name = str(UUID(bytes=vm))
    reported = {
        (seen, scores.cell)
        for scores in await latest(here, log, SCORES.name, decode_scores)
        for seen in _named(scores, "vm")
    }
    cells = {where for seen, where in reported if seen == name}
    if cells and cell not in cells:
        return f"the engine reports VM {name} in cell {min(cells)} (--cell), not in {cell}"
    return _warning(f"VM {name}", name, (seen for seen, _ in reported))


async def incident_warning(here: Process, log: Log, *, incident: str) -> str | None:
    """Return why an approval may have no effect; None as in `scope_warning`."""
    reported = await latest(here, log, ALERTS.name, decode_alert)
    return _warning(f"incident {incident}", incident, (alert.id for alert in reported))


async def latest(here: Process, log: Log, topic: str, decode: Callable[[bytes], T]) -> list[T]:
    """Return the records that engines published in the last five minutes, if they can be read.

    They are in the order of the log, partition by partition. `decode` raises RecordRejected for an
    unreadable record.
    """
    since_ms, found = here.clock.now_ms() - _SEEN_MS, []
    for partition in range(log.partitions(topic)):
        offset = await log.offset_at(topic, partition, time_ms=since_ms)
        for record in await log.read_to_end(topic, partition, offset=offset):
            with suppress(RecordRejected):
                found.append(decode(record.value))
    return found


def _warning(what: str, name: str, reported: Iterable[str]) -> str | None:
    seen = sorted(set(reported))
    if name in seen or not seen:
        return None
    nearest = get_close_matches(name, seen, n=3)
    like = f" (the nearest: {', '.join(nearest)})" if nearest else ""
    return f"no engine has reported {what} in the last five minutes{like}"


def _named(scores: Scores, kind: ControlScope) -> set[str]:
    match kind:
        case "cell":
            return {scores.cell}
        case "node":
            return set(scores.nodes)
        case "pool":
            return set(scores.pool_vms)
        case "network":
            return set(scores.network_vms)
        case "vm":
            size = UUID_BYTES
            starts = range(0, len(scores.uuids), size)
            return {str(UUID(bytes=scores.uuids[at : at + size])) for at in starts}
        case _:
            return set()

"""Engine reports about the data themselves: identities, clocks, and skipped records."""

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from flatline.engine.cli.validation import latest
from flatline.engine.errors import RecordRejected
from flatline.engine.faults import of_family
from flatline.engine.ports import Log
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.rejected import Rejected, decode_rejected
from flatline.engine.wire.topics import ALERTS, REJECTED
from flatline.engine.wiring import Process

_REJECTED_BACK_MS: Final = 3_600_000
# At most this many records of each partition of `rejected` are read: a record has up to 64 KB, and
# a flood has many.
_REJECTED_READ: Final = 200
_SHOWN: Final = 5
NOTICES: Final = of_family("notice")

# Returns a sentence about the records in the log, empty where there is nothing to report.
Asking = Callable[[Process, Log], Coroutine[Any, Any, str]]


async def firing(here: Process, log: Log) -> str:
    """Return the firing alerts about clocks, rival sources and skipped records.

    They are in one text, empty if there is none; it has the first `_SHOWN` and the number of
    others.
    """
    found: dict[str, Alert] = {}
    for alert in await latest(here, log, ALERTS.name, decode_alert):
        known = found.get(alert.id)
        if known is None or alert.transition >= known.transition:
            found[alert.id] = alert
    now = [one for one in found.values() if one.kind in NOTICES and one.state == "firing"]
    now.sort(key=lambda one: (one.kind, one.subject))
    more = f" And {len(now) - _SHOWN} more." if len(now) > _SHOWN else ""
    return " ".join(f"{one.kind}: {one.sentence}" for one in now[:_SHOWN]) + more


async def left_out(here: Process, log: Log) -> str:
    """Return the records of the last hour that were rejected or set aside, by reason.

    They are in one text, empty if there is none. Only the last `_REJECTED_READ` records of each
    partition are counted.
    """
    found: list[Rejected] = []
    since_ms = here.clock.now_ms() - _REJECTED_BACK_MS
    for partition in range(log.partitions(REJECTED.name)):
        start = await log.offset_at(REJECTED.name, partition, time_ms=since_ms)
        end = (await log.bounds(REJECTED.name, partition)).end
        start = max(start, end - _REJECTED_READ)
        for record in await log.read_to_end(REJECTED.name, partition, offset=start):
            try:
                found.append(decode_rejected(record.value))
            except RecordRejected:
                continue
    if not found:
        return ""
    newest = {one.reason: one for one in found}
    reasons = [
        f"{count} {reason} (last: {newest[reason].topic}/{newest[reason].partition} at"
        f" {newest[reason].offset}: {newest[reason].detail[:200]})"
        for reason, count in sorted(Counter(one.reason for one in found).items())
    ]
    return (
        f"Records were rejected or set aside in the last hour: {'; '.join(reasons)}. "
        "deploy/RUNBOOK.md explains each reason."
    )

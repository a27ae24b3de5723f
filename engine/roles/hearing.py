"""A record of control as planner and agent take it in: refused ones are journaled and counted."""

from collections.abc import Mapping

from engine.action.keys import Trust
from engine.action.words import Heard, hear
from engine.ports import Record
from engine.roles.outbox import Journal
from engine.wire.control import Control


def hear_record(
    record: Record, *, trust: Trust, controls: Mapping[bytes, Control], journal: Journal
) -> Heard:
    """Return what a record says to a role that holds `controls`; see `engine.action.words`."""
    heard = hear(
        record.key,
        record.value,
        record.headers,
        time_ms=record.time_ms,
        trusted=trust.current(),
        controls=controls,
    )
    if heard.rejected is not None:
        journal.reject(record, reason=heard.rejected.reason, detail=heard.rejected.detail)
    return heard

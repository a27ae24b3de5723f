"""Reads control records for planner and agent, and counts those that are rejected."""

from collections.abc import Mapping

from flatline.engine import instruments
from flatline.engine.action.commands import Heard, hear
from flatline.engine.action.keys import Trust
from flatline.engine.ports import Record
from flatline.engine.roles.outbox import Journal
from flatline.engine.wire.control import Control


def hear_record(
    record: Record,
    *,
    trust: Trust,
    controls: Mapping[bytes, Control],
    journal: Journal | None = None,
) -> Heard:
    """Return the effect of a record on a role that holds `controls`; see `engine.action.commands`.

    Parameters
    ----------
    journal
        Keeps a rejected record; with None the record is only counted. Only planners pass a journal.
        Otherwise each agent would keep a copy of the same record.
    """
    heard = hear(
        record.key,
        record.value,
        record.headers,
        time_ms=record.time_ms,
        trusted=trust.current(),
        controls=controls,
    )
    if heard.rejected is not None:
        reason, detail = heard.rejected.reason, heard.rejected.detail
        if journal is None:
            instruments.RECORDS_REJECTED.labels(record.topic, reason).inc()
        else:
            journal.reject(record, reason=reason, detail=detail)
    return heard

"""A record of control as planner and agent take it in: refused ones are counted."""

from collections.abc import Mapping

from engine.action.keys import Trust
from engine.action.words import Heard, hear
from engine.ports import Record
from engine.roles import instruments
from engine.roles.outbox import Journal
from engine.wire.control import Control


def hear_record(
    record: Record,
    *,
    trust: Trust,
    controls: Mapping[bytes, Control],
    journal: Journal | None = None,
) -> Heard:
    """Return what a record says to a role that holds `controls`; see `engine.action.words`.

    Parameters
    ----------
    journal
        Of a role that keeps refused records for all others; None counts them.
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

"""Appends records; a record that is too large for the log is dropped, counted and reported.

This is for roles that wait for each append. Roles that must not wait use `engine.roles.outbox`.
"""

from typing import Final

import structlog

from flatline.engine import instruments
from flatline.engine.errors import RecordTooLarge
from flatline.engine.ports import Headers, Log
from flatline.engine.wire.rejected import encode_rejected, rejected_key
from flatline.engine.wire.topics import REJECTED

# How much of a dropped record is kept: enough to identify it, and small enough for a topic with a
# low size limit.
_GIVEN_UP_KEPT_BYTES: Final = 256

_log = structlog.get_logger()


async def append_or_give_up(
    log: Log, topic: str, *, key: bytes, value: bytes, headers: Headers = ()
) -> bool:
    """Append a record; return False if the log never accepts a record of its size.

    The beginning of such a record is appended to the topic `rejected` with the reason, unless it is
    too large for that topic too.

    Raises
    ------
    LogError
        The log refused for any other reason.
    """
    try:
        await log.append(topic, key=key, value=value, headers=headers)
    except RecordTooLarge as error:
        given_up = give_up(topic, key, value, str(error))
    else:
        return True
    if topic != REJECTED.name:
        await append_or_give_up(log, REJECTED.name, key=rejected_key(key), value=given_up)
    return False


def give_up(topic: str, key: bytes, value: bytes, why: str) -> bytes:
    """Count and log a record that the log never accepts; return its entry for `rejected`."""
    instruments.RECORDS_GIVEN_UP.labels(topic, "oversized").inc()
    _log.error(
        "A record is too large for the log and was dropped.",
        topic=topic,
        key=key.decode(errors="replace"),
        bytes=len(value),
        reason=why,
    )
    return encode_rejected(
        value,
        topic=topic,
        partition=0,
        offset=0,
        reason="oversized",
        detail=f"The log rejects this record permanently: {why}",
        kept_bytes=_GIVEN_UP_KEPT_BYTES,
    )

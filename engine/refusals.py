"""Handling of refusals: one policy for all writes to external receivers.

Each receiver (InfluxDB, a webhook, Kafka, files) refuses in its own way; its adapter maps a refusal
to one of two kinds of error. A **permanent** refusal is caused by the data: the receiver will never
accept them, so they are recorded with the reason and skipped, and the next data are sent. A
**temporary** refusal is caused by the receiver or the network. The same data are sent again after
the pause that the receiver asked for, else after one that doubles (`engine.stream.backoff`).
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

# Status codes 4xx that are temporary, although 4xx means an error of the request.
_PASSING: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
# Status codes 5xx that are permanent: the request causes them, although 5xx means a server error.
_NEVER: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
# Longest pause that is honoured. A `Retry-After` of more than an hour is an error or a daily quota;
# then the data are sent again every hour.
LONGEST_WAIT_S: Final = 3600.0


def is_permanent(status: int) -> bool:
    """Return whether an HTTP status other than 2xx is caused by the data, not the receiver.

    A redirect counts as permanent, because data are sent only to the address that an operator
    configured.
    """
    if status in _NEVER:
        return True
    return 300 <= status < 500 and status not in _PASSING


def retry_after_s(text: str | None, *, now: datetime | None = None) -> float | None:
    """Return the pause that a `Retry-After` header asks for, in s (RFC 9110, 10.2.3).

    The header holds a number or a date. `now` is the time from which a date is counted, by default
    the present. The result is None if the header is absent or not valid, 0 for a date in the past,
    and at most `LONGEST_WAIT_S`.
    """
    if not text or not text.strip():
        return None
    try:
        wait_s = float(text)
    except ValueError:
        try:
            until = parsedate_to_datetime(text)
            wait_s = (until - (now or datetime.now(until.tzinfo and UTC))).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, wait_s), LONGEST_WAIT_S) if wait_s == wait_s else None

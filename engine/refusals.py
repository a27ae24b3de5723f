"""Handling of refusals: one policy for all writes to external receivers.

Each receiver (InfluxDB, a webhook, Kafka, files) refuses in its own way; its adapter maps this to
one of two kinds of error. A **permanent** refusal is caused by the data: the receiver will never
accept them, so they are recorded with the reason and skipped, and the next data are sent. A
**temporary** one is caused by the receiver or the network: the same data are sent again after a
pause that doubles (`engine.stream.backoff`), or that the receiver asked for.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

# Status codes that blame the request, but are temporary.
_PASSING: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
# Status codes that blame the server, but are caused by the request.
_NEVER: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
# A header that asks for more than an hour is an error, or a daily quota: retry hourly.
LONGEST_WAIT_S: Final = 3600.0


def is_permanent(status: int) -> bool:
    """Return whether an HTTP status other than 2xx is caused by the data, not the receiver.

    A redirect is: data are sent only to the address that an operator configured.
    """
    if status in _NEVER:
        return True
    return 300 <= status < 500 and status not in _PASSING


def retry_after_s(text: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds in `Retry-After`, a number or a date (RFC 9110, 10.2.3).

    None where it is not valid. `now` is the reference for a date, by default the machine's time.
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

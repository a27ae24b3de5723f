"""Handling of refusals: one policy for all writes to external receivers.

Each receiver (InfluxDB, a webhook, Kafka, files) refuses in its own way; its adapter maps this to
one of two kinds of error. A **permanent** refusal is caused by the data: the receiver will never
accept them, so they are recorded with the reason and skipped, and the next data are sent. A
**temporary** one is caused by the receiver or the network: the same data are sent again after a
pause that doubles, or that the receiver asked for.
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


class Backoff:
    """The pause before the next attempt: doubled after each failure, within bounds.

    Parameters
    ----------
    first_s, last_s
        The shortest pause, and the longest one that is not asked for, in s.
    """

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed."""
        return self._next_s != self._first_s

    def failed(self, asked_s: float | None = None) -> float:
        """Record a failure and return the pause, `asked_s` where the receiver asked for one."""
        pause_s = self._next_s
        self._next_s = min(2 * self._next_s, self._last_s)
        return pause_s if asked_s is None else max(asked_s, self._first_s)

    def worked(self) -> None:
        """Reset the pause after a success."""
        self._next_s = self._first_s

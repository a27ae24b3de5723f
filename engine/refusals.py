"""What to do with a no: one policy for everything that is written to somebody else.

Each receiver (InfluxDB, a webhook, Kafka, files) says no in its own words; its adapter turns
them into one of two kinds of error. A **permanent** refusal is about what was sent: the receiver
will never take it, so it is recorded with the reason and passed over, and what stands behind it
goes on. A **passing** one is about the receiver or the way to it: the same is sent again after a
pause that doubles, or as long as the receiver asked for.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

# Of the answers that blame the request, those that time heals.
_PASSING: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
# Of the answers that blame the server, those that are about the request all the same.
_NEVER: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
# A header that asks for more than an hour is a mistake, or a day's quota: look again hourly.
LONGEST_WAIT_S: Final = 3600.0


def is_permanent(status: int) -> bool:
    """Return whether an HTTP status that is no 2xx is about what was sent, and not the receiver.

    A redirect is: what is sent goes where an operator said, and nowhere else.
    """
    if status in _NEVER:
        return True
    return 300 <= status < 500 and status not in _PASSING


def retry_after_s(text: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that `Retry-After` asks for, a number or a date (RFC 9110, 10.2.3).

    None where it says nothing that can be understood. `now` is the time of a date, by default
    the machine's.
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
    """How long to wait before the next try: doubled after each failure, within bounds.

    Parameters
    ----------
    first_s, last_s
        The shortest pause and the longest one that is not asked for, in s.
    """

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    @property
    def has_failed(self) -> bool:
        """Whether the last try failed."""
        return self._next_s != self._first_s

    def failed(self, asked_s: float | None = None) -> float:
        """Note a failure and return the pause, as `asked_s` where the receiver asked for one."""
        pause_s = self._next_s
        self._next_s = min(2 * self._next_s, self._last_s)
        return pause_s if asked_s is None else max(asked_s, self._first_s)

    def worked(self) -> None:
        """Begin anew."""
        self._next_s = self._first_s

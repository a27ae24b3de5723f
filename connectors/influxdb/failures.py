"""What the server's answers mean: whose fault it is, and whether trying again can help."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import msgspec
import urllib3
from influxdb_client.rest import ApiException

from engine.errors import HistoryError, HistoryRefused, HistoryUnreachable

# What the server itself says about bad lines; a 400 without it is a proxy's, and no line's fault.
_FAULT_OF_LINES: Final = frozenset({"invalid", "unprocessable entity", "request too large"})
# A header that asks for more than an hour is a mistake, or a day's quota: look again hourly.
_LONGEST_WAIT_S: Final = 3600.0


class Verdict(NamedTuple):
    """The server's word on a batch: `dropped` is how many of its lines it did not take, if told."""

    status: int
    reason: str
    dropped: int | None


class _Answer(msgspec.Struct):
    code: str = ""
    message: str = ""


def verdict(error: ApiException) -> Verdict | None:
    """Return what the server says of the lines it was sent, None if they are not at fault."""
    answer = _answer(error)
    if error.status == 413:
        return Verdict(413, answer.message or "the body is too large", None)
    if error.status in (400, 422) and answer.code in _FAULT_OF_LINES:
        return Verdict(error.status, answer.message, _dropped(answer.message))
    return None


def meaning(error: Exception, *, url: str, bucket: str) -> HistoryError:
    """Return Flatline's error for a request that led to nothing."""
    if not isinstance(error, ApiException) or error.status is None:
        return HistoryUnreachable(f"InfluxDB at {url} gave no answer: {_short(error)}.")
    answer = _answer(error)
    said = f"{error.status} {answer.message or error.reason or ''}".strip()
    if error.status == 401:
        return HistoryRefused(
            f"InfluxDB at {url} does not know this token ({said}): put a valid one where"
            " history.influxdb.token_file points, it is read again."
        )
    if error.status in (403, 404):
        return HistoryRefused(
            f"InfluxDB at {url} has no bucket {bucket!r}, or this token has no right to it"
            f" ({said}): `flatline history setup` makes both."
        )
    return HistoryUnreachable(
        f"InfluxDB at {url} did not do it ({said}).", retry_after_s=_retry_after(error.headers)
    )


def _answer(error: ApiException) -> _Answer:
    try:
        return msgspec.json.decode(error.body or b"{}", type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Answer()


def _dropped(message: str) -> int | None:
    """Return the number at the end of `partial write: ... dropped=3`."""
    _, found, rest = message.rpartition("dropped=")
    digits = rest.split(" ")[0].strip()
    return int(digits) if found and digits.isdigit() else None


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds of `Retry-After`, which are a number or a date (RFC 9110, 10.2.3)."""
    text = next((v for k, v in (headers or {}).items() if k.lower() == "retry-after"), "").strip()
    if not text:
        return None
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, wait_s), _LONGEST_WAIT_S) if wait_s == wait_s else None


def _short(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    return f"{type(error).__name__}: {str(error)[:200]}"

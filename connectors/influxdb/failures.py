"""Interpret error responses: the cause, and whether a retry can help.

InfluxDB 2.0, 2.7, Cloud and 3 Core or Enterprise report the same error with different texts and
statuses. Only this module reads them.
"""

from typing import Any, Final, NamedTuple

import msgspec
import urllib3
from influxdb_client.rest import ApiException

from flatline.engine.errors import HistoryError, HistoryRefused, HistoryUnreachable
from flatline.engine.plain_text import masked_url, one_line
from flatline.engine.refusals import is_permanent, retry_after_s

# Codes of 2.x for errors that only an operator can correct: no line is at fault.
_NOT_OF_LINES: Final = frozenset({"unauthorized", "forbidden", "not found", "method not allowed"})
# Statuses that only an operator can correct, regardless of the lines sent.
_FOR_PEOPLE: Final = frozenset({401, 403, 404, 405, 407})
# Messages about bad lines that some versions send with a misleading status: a server error (2.0,
# 1.x) or a missing permission (Serverless).
_OF_LINES: Final = (
    "beyond retention policy",
    "outside retention policy",
    "outside the retention",
    "outside of the retention",
    "field type conflict",
    "unable to parse",
    "max-values-per-tag limit exceeded",
    "max-series-per-database limit exceeded",
    "invalid column type",
)
# Messages about temporary conditions, such as a full cache. They prevail over `_OF_LINES` if a
# message contains both.
_PASSING: Final = ("cache-max-memory", "timeout", "engine is closed", "shard is disabled")
_SHORT: Final = 300


class LineFault(NamedTuple):
    """A line that the server named: its number in the body, from 1, and the reason."""

    number: int
    reason: str


class Verdict(NamedTuple):
    """The server's response to a batch.

    Attributes
    ----------
    dropped
        Number of lines that were not written; None where the server does not report it.
    faults
        Lines that the server named. More may be bad: 3.x names at most a hundred.
    is_sure
        Whether the server reported that lines are at fault. If not, the lines are sent in smaller
        parts: they are at fault only if the server accepts some of them and rejects others.
    """

    status: int
    reason: str
    dropped: int | None = None
    faults: tuple[LineFault, ...] = ()
    is_sure: bool = True


class _Answer(msgspec.Struct):
    """An error body: 2.x sends `code` and `message`, 1.x `error`, and 3.x `error` and `data`."""

    code: Any = ""
    message: Any = ""
    error: Any = ""
    data: Any = None

    @property
    def text(self) -> str:
        return next((t for t in (self.message, self.error) if isinstance(t, str) and t), "")


def verdict(error: ApiException) -> Verdict | None:
    """Return the server's verdict on the lines; None if they are not at fault."""
    answer, status = _answer(error), int(error.status or 0)
    text = answer.text
    faults = _faults(answer.data)
    if status == 413:
        return Verdict(413, text or "the body is too large")
    if status in (400, 422):
        # An answer without a message of InfluxDB comes from a proxy; no line is at fault.
        if (text or faults) and answer.code not in _NOT_OF_LINES:
            return Verdict(status, text, _dropped(text), faults)
        return None
    if status < 300:
        # InfluxDB Clustered and Cloud Dedicated answer with such a status if they accepted some
        # lines and rejected others. An answer that has no code and names no line is not a verdict:
        # it may be the success message of a proxy.
        return Verdict(status, text, _dropped(text), faults) if answer.code or faults else None
    blames_lines = any(words in text for words in _OF_LINES) or bool(_dropped(text))
    # With 401, "unable to parse" refers to the token.
    may_blame = status >= 500 or (is_permanent(status) and status != 401)
    if may_blame and blames_lines and not any(words in text for words in _PASSING):
        return Verdict(status, text, _dropped(text), faults)
    return None


def doubted(error: ApiException) -> Verdict | None:
    """Return an unsure verdict: the server failed at a body, and one of its lines may be the cause.

    None if the status shows that the server is unavailable or busy, or needs an operator.
    """
    status = int(error.status or 0)
    is_refusal = status >= 400 and is_permanent(status) and status not in _FOR_PEOPLE
    if status != 500 and not is_refusal:
        return None
    return Verdict(status, _answer(error).text or str(error.reason or ""), is_sure=False)


def meaning(error: Exception, *, url: str, bucket: str) -> HistoryError:
    """Return Flatline's error for a failed request.

    It is `HistoryRefused` if only an operator can help (token, permission, bucket), else
    `HistoryUnreachable`. The message names `bucket`, and `url` without its secrets.
    """
    where = masked_url(url)
    if not isinstance(error, ApiException) or error.status is None:
        return HistoryUnreachable(
            f"InfluxDB at {where} did not answer: {_short(error)}. Check the address and that it "
            "is running."
        )
    said = one_line(f"{error.status} {_answer(error).text or error.reason or ''}".strip())[:_SHORT]
    if error.status < 300:
        return HistoryUnreachable(
            f"The server at {where} accepted rows with a response that is not from InfluxDB "
            f"({said}), so they count as not stored. Check whether a proxy or a login page is in "
            "front of InfluxDB."
        )
    if error.status == 401:
        return HistoryRefused(
            f"InfluxDB at {where} rejected the token ({said}). Put a valid one into the file of "
            "history.influxdb.token_file, which is read again."
        )
    if error.status in (403, 404):
        return HistoryRefused(
            f"InfluxDB at {where} has no bucket {bucket!r}, or the token has no permission for it "
            f"({said}). `flatline history setup` creates both."
        )
    header = next((v for k, v in (error.headers or {}).items() if k.lower() == "retry-after"), None)
    return HistoryUnreachable(
        f"InfluxDB at {where} rejected the request ({said}).", retry_after_s=retry_after_s(header)
    )


def is_unknown_database(error: ApiException) -> bool:
    """Return whether the error can mean that the server has no database of the queried name."""
    return error.status in (400, 404, 500) and "token" not in _answer(error).text


def _answer(error: ApiException) -> _Answer:
    # A body may quote the start of a line that was cut within a character: not valid UTF-8.
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    try:
        return msgspec.json.decode(body or "{}", type=_Answer)
    except (msgspec.DecodeError, RecursionError):
        return _Answer()


def _faults(data: object) -> tuple[LineFault, ...]:
    """Return the lines that 3.x names: in a list, or in one object if it wrote no line at all."""
    return tuple(
        LineFault(item["line_number"], str(item.get("error_message", "")))
        for item in (data if isinstance(data, list) else [data])
        if isinstance(item, dict) and isinstance(item.get("line_number"), int)
    )


def _dropped(message: str) -> int | None:
    """Return the number at the end of `partial write: ... dropped=3`."""
    _, found, rest = message.rpartition("dropped=")
    digits = rest.split(" ")[0].strip()
    return int(digits) if found and digits.isdigit() else None


def _short(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    return one_line(f"{type(error).__name__}: {str(error)[:200]}")

"""The historian's interpretation of each answer of the server."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import urllib3
from influxdb_client.rest import ApiException

from flatline.connectors.influxdb.failures import meaning, verdict
from flatline.engine.errors import HistoryRefused, HistoryUnreachable


def answered(status: int, body: bytes = b"", **headers: str) -> ApiException:
    error = ApiException(status=status, reason="")
    error.body = body
    error.headers = urllib3.HTTPHeaderDict(headers)
    return error


def meant(error: Exception) -> Exception:
    return meaning(error, url="http://influxdb", bucket="flatline_raw")


def test_bad_lines_are_the_lines_own_fault():
    said = verdict(answered(400, b'{"code":"invalid","message":"unable to parse line 3"}'))
    assert said is not None
    assert "line 3" in said.reason


def test_a_partial_write_reports_how_many_lines_were_dropped():
    body = b'{"code":"unprocessable entity","message":"partial write: x dropped=17"}'
    said = verdict(answered(422, body))
    assert said is not None
    assert said.dropped == 17


@pytest.mark.parametrize("body", [b"<html>bad request</html>", b"", b'{"code":"other"}', b"\xff"])
def test_a_400_that_is_not_the_servers_own_is_nobodys_fault(body):
    assert verdict(answered(400, body)) is None
    assert isinstance(meant(answered(400, body)), HistoryUnreachable)


def test_a_body_that_is_too_large_is_to_be_halved():
    assert verdict(answered(413, b"<html>")) is not None


@pytest.mark.parametrize("status", [401, 403, 404])
def test_token_rights_and_bucket_need_a_person(status):
    error = meant(answered(status, b'{"code":"x","message":"no"}'))
    assert isinstance(error, HistoryRefused)
    assert "token" in str(error)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999", 3600.0),
        ("soon", None),
        ("", None),
        ("-5", 0.0),
        ("nan", None),
    ],
)
def test_retry_after_is_a_number_of_seconds(text, seconds):
    error = meant(answered(503, b"", **{"Retry-After": text}))
    assert isinstance(error, HistoryUnreachable)
    assert error.retry_after_s == seconds


def test_retry_after_may_be_a_date():
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = meant(answered(429, b"", **{"retry-after": text}))
    assert isinstance(error, HistoryUnreachable)
    assert error.retry_after_s == pytest.approx(60.0, abs=5.0)


def test_no_answer_may_pass():
    assert isinstance(meant(ConnectionRefusedError("refused")), HistoryUnreachable)

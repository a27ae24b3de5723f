"""A notice arrives in Alertmanager's format, or its failure is reported."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from flatline.connectors.notify.webhook import Webhook, payload
from flatline.engine.errors import FlatlineError, NotifierRefused, NotifierUnreachable
from flatline.engine.ports import Notice

NOTICE = Notice(
    "FlatlineNeedsYou",
    "critical",
    "What the reset did to vm is unknown.",
    time_ms=1_790_000_000_123,
    labels={"site": "lab", "vm": "6e1a"},
)


@dataclass
class Receiver:
    """A pager on this machine; it answers with `status`."""

    url: str = ""
    status: int = 200
    heard: list[tuple[dict[str, str], Any]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.heard.append((dict(self.headers), json.loads(body)))
            self.send_response(receiver.status)
            if 300 <= receiver.status < 400:
                self.send_header("Location", receiver.url)
            self.send_header("Retry-After", "7")
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        yield receiver
        server.shutdown()
        serving.join()


def test_a_notice_is_an_alert_that_fires(receiver: Receiver) -> None:
    asyncio.run(Webhook(receiver.url).send(NOTICE))
    [(headers, body)] = receiver.heard
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert (body["version"], body["status"]) == ("4", "firing")
    [alert] = body["alerts"]
    assert alert["labels"] == {
        "alertname": "FlatlineNeedsYou", "severity": "critical", "site": "lab", "vm": "6e1a",
    }  # fmt: skip
    assert alert["annotations"] == {"summary": NOTICE.sentence}
    assert alert["startsAt"] == "2026-09-21T14:13:20.123+00:00"


def test_a_token_goes_along(receiver: Receiver) -> None:
    asyncio.run(Webhook(receiver.url, token="abc").send(NOTICE))
    assert receiver.heard[0][0]["Authorization"] == "Bearer abc"


PASSING = [408, 425, 429, 500, 502, 503, 504]
FOR_GOOD = [301, 302, 307, 308, 400, 401, 403, 404, 410, 413, 415, 422, 451, 501]


@pytest.mark.parametrize("status", PASSING)
def test_an_answer_that_blames_the_moment_may_pass(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotifierUnreachable, match=f"answered {status}") as caught:
        asyncio.run(Webhook(receiver.url).send(NOTICE))
    assert caught.value.has_answered
    assert caught.value.retry_after_s == 7.0
    assert len(receiver.heard) == 1


@pytest.mark.parametrize("status", FOR_GOOD)
def test_an_answer_that_blames_the_notice_is_for_good(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotifierRefused, match=f"answered {status}"):
        asyncio.run(Webhook(receiver.url).send(NOTICE))
    assert len(receiver.heard) == 1


def test_nobody_there_may_pass() -> None:
    with pytest.raises(NotifierUnreachable, match="cannot be reached") as caught:
        asyncio.run(Webhook("http://127.0.0.1:1/hook").send(NOTICE))
    assert not caught.value.has_answered


@contextmanager
def suppress_told(said: list[str]) -> Iterator[None]:
    try:
        yield
    except FlatlineError as error:
        said.append(f"{error!r} {error.__cause__!r}")


@pytest.mark.parametrize("status", [200, 400, 503])
def test_neither_the_url_nor_the_token_is_reported(receiver: Receiver, status: int) -> None:
    receiver.status = status
    url = f"{receiver.url}/T0P/s3cr3t?key=s3cr3t"
    for at in (url, "http://127.0.0.1:1/s3cr3t", "http://u:s3cr3t@127.0.0.1:1/", "http://s3cr3t"):
        for token in (None, "s3cr3t", "s3cr3t\r\nX: y"):
            said: list[str] = []
            with suppress_told(said):
                asyncio.run(Webhook(at, token=token).send(NOTICE))
            # The host's name is reported: without it the receiver cannot be identified.
            assert "s3cr3t" not in "".join(said).replace("http://s3cr3t", "")


def told(**labels: str) -> dict[str, Any]:
    return payload(Notice("FlatlineNeedsYou", "critical", "s", time_ms=0, labels=labels))


def test_each_vm_and_each_incident_is_a_group_of_its_own() -> None:
    about = [
        {"site": "s", "cell": "c", "vm": vm, "incident": incident}
        for vm, incident in (("a", "1"), ("a", "2"), ("b", "3"))
    ]
    about += [{"site": "s", "cell": cell, "rule": rule} for cell in "cd" for rule in ("x", "y")]
    bodies = [told(**labels) for labels in about]
    assert len({body["groupKey"] for body in bodies}) == len(bodies)
    assert len({json.dumps(body["groupLabels"]) for body in bodies}) == len(bodies)
    assert len({body["alerts"][0]["fingerprint"] for body in bodies}) == len(bodies)
    assert told(vm="a", incident="1")["groupKey"] == told(incident="1", vm="a")["groupKey"]


def test_what_two_rules_say_of_one_incident_is_two_alerts_of_one_group() -> None:
    one, other = (told(vm="a", incident="1", rule=rule) for rule in "xy")
    assert one["groupKey"] == other["groupKey"]
    assert one["alerts"][0]["fingerprint"] != other["alerts"][0]["fingerprint"]


def test_names_in_a_notice_are_one_line() -> None:
    notice = Notice("N", "critical", "VM a\nb", time_ms=0, labels={"cell": "\x1b[2J"})
    body: dict[str, Any] = payload(notice)
    [alert] = body["alerts"]
    assert alert["annotations"] == {"summary": "VM a\\x0ab"}
    assert alert["labels"]["cell"] == "\\x1b[2J"

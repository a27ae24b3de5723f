"""A notice arrives as Alertmanager would post it, or it is said that it did not."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from connectors.notify.webhook import Webhook
from engine.errors import NotifierUnreachable
from engine.ports import Notice

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
            if receiver.status == 302:
                self.send_header("Location", receiver.url)
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


@pytest.mark.parametrize("status", [302, 400, 503])
def test_an_answer_that_is_no_yes_is_a_no(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotifierUnreachable, match=f"answered {status}"):
        asyncio.run(Webhook(receiver.url).send(NOTICE))
    assert len(receiver.heard) == 1


def test_nobody_there_is_a_no() -> None:
    with pytest.raises(NotifierUnreachable, match="cannot be reached"):
        asyncio.run(Webhook("http://127.0.0.1:1/hook").send(NOTICE))

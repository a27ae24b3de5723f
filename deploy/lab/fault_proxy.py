"""A small HTTP proxy that fails on demand, for responses that a healthy server never sends.

``with FaultProxy(port) as proxy: proxy.faults += [Status(503, {"Retry-After": "1"}), Silence()]``:
each request takes one fault; later requests are forwarded.
"""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Status:
    """Answer with this status, without forwarding the request."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass(frozen=True)
class Silence:
    """Never answer and keep the connection open; with `applied` the server receives the request."""

    applied: bool = False


@dataclass(frozen=True)
class Slow:
    """Forward, and answer after this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """Close the connection at the start of the answer, without forwarding the request."""


Fault = Status | Silence | Slow | Cut


class FaultProxy:
    """Listens on a free port of the loopback interface and forwards requests to another port.

    Attributes
    ----------
    faults
        Faults of the next requests, one each, in order.
    largest_body_bytes
        Larger bodies are answered with 413.
    requests
        Number of requests received.
    """

    def __init__(self, target_port: int) -> None:
        self.faults: deque[Fault] = deque()
        self.largest_body_bytes: int | None = None
        self.requests = 0
        self._target_port = target_port
        self._ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.handle(self)

            do_POST = do_GET  # noqa: N815 - the library's own name

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Fail one request as configured, or forward it."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests += 1
        fault = self.faults.popleft() if self.faults else None
        if self.largest_body_bytes is not None and len(body) > self.largest_body_bytes:
            fault = Status(413, body=b"<html>too large</html>")
        match fault:
            case Status(code, headers, answer):
                _answer(request, code, headers, answer)
            case Silence(applied):
                if applied:
                    self._ask(request, body)
                self._ended.wait()
                request.close_connection = True
            case Cut():
                # Before the status: clients expect that the rest follows it.
                request.wfile.write(b"HTTP/1.")
                request.close_connection = True
            case _:
                if isinstance(fault, Slow):
                    self._ended.wait(fault.seconds)
                self._pass_on(request, body)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        try:
            status, headers, answer = self._ask(request, body)
        except OSError:
            request.close_connection = True  # like a server that is down
            return
        _answer(request, status, headers, answer)

    def _ask(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._target_port, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
            connection.request(request.command, request.path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read()
            passed = {k: v for k, v in response.getheaders() if k.lower() in _PASSED}
        finally:
            connection.close()
        return response.status, passed, answer


_PASSED = frozenset({"content-type", "content-encoding", "retry-after"})


def _answer(
    request: BaseHTTPRequestHandler, code: int, headers: Mapping[str, str], body: bytes
) -> None:
    body = b"" if code == http.HTTPStatus.NO_CONTENT else body
    request.send_response(code)
    for name, value in headers.items():
        request.send_header(name, value)
    if code != http.HTTPStatus.NO_CONTENT:
        request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)

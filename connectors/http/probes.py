"""`/livez`, `/readyz` and `/metrics` of one process, on the standard library alone.

A client can occupy neither many threads nor one thread for long: the number of connections, the
bytes of a request and the time of a connection are limited.
"""

import io
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.registry import Collector

from flatline.engine.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# A probe sends and reads within milliseconds. A client that sends byte by byte, or does not read
# the answer, is disconnected after this time even if it makes progress.
REQUEST_S: Final = 5.0
# A kubelet, a Prometheus server and a person may ask at the same time; a connection costs a thread.
MAX_CONNECTIONS: Final = 16
# Browsers send about 2 KiB and proxies add to it; the standard library would accept 6 MiB.
MAX_REQUEST_BYTES: Final = 16 * 1024

# The result of a check: whether it passes, and one sentence for each failure.
Answer = tuple[bool, Sequence[str]]


class ProbeServer:
    """Answer probes from a separate thread, so that a stuck event loop is still reported.

    Parameters
    ----------
    port
        0 takes any free port, which `address` then holds.
    live, ready
        Called at each request, from the server's threads.

    Raises
    ------
    SettingsError
        On entering: the server cannot listen on the address.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        live: Callable[[], Answer],
        ready: Callable[[], Answer],
        registry: Collector = REGISTRY,
    ) -> None:
        self._host = host
        self._port = port
        self._probes = {"/livez": live, "/readyz": ready}
        self._metrics = make_wsgi_app(registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the listening socket; available only inside the context."""
        assert self._server is not None, "the server listens only inside its context"
        return self._server.server_name, self._server.server_port

    def __enter__(self) -> Self:
        try:
            self._server = _Server((self._host, self._port), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"Health checks cannot be served on {self._host}:{self._port}: {error}. Set "
                "http.host and http.port to a free address, or remove http.port."
            ) from error
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            # The argument is the interval in s at which the server checks whether to stop.
            target=self._server.serve_forever,
            args=(0.1,),
            name="flatline-http",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
            return metrics
        probe = self._probes.get(path)
        if probe is None:
            status, text = HTTPStatus.NOT_FOUND, "Use /livez, /readyz or /metrics.\n"
        else:
            well, sentences = probe()
            status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
            text = "".join(f"{sentence}\n" for sentence in sentences) or "ok\n"
        body = text.encode()
        start_response(
            f"{status.value} {status.phrase}",
            [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """A server with one thread per request, a limited number; none keeps the process alive."""

    daemon_threads = True
    # Long enough for a burst of connections, so that `process_request` limits them. In a shorter
    # queue the kernel would drop some of them, and the clients would have to retry.
    request_queue_size = 4 * MAX_CONNECTIONS

    def __init__(self, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401 -- the base's own
        self._open: list[socket.socket] = []
        self._changing = threading.Lock()
        super().__init__(*arguments, **settings)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Accept a connection; above the limit, close the oldest one, since a probe is short."""
        with self._changing:
            if len(self._open) >= MAX_CONNECTIONS:
                _cut(self._open.pop(0))
            self._open.append(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread, for at most `REQUEST_S`."""
        cutting = threading.Timer(REQUEST_S, _cut, (request,))
        cutting.daemon = True
        cutting.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cutting.cancel()
            with self._changing, suppress(ValueError):
                self._open.remove(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: a client that disconnects or sends too much is no fault of this process."""

    def server_bind(self) -> None:
        """Bind without a reverse DNS lookup of the server's name, which may take seconds."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()


def _cut(connection: socket.socket) -> None:
    """Shut a connection down while its thread is still waiting for the client."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Bounded(io.BufferedIOBase):
    """The bytes that a client sends, up to `MAX_REQUEST_BYTES`."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = MAX_REQUEST_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line; a line beyond the limit ends the connection."""
        most = self._left if size is None or size < 0 else min(size, self._left)
        line = self._stream.readline(most + 1)
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionAbortedError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        """Return nothing: no request here has a body."""
        return b""

    def close(self) -> None:
        """Close the stream that this one reads from."""
        self._stream.close()
        super().close()


class _QuietHandler(WSGIRequestHandler):
    """Log nothing: probes arrive every few seconds."""

    timeout = REQUEST_S

    def setup(self) -> None:
        """Limit the bytes that are read."""
        super().setup()
        self.rfile = _Bounded(self.rfile)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""

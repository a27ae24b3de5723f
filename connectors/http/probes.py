"""`/livez`, `/readyz` and `/metrics` of one process, on the standard library alone."""

import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.registry import Collector

from engine.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# A probe asks and reads within milliseconds; a client that holds a connection open without
# asking would otherwise hold its thread for ever.
REQUEST_S: Final = 5.0

# Whether all is well, and one sentence for each thing that is not.
Answer = tuple[bool, Sequence[str]]


class ProbeServer:
    """Answers probes from a thread of its own, so that a stuck event loop is still told.

    Parameters
    ----------
    port
        0 takes any free port; `address` tells which.
    live, ready
        Asked at each request, from the server's threads.

    Raises
    ------
    SettingsError
        On entering: the address cannot be listened on.
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
        """Host and port that are listened on."""
        assert self._server is not None, "the server listens only while its context is open"
        return self._server.server_name, self._server.server_port

    def __enter__(self) -> Self:
        try:
            self._server = _Server((self._host, self._port), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"Probes cannot be served on {self._host}:{self._port}: {error}. Set http.host"
                " and http.port to an address that is free, or leave http.port out."
            ) from error
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            # How soon it notices that it is to end.
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
            status, text = HTTPStatus.NOT_FOUND, "Ask for /livez, /readyz or /metrics.\n"
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
    """One thread a request, none of which keeps the process alive."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take seconds."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    """Logs nothing: probes ask every few seconds."""

    timeout = REQUEST_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

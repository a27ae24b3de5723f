"""Answers to a probe or a scraper."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Counter

from flatline.connectors.http import probes
from flatline.connectors.http.probes import MAX_CONNECTIONS, Answer, ProbeServer
from flatline.engine.errors import SettingsError


class State:
    """The state that the process reports."""

    def __init__(self) -> None:
        self.live: Answer = (True, ())
        self.ready: Answer = (False, ("log waits: it is away.", "sampling waits: so is it."))


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[ProbeServer]:
    registry = CollectorRegistry()
    Counter("flatline_test_total", "A count.", registry=registry).inc(3)
    with ProbeServer(
        host="127.0.0.1",
        port=0,
        live=lambda: state.live,
        ready=lambda: state.ready,
        registry=registry,
    ) as server:
        yield server


def get(server: ProbeServer, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.address[1], timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_a_live_process_answers_ok(server: ProbeServer) -> None:
    assert get(server, "/livez") == (200, "ok\n")


def test_a_process_that_waits_is_unavailable_and_says_for_what(server: ProbeServer) -> None:
    expected = "log waits: it is away.\nsampling waits: so is it.\n"
    assert get(server, "/readyz") == (503, expected)


def test_the_state_of_the_moment_is_answered(server: ProbeServer, state: State) -> None:
    state.ready = (True, ())
    assert get(server, "/readyz")[0] == 200
    state.live = (False, ("sampling has not reported for 61 s.",))
    assert get(server, "/livez")[0] == 503


def test_metrics_are_served_as_prometheus_reads_them(server: ProbeServer) -> None:
    status, text = get(server, "/metrics")
    assert status == 200
    assert "# TYPE flatline_test_total counter" in text
    assert "flatline_test_total 3.0" in text


def test_for_another_path_the_answer_lists_those_that_exist(server: ProbeServer) -> None:
    assert get(server, "/") == (404, "Use /livez, /readyz or /metrics.\n")


def test_a_taken_port_is_refused_with_its_setting(server: ProbeServer) -> None:
    _, port = server.address
    second = ProbeServer(
        host="127.0.0.1", port=port, live=lambda: (True, ()), ready=lambda: (True, ())
    )
    with pytest.raises(SettingsError, match=r"Set http\.host and http\.port"):
        second.__enter__()


def open_to(server: ProbeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.address[1]), timeout=5)


def ended(connection: socket.socket) -> bool:
    """Return whether the server closed a connection, after at most `timeout`."""
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_connections_that_ask_nothing_keep_nobody_out_and_are_bounded(server: ProbeServer) -> None:
    idle = [open_to(server) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for _ in range(5):
            assert get(server, "/livez") == (200, "ok\n")
        assert all(map(ended, idle[: 2 * MAX_CONNECTIONS]))
        assert threads() <= MAX_CONNECTIONS
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("part", ["line", "one header", "headers"])
def test_a_request_without_end_is_cut_off(server: ProbeServer, part: str) -> None:
    parts = {
        "line": [b"GET /" + b"x" * 65_000],
        "one header": [b"GET /livez HTTP/1.1\r\nA: " + b"x" * 65_000],
        "headers": [b"GET /livez HTTP/1.1\r\n", *[b"A: " + b"x" * 1000 + b"\r\n"] * 90],
    }
    with open_to(server) as connection:
        with suppress(OSError):
            for sent in parts[part]:
                connection.sendall(sent)
        # Immediately, and not only when the time of a connection is over.
        connection.settimeout(0.4 * probes.REQUEST_S)
        assert ended(connection)
    assert get(server, "/livez") == (200, "ok\n")


def test_a_client_that_asks_byte_by_byte_is_cut_off_in_time(
    server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "REQUEST_S", 0.3)
    with open_to(server) as connection:
        connection.settimeout(0.02)
        began_s = time.monotonic()
        with suppress(OSError):
            while not ended(connection):
                connection.sendall(b"G")
        took_s = time.monotonic() - began_s
    assert 0.2 < took_s < 4.0


def test_a_request_of_usual_size_is_answered(server: ProbeServer) -> None:
    with open_to(server) as connection:
        header = b"Cookie: " + b"x" * 8000
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + header + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")

"""What a probe or a scraper is answered."""

from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Counter

from connectors.http.probes import Answer, ProbeServer
from engine.errors import SettingsError


class State:
    """What the process would say of itself."""

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
    state.live = (False, ("sampling has said nothing for 61 s.",))
    assert get(server, "/livez")[0] == 503


def test_metrics_are_served_as_prometheus_reads_them(server: ProbeServer) -> None:
    status, text = get(server, "/metrics")
    assert status == 200
    assert "# TYPE flatline_test_total counter" in text
    assert "flatline_test_total 3.0" in text


def test_another_path_is_told_which_there_are(server: ProbeServer) -> None:
    assert get(server, "/") == (404, "Ask for /livez, /readyz or /metrics.\n")


def test_a_taken_port_is_refused_with_its_setting(server: ProbeServer) -> None:
    _, port = server.address
    second = ProbeServer(
        host="127.0.0.1", port=port, live=lambda: (True, ()), ready=lambda: (True, ())
    )
    with pytest.raises(SettingsError, match=r"Set http\.host and http\.port"):
        second.__enter__()

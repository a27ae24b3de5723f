"""Targets of a prober, and its results for answers, silence and missing rights."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from flatline.connectors.probe import prober as module
from flatline.connectors.probe.packets import ETH_ARP, ETH_IPV6
from flatline.connectors.probe.prober import BridgeProber, NoProber, may_probe
from flatline.engine.liveness_ports import ProbeAnswer
from flatline.engine.preflight_data import Card
from tests.unit.connectors.probe.test_packets import ADVERTISEMENT, ARP_REPLY, V4, V6, packet

CARD = Card("52:54:00:00:00:01", "virbr0")
REPLIES = {ETH_ARP: packet(ARP_REPLY), ETH_IPV6: packet(ADVERTISEMENT)}


class Wire:
    """A bridge on which a test answers; one end of a socket pair replaces a packet socket."""

    def __init__(self, answer: Callable[[int, int], bytes | None]) -> None:
        self._answer = answer
        self.opened: list[tuple[str, int]] = []
        self.sent: list[bytes] = []
        self.open_now = 0

    def open(self, bridge: str, kind: int) -> socket.socket:
        self.opened.append((bridge, kind))
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        self.open_now += 1
        return _End(near, far, self, kind)  # type: ignore[return-value]

    def asked(self, far: socket.socket, kind: int, frame: bytes) -> None:
        self.sent.append(frame)
        reply = self._answer(kind, len(self.sent))
        if reply is not None:
            far.send(reply)


class _End:
    def __init__(self, near: socket.socket, far: socket.socket, wire: Wire, kind: int) -> None:
        self._near, self._far, self._wire, self._kind = near, far, wire, kind

    def __enter__(self) -> "_End":
        return self

    def __exit__(self, *_error: object) -> None:
        self._near.close()
        self._far.close()
        self._wire.open_now -= 1

    def getsockname(self) -> tuple[str, int, int, int, bytes]:
        return "virbr0", self._kind, 0, 1, bytes.fromhex("525400000002")

    def send(self, frame: bytes) -> int:
        self._wire.asked(self._far, self._kind, frame)
        return len(frame)

    def fileno(self) -> int:
        return self._near.fileno()

    def gettimeout(self) -> float:
        return 0.0

    def recv(self, size: int) -> bytes:
        return self._near.recv(size)


def ask(
    answer: Callable[[int, int], bytes | None], *addresses: str, within_s: float = 5.0
) -> tuple[ProbeAnswer, Wire]:
    wire = Wire(answer)
    asking = BridgeProber(wire.open).ask(CARD, addresses, within_s=within_s)
    return asyncio.run(asking), wire


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.01)


@pytest.mark.parametrize("address", [V4, V6])
def test_an_answer_of_the_card_is_a_sign_of_life_at_once(address: str) -> None:
    found, wire = ask(lambda kind, _number: REPLIES[kind], address)
    assert found == ProbeAnswer("answered", address=address)
    assert (len(wire.sent), wire.open_now) == (1, 0)
    assert wire.opened[0][0] == "virbr0"


def test_a_query_that_is_lost_is_asked_again() -> None:
    found, wire = ask(lambda kind, number: REPLIES[kind] if number == 3 else None, V4)
    assert (found.sign, len(wire.sent)) == ("answered", 3)


def test_a_card_that_never_answers_is_silent_and_no_socket_is_left() -> None:
    found, wire = ask(lambda _kind, _number: None, V4, V6)
    assert (found.sign, len(wire.sent), wire.open_now) == ("silent", 6, 0)


def test_one_address_that_answers_is_enough() -> None:
    found, _ = ask(lambda kind, _number: REPLIES[kind] if kind == ETH_IPV6 else None, V4, V6)
    assert found == ProbeAnswer("answered", address=V6)


def test_somebody_else_s_answers_are_heard_and_are_none() -> None:
    other = packet(ARP_REPLY.replace("525400000001", "525400000009"))
    assert ask(lambda _kind, _number: other, V4)[0].sign == "silent"


def test_a_probe_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 60.0)
    found, wire = ask(lambda _kind, _number: None, V4, within_s=0.02)
    assert (found.sign, wire.open_now) == ("silent", 0)


def test_a_card_without_an_address_is_not_asked() -> None:
    found, wire = ask(lambda _kind, _number: None)
    assert (found.sign, found.why, wire.opened) == ("unknown", "its address is unknown", [])


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError("no"), "the capability CAP_NET_RAW is missing"),
        (OSError("no such device"), "virbr0"),
    ],
)
def test_what_cannot_be_asked_is_unknown_and_says_why(error: OSError, why: str) -> None:
    def refused(_bridge: str, _kind: int) -> socket.socket:
        raise error

    found = asyncio.run(BridgeProber(refused).ask(CARD, [V4], within_s=1.0))
    assert found.sign == "unknown"
    assert why in found.why


def test_a_card_whose_address_is_none_is_unknown() -> None:
    card = Card("no mac", "virbr0")
    wire = Wire(lambda _kind, _number: None)
    found = asyncio.run(BridgeProber(wire.open).ask(card, [V4], within_s=1.0))
    assert found.sign == "unknown"


def test_a_process_without_the_right_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_family: int) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr("socket.socket", refused)
    assert may_probe() == "the capability CAP_NET_RAW is missing"


def test_who_does_not_probe_knows_nothing() -> None:
    found = asyncio.run(NoProber("off").ask(CARD, [V4], within_s=1.0))
    assert found == ProbeAnswer("unknown", why="off")

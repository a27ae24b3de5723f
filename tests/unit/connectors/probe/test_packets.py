"""The requests byte by byte, and the packets that count as an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatline.connectors.probe.packets import ETH_ARP, ETH_IPV6, answers, mac_bytes, solicitation

GUEST, NODE, OTHER = (mac_bytes(f"52:54:00:00:00:0{n}") for n in (1, 2, 3))
V4, V6 = "192.0.2.7", "fe80::5054:ff:fe00:1"

ARP_REQUEST = (
    "525400000001 525400000002 0806"
    " 0001 0800 06 04 0001 525400000002 00000000 000000000000 c0000207"
)
ARP_REPLY = (
    "525400000002 525400000001 0806"
    " 0001 0800 06 04 0002 525400000001 c0000207 525400000002 00000000"
)
SOLICITATION = (
    "3333ff000001 525400000002 86dd 60000000 0018 3a ff"
    " 00000000000000000000000000000000 ff0200000000000000000001ff000001"
    " 87 00 2cd1 00000000 fe80000000000000505400fffe000001"
)
# As a Linux guest answers: to all nodes, with its link-layer address behind the target.
ADVERTISEMENT = (
    "333300000001 525400000001 86dd 60000000 0020 3a ff"
    " fe80000000000000505400fffe000001 ff020000000000000000000000000001"
    " 88 00 689e 20000000 fe80000000000000505400fffe000001 0201 525400000001"
)


def packet(words: str) -> bytes:
    return bytes.fromhex(words)


def test_a_card_is_asked_by_arp_without_the_node_s_own_address() -> None:
    assert solicitation(V4, asked=GUEST, own=NODE) == (ETH_ARP, packet(ARP_REQUEST))


def test_a_card_is_asked_by_neighbour_solicitation_from_nobody() -> None:
    kind, frame = solicitation(V6, asked=GUEST, own=NODE)
    assert kind == ETH_IPV6
    assert frame.hex() == packet(SOLICITATION).hex()


def test_the_card_s_own_word_is_an_answer() -> None:
    assert answers(packet(ARP_REPLY), V4, asked=GUEST)
    assert answers(packet(ADVERTISEMENT), V6, asked=GUEST)


def changed(words: str, place: int, value: int = 0xEE) -> bytes:
    frame = bytearray(packet(words))
    frame[place] = value
    return bytes(frame)


@pytest.mark.parametrize(
    ("frame", "address"),
    [
        (packet(ARP_REQUEST), V4),
        (packet(SOLICITATION), V6),
        # Another card on the wire, or in the answer; another address; another operation.
        (changed(ARP_REPLY, 11), V4),
        (changed(ARP_REPLY, 27), V4),
        (changed(ARP_REPLY, 31), V4),
        (changed(ARP_REPLY, 21, 1), V4),
        (changed(ARP_REPLY, 15, 6), V4),
        (packet(ARP_REPLY), "192.0.2.8"),
        (changed(ADVERTISEMENT, 11), V6),
        (changed(ADVERTISEMENT, 54, 135), V6),
        (changed(ADVERTISEMENT, 77), V6),
        # Forwarded by a router; wrong checksum; truncated.
        (changed(ADVERTISEMENT, 21, 64), V6),
        (changed(ADVERTISEMENT, 56), V6),
        (packet(ADVERTISEMENT)[:-9], V6),
        (packet(ADVERTISEMENT), "fe80::2"),
        (packet(ARP_REPLY), V6),
        (packet(ADVERTISEMENT), V4),
        (b"", V4),
    ],
)
def test_anything_else_is_none(frame: bytes, address: str) -> None:
    assert not answers(frame, address, asked=GUEST)


def test_the_answer_of_another_card_is_none() -> None:
    assert not answers(packet(ARP_REPLY), V4, asked=OTHER)
    assert not answers(packet(ADVERTISEMENT), V6, asked=OTHER)


@given(frame=st.binary(max_size=120), address=st.sampled_from((V4, V6)))
def test_noise_is_no_answer_and_no_error(frame: bytes, address: str) -> None:
    assert not answers(frame, address, asked=GUEST)
    assert not answers(NODE + GUEST + b"\x08\x00" + frame, address, asked=GUEST)


@pytest.mark.parametrize("text", ["", "52:54", "52:54:00:00:00:01:02", "zz:zz:zz:zz:zz:zz"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAC|hex"):
        mac_bytes(text)

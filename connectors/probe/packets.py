"""Build the two requests that every guest's network stack answers, and recognise the answers.

The requests are an ARP probe (RFC 826 and RFC 5227: no sender address) and a neighbour solicitation
(RFC 4861) as in duplicate address detection (RFC 4862: from the unspecified address). Neither adds
an entry to a guest's ARP or neighbour table, nor needs an address of the node in that network.
"""

import ipaddress
import struct
from typing import Final

ETH_ARP: Final = 0x0806
ETH_IPV6: Final = 0x86DD
_ETHERNET: Final = struct.Struct("!6s6sH")
# Hardware and protocol type, their lengths, operation, then sender's and target's MAC and address.
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_ARP_OF_ETHERNET: Final = (1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2
# Version and flow, payload length, next header, hop limit, source, destination.
_IPV6: Final = struct.Struct("!IHBB16s16s")
_IPV6_VERSION: Final = 6 << 28
_ICMPV6: Final = 58
# The largest hop limit. Each router lowers it, so 255 proves that no router forwarded the packet.
_HOPS: Final = 255
# Type, code, checksum, reserved or flags, target.
_NEIGHBOUR: Final = struct.Struct("!BBHI16s")
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")
_NOBODY_V4, _NOBODY_V6 = bytes(4), bytes(16)


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of a MAC address such as `52:54:00:12:34:56`.

    Raises
    ------
    ValueError
        The text is not a MAC address.
    """
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"{text!r} is not a MAC address")
    return mac


def solicitation(address: str, *, asked: bytes, own: bytes) -> tuple[int, bytes]:
    """Return the EtherType and the frame that ask whether the card `asked` has `address`.

    Parameters
    ----------
    address
        IPv4 or IPv6 address as text.
    asked, own
        MAC addresses, six bytes each, of the guest's card and of the sender.

    Raises
    ------
    ValueError
        `address` is not an IP address.
    """
    target = ipaddress.ip_address(address)
    if target.version == 4:
        body = _ARP.pack(*_ARP_OF_ETHERNET, _REQUEST, own, _NOBODY_V4, bytes(6), target.packed)
        # Sent to the card's own MAC: no other host is disturbed or can answer.
        return ETH_ARP, _ETHERNET.pack(asked, own, ETH_ARP) + body
    group = _SOLICITED_NODE + target.packed[-3:]
    fields = (_SOLICITATION, 0, 0, 0, target.packed)
    checksum = _checksum(_NOBODY_V6, group, _NEIGHBOUR.pack(*fields))
    body = _NEIGHBOUR.pack(_SOLICITATION, 0, checksum, 0, target.packed)
    header = _IPV6.pack(_IPV6_VERSION, len(body), _ICMPV6, _HOPS, _NOBODY_V6, group)
    # Sent to the multicast MAC of the address's group, on which the guest's stack listens.
    return ETH_IPV6, _ETHERNET.pack(b"\x33\x33" + group[-4:], own, ETH_IPV6) + header + body


def answers(frame: bytes, address: str, *, asked: bytes) -> bool:
    """Return whether the card `asked` sent the frame, and states in it that it has `address`.

    `frame` begins with the Ethernet header. `asked` is the card's MAC address, six bytes.

    Raises
    ------
    ValueError
        `address` is not an IP address.
    """
    target = ipaddress.ip_address(address)
    if len(frame) < _ETHERNET.size:
        return False
    _to, sender, kind = _ETHERNET.unpack_from(frame)
    body = frame[_ETHERNET.size :]
    if sender != asked:
        return False
    if target.version == 4:
        return kind == ETH_ARP and _is_reply(body, asked, target.packed)
    return kind == ETH_IPV6 and _is_advertisement(body, target.packed)


def _is_reply(body: bytes, asked: bytes, address: bytes) -> bool:
    if len(body) < _ARP.size:
        return False
    *kind, operation, mac, has, _to, _for = _ARP.unpack_from(body)
    return (tuple(kind), operation, mac, has) == (_ARP_OF_ETHERNET, _REPLY, asked, address)


def _is_advertisement(body: bytes, address: bytes) -> bool:
    if len(body) < _IPV6.size + _NEIGHBOUR.size:
        return False
    version, length, following, hops, source, destination = _IPV6.unpack_from(body)
    inner = body[_IPV6.size : _IPV6.size + length]
    whole = len(inner) == length >= _NEIGHBOUR.size
    if version >> 28 != 6 or (following, hops) != (_ICMPV6, _HOPS) or not whole:
        return False
    kind, code, _sum, _flags, target = _NEIGHBOUR.unpack_from(inner)
    said = (kind, code, target) == (_ADVERTISEMENT, 0, address)
    return said and _checksum(source, destination, inner) == 0


def _checksum(source: bytes, destination: bytes, body: bytes) -> int:
    """Return the Internet checksum over the pseudo header and `body` (RFC 8200, 8.1).

    It is 0 for a body that contains its own correct checksum.
    """
    data = source + destination + struct.pack("!II", len(body), _ICMPV6) + body
    data += b"\x00" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

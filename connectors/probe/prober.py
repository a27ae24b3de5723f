"""Probe the address of a guest's card on its bridge with raw sockets (packet(7)).

This needs CAP_NET_RAW and the network namespace of the bridge. If either is missing, nothing is
sent and the result is unknown.
"""

import asyncio
import ctypes
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from flatline.connectors.probe.packets import ETH_ARP, ETH_IPV6, answers, mac_bytes, solicitation
from flatline.engine.liveness_ports import ProbeAnswer
from flatline.engine.preflight_data import Card

# A full queue or a busy guest may lose one probe; it is unlikely to lose three in succession.
_TRIES: Final = 3
# Pause between two probes: a guest answers within a few ms, even on a busy node.
_PAUSE_S: Final = 0.4
# Size of the receive buffer: more than an Ethernet frame of 1,500 bytes with a VLAN tag.
_FRAME_BYTES: Final = 2048
# Of a card with more addresses, only this many are probed: the first ones.
_ADDRESSES: Final = 4
_SO_ATTACH_FILTER: Final = 26

# Classic BPF (linux/filter.h): load half word or byte at an offset, compare, return length or 0.
_LDH, _LDB, _JEQ, _RET = 0x28, 0x30, 0x15, 0x06
Instruction = tuple[int, int, int, int]
_FILTERS: Final[dict[int, tuple[Instruction, ...]]] = {
    # Only ARP replies.
    ETH_ARP: ((_LDH, 0, 0, 20), (_JEQ, 0, 1, 2), (_RET, 0, 0, _FRAME_BYTES), (_RET, 0, 0, 0)),
    # Only ICMPv6 neighbour advertisements, so that other traffic of the bridge is not received.
    ETH_IPV6: (
        (_LDB, 0, 0, 20), (_JEQ, 0, 3, 58), (_LDB, 0, 0, 54), (_JEQ, 0, 1, 136),
        (_RET, 0, 0, _FRAME_BYTES), (_RET, 0, 0, 0),
    ),
}  # fmt: skip

OpenSocket = Callable[[str, int], socket.socket]


def open_socket(bridge: str, kind: int) -> socket.socket:
    """Return a socket that sends on a bridge and receives only answers of one kind.

    `kind` is the EtherType of the answers: `ETH_ARP` or `ETH_IPV6`.

    Raises
    ------
    PermissionError
        CAP_NET_RAW is missing.
    OSError
        There is no such bridge here, or the kernel has no packet sockets.
    """
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        program = _FILTERS[kind]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
        attached = struct.pack("HL", len(program), ctypes.addressof(code))
        raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        raw.bind((bridge, kind))
    except BaseException:
        raw.close()
        raise
    return raw


def may_probe() -> str:
    """Return why this process cannot probe at all; an empty string if it can."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return "the capability CAP_NET_RAW is missing"
    except (OSError, AttributeError) as error:
        return f"packet sockets are not available here ({error})"
    return ""


class NoProber:
    """The `Prober` that sends nothing, and reports the reason."""

    def __init__(self, why: str) -> None:
        self._why = why

    async def ask(self, card: Card, addresses: Sequence[str], *, within_s: float) -> ProbeAnswer:
        """See `engine.liveness_ports.Prober`."""
        return ProbeAnswer("unknown", why=self._why)


class BridgeProber:
    """The `Prober` of this network namespace."""

    def __init__(self, opened: OpenSocket = open_socket) -> None:
        self._open = opened

    async def ask(self, card: Card, addresses: Sequence[str], *, within_s: float) -> ProbeAnswer:
        """See `engine.liveness_ports.Prober`; only the first four addresses are probed."""
        if not addresses:
            return ProbeAnswer("unknown", why="its address is unknown")
        try:
            asked = mac_bytes(card.mac)
            async with asyncio.timeout(within_s):
                asking = [self._one(card.bridge, asked, one) for one in addresses[:_ADDRESSES]]
                return await _first(asking)
        except TimeoutError:
            return ProbeAnswer("silent")
        except PermissionError:
            return ProbeAnswer("unknown", why="the capability CAP_NET_RAW is missing")
        except (OSError, ValueError) as error:
            return ProbeAnswer("unknown", why=f"{card.bridge}: {error}")

    async def _one(self, bridge: str, asked: bytes, address: str) -> ProbeAnswer:
        kind, _frame = solicitation(address, asked=asked, own=bytes(6))
        with self._open(bridge, kind) as raw:
            own = raw.getsockname()[4]
            _kind, frame = solicitation(address, asked=asked, own=own)
            hearing = asyncio.ensure_future(self._hear(raw, asked, address))
            try:
                for _ in range(_TRIES):
                    raw.send(frame)
                    done, _waiting = await asyncio.wait({hearing}, timeout=_PAUSE_S)
                    if done:
                        return hearing.result()
            finally:
                hearing.cancel()
        return ProbeAnswer("silent")

    async def _hear(self, raw: socket.socket, asked: bytes, address: str) -> ProbeAnswer:
        loop = asyncio.get_running_loop()
        while True:
            frame = await loop.sock_recv(raw, _FRAME_BYTES)
            if answers(frame, address, asked=asked):
                return ProbeAnswer("answered", address=address)


async def _first(asking: Sequence[Coroutine[None, None, ProbeAnswer]]) -> ProbeAnswer:
    """Return the first result `answered`; `silent` when all probes have ended without one."""
    tasks = {asyncio.ensure_future(one) for one in asking}
    try:
        for done in asyncio.as_completed(tasks):
            found: ProbeAnswer = await done
            if found.sign == "answered":
                return found
        return ProbeAnswer("silent")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

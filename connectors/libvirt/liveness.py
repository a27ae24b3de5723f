"""Guest probing by the agent on this node, over a separate connection."""

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from flatline.connectors.libvirt.binding import (
    ADDRESSES_BY_AGENT,
    ADDRESSES_BY_ARP,
    ADDRESSES_BY_LEASE,
    AFFECT_LIVE,
    Connection,
    Domain,
    Library,
    error_code,
    load,
    ping_agent,
)
from flatline.connectors.libvirt.calls import first_returned
from flatline.connectors.libvirt.decoding import (
    block_total,
    kvm_total,
    net_total,
    vcpu_delays,
    vcpu_times,
)
from flatline.connectors.libvirt.evidence import console_tail
from flatline.connectors.libvirt.heard import Heard
from flatline.connectors.libvirt.inventory import read_watched
from flatline.connectors.libvirt.link import Link
from flatline.connectors.libvirt.node import NodeReader
from flatline.connectors.libvirt.polling import ACTIVE, NOWAIT
from flatline.connectors.libvirt.sight import instance, moment_ns
from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from flatline.engine.preflight_data import ObservedGuest, Sign, moved

T = TypeVar("T")

# virDomainStatsTypes: vCPUs, cards and disks. A qemu whose monitor hangs blocks the first query.
# Later queries skip it (`connectors.libvirt.polling`), so they contain no disks of its guest.
_WATCHED: Final = 8 | 16 | 32
# The VMs of a node with 200 VMs are read in 0.1 s; this limit also suffices for a busy node.
_ROSTER_S: Final = 10.0
_QUESTION_S: Final = 5.0
# virErrorNumber if the guest agent does not answer. The text is the prefix of libvirt's message if
# the agent does answer, but does not know the command or may not execute it.
_AGENT_UNRESPONSIVE: Final = 86
_AGENT_SAID: Final = "unable to execute QEMU agent command"
# An agent answers in 50 ms. If the agent is out of sync, libvirt first waits up to 5 s for it.
_AGENT_S: Final = 4
# The kernel's ARP table, which is read as well, since libvirt's query of it may be unavailable.
_NEIGHBOURS: Final = Path("/proc/net/arp")
_MAX_ADDRESSES: Final = 8
# The message of a panic is before its stack and registers, a few KiB from the end.
_CONSOLE_BYTES: Final = 16 * 1024


class Ping(Protocol):
    """Pings a VM's guest agent, as `connectors.libvirt.binding.ping_agent` does."""

    def __call__(self, domain: Domain, *, within_s: int) -> object:
        """Return once the agent has answered; libvirtError means no answer, or an error from it."""
        ...


class LibvirtLiveness:
    """The `Liveness` of one node.

    Parameters
    ----------
    heard
        Events of the actuator's connection, so that both count the same boots.
    neighbours, ping
        The kernel's table of neighbours, and the function that pings a guest agent.
    """

    def __init__(
        self,
        *,
        uri: str,
        heard: Heard,
        library: Library | None = None,
        node: NodeReader | None = None,
        neighbours: Path = _NEIGHBOURS,
        ping: Ping = ping_agent,
    ) -> None:
        self._library = library if library is not None else load()
        self._uri = uri
        self._heard = heard
        self._neighbours = neighbours
        self._ping = ping
        boot_id = (node if node is not None else NodeReader()).boot_id()
        self._link = Link(self._library, uri, read_only=False, boot_id=boot_id)

    async def __aenter__(self) -> Self:
        """Return immediately: the first caller connects."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect from libvirtd."""
        await self._link.close()

    async def roster(self) -> tuple[ObservedGuest, ...]:
        """See `engine.liveness_ports.Liveness`."""

        def read(connection: Connection, host_mark: int) -> tuple[ObservedGuest, ...]:
            mono_ns = moment_ns()
            reported = connection.getAllDomainStats(_WATCHED, ACTIVE | NOWAIT)
            found = (self._watched(domain, stats, host_mark, mono_ns) for domain, stats in reported)
            return tuple(one for one in found if one is not None)

        return await self._ask(read, what="roster", patience_s=_ROSTER_S)

    def _watched(
        self, domain: Domain, stats: Mapping[str, int | str | bool | float], mark: int, mono_ns: int
    ) -> ObservedGuest | None:
        vm = domain.UUID()
        try:
            marks = read_watched(domain.XMLDesc())
            run = instance(domain, host_mark=mark)
        except self._library.libvirtError:
            return None  # the VM has ended since
        if not marks.actionable:
            return None
        times, delays = vcpu_times(stats), vcpu_delays(stats)
        known = set(times) == set(delays)
        return ObservedGuest(
            vm=vm,
            instance=run,
            boots_seen=self._heard.boots(vm),
            mono_ns=mono_ns,
            vcpu_wanted_ns=tuple(times[n] + delays[n] for n in times) if known else (),
            moved=moved(
                block_total(stats, "rd.reqs"),
                block_total(stats, "wr.reqs"),
                net_total(stats, "tx.pkts"),
            ),
            kvm_irq_injections=kvm_total(stats, "kvm_irq_injections"),
            cards=marks.cards,
            balloon_period_s=marks.balloon_period_s,
            agent_connected=marks.agent_connected,
            has_console=marks.has_console,
        )

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        """See `engine.liveness_ports.Liveness`."""
        return await self._ask(
            lambda connection, _mark: self._addresses(connection.lookupByUUID(vm)),
            what="addresses",
            patience_s=_QUESTION_S,
        )

    def _addresses(self, domain: Domain) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for source in (ADDRESSES_BY_LEASE, ADDRESSES_BY_ARP, ADDRESSES_BY_AGENT):
            try:
                reported = domain.interfaceAddresses(source)
            except self._library.libvirtError:
                continue  # no such network, no agent, or a kernel without the information
            for mac, address in read_addresses(reported):
                found.setdefault(mac, {})[address] = None
            if found:
                break
        for mac, address in read_neighbours(_text(self._neighbours)):
            found.setdefault(mac, {})[address] = None
        return {mac: tuple(known)[:_MAX_ADDRESSES] for mac, known in found.items()}

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        """Ping the agent: any answer counts, a refusal as well.

        If libvirt itself does not return within `within_s`, the result is unknown.
        """

        def ask(connection: Connection, _mark: int) -> Sign:
            try:
                self._ping(connection.lookupByUUID(vm), within_s=_AGENT_S)
            except self._library.libvirtError as error:
                if _AGENT_SAID in str(error):
                    return "answered"
                return "silent" if error_code(error) == _AGENT_UNRESPONSIVE else "unknown"
            return "answered"

        try:
            return await self._ask(ask, what="guest agent", patience_s=within_s)
        except HypervisorUnreachable:
            return "unknown"

    async def console(self, vm: bytes) -> str:
        """See `engine.liveness_ports.Liveness`.

        Raises
        ------
        HypervisorUnreachable
            libvirtd did not answer.
        """

        def read(connection: Connection, _mark: int) -> str:
            try:
                xml = connection.lookupByUUID(vm).XMLDesc()
                return console_tail(xml, most_bytes=_CONSOLE_BYTES).decode(errors="replace")
            except (OSError, ValueError, self._library.libvirtError):
                return ""

        return await self._ask(read, what="console", patience_s=_QUESTION_S)

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None:
        """See `engine.liveness_ports.Liveness`."""

        def change(connection: Connection, _mark: int) -> None:
            try:
                connection.lookupByUUID(vm).setMemoryStatsPeriod(period_s, AFFECT_LIVE)
            except self._library.libvirtError as error:
                raise ActionRefused(
                    f"the period of the balloon statistics was not set: {error}"
                ) from error

        await self._ask(change, what="balloon period", patience_s=_QUESTION_S)

    async def _ask(
        self, one_query: Callable[[Connection, int], T], *, what: str, patience_s: float
    ) -> T:
        session = await self._link.session()
        call = session.start(
            lambda connection: one_query(connection, session.host_mark), name="libvirt-watch"
        )
        if await first_returned([call], patience_s=patience_s) is None:
            raise HypervisorUnreachable(
                f"{what}: no answer from {self._uri} within {patience_s:g} s"
            )
        try:
            return call.result()
        except self._library.libvirtError as error:
            raise HypervisorUnreachable(f"{what}: {error}") from error


def read_addresses(reported: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return pairs of MAC (in lower case) and IP address from libvirt's data on a VM's cards.

    `reported` is the result of `Domain.interfaceAddresses`. Addresses that cannot belong to a
    single guest, such as loopback, are left out.
    """
    pairs = []
    for card in reported.values():
        if not isinstance(card, Mapping):
            continue
        mac, known = card.get("hwaddr"), card.get("addrs") or ()
        for one in known:
            address = _usable(str(one.get("addr", "")))
            if isinstance(mac, str) and address:
                pairs.append((mac.lower(), address))
    return pairs


def read_neighbours(text: str) -> list[tuple[str, str]]:
    """Return pairs of MAC and IPv4 address from the kernel's table (proc_pid_net(5), arp).

    MACs are in lower case. Incomplete entries are left out.
    """
    pairs = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 4 and fields[2] != "0x0":
            address = _usable(fields[0])
            if address:
                pairs.append((fields[3].lower(), address))
    return pairs


def _usable(text: str) -> str:
    """Return the address in `text`; empty if it is invalid or cannot belong to a single guest."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    none = address.is_loopback or address.is_multicast or address.is_unspecified
    return "" if none else str(address)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

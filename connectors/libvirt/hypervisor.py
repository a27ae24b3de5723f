"""The collector's view of a node, over a read-only connection to its libvirtd."""

import contextlib
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from flatline.connectors.libvirt.binding import Connection, Library, load
from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.connectors.libvirt.decoding import VcpuTimes, decode, monitor_answered
from flatline.connectors.libvirt.events import EventQueue, register
from flatline.connectors.libvirt.inventory import read_pool, read_vm
from flatline.connectors.libvirt.link import Link, Session
from flatline.connectors.libvirt.node import NodeReader
from flatline.connectors.libvirt.polling import Patience, Poll, Poller
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Event, InventoryItem, PoolSample

DEFAULT_URI: Final = "qemu:///system"
# Pools fill within hours; each query makes libvirtd inspect every pool.
POOLS_EVERY_S: Final = 60.0
# A definition is read in 0.4 ms; this suffices for a busy node of 4,096 VMs.
INVENTORY_DEADLINE_S: Final = 10.0


# Pools that are a mounted directory, and libvirt's number of a running pool.
_FOLDER_KINDS: Final = frozenset({"dir", "fs", "netfs", "vstorage"})
_POOL_RUNNING: Final = 2
# virConnectListAllDomainsFlags
LIST_ACTIVE: Final = 1


@dataclass(frozen=True, slots=True)
class _InventoryCall:
    """A running query of the definitions, and its results so far."""

    call: Call[None]
    found: dict[bytes, InventoryItem]


class LibvirtHypervisor:
    """A `Hypervisor` that cannot change anything: its connection is read-only.

    Only VMs that run on the node have rows. A VM whose monitor does not answer keeps its row, with
    the values that libvirt has without the monitor. After 2 s it is listed as hung as well.
    """

    def __init__(
        self,
        *,
        uri: str = DEFAULT_URI,
        library: Library | None = None,
        node: NodeReader | None = None,
        patience: Patience | None = None,
    ) -> None:
        library = library if library is not None else load()
        self._library = library
        self._node = node if node is not None else NodeReader()
        self._patience = patience if patience is not None else Patience()
        self._queue = EventQueue()
        self._link = Link(
            library,
            uri,
            read_only=True,
            boot_id=self._node.boot_id(),
            register=self._register,
            notify=lambda kind, reason: self._queue.add(kind, detail={"reason": reason}),
        )
        self._poller = Poller(library, patience=self._patience)
        self._vcpus: dict[bytes, VcpuTimes] = {}
        self._silent_since_ns: dict[bytes, int] = {}
        self._hung: frozenset[bytes] = frozenset()
        self._items: dict[bytes, InventoryItem] = {}
        self._inventory: _InventoryCall | None = None
        self._pools: tuple[PoolSample, ...] = ()
        self._pools_call: Call[tuple[PoolSample, ...]] | None = None

    async def __aenter__(self) -> Self:
        """Receive events from here on, if libvirtd answers; if not, each sample tries again."""
        with contextlib.suppress(HypervisorUnreachable):
            await self._link.session()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect from libvirtd."""
        await self._link.close()

    async def sample(self) -> NodeSample:
        """Return all running VMs, the node's load and its pools.

        Raises
        ------
        HypervisorUnreachable
            libvirtd did not answer; the next call tries again.
        HypervisorStuck
            Only a new process gets answers again.
        """
        session = await self._link.session()
        poll = await self._poller.poll(session)
        rows, self._vcpus = decode(poll.readings, self._vcpus, mono_ns=poll.mono_ns)
        self._note_silent(poll)
        return NodeSample(
            event_time_ns=poll.wall_ns,
            mono_ns=poll.mono_ns,
            rows=rows,
            node={**self._node.read(), "hypervisor_reachable": 1.0},
            pools=self._latest_pools(session),
            hung=tuple(sorted(self._hung)),
        )

    def drain_events(self) -> tuple[Event, ...]:
        """Return the events since the last call, oldest first, each once."""
        return self._queue.drain()

    async def inventory(self) -> tuple[InventoryItem, ...]:
        """Return the definition of each running VM; the last known one if libvirt is too slow.

        Raises
        ------
        HypervisorUnreachable
            There is no connection, or libvirt reported an error.
        """
        session = await self._link.session()
        if self._inventory is None or not self._inventory.call.waits:
            self._inventory = self._start_inventory(session)
        call, found = self._inventory.call, self._inventory.found
        if await first_returned([call], patience_s=INVENTORY_DEADLINE_S) is None:
            self._items = {**self._items, **found.copy()}
        else:
            try:
                call.result()
            except self._library.libvirtError as error:
                raise HypervisorUnreachable(f"definitions could not be read: {error}") from error
            self._items = found
        return tuple(self._items[vm] for vm in sorted(self._items))

    def _start_inventory(self, session: Session) -> _InventoryCall:
        found: dict[bytes, InventoryItem] = {}
        call = session.start(
            lambda connection: self._read_definitions(connection, found), name="libvirt-inventory"
        )
        return _InventoryCall(call, found)

    def _register(self, connection: Connection) -> list[int]:
        return register(connection, self._queue)

    def _note_silent(self, poll: Poll) -> None:
        """Update the set of silent monitors, and report each change."""
        silent = {
            reading.vm: self._silent_since_ns.get(reading.vm, poll.mono_ns)
            for reading in poll.readings
            if not monitor_answered(reading.stats)
        }
        hung_ns = int(self._patience.hung_s * 1e9)
        hung = frozenset(vm for vm, since in silent.items() if poll.mono_ns - since >= hung_ns)
        present = {reading.vm for reading in poll.readings}
        for vm in sorted(hung - self._hung):
            self._queue.add("monitor_hung", vm=vm)
        for vm in sorted((self._hung - hung) & present):
            self._queue.add("monitor_back", vm=vm)
        self._silent_since_ns, self._hung = silent, hung

    def _latest_pools(self, session: Session) -> tuple[PoolSample, ...]:
        """Return the pools as last read, and start to read them again when that is due."""
        call = self._pools_call
        if call is not None and not call.waits:
            try:
                self._pools = call.result()
            except self._library.libvirtError:
                self._pools = ()  # no values are better than old ones
        if call is None or (not call.waits and call.waited_s() >= POOLS_EVERY_S):
            self._pools_call = session.start(self._read_pools, name="libvirt-pools")
        return self._pools

    def _read_pools(self, connection: Connection) -> tuple[PoolSample, ...]:
        """Read the pools one by one; runs in a separate thread."""
        pools = []
        for pool in connection.listAllStoragePools():
            definition = read_pool(pool.XMLDesc())
            state, capacity, _allocated, available = pool.info()[:4]
            if state != _POOL_RUNNING:
                continue
            # libvirt inspects a pool's file system only at a refresh, which a read-only connection
            # may not request.
            fresh = _file_system(definition.folder) if definition.kind in _FOLDER_KINDS else None
            capacity, available = fresh if fresh is not None else (capacity, available)
            pools.append(
                PoolSample(name=definition.name, capacity_bytes=capacity, available_bytes=available)
            )
        return tuple(sorted(pools, key=lambda pool: pool.name))

    def _read_definitions(self, connection: Connection, found: dict[bytes, InventoryItem]) -> None:
        """Read the definitions one by one; runs in a separate thread."""
        definitions = [read_pool(pool.XMLDesc()) for pool in connection.listAllStoragePools()]
        targets = {pool.folder: pool.name for pool in definitions if pool.folder is not None}
        for domain in connection.listAllDomains(LIST_ACTIVE):
            vm = domain.UUID()
            try:
                xml = domain.XMLDesc()
            except self._library.libvirtError:
                continue  # it ended after the list was made
            found[vm] = read_vm(xml, vm=vm, pool_targets=targets)


def _file_system(folder: str | None) -> tuple[int, int] | None:
    """Return capacity and free bytes of a pool's file system; None if they cannot be read."""
    if folder is None:
        return None
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

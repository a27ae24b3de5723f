"""The connections to a libvirtd: one for events, and one for each running call.

A connection never carries two calls at the same time. While one call is stuck, libvirt 9.0's client
sometimes does not wake the thread of a second call on the same connection until the next keepalive,
5 s later (measured: 3 of 77 calls that directly followed another; none of 211 on separate
connections).
"""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from flatline.connectors.libvirt.binding import Connection, Library
from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.connectors.libvirt.decoding import host_mark
from flatline.connectors.libvirt.inventory import read_host_uuid
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.stream.backoff import Backoff

T = TypeVar("T")

# A silent libvirtd is detected after 5 s × 3 and one more interval; libvirt's own default (5 s × 5)
# would leave a node unobserved for half a minute.
KEEPALIVE_S: Final = 5
KEEPALIVE_COUNT: Final = 3
# Connecting takes a few ms. After its start libvirtd first probes the capabilities of every qemu
# binary (8 s). The attempt to connect continues meanwhile, but a sample waits only this long.
OPEN_DEADLINE_S: Final = 4.0
# A node should be observed again within 30 s of its libvirtd's return. A refused connection is
# cheap, so 10 s between two attempts is enough.
_FIRST_BACKOFF_S: Final = 1.0
_LAST_BACKOFF_S: Final = 10.0
CLOSE_DEADLINE_S: Final = 3.0

_CLOSE_REASONS: Final = ("error", "libvirtd closed it", "keepalive timed out", "client")


class Session:
    """The connections to a libvirtd while it is reachable.

    Attributes
    ----------
    listener
        The connection that receives events; the session ends with it.
    host_mark
        See `decoding.host_mark`; part of every VM's instance.
    lost
        Why the session ended, None while it is believed to be alive.
    """

    def __init__(self, library: Library, connect: Callable[[], Connection]) -> None:
        self._library = library
        self._connect = connect
        self.listener = connect()
        self.host_mark = 0
        self.lost: str | None = None
        self.callbacks: list[int] = []
        self._idle: list[Connection] = []
        self._over = False
        self._guard = threading.Lock()

    def start(self, work: Callable[[Connection], T], *, name: str) -> Call[T]:
        """Start a blocking call on a connection that no other call uses meanwhile."""
        return Call(partial(self._work, work), name=name)

    def close(self) -> None:
        """Close idle connections; a stuck call closes its connection when it returns."""
        with self._guard:
            self._over = True
            idle, self._idle = self._idle, []
        # On a dead connection each step may fail, and the next step must still run.
        steps: list[Callable[[], object]] = [
            partial(self.listener.domainEventDeregisterAny, number) for number in self.callbacks
        ]
        steps += [self.listener.unregisterCloseCallback, self.listener.close]
        steps += [connection.close for connection in idle]
        for step in steps:
            with contextlib.suppress(self._library.libvirtError):
                step()

    def _work(self, work: Callable[[Connection], T]) -> T:
        with self._guard:
            connection = self._idle.pop() if self._idle else None
        if connection is None or connection.isAlive() != 1:
            connection = self._connect()
        try:
            return work(connection)
        finally:
            self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        with self._guard:
            keep = not self._over and connection.isAlive() == 1
            if keep:
                self._idle.append(connection)
        if not keep:
            with contextlib.suppress(self._library.libvirtError):
                connection.close()


class Link:
    """Keeps one session to a libvirtd alive, from one event loop.

    Parameters
    ----------
    read_only
        A read-only connection rejects every call that changes anything.
    register
        Registers for events on each new connection and returns their numbers.
    notify
        Receives "hypervisor_lost" and "hypervisor_back" with the reason, each once.
    """

    def __init__(
        self,
        library: Library,
        uri: str,
        *,
        read_only: bool,
        boot_id: str,
        register: Callable[[Connection], list[int]] = lambda _connection: [],
        notify: Callable[[str, str], None] = lambda _kind, _reason: None,
    ) -> None:
        self._library = library
        self._uri = uri
        self._read_only = read_only
        self._boot_id = boot_id
        self._register = register
        self._notify = notify
        self._session: Session | None = None
        self._opening: Call[Session] | None = None
        self._backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        self._failure = ""
        self._retry_ns = 0
        self._was_lost = False

    async def session(self) -> Session:
        """Return a session that was recently alive; open one if there is none.

        Raises
        ------
        HypervisorUnreachable
            Nothing answers at the URI.
        """
        self._give_up_dead()
        if self._session is not None:
            return self._session
        if self._opening is None:
            self._wait_for_turn()
            self._opening = Call(self._open, name="libvirt-open")
        opening = self._opening
        if await first_returned([opening], patience_s=OPEN_DEADLINE_S) is None:
            # The attempt continues: a second one would only wait for the same answer.
            self._note_lost("the connection request has no answer yet")
            raise HypervisorUnreachable(
                f"libvirtd at {self._uri} has not answered the connection request. Still waiting"
            )
        if self._opening is not opening:
            # Another waiting caller has taken the result.
            return await self.session()
        self._opening = None
        try:
            session = opening.result()
        except self._library.libvirtError as error:
            raise self._refused(error) from error
        self._session = session
        self._backoff.worked()
        if self._was_lost:
            self._was_lost = False
            self._notify("hypervisor_back", "connected again")
        return session

    async def close(self) -> None:
        """Disconnect from libvirtd."""
        session, self._session = self._session, None
        if session is not None:
            closing = Call(session.close, name="libvirt-close")
            await first_returned([closing], patience_s=CLOSE_DEADLINE_S)

    def _wait_for_turn(self) -> None:
        wait_s = (self._retry_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0:
            raise HypervisorUnreachable(self._failure)

    def _refused(self, error: Exception) -> HypervisorUnreachable:
        wait_s = self._backoff.failed()
        # The same text at each attempt, so that it is logged once.
        self._failure = (
            f"libvirtd at {self._uri} cannot be reached: {error}. Check that it runs and that this"
            " user may open its socket"
        )
        self._retry_ns = time.monotonic_ns() + int(wait_s * 1e9)
        self._note_lost(str(error))
        return HypervisorUnreachable(self._failure)

    def _note_lost(self, reason: str) -> None:
        if not self._was_lost:
            self._was_lost = True
            self._notify("hypervisor_lost", reason)

    def _give_up_dead(self) -> None:
        session = self._session
        if session is None:
            return
        if session.lost is None and session.listener.isAlive() == 1:
            return
        self._session = None
        Call(session.close, name="libvirt-close")
        self._note_lost(session.lost or "the connection is dead")

    def _open(self) -> Session:
        """Connect and prepare a session; runs in a separate thread."""
        session = Session(self._library, self._connect)
        try:
            self._prepare(session)
        except self._library.libvirtError:
            session.close()
            raise
        return session

    def _connect(self) -> Connection:
        open_ = self._library.openReadOnly if self._read_only else self._library.open
        connection = open_(self._uri)
        connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        return connection

    def _prepare(self, session: Session) -> None:
        def on_close(_connection: Connection, reason: int, _opaque: None) -> None:
            known = 0 <= reason < len(_CLOSE_REASONS)
            session.lost = _CLOSE_REASONS[reason] if known else str(reason)

        listener = session.listener
        listener.registerCloseCallback(on_close, None)
        uuid = read_host_uuid(listener.getCapabilities())
        session.host_mark = host_mark(host_uuid=uuid, boot_id=self._boot_id)
        session.callbacks = self._register(listener)

# ruff: noqa: N802, N815 -- the names are libvirt's
"""The part of libvirt-python that Flatline uses, with types; the only module that imports it.

libvirt-python has no types and is not part of the default install. So the library is loaded when
the first connection is made, and this module declares types for its objects.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from flatline.engine.errors import SettingsError

StatValue = int | str | bool | float
Stats = Mapping[str, StatValue]

# virErrorNumber of the errors that Flatline distinguishes; the numbers are libvirt's ABI.
ERR_NO_DOMAIN: Final = 42
# virDomainState
STATE_RUNNING: Final = 1
STATE_PAUSED: Final = 3
STATE_SHUT_OFF: Final = 5
STATE_CRASHED: Final = 6
# virDomainPausedReason
PAUSED_CRASHED: Final = 10
# virDomainJobType: values of `jobInfo()[0]` when no job runs and when the last one is over.
JOB_IDLE: Final = frozenset({0, 3, 4, 5})
# virDomainJobOperation, in `jobStats()["operation"]`
JOB_MIGRATION_OUT: Final = 5
# virDomainBlockCopyFlags: the copy job ends when the VM ends, which libvirt requires if the VM is
# persistent. virDomainBlockJobAbortFlags: the VM continues on the copy.
COPY_TRANSIENT: Final = 4
ABORT_PIVOT: Final = 2


# virDomainInterfaceAddressesSource; the guest agent is queried last, since it may not answer.
ADDRESSES_BY_LEASE: Final = 0
ADDRESSES_BY_AGENT: Final = 1
ADDRESSES_BY_ARP: Final = 2
# virDomainModificationImpact: change the running VM, not its definition.
AFFECT_LIVE: Final = 1


class Domain(Protocol):
    """A VM as libvirt returns it; every method but the first two may block."""

    def UUID(self) -> bytes: ...
    def ID(self) -> int: ...
    def XMLDesc(self, flags: int = 0) -> str: ...
    def isPersistent(self) -> int: ...
    def jobInfo(self) -> Sequence[int]: ...
    def state(self, flags: int = 0) -> Sequence[int]: ...
    def reset(self, flags: int = 0) -> int: ...
    def resume(self) -> int: ...
    def reboot(self, flags: int = 0) -> int: ...
    def abortJob(self) -> int: ...
    def jobStats(self, flags: int = 0) -> Mapping[str, StatValue]: ...
    def blockInfo(self, path: str, flags: int = 0) -> Sequence[int]: ...
    def blockCopy(
        self, disk: str, destxml: str, params: Mapping[str, int], flags: int = 0
    ) -> int: ...
    def blockJobInfo(self, disk: str, flags: int = 0) -> Mapping[str, int]: ...
    def blockJobAbort(self, disk: str, flags: int = 0) -> int: ...
    def interfaceAddresses(self, source: int, flags: int = 0) -> Mapping[str, object]: ...
    def setMemoryStatsPeriod(self, period: int, flags: int = 0) -> int: ...
    def screenshot(self, stream: "Stream", screen: int, flags: int = 0) -> str: ...
    def migrateToURI3(self, dconnuri: str, params: Mapping[str, str | int], flags: int) -> int: ...


class Stream(Protocol):
    """A data stream from libvirtd."""

    def recv(self, nbytes: int) -> bytes | int: ...
    def finish(self) -> int: ...
    def abort(self) -> int: ...


class Pool(Protocol):
    """A storage pool."""

    def XMLDesc(self, flags: int = 0) -> str: ...
    def info(self) -> Sequence[int]: ...


class Connection(Protocol):
    """A connection to one libvirtd; safe to share between threads."""

    def close(self) -> int: ...
    def isAlive(self) -> int: ...
    def setKeepAlive(self, interval: int, count: int) -> int: ...
    def getCapabilities(self) -> str: ...
    def getAllDomainStats(
        self, stats: int = 0, flags: int = 0
    ) -> Sequence[tuple[Domain, Stats]]: ...
    def domainListGetStats(
        self, doms: Sequence[Domain], stats: int = 0, flags: int = 0
    ) -> Sequence[tuple[Domain, Stats]]: ...
    def listAllDomains(self, flags: int = 0) -> Sequence[Domain]: ...
    def listAllStoragePools(self, flags: int = 0) -> Sequence[Pool]: ...
    def lookupByUUID(self, uuid: bytes) -> Domain: ...
    def storagePoolLookupByName(self, name: str) -> Pool: ...
    def newStream(self, flags: int = 0) -> Stream: ...
    def registerCloseCallback(
        self, cb: Callable[["Connection", int, None], None], opaque: None
    ) -> int: ...
    def unregisterCloseCallback(self) -> int: ...
    def domainEventRegisterAny(
        self,
        dom: None,
        event: int,
        cb: Callable[..., None],
        opaque: None,
        /,
    ) -> int: ...
    def domainEventDeregisterAny(self, callback: int, /) -> None: ...


class Library(Protocol):
    """The functions and constants of the libvirt module that are used here."""

    libvirtError: type[Exception]

    def open(self, name: str) -> Connection: ...
    def openReadOnly(self, name: str) -> Connection: ...
    def virEventRegisterDefaultImpl(self) -> None: ...
    def virEventRunDefaultImpl(self) -> int: ...
    def registerErrorHandler(self, f: Callable[[object, object], None], ctx: None) -> int: ...


_loop_guard = threading.Lock()
_loop_started = False


def load() -> Library:
    """Return the libvirt module, with its event loop running in a separate thread.

    Keepalive and events work only while libvirt's event loop runs. libvirt allows one per process,
    which must be set up before the first connection. So the loop belongs to the module, not to a
    connection, and runs until the process ends.

    Raises
    ------
    SettingsError
        libvirt-python is not installed.
    """
    global _loop_started
    try:
        import libvirt
    except ImportError as error:
        raise SettingsError(
            "libvirt-python is not installed, so no hypervisor can be reached: "
            "pip install 'flatline[libvirt]' (needs libvirt-dev, pkg-config and gcc)"
        ) from error
    library: Library = libvirt
    with _loop_guard:
        if not _loop_started:
            # Without a handler libvirt writes every error to stderr, in its own format.
            library.registerErrorHandler(_ignore, None)
            library.virEventRegisterDefaultImpl()
            # A daemon thread: a stuck connection must not keep the process alive.
            threading.Thread(
                target=_run_loop, args=(library,), name="libvirt-events", daemon=True
            ).start()
            _loop_started = True
    return library


def ping_agent(domain: Domain, *, within_s: int) -> None:
    """Return once the guest agent has answered its ping.

    Of libvirt's calls to the guest agent, only this one takes a time limit. The others wait without
    limit for an agent that was in sync before, and meanwhile block other callers. The call marks
    the VM with the taint `custom-ga-command`, which changes nothing in the VM.

    Raises
    ------
    libvirtError
        The agent did not answer within `within_s`, is absent, or answered with an error.
    """
    import libvirt_qemu

    libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', within_s, 0)


def _ignore(_context: object, _error: object) -> None:
    """Ignore the error: libvirt also raises it as an exception."""


def _run_loop(library: Library) -> None:
    while True:
        try:
            library.virEventRunDefaultImpl()
        except library.libvirtError:
            # The loop must go on, because all keepalives depend on it. Without the pause, repeated
            # errors would use a whole core.
            time.sleep(0.1)


def error_code(error: Exception) -> int | None:
    """Return libvirt's number for the error, None if it has none."""
    read = getattr(error, "get_error_code", None)
    code = read() if read is not None else None
    return code if isinstance(code, int) else None

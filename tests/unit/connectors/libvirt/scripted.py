# ruff: noqa: N802, N815 -- the names are libvirt's
"""A scripted libvirt module: VMs that hang, errors, dead connections.

It keeps the decisive property of libvirt: the first bulk call to reach a VM whose monitor is silent
waits for it; later ones with NOWAIT get libvirt's own values.
"""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

DATA = Path(__file__).parent / "data"
NOWAIT = 1 << 29
SHUT_OFF = 5
# Only a failing test waits this long; the threads of a passing one are released.
PATIENCE_S = 10.0

PARTIAL = {"state.state": 1, "cpu.time": 5, "vcpu.current": 1, "vcpu.maximum": 1, "vcpu.0.time": 4}
FULL = {
    **PARTIAL,
    "balloon.rss": 64,
    "block.count": 1,
    "block.0.wr.reqs": 3,
    "block.0.wr.bytes": 512,
    "block.0.rd.reqs": 1,
    "dirtyrate.calc_status": 0,
}
CAPABILITIES = "<capabilities><host><uuid>d721d6c4</uuid></host></capabilities>"


def recorded(scene: str) -> dict[str, dict[str, int | str | bool]]:
    """Return the recorded statistics of a scene by the VM's name."""
    reported = json.loads((DATA / "domain_stats.json").read_text())[scene]
    return {vm["name"]: vm["stats"] for vm in reported}


class ScriptedError(Exception):
    def __init__(self, code: int, text: str = "scripted") -> None:
        super().__init__(text)
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class HeldLock:
    def __init__(self) -> None:
        self.freed = threading.Event()

    def acquire(self, *, blocking: bool) -> bool:
        self.freed.wait(PATIENCE_S)
        return True

    def release(self) -> None:
        pass


class TakenFor:
    """A VM that another client holds during its first preflight checks."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def acquire(self, *, blocking: bool) -> bool:
        self.samples -= 1
        return self.samples < 0

    def release(self) -> None:
        pass


class Vm:
    """One VM: `answers` is cleared while its monitor is silent."""

    def __init__(self, number: int) -> None:
        self.uuid = bytes(15) + bytes([number])
        self.id = number
        self.answers = threading.Event()
        self.answers.set()
        self.taken: threading.Lock | HeldLock | TakenFor = threading.Lock()
        self.now = (1, 1)
        self.after_reset: tuple[int, int] = (1, 1)
        self.job = 0
        self.persistent = True
        self.done: list[object] = []
        self.errors: dict[str, Exception] = {}
        # Raised at a query of the state after an action was tried.
        self.lost: Exception | None = None
        self.tried = False
        self.gates: dict[str, threading.Event] = {}
        self.full: dict[str, int] = dict(FULL)
        # Content of the definition beside the name.
        self.inside = ""
        # Addresses from each source, and the sources that were queried.
        self.addresses: dict[int, object] = {}
        self.asked_addresses: list[int] = []

    def note(self, action: str, *arguments: object) -> None:
        self.tried = True
        if action in self.gates:
            self.gates[action].wait(PATIENCE_S)
        if action in self.errors:
            raise self.errors[action]
        self.done.append((action, *arguments) if arguments else action)

    def stats(self, flags: int) -> dict[str, int]:
        if not self.taken.acquire(blocking=not flags & NOWAIT):
            return dict(PARTIAL)
        try:
            self.answers.wait(PATIENCE_S)
        finally:
            self.taken.release()
        return dict(self.full)


class ScriptedDomain:
    def __init__(self, vm: Vm) -> None:
        self.vm = vm

    def UUID(self) -> bytes:
        return self.vm.uuid

    def ID(self) -> int:
        return self.vm.id

    def XMLDesc(self, flags: int = 0) -> str:
        return f"<domain><name>vm{self.vm.id}</name>{self.vm.inside}</domain>"

    def isPersistent(self) -> int:
        return int(self.vm.persistent)

    def jobInfo(self) -> Sequence[int]:
        if self.vm.full.get("state.state") == SHUT_OFF:
            raise ScriptedError(55, "Requested operation is not valid: domain is not running")
        # Unlike calls with NOWAIT, it waits for the holder of the VM.
        if self.vm.taken.acquire(blocking=True):
            self.vm.taken.release()
        return [self.vm.job]

    def state(self, flags: int = 0) -> Sequence[int]:
        if self.vm.tried and self.vm.lost is not None:
            raise self.vm.lost
        return self.vm.now

    def reset(self, flags: int = 0) -> int:
        self.vm.note("reset")
        self.vm.now = self.vm.after_reset
        return 0

    def resume(self) -> int:
        self.vm.note("resume")
        self.vm.now = (1, 5)
        return 0

    def reboot(self, flags: int = 0) -> int:
        self.vm.note("reboot")
        return 0

    def setMemoryStatsPeriod(self, period: int, flags: int = 0) -> int:
        self.vm.note("setMemoryStatsPeriod", period, flags)
        return 0

    def interfaceAddresses(self, source: int, flags: int = 0) -> object:
        self.vm.asked_addresses.append(source)
        reported = self.vm.addresses.get(source, {})
        if isinstance(reported, Exception):
            raise reported
        return reported

    def abortJob(self) -> int:
        self.vm.note("abortJob")
        return 0

    def migrateToURI3(self, uri: str, params: dict[str, str], flags: int) -> int:
        self.vm.note("migrate", uri, params, flags)
        return 0


class ScriptedConnection:
    def __init__(self, library: "ScriptedLibrary") -> None:
        self.library = library
        self.closed = False
        self.callbacks: dict[int, Callable[..., None]] = {}
        self.on_close: Callable[..., None] | None = None

    def isAlive(self) -> int:
        return int(not self.closed and self.library.alive)

    def close(self) -> int:
        self.closed = True
        return 0

    def setKeepAlive(self, interval: int, count: int) -> int:
        return 0

    def getCapabilities(self) -> str:
        return CAPABILITIES

    def registerCloseCallback(self, cb: Callable[..., None], opaque: None) -> int:
        self.on_close = cb
        return 0

    def unregisterCloseCallback(self) -> int:
        self.on_close = None
        return 0

    def domainEventRegisterAny(
        self, dom: None, event: int, callback: Callable[..., None], opaque: None
    ) -> int:
        self.callbacks[event] = callback
        return event

    def domainEventDeregisterAny(self, callback: int) -> None:
        del self.callbacks[callback]

    def getAllDomainStats(
        self, stats: int = 0, flags: int = 0
    ) -> list[tuple[ScriptedDomain, dict[str, int]]]:
        self.library.bulk_calls += 1
        self.library.check()
        return [(ScriptedDomain(vm), vm.stats(flags)) for vm in self.library.vms]

    def domainListGetStats(
        self, doms: Sequence[ScriptedDomain], stats: int = 0, flags: int = 0
    ) -> list[tuple[ScriptedDomain, dict[str, int]]]:
        self.library.check()
        return [(dom, dom.vm.stats(flags)) for dom in doms]

    def listAllDomains(self, flags: int = 0) -> list[ScriptedDomain]:
        return [ScriptedDomain(vm) for vm in self.library.vms]

    def listAllStoragePools(self, flags: int = 0) -> list[object]:
        return []

    def lookupByUUID(self, uuid: bytes) -> ScriptedDomain:
        self.library.looked_up.set()
        self.library.frozen.wait(PATIENCE_S)
        self.library.check()
        for vm in self.library.vms:
            if vm.uuid == uuid:
                return ScriptedDomain(vm)
        raise ScriptedError(42, "no domain with matching uuid")


class ScriptedLibrary:
    """`frozen` is cleared while libvirtd as a whole does not answer."""

    libvirtError = ScriptedError

    def __init__(self, vms: int = 1) -> None:
        self.vms = [Vm(number) for number in range(1, vms + 1)]
        self.connections: list[ScriptedConnection] = []
        self.opened_read_only: list[bool] = []
        self.refusal: Exception | None = None
        self.broken: Exception | None = None
        self.alive = True
        self.bulk_calls = 0
        self.looked_up = threading.Event()
        self.held = HeldLock()
        self.frozen = threading.Event()
        self.frozen.set()

    def check(self) -> None:
        self.frozen.wait(PATIENCE_S)
        if self.broken is not None:
            raise self.broken

    def open(self, name: str) -> ScriptedConnection:
        return self._connect(read_only=False)

    def openReadOnly(self, name: str) -> ScriptedConnection:
        return self._connect(read_only=True)

    def virEventRegisterDefaultImpl(self) -> None:
        raise AssertionError("the loop belongs to binding.load")

    def virEventRunDefaultImpl(self) -> int:
        raise AssertionError("the loop belongs to binding.load")

    def registerErrorHandler(self, f: object, ctx: None) -> int:
        raise AssertionError("the handler belongs to binding.load")

    def _connect(self, *, read_only: bool) -> ScriptedConnection:
        if self.refusal is not None:
            raise self.refusal
        self.opened_read_only.append(read_only)
        connection = ScriptedConnection(self)
        self.connections.append(connection)
        return connection

    def frozen_lock(self) -> "HeldLock":
        """Return a VM's lock that blocks every caller, with NOWAIT or not."""
        self.held = HeldLock()
        return self.held

    def let_go(self) -> None:
        """End all waits, so that no thread outlives its test."""
        self.frozen.set()
        self.held.freed.set()
        for vm in self.vms:
            vm.answers.set()
            for gate in vm.gates.values():
                gate.set()

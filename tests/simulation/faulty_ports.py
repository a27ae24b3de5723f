"""The ports of one site with every fault that a seed can request, on a `virtual_time` loop.

Each process has its own view: a crash, a partition or a pause affects one of them. Every durable
step of a process is a crash point, before and after.
"""

import asyncio
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from flatline.engine.errors import (
    ActionRefused,
    ActionUnsent,
    EvidenceUnsaved,
    HypervisorUnreachable,
    LogUnreachable,
    StateUnwritable,
    VmNotFound,
)
from flatline.engine.ports import Bounds, Headers, Position, Record
from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.wire.topics import CONTROL
from tests.simulation.truthful_fleet import EPOCH_MS, Fleet, Guest


class Killed(BaseException):
    """The process was killed; none of its code may run any more."""


@dataclass(slots=True)
class Faults:
    """The current faults of one process; times are of the loop, 0 is never."""

    chance: random.Random
    away_until_s: float = 0.0
    asleep_until_s: float = 0.0
    disk_full_until_s: float = 0.0
    delay_s: float = 0.0
    doubles: float = 0.0
    lies: float = 0.0
    clock_offset_ms: int = 0
    crash_in: int = 0
    points: Counter[str] = field(default_factory=Counter)


class Process:
    """One run of a role: its faults, and whether it still exists."""

    def __init__(self, name: str, faults: Faults) -> None:
        self.name = name
        self.faults = faults
        self.dead = False
        self.barrier_s = 0.0
        self.kill: Callable[[], object] = lambda: None

    def now_ms(self) -> int:
        loop_ms = round(1000 * asyncio.get_running_loop().time())
        return EPOCH_MS + loop_ms + self.faults.clock_offset_ms

    def mono_ns(self) -> int:
        return round(1e9 * asyncio.get_running_loop().time())

    def dies_here(self, point: str) -> bool:
        """Return whether the process is killed at this point."""
        faults = self.faults
        if faults.crash_in == 0 or self.dead:
            return False
        faults.crash_in -= 1
        if faults.crash_in:
            return False
        faults.points[point] += 1
        self.dead = True
        asyncio.get_running_loop().call_soon(self.kill)
        return True

    async def point(self, name: str) -> None:
        if self.dies_here(name) or self.dead:
            await asyncio.get_running_loop().create_future()

    async def wait_until_awake(self) -> None:
        left_s = self.faults.asleep_until_s - asyncio.get_running_loop().time()
        if not self.dead and left_s > 0:
            await asyncio.sleep(left_s)


@dataclass
class Store:
    """The content of the log, for all processes."""

    topics: dict[str, list[Record]] = field(default_factory=dict)
    grown: dict[str, asyncio.Event] = field(default_factory=dict)
    watch: Callable[[Record], None] = lambda record: None

    def put(self, topic: str, key: bytes, value: bytes, headers: Headers = ()) -> Position:
        records = self.topics.setdefault(topic, [])
        now_ms = EPOCH_MS + round(1000 * asyncio.get_running_loop().time())
        record = Record(topic, 0, len(records), now_ms, key, value, headers)
        records.append(record)
        self.watch(record)
        event = self.grown.pop(topic, None)
        if event is not None:
            event.set()
        return Position(0, record.offset)

    async def longer_than(self, topic: str, offset: int) -> None:
        while len(self.topics.get(topic, ())) <= offset:
            await self.grown.setdefault(topic, asyncio.Event()).wait()


class View:
    """One process's view of the log: see `engine.ports.Log`."""

    def __init__(self, store: Store, process: Process) -> None:
        self._store = store
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def _reach(self) -> None:
        await self._process.wait_until_awake()
        if self._process.dead:
            await asyncio.get_running_loop().create_future()
        faults = self._process.faults
        if asyncio.get_running_loop().time() < faults.away_until_s:
            await asyncio.sleep(0.5)
            raise LogUnreachable("the log is away")

    async def append(
        self,
        topic: str,
        *,
        key: bytes,
        value: bytes,
        headers: Headers = (),
        partition: int | None = None,
        time_ms: int | None = None,
    ) -> Position:
        process, chance = self._process, self._process.faults.chance
        await process.point(f"append {topic}, before")
        await asyncio.sleep(chance.uniform(0.001, 0.02))
        away = asyncio.get_running_loop().time() < process.faults.away_until_s
        if away and chance.random() < 0.5:
            # The record is in the log, but the writer gets no acknowledgement.
            self._store.put(topic, key, value, headers)
        await self._reach()
        position = self._store.put(topic, key, value, headers)
        if chance.random() < process.faults.doubles:
            self._store.put(topic, key, value, headers)
        await process.point(f"append {topic}, after")
        return position

    def subscribe(self, topic: str, *, group: str) -> Any:
        raise NotImplementedError("planners and agents follow the log without a group")

    @asynccontextmanager
    async def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Record]]]:
        yield self._batches(topic, offset)

    async def _batches(self, topic: str, offset: int) -> AsyncIterator[Sequence[Record]]:
        chance, faults = self._process.faults.chance, self._process.faults
        while True:
            await self._store.longer_than(topic, offset)
            if faults.delay_s:
                await asyncio.sleep(chance.uniform(0.0, faults.delay_s))
            await self._reach()
            batch = self._store.topics[topic][offset:]
            yield batch
            if chance.random() < faults.doubles:
                yield batch
            offset += len(batch)

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        if topic == CONTROL.name:
            self._process.barrier_s = asyncio.get_running_loop().time()
        await self._reach()
        found = self._store.topics.get(topic, [])[offset:]
        await asyncio.sleep(0.002)
        return found

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._reach()
        return Bounds(0, len(self._store.topics.get(topic, ())))

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        await self._reach()
        return bisect_left(self._store.topics.get(topic, []), time_ms, key=lambda r: r.time_ms)

    def partitions(self, topic: str) -> int:
        return 1

    async def identity(self) -> str:
        await self._reach()
        return "log"


class Disk:
    """The ledger of one node on a disk that may be full: see `engine.ports.LedgerStore`."""

    def __init__(self, entries: list[bytes], process: Process) -> None:
        self._entries = entries
        self._process = process

    def append(self, entry: bytes) -> None:
        if self._process.dead or self._process.dies_here("ledger, before"):
            raise Killed
        loop = asyncio.get_running_loop()
        if loop.time() < self._process.faults.disk_full_until_s:
            raise StateUnwritable("no space left on device")
        self._entries.append(entry)
        if self._process.dies_here("ledger, after"):
            raise Killed

    def entries(self) -> Sequence[bytes]:
        return tuple(self._entries)


# Called directly before an action changes a guest: the invariants of a run.
Check = Callable[[Process, Guest, str, str], None]


class Hands:
    """The actuator of one node, whose answers may be wrong: see `engine.ports.Actuator`."""

    def __init__(self, fleet: Fleet, node: str, process: Process, check: Check) -> None:
        self._fleet = fleet
        self._node = node
        self._process = process
        self._check = check

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def _guest(self, vm: bytes) -> Guest:
        guest = self._fleet.by_vm.get(vm)
        if guest is None or guest.node != self._node:
            raise VmNotFound(f"node {self._node} knows no such VM")
        return guest

    async def reach(self) -> None:
        await self._process.wait_until_awake()

    async def sample(self, vm: bytes) -> PreflightSample:
        await self._process.wait_until_awake()
        return self._guest(vm).sample(asyncio.get_running_loop().time())

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        await self._do(vm, "reset", permit=permit)

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        raise ActionRefused("a reset is one step in this fleet")

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        await self._do(vm, "reboot", permit=permit)

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        await self._do(vm, "migrate", target, permit=permit)

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Wait for the migration that an earlier run requested: see `engine.ports.Actuator`."""
        guest = self._fleet.by_vm[vm]
        for _ in range(30):
            if guest.job:
                await asyncio.sleep(1.0)
        if guest.node != target:
            raise ActionRefused("it stays here")

    async def move_disk(
        self,
        vm: bytes,
        *,
        disk: str,
        target: str,
        within_s: float,
        permit: Permit | None = None,
    ) -> None:
        raise ActionRefused("this fleet has one pool")

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        raise ActionRefused("this fleet has one pool")

    async def abort_job(self, vm: bytes) -> None:
        raise ActionRefused("no job was started from here")

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Save nothing, as with a full disk: see `engine.ports.Evidence`."""
        await self._process.point("evidence")
        self._guest(vm)
        if self._process.faults.lies:
            raise EvidenceUnsaved("no space left on device")
        return "nothing but this word"

    async def _do(
        self, vm: bytes, action: str, target: str = "", *, permit: Permit | None = None
    ) -> None:
        process, chance, loop = (
            self._process,
            self._process.faults.chance,
            asyncio.get_running_loop(),
        )
        began_s = loop.time()
        await process.point(f"{action}, before")
        guest = self._guest(vm)
        waited_s = loop.time() - began_s
        if permit and guest.instance != permit.instance:
            raise ActionRefused("the VM was restarted after the verdict")
        if permit and waited_s > permit.within_s:
            raise ActionUnsent("the look no longer holds")
        why = permit.last_check(guest.sample(loop.time())) if permit else None
        if why is not None:
            raise ActionRefused(why)
        how = chance.choice(LIES) if chance.random() < process.faults.lies else ""
        if how in ("refused", "lost", "lie", "hang"):
            await _answer(how)
            return
        self._check(process, guest, action, target)
        if action == "migrate":
            guest.job = True
            arrived = asyncio.Event()

            def arrive() -> None:
                # Peer to peer: it continues even if the agent dies.
                guest.job = False
                if guest.condition == "alive":
                    self._fleet.moves(guest, target)
                arrived.set()

            loop.call_later(chance.uniform(2.0, 20.0), arrive)
            await arrived.wait()
        else:
            self._fleet.boots(guest, loop.time(), loop.call_later)
        await process.point(f"{action}, after")
        if how:
            await _answer(how.removeprefix("done, "))


LIES = ("refused", "lost", "lie", "hang", "done, refused", "done, lost", "done, hang")


async def _answer(how: str) -> None:
    if how == "refused":
        raise ActionRefused("refused")
    if how == "lost":
        raise HypervisorUnreachable("no answer")
    if how == "hang":
        await asyncio.get_running_loop().create_future()

"""A site with planners and agents on a loop of `virtual_time`; the test publishes the alerts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.action.catalogue import Policy, parse_policy, read_shipped
from flatline.engine.action.keys import open_entry
from flatline.engine.errors import LogUnreachable, RecordRejected
from flatline.engine.liveness_ports import Liveness, Prober
from flatline.engine.ports import Actuator, Bounds, Clock, Headers, LedgerStore, Position, Record
from flatline.engine.roles.act import Agent
from flatline.engine.roles.act_config import ActConfig
from flatline.engine.roles.health import Health
from flatline.engine.roles.plan import PlanConfig, Planner
from flatline.engine.wire.alert import Alert, EvidenceItem, Resolution, SamplePosition
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.frame import InventoryItem, decode_frame
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.order import Claim, Entry, Order, OrderResult, encode_order
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import ALERTS, CONTROL, FRAMES, JOURNAL, ORDERS, SCORES
from tests.signing import AGENT_KEY, PLANNER_KEY, TRUSTED, said, scored, word

EPOCH_MS = 1_790_000_000_000
LAB = parse_policy(read_shipped("lab"), source="lab")


class FaultyLog(EmbeddedLog):
    """The embedded log, until a test makes it unreachable, makes it hang, or replaces it."""

    away: frozenset[str] = frozenset()
    hangs = False
    swapped = ""

    def __init__(self, config: EmbeddedConfig, *, clock: Clock) -> None:
        super().__init__(config, clock=clock)
        self.shows: dict[str, Bounds] = {}

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """Return the bounds that the test sets for a topic, else the real ones."""
        return self.shows.get(topic) or await super().bounds(topic, partition)

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
        """See `engine.ports.Log`; an unreachable topic accepts nothing."""
        if topic in self.away:
            raise LogUnreachable(f"{topic} is away.")
        return await super().append(
            topic, key=key, value=value, headers=headers, partition=partition, time_ms=time_ms
        )

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """See `engine.ports.Log`; a log that hangs never answers."""
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return await super().read_to_end(topic, partition, offset=offset)

    async def identity(self) -> str:
        """Return another name once the log was replaced."""
        return self.swapped or await super().identity()


@dataclass
class Site:
    """The site and its controls for a test."""

    fleet: Fleet
    log: FaultyLog
    clock: Clock
    policy: Policy = LAB
    ledgers: dict[str, LedgerStore] = field(default_factory=dict)
    actuators: dict[str, Actuator] = field(default_factory=dict)
    health: dict[str, Health] = field(default_factory=dict)
    running: set[asyncio.Task[None]] = field(default_factory=set)
    runs: int = 0

    def spawn(self, role: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(role)
        self.running.add(task)
        return task

    def start_planner(self, name: str = "p1", *, clock: Clock | None = None) -> asyncio.Task[None]:
        self.runs += 1
        clock = clock or self.clock
        config = PlanConfig(
            site="site",
            name=name,
            run=f"run{self.runs}",
            policy=self.policy,
            key=PLANNER_KEY,
            trusted=TRUSTED,
        )
        planner = Planner(log=self.log, config=config, clock=clock, health=Health(clock))
        return self.spawn(planner.run())

    def start_agent(
        self, node: str = "c0-n0", *, wrap: Callable[[LedgerStore], LedgerStore] | None = None
    ) -> asyncio.Task[None]:
        return self.spawn(self.new_agent(node, wrap=wrap).run())

    def new_agent(
        self,
        node: str = "c0-n0",
        *,
        wrap: Callable[[LedgerStore], LedgerStore] | None = None,
        watch: Liveness | None = None,
        prober: Prober | None = None,
        sets_balloons: bool = False,
    ) -> Agent:
        self.runs += 1
        store = self.ledgers.setdefault(node, EmbeddedLedger(None))
        config = ActConfig(
            site="site",
            zone="z0",
            cell=node.split("-")[0],
            node=node,
            run=f"run{self.runs}",
            policy=self.policy,
            key=AGENT_KEY,
            trusted=TRUSTED,
            sets_balloons=sets_balloons,
        )
        return Agent(
            log=self.log,
            actuator=self.actuators.get(node) or self.fleet.actuator(node),
            ledger=wrap(store) if wrap else store,
            evidence=self.fleet.evidence(node),
            config=config,
            clock=self.clock,
            health=self.health.setdefault(node, Health(self.clock)),
            watch=watch,
            prober=prober,
        )

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Stop a role without clean-up, like a killed process."""
        self.running.discard(task)
        task.cancel()
        await asyncio.wait({task})

    def alert(self, index: int = 0, **changes: Any) -> Alert:
        """Return an engine's current alert for a panic of VM `index`."""
        world = self.fleet.world
        now_ms = self.clock.now_ms()
        node = world.topology.nodes[int(world.guests.node[index])]
        values: dict[str, Any] = {
            "id": f"{index:032x}",
            "transition": 1,
            "scope": "vm",
            "subject": str(UUID(bytes=self.fleet.vm(index))),
            "site": "site",
            "zone": "z0",
            "cell": "c0",
            "kind": "panic_spin",
            "state": "firing",
            "severity": "critical",
            "confidence": 0.999,
            "onset_ms": now_ms - 20_000,
            "opened_ms": now_ms - 15_000,
            "decided_ms": now_ms,
            "suggested_action": "reboot",
            "sentence": "One vCPU spins and the disks are silent.",
            "position": SamplePosition(node=node, role="collector", run="r", sequence=9),
            "configuration": "c",
            "node": node,
            "instance": int(world.guests.instance[index]),
            "tenant": "acme",
            "group": f"group{index}",
            "actionable": True,
            "history_s": 200_000.0,
            "cpu_shape": "one_core",
            "data_ms": changes.get("decided_ms", now_ms),
            "witnesses": ("activity", "balloon"),
            "evidence": (
                EvidenceItem(signal="silence", nats=6.0),
                EvidenceItem(signal="cpu", nats=4.0),
            ),
        }
        return Alert(**(values | changes))

    async def say(self, alert: Alert) -> None:
        value, headers = said(alert)
        await self.log.append(ALERTS.name, key=alert.cell.encode(), value=value, headers=headers)

    async def keep_firing(self, alert: Alert, *, seconds: float) -> None:
        """Publish `alert` again every minute, as the engine does."""
        left_s = seconds
        while left_s > 0:
            now_ms = self.clock.now_ms()
            fresh = {"decided_ms": now_ms, "data_ms": now_ms}
            await self.say(Alert(**(fields_of(alert) | fresh)))
            await asyncio.sleep(min(60.0, left_s))
            left_s -= 60.0

    async def resolve(self, alert: Alert, *, verified: bool = True) -> None:
        resolution = Resolution(
            reason="It booted and its disks write again.", verified=verified, stable_s=30.0
        )
        changes = {
            "state": "resolved",
            "transition": alert.transition + 1,
            "decided_ms": self.clock.now_ms(),
            "resolution": resolution,
        }
        await self.say(Alert(**(fields_of(alert) | changes)))

    async def until_reset(self, index: int = 0) -> None:
        """Wait until the VM is reset."""
        for _ in range(3_000):
            if self.resets(index):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nobody reset the VM within 30 s")

    async def order(self, order: Entry, *, key: Ed25519PrivateKey = PLANNER_KEY) -> None:
        value, headers = encode_order(order, key)
        await self.log.append(ORDERS.name, key=b"c0", value=value, headers=headers)

    async def anybody(self, **changes: Any) -> None:
        """Append an unsigned control command, as any writer of the topic can."""
        control = self.word(**changes)
        await self.log.append(CONTROL.name, key=control.key(), value=encode_control(control))

    async def control(self, **changes: Any) -> None:
        """Append a control command with an operator's signature."""
        control = self.word(**changes)
        value, headers = word(control)
        await self.log.append(CONTROL.name, key=control.key(), value=value, headers=headers)

    def word(self, **changes: Any) -> Control:
        said: dict[str, Any] = {
            "active": True,
            "by": "ann",
            "reason": "work",
            "time_ms": self.clock.now_ms(),
            **changes,
        }
        return Control(**said)

    def scores(self, loads: dict[str, float], **changes: Any) -> Scores:
        said: dict[str, Any] = {
            "site": "site", "cell": "c0", "minute_ms": self.clock.now_ms(), "uuids": b"",
            "values": b"", "classes": (), "node_load": loads, "configuration": "c", **changes,
        }  # fmt: skip
        return Scores(**said)

    async def load(self, loads: dict[str, float], **changes: Any) -> None:
        value, headers = scored(self.scores(loads, **changes))
        await self.log.append(SCORES.name, key=b"c0", value=value, headers=headers)

    async def entries(self) -> list[Entry]:
        """Return the validly signed records of the orders topic."""
        found: list[Entry] = []
        for record in await self.log.read_to_end(ORDERS.name, 0, offset=0):
            with suppress(RecordRejected):
                found.append(open_entry(record.value, record.headers, trusted=TRUSTED))
        return found

    async def orders(self) -> list[Order]:
        return [entry for entry in await self.entries() if isinstance(entry, Order)]

    async def marks(self) -> list[OrderResult]:
        return [entry for entry in await self.entries() if isinstance(entry, OrderResult)]

    async def claims(self) -> list[Claim]:
        return [entry for entry in await self.entries() if isinstance(entry, Claim)]

    async def journal(self) -> list[JournalEntry]:
        found: list[JournalEntry] = []
        for partition in range(self.log.partitions(JOURNAL.name)):
            records = await self.log.read_to_end(JOURNAL.name, partition, offset=0)
            found += [decode_entry(record.value) for record in records]
        return sorted(found, key=lambda entry: (entry.writer, entry.sequence))

    async def said(self, words: str) -> bool:
        return any(words in entry.sentence for entry in await self.journal())

    async def acted(self) -> list[str]:
        """Return the kinds of the agents' events on the frames topic."""
        kinds: list[str] = []
        for partition in range(self.log.partitions(FRAMES.name)):
            for record in await self.log.read_to_end(FRAMES.name, partition, offset=0):
                kinds += [event.kind for event in decode_frame(record.value).events]
        return kinds

    def resets(self, index: int | None = None) -> int:
        return len(self.fleet.world.truth.calls("reset", vm=index))


def fields_of(alert: Alert) -> dict[str, Any]:
    return {name: getattr(alert, name) for name in alert.__struct_fields__}


@asynccontextmanager
async def acting_site(
    *incidents: Incident, policy: Policy = LAB, vms_per_node: int = 6, folder: Path | None = None
) -> AsyncIterator[Site]:
    """Open a site of one cell with two nodes, whose roles end with it; its log is in `folder`."""
    clock = LoopClock(epoch_ms=EPOCH_MS)
    plan = WorldPlan(
        seed=5,
        vms_per_node=vms_per_node,
        pinned=dict.fromkeys(range(2 * vms_per_node), "database"),
        incidents=incidents,
    )
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(
            FaultyLog(EmbeddedConfig(folder=folder, partitions=2), clock=clock)
        )
        site = Site(_owned(build_world(plan, clock)), log, clock, policy)
        try:
            yield site
        finally:
            for task in tuple(site.running):
                await site.stop(task)


def _owned(fleet: Fleet) -> Fleet:
    """Assign every VM to acme and to a separate group, so that no group limit applies."""
    topology = fleet.world.topology
    item = topology.item

    def owned(index: int) -> InventoryItem:
        return msgspec.structs.replace(item(index), tenant="acme", group=f"group{index}")

    topology.item = owned  # type: ignore[method-assign]
    return fleet


def panic(index: int = 0, *, at_s: float = 5.0) -> Incident:
    return Incident(kind="panic_spin", at_s=at_s, vms=(index,))

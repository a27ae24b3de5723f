"""Play one scenario: a simulated site with every role of Flatline, in virtual time.

A scenario is a folder. `scenario.toml` defines the site and its incidents; `expected.log` lists the
alerts and actions that must occur, in this order, and those that never may. The log as an operator
reads it, and the ground truth of the simulator, form one list of lines.
"""

import asyncio
import math
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.action.catalogue import Policy, parse_policy, read_shipped
from flatline.engine.action.keys import open_entry
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.replayed import run_records
from flatline.engine.errors import LogUnreachable
from flatline.engine.ports import Clock, Headers, LedgerStore, Position, Record
from flatline.engine.roles.health import Health
from flatline.engine.roles.run import Opener, keep
from flatline.engine.settings import Collect, Place, Settings
from flatline.engine.wire.alert import decode_alert
from flatline.engine.wire.control import Control, decode_control
from flatline.engine.wire.journal import decode_entry
from flatline.engine.wire.order import Order, OrderResult
from flatline.engine.wire.topics import ALERTS, CONTROL, FRAMES, JOURNAL, ORDERS
from flatline.engine.wiring import Authority, Process, plan_opener, simulated_nodes, site_openers
from tests.scenarios.others import OTHERS, command_of_others
from tests.signing import KEYS, TRUSTED, with_signature, word

# Two planners suffice for every scenario; the second one is started only on request.
SECOND: Final = "second planner"
# A kill or an outage takes effect everywhere within this.
_STEP_S: Final = 0.5


class Unreliable(EmbeddedLog):
    """The embedded log, until a scenario makes it unreachable or makes it repeat records."""

    away = False
    repeats = ""

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
        """See `engine.ports.Log`."""
        if self.away:
            raise LogUnreachable(f"{topic} is away.")
        times = 2 if topic == self.repeats else 1
        for _ in range(times):
            position = await super().append(
                topic, key=key, value=value, headers=headers, partition=partition, time_ms=time_ms
            )
        return position


class Happening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One incident of the site's VMs: see `connectors.simulator.plan.Incident`."""

    kind: str
    at_s: float
    vms: tuple[int, ...] = ()
    node: str = ""
    pool: str = ""
    network: str = ""
    duration_s: float | None = None
    params: dict[str, float] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event of Flatline itself, or a command of a person.

    Attributes
    ----------
    stop, start
        A role: `engine`, `plan`, `second planner`, `collect NODE` or `act NODE`. It is stopped
        without clean-up, as by SIGKILL.
    log
        `away`, `back`, or `repeats TOPIC`: each record appended twice from then on.
    hypervisor
        The effect of every action from then on: see `connectors.simulator.actuator`; empty is
        normal.
    say
        A control record: kind, scope, subject, until_s.
    alert
        An alert of a foreign detector on `vm`: fields of an alert.
    """

    at_s: float
    stop: str = ""
    start: str = ""
    log: str = ""
    hypervisor: str | None = None
    say: dict[str, Any] = {}
    alert: dict[str, Any] = {}


class SitePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of the site; `vms` is the workload of all VMs but those `pinned`."""

    cells: int = 1
    nodes_per_cell: int = 2
    vms_per_node: int = 6
    pools_per_cell: int = 1
    seed: int = 1
    interval_s: float = 2.0
    vms: str = "database"
    pinned: dict[str, str] = {}
    panic_devices: bool = False
    node_cores: int | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole `scenario.toml`.

    Attributes
    ----------
    story
        The events and the expected reaction, in the words of an operator.
    lasts_s
        Duration of the play, from the site's beginning.
    policy
        Maps lines of the lab's policy to their replacements.
    """

    story: str
    lasts_s: float
    site: SitePlan = SitePlan()
    policy: dict[str, str] = {}
    happens: tuple[Happening, ...] = ()
    events: tuple[Event, ...] = ()


# Order of lines within one millisecond.
_RANKS: Final = {"happens": 0, "alert": 1, "order": 2, "evidence": 3, "HARM": 3, "call": 4}


@dataclass(frozen=True)
class Line:
    """A report or an event, in seconds since the site's beginning."""

    at_s: float
    what: str
    text: str

    def __lt__(self, other: "Line") -> bool:
        mine, its = (
            (math.floor(line.at_s * 1000), _RANKS.get(line.what, 5)) for line in (self, other)
        )
        return mine < its

    def __str__(self) -> str:
        minutes, seconds = divmod(self.at_s, 60)
        return f"{minutes:02.0f}:{seconds:04.1f}  {self.what:<9} {self.text}"


@dataclass
class Stage:
    """A running site."""

    scenario: Scenario
    fleet: Fleet
    log: Unreliable
    clock: LoopClock
    openers: dict[str, Opener]
    authority: Authority
    health: Health
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        opener = self.openers[name]
        role = keep(name, opener, health=self.health.of(name))
        self.running[name] = asyncio.get_running_loop().create_task(role, name=name)

    async def stop(self, name: str) -> None:
        task = self.running.pop(name)
        task.cancel()
        await asyncio.wait({task})

    async def do(self, event: Event) -> None:
        if event.stop:
            await self.stop(event.stop)
        if event.start:
            self.start(event.start)
        if event.log:
            self.log.away = event.log == "away"
            self.log.repeats = event.log.removeprefix("repeats ") if " " in event.log else ""
        if event.hypervisor is not None:
            how = event.hypervisor
            self.fleet.interfere((lambda _call: how) if how else None)
        if event.say:
            await self.say(dict(event.say))
        if event.alert:
            await self.alert(dict(event.alert))

    async def say(self, words: dict[str, Any]) -> None:
        now_ms, until_s = self.clock.now_ms(), words.pop("until_s", None)
        subject = words.pop("subject", "")
        vm = words.pop("vm", None)
        control = Control(
            subject=subject if vm is None else str(UUID(bytes=self.fleet.vm(vm))),
            active=words.pop("active", True),
            by="ann",
            reason=words.pop("reason", "work"),
            time_ms=now_ms,
            until_ms=None if until_s is None else now_ms + round(1000 * until_s),
            **words,
        )
        value, headers = word(control)
        await self.log.append(CONTROL.name, key=control.key(), value=value, headers=headers)

    async def alert(self, words: dict[str, Any]) -> None:
        said = command_of_others(self.fleet, words, now_ms=self.clock.now_ms())
        value, headers = with_signature(said)
        await self.log.append(ALERTS.name, key=b"c0", value=value, headers=headers)

    async def play(self) -> None:
        """Play all events, each at its time; an error of a role ends the play."""
        loop = asyncio.get_running_loop()
        for name in self.openers:
            if name != SECOND:
                self.start(name)
        for event in sorted(self.scenario.events, key=lambda event: event.at_s):
            await self._wait(event.at_s - loop.time())
            await self.do(event)
        await self._wait(self.scenario.lasts_s - loop.time())
        for name in tuple(self.running):
            await self.stop(name)

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        done, _ = await asyncio.wait(
            self.running.values(), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
            raise AssertionError(f"{task.get_name()} ended by itself")


def read(folder: Path) -> Scenario:
    """Return the scenario of a folder."""
    raw = tomllib.loads((folder / "scenario.toml").read_text())
    return msgspec.convert(raw, Scenario)


async def played(scenario: Scenario) -> list[Line]:
    """Return all reports and events, in order of time."""
    async with staged(scenario) as stage:
        await stage.play()
        lines = await told(stage)
    return sorted(lines + happened(stage.fleet, scenario))


@asynccontextmanager
async def staged(scenario: Scenario) -> AsyncIterator[Stage]:
    """Set up a site without starting anything."""
    site = scenario.site
    count = site.cells * site.nodes_per_cell * site.vms_per_node
    plan = WorldPlan(
        seed=site.seed,
        cells=site.cells,
        nodes_per_cell=site.nodes_per_cell,
        vms_per_node=site.vms_per_node,
        pools_per_cell=site.pools_per_cell,
        node_cores=site.node_cores,
        pinned=dict.fromkeys(range(count), site.vms)
        | {int(index): workload for index, workload in site.pinned.items()},
        panic_device_ratio=float(site.panic_devices),
        incidents=tuple(Incident(**msgspec.structs.asdict(h)) for h in scenario.happens),
    )
    clock = LoopClock(epoch_ms=plan.epoch_s * 1000)
    fleet = build_world(plan, clock)
    authority = authority_of(scenario)
    process = process_of(scenario, clock)
    made = simulated_nodes(fleet)
    async with Unreliable(EmbeddedConfig(folder=None, partitions=1), clock=clock) as log:
        nodes = [replace(node, ledger=partial(_kept, EmbeddedLedger(None))) for node in made]
        openers = site_openers(process, log, nodes=nodes, authority=authority)
        second = replace(process, settings=settings_of(scenario, node="second"))
        openers[SECOND] = plan_opener(second, lambda: nullcontext(log), authority)
        stage = Stage(scenario, fleet, log, clock, openers, authority, process.health)
        try:
            yield stage
        finally:
            for name in tuple(stage.running):
                await stage.stop(name)


def _kept(ledger: LedgerStore) -> AbstractContextManager[LedgerStore]:
    """Return a node's ledger for its agents: the disk outlives the processes."""
    return nullcontext(ledger)


def settings_of(scenario: Scenario, *, node: str = "first") -> Settings:
    return Settings.model_construct(
        site=Place(name="site", node=node), collect=Collect(interval_s=scenario.site.interval_s)
    )


def process_of(scenario: Scenario, clock: Clock) -> Process:
    return Process(settings_of(scenario), clock, Health(clock), "scenario")


def policy_of(scenario: Scenario) -> Policy:
    text = read_shipped("lab")
    text = text.replace("interval_s = 2.0", f"interval_s = {scenario.site.interval_s}")
    for line, instead in scenario.policy.items():
        assert line in text, f"the lab's policy has no line {line!r}"
        text = text.replace(line, instead)
    return parse_policy(text, source="scenario")


def authority_of(scenario: Scenario) -> Authority:
    return Authority(policy_of(scenario), KEYS.__getitem__, TRUSTED)


@dataclass
class Teller:
    """Converts records into lines, with names instead of UUIDs."""

    names: Mapping[str, str]
    epoch_ms: int
    lines: list[Line] = field(default_factory=list)

    def tell(self, record: Record, what: str, text: str) -> None:
        for uuid, name in self.names.items():
            text = text.replace(uuid, name)
        self.lines.append(Line((record.time_ms - self.epoch_ms) / 1000, what, text))


async def told(stage: Stage) -> list[Line]:
    """Return the content of the log, without mere repetitions."""
    world = stage.fleet.world
    names = {str(UUID(bytes=stage.fleet.vm(i))): stage.fleet.name(i) for i in range(world.plan.vms)}
    teller = Teller(names, world.epoch_ns // 1_000_000)
    await print_alerts(stage, teller)
    ordered = await print_orders(stage, teller)
    async for record in records(stage.log, CONTROL.name):
        control = decode_control(record.value)
        state = "on" if control.active else "off"
        words = f"{control.kind} {state} {control.scope} {control.subject} by {control.by}"
        teller.tell(record, "control", f"{words}: {control.reason}")
    async for record in records(stage.log, JOURNAL.name):
        journalled = decode_entry(record.value)
        teller.tell(record, "journal", f"{journalled.kind}: {journalled.sentence}")
    for vm, name in names.items():
        acted = [c for c in stage.fleet.truth.action_calls if stage.fleet.name(c.vm) == name]
        steps = [key for key in ordered if key[2] == vm]
        if len(acted) > len(steps):
            text = f"{name}: {len(acted)} calls, {len(steps)} orders"
            teller.lines.append(Line(0.0, "TWICE", text))
    return [*teller.lines, await replayed(stage)]


async def print_alerts(stage: Stage, teller: Teller) -> None:
    seen: set[tuple[str, int]] = set()
    async for record in records(stage.log, ALERTS.name):
        alert = decode_alert(record.value)
        if (alert.id, alert.transition) in seen:
            continue
        seen.add((alert.id, alert.transition))
        words = f"{alert.state} {alert.kind} of {alert.scope} {alert.subject}"
        teller.tell(record, "alert", f"{words} ({alert.suggested_action}): {alert.sentence}")
        if alert.resolution is not None and alert.resolution.verified:
            teller.tell(record, "verified", alert.subject)


async def print_orders(stage: Stage, teller: Teller) -> set[tuple[str, int, str]]:
    """Report orders and their results, and return the steps that were ordered without dry run."""
    ordered: set[tuple[str, int, str]] = set()
    async for record in records(stage.log, ORDERS.name):
        entry = open_entry(record.value, record.headers, trusted=TRUSTED)
        if isinstance(entry, OrderResult):
            teller.tell(record, "end", f"{entry.outcome} {entry.vm}: {entry.sentence}")
        if not isinstance(entry, Order):
            continue
        ordered |= set() if entry.dry_run else {(entry.incident, entry.step, entry.vm)}
        goal = f" to {entry.target}" if entry.target else ""
        name = "rehearsal" if entry.dry_run else "order"
        teller.tell(record, name, f"{entry.action} {entry.vm}{goal}, step {entry.step}")
    return ordered


async def replayed(stage: Stage) -> Line:
    """Return whether an immediate replay of the frames gives the published alerts."""
    frames = [record async for record in records(stage.log, FRAMES.name)]
    live = {
        (alert.id, alert.transition)
        async for record in records(stage.log, ALERTS.name)
        for alert in (decode_alert(record.value),)
        if alert.configuration != OTHERS
    }
    ladders = stage.authority.policy.ladders
    stable_s = max(step.stable_s for steps in ladders.values() for step in steps)
    again = run_records(frames, Configuration(verify_stable_s=float(stable_s)))
    same = {(alert.id, alert.transition) for alert in again.alerts} == live
    return Line(stage.scenario.lasts_s, "replay", "the same alerts" if same else "other alerts")


async def records(log: Unreliable, topic: str) -> AsyncIterator[Record]:
    for partition in range(log.partitions(topic)):
        for record in await log.read_to_end(topic, partition, offset=0):
            yield record


def happened(fleet: Fleet, scenario: Scenario) -> list[Line]:
    """Return the ground truth of the simulator."""
    truth, lines = fleet.truth, []

    def line(at_ns: int, what: str, text: str) -> None:
        if at_ns / 1e9 <= scenario.lasts_s:
            lines.append(Line(at_ns / 1e9, what, text))

    for happening in truth.happenings:
        names = [fleet.name(vm) for vm in happening.vms]
        whom = ", ".join(names) if len(names) <= 3 else f"{len(names)} VMs"
        line(happening.began_ns, "happens", f"{happening.incident.kind}: {whom}")
    for death in truth.deaths:
        if death.alive_ns is not None:
            line(death.alive_ns, "alive", f"{fleet.name(death.vm)} by {death.repaired_by}")
    for harm in truth.harms:
        line(harm.at_ns, "HARM", f"{harm.action} of {fleet.name(harm.vm)}, which was {harm.was}")
    for call in truth.action_calls:
        line(call.at_ns, "call", f"{call.action} {fleet.name(call.vm)}: {call.outcome}")
    for move in truth.moves:
        line(move.at_ns, "moved", f"{fleet.name(move.vm)} to {move.target} by {move.by}")
    for kept in truth.evidence:
        line(kept.at_ns, "evidence", fleet.name(kept.vm))
    return lines


@dataclass(frozen=True)
class Expected:
    """An `expected.log`: the required lines in order, and the forbidden ones."""

    reported: tuple[tuple[str, str], ...]
    never: tuple[tuple[str, str], ...]


def read_expected(folder: Path) -> Expected:
    """Return the expectations in a scenario's folder; `never` before a line forbids it."""
    reported: list[tuple[str, str]] = []
    never: list[tuple[str, str]] = []
    for text in (folder / "expected.log").read_text().splitlines():
        words = text.split("#", 1)[0].strip() if text.startswith("#") else text.strip()
        if not words:
            continue
        what, _, rest = words.partition(" ")
        wanted = reported
        if what == "never":
            wanted = never
            what, _, rest = rest.strip().partition(" ")
        wanted.append((what, rest.strip() or "*"))
    return Expected(tuple(reported), tuple(never))


def shortcomings(lines: list[Line], expected: Expected) -> list[str]:
    """Return one sentence for each expectation that was not met."""
    missing, position = [], 0
    for what, pattern in expected.reported:
        found = next((i for i in range(position, len(lines)) if _is(lines[i], what, pattern)), None)
        if found is None:
            missing.append(f"not told, or not in this order: {what} {pattern}")
        else:
            position = found + 1
    for what, pattern in expected.never:
        missing += [f"must never be: {line}" for line in lines if _is(line, what, pattern)]
    return missing


def _is(line: Line, what: str, pattern: str) -> bool:
    # A sentence may contain brackets, which are not a pattern here.
    return line.what == what and fnmatchcase(line.text, pattern.replace("[", "[[]"))

"""One seed: a site of three nodes for half an hour, with the seed's faults.

Planners, agents, log format, ledger and preflight check are the shipped ones. The detector
publishes the truth with delays, and lies: for no alert may a live guest be reset.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final
from unittest import mock

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flatline.connectors.simulator import virtual_time
from flatline.engine.action import commands, keys
from flatline.engine.action.catalogue import Modes, Policy, parse_policy, read_shipped
from flatline.engine.action.chain import verify
from flatline.engine.action.ledger import LogEntry, encode_ledger_entry
from flatline.engine.faults import Step
from flatline.engine.ports import Headers
from flatline.engine.roles import act as act_role
from flatline.engine.roles import plan as plan_role
from flatline.engine.roles.act import Agent
from flatline.engine.roles.act_config import ActConfig
from flatline.engine.roles.health import Health
from flatline.engine.roles.plan import PlanConfig, Planner
from flatline.engine.wire import order
from flatline.engine.wire.control import Control, ControlScope, encode_control
from flatline.engine.wire.journal import decode_entry
from flatline.engine.wire.topics import CONTROL, JOURNAL
from tests.signing import AGENT_KEY, PLANNER_KEY, TRUSTED, word
from tests.simulation.faulty_ports import (
    Disk,
    Faults,
    Hands,
    Killed,
    Process,
    Store,
    View,
)
from tests.simulation.invariants import Family, Liveness, Result
from tests.simulation.lying_detector import NODES, Detector
from tests.simulation.truthful_fleet import EPOCH_MS, Condition, Fleet, small_fleet

FAMILIES: Final[tuple[Family, ...]] = ("mixed", "storm", "blackout", "race")

ADVERSITIES: Final = (
    "crash", "partition", "double", "delay", "clock", "disk", "lie", "false_alarm", "pause",
    "sleep",
)  # fmt: skip

# A production policy except for the modes: it may act on everything without approval.
_DEFAULT: Final = parse_policy(read_shipped("default"), source="default")
POLICY: Final[Policy] = msgspec.structs.replace(
    _DEFAULT,
    modes=Modes(default="auto"),
    ladders={
        "panic_spin": (Step(action="reset"), Step(action="reset"), Step(action="quarantine")),
        "panic_halt": (Step(action="reset"), Step(action="reset"), Step(action="quarantine")),
        "hung_userland": (Step(action="reboot"),),
        "node_contention": (Step(action="migrate", deadline_s=600),),
    },
)
# Virtual seconds of a run. A storm's pause and a blackout take effect within a quarter of an hour;
# a race is over after the longest pause of a process.
_LASTS_S: Final[dict[Family, float]] = {
    "mixed": 1_800.0, "storm": 900.0, "blackout": 900.0, "race": 300.0,
}  # fmt: skip
_SCORES_EVERY_S: Final = 180
_TICK_S: Final = 20.0
# The agent's periodic status report has no influence on its decisions.
_REPORT_S: Final = 300.0


class Run:
    """One seed being played; `clean` leaves out all faults."""

    def __init__(self, seed: int, family: Family, *, clean: bool) -> None:
        self.chance = random.Random(f"{family}/{seed}")
        self.result = Result(seed, family)
        self.clean = clean
        self.fleet: Fleet = small_fleet(self.chance)
        self.ledgers: dict[str, list[bytes]] = {node: [_known_log()] for node in NODES}
        self.watch = Liveness(
            self.result,
            policy=POLICY,
            trusted=TRUSTED,
            ledgers=self.ledgers,
            vms=len(self.fleet.guests),
        )
        self.store = Store(watch=self.watch.appended)
        self.detector = Detector(self.fleet, self.store, self.chance)
        self.tasks: set[asyncio.Task[None]] = set()
        self.processes: list[Process] = []
        self.runs = 0

    # -- faults --------------------------------------------------------------------------

    def play(self) -> Result:
        family, chance = self.result.family, self.chance
        if not self.clean:
            chosen = {
                "mixed": chance.sample(ADVERSITIES, chance.randint(2, 5)),
                "race": ["sleep", "delay"],
            }
            self.result.adversities = tuple(chosen.get(family, chance.sample(ADVERSITIES, 1)))
        virtual_time.run(self._main())
        return self.result

    async def _main(self) -> None:
        loop, family = asyncio.get_running_loop(), self.result.family
        lasts_s = _LASTS_S[family]
        planned = self._plan_deaths(lasts_s)
        for node in NODES:
            self._spawn(f"act {node}", partial(self._agent, node))
        for number in range(3 if family == "race" else 2):
            self._spawn(f"plan p{number}", partial(self._planner, f"p{number}"))
        for since_s in range(0, int(lasts_s), _SCORES_EVERY_S):
            loop.call_at(since_s + 0.5, self.detector.scores)
        if not self.clean:
            self._plan_adversities(lasts_s)
            if family == "storm":
                self._plan_storm()
            if family == "blackout":
                self._plan_blackout()
        await asyncio.sleep(lasts_s)
        self._judge_end(planned)
        for task in tuple(self.tasks):
            task.cancel()
        for process in self.processes:
            process.dead = True
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for process in self.processes:
            self.result.points += process.faults.points

    def _plan_deaths(self, lasts_s: float) -> list[int]:
        """Let one to three guests die early enough to be repaired, and overload one node."""
        chance, loop = self.chance, asyncio.get_running_loop()
        table = chance.sample(range(len(self.fleet.guests)), chance.randint(1, 3))
        # A blackout finds them alive; a race concerns one; in a quarter of an hour a cell may have
        # two repairs.
        family = self.result.family
        first_s, last_s = {
            "mixed": (5.0, 400.0), "storm": (5.0, 120.0), "blackout": (125.0, 150.0),
            "race": (5.0, 30.0),
        }[family]  # fmt: skip
        table = table if family == "mixed" else table[:1]
        for index in table:
            kind: Condition = chance.choice(("panic_spin", "panic_halt"))
            at_s = chance.uniform(first_s, last_s)
            loop.call_at(at_s, self.detector.die, self.fleet.guests[index], kind)
        if self.result.family == "mixed" and chance.random() < 0.3:
            loop.call_at(
                chance.uniform(20.0, 600.0), self.detector.suffer, chance.choice(self.fleet.guests)
            )
        return table

    def _plan_adversities(self, lasts_s: float) -> None:
        chance, loop = self.chance, asyncio.get_running_loop()
        wrong = self.result.adversities
        if "false_alarm" in wrong:
            for _ in range(chance.randint(1, 6)):
                loop.call_at(chance.uniform(5.0, lasts_s - 60), self.detector.cry_wolf)
        if "pause" in wrong:
            loop.call_at(chance.uniform(5.0, lasts_s / 2), self._pause)
        for process in self.processes:
            self._plan_faults(process, lasts_s)

    def _plan_faults(self, process: Process, lasts_s: float) -> None:
        chance, loop, faults = self.chance, asyncio.get_running_loop(), process.faults
        wrong, now_s = self.result.adversities, asyncio.get_running_loop().time()

        def later(longest_s: float, begin: Callable[[float], None]) -> None:
            at_s = chance.uniform(now_s, now_s + lasts_s / 2)
            if chance.random() < 0.7:
                loop.call_at(at_s, begin, at_s + chance.uniform(1.0, longest_s))

        if "crash" in wrong and chance.random() < 0.7:
            faults.crash_in = chance.randint(1, 24 if process.name.startswith("act") else 12)
        if "partition" in wrong:
            later(120.0, lambda until_s: setattr(faults, "away_until_s", until_s))
        if "sleep" in wrong:
            # More than twice the lifetime of an order.
            later(200.0, lambda until_s: setattr(faults, "asleep_until_s", until_s))
        if "disk" in wrong:
            later(600.0, lambda until_s: setattr(faults, "disk_full_until_s", until_s))
        if "clock" in wrong:
            jump_ms = chance.choice((-3_600_000, 3_600_000, -70_000, 70_000, -4_000, 4_000))
            later(600.0, lambda until_s: self._jump(faults, jump_ms, until_s))
        if "delay" in wrong:
            faults.delay_s = chance.choice((0.5, 5.0, 60.0))
        if "double" in wrong:
            faults.doubles = 0.3
        if "lie" in wrong:
            faults.lies = 0.6

    def _jump(self, faults: Faults, jump_ms: int, until_s: float) -> None:
        faults.clock_offset_ms = jump_ms
        asyncio.get_running_loop().call_at(until_s, setattr, faults, "clock_offset_ms", 0)

    def _plan_storm(self) -> None:
        """Let half to all of the guests die within 1 to 300 s."""
        chance, loop = self.chance, asyncio.get_running_loop()
        share, within_s, at_s = (
            chance.uniform(0.5, 1.0),
            chance.uniform(1.0, 300.0),
            chance.uniform(10, 600),
        )
        guests = chance.sample(self.fleet.guests, round(share * len(self.fleet.guests)))
        for guest in guests:
            kind: Condition = chance.choice(("panic_spin", "panic_halt"))
            loop.call_at(at_s + chance.uniform(0.0, within_s), self.detector.die, guest, kind)

    def _plan_blackout(self) -> None:
        """Hide the zone, partly dead, from the detector, and let it report all guests as dead."""
        chance, loop = self.chance, asyncio.get_running_loop()
        at_s = chance.uniform(30.0, 120.0)

        def begin() -> None:
            self.detector.silent = True
            if chance.random() < 0.7:
                for node in NODES:
                    self.detector.host_silent(node)
            for guest in self.fleet.guests:
                if chance.random() < 0.5:
                    self.detector.die(guest, "panic_spin")
                # The last observation is older than data may be.
                seen_ms = self.detector.now_ms() - round(chance.uniform(121_000, 600_000))
                after_s = chance.uniform(1.0, 400.0)
                loop.call_later(after_s, self.detector.fire, guest, {"data_ms": seen_ms})

        loop.call_at(at_s, begin)

    def _pause(self) -> None:
        chance, now_s = self.chance, asyncio.get_running_loop().time()
        guest = chance.choice(self.fleet.guests)
        places: tuple[tuple[ControlScope, str], ...] = (
            ("site", ""), ("cell", guest.cell), ("node", guest.node), ("vm", guest.text),
        )  # fmt: skip
        scope, subject = chance.choice(places)
        pause = Control(
            kind=chance.choice(("pause", "maintenance")), scope=scope, subject=subject,
            active=True, by="ann", reason="work", time_ms=self.detector.now_ms(),
        )  # fmt: skip
        self.store.put(CONTROL.name, pause.key(), encode_control(pause))
        if chance.random() < 0.5:
            over_s = now_s + chance.uniform(20.0, 600.0)
            asyncio.get_running_loop().call_at(over_s, self._end_pause, pause)
        else:
            # A writer of the topic without an operator's key tries to end the pause.
            over = msgspec.structs.replace(pause, active=False)
            asyncio.get_running_loop().call_at(
                now_s + 10.0, self.store.put, CONTROL.name, pause.key(), encode_control(over)
            )

    def _end_pause(self, pause: Control) -> None:
        over = msgspec.structs.replace(pause, active=False, time_ms=self.detector.now_ms())
        self.store.put(CONTROL.name, pause.key(), *word(over))

    # -- roles ---------------------------------------------------------------------------

    def _spawn(self, name: str, role: Callable[[Process], Agent | Planner]) -> None:
        """Run a role, and restart it whenever it was killed."""
        process = Process(name, Faults(random.Random(self.chance.random())))
        self.processes.append(process)
        loop = asyncio.get_running_loop()

        async def lives() -> None:
            try:
                await role(process).run()
            except Killed:
                return

        task = loop.create_task(lives(), name=name)
        self.tasks.add(task)
        process.kill = task.cancel

        def ended(_: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if task.cancelled() or process.dead:
                wait_s = self.chance.uniform(0.5, 20.0)
            elif (error := task.exception()) is not None:
                # A service manager restarts a role that ended by an error.
                self.result.outcomes[f"ended: {type(error).__name__}"] += 1
                if isinstance(error, AssertionError):
                    self.result.breaches.append(f"invariant of the planner: {error}")
                wait_s = 5.0
            else:
                return
            process.dead = True
            loop.call_later(wait_s, self._reborn, name, role, process)

        task.add_done_callback(ended)

    def _reborn(
        self, name: str, role: Callable[[Process], Agent | Planner], before: Process
    ) -> None:
        self._spawn(name, role)
        if self.chance.random() < 0.5 and "crash" in self.result.adversities:
            self.processes[-1].faults.crash_in = self.chance.randint(1, 24)

    def _agent(self, node: str, process: Process) -> Agent:
        self.runs += 1
        config = ActConfig(
            site="site", zone="z0", cell=NODES[node], node=node, run=f"r{self.runs}",
            policy=POLICY, key=AGENT_KEY, trusted=TRUSTED,
        )  # fmt: skip
        hands = Hands(self.fleet, node, process, self.watch.check)
        ledger = Disk(self.ledgers[node], process)
        log = View(self.store, process)
        return Agent(
            log=log,
            actuator=hands,
            evidence=hands,
            ledger=ledger,
            config=config,
            clock=process,
            health=Health(process),
        )

    def _planner(self, name: str, process: Process) -> Planner:
        self.runs += 1
        config = PlanConfig(
            site="site", name=name, run=f"r{self.runs}", policy=POLICY, key=PLANNER_KEY,
            trusted=TRUSTED,
        )  # fmt: skip
        log = View(self.store, process)
        return Planner(log=log, config=config, clock=process, health=Health(process))

    def _judge_end(self, planned: list[int]) -> None:
        self.result.repairable = sum(index in self.fleet.deaths for index in planned)
        self.result.repaired = sum(
            index in self.fleet.deaths
            and self.fleet.guests[index].condition in ("alive", "booting")
            for index in planned
        )
        entries = [decode_entry(record.value) for record in self.store.topics.get(JOURNAL.name, ())]
        self.result.rules.update(entry.detail.get("rule", "") for entry in entries)
        for finding in verify(entries):
            self.result.breaches.append(f"journal: {finding}")
        if self.result.family == "blackout" and self.detector.silent and self.result.effects:
            self.result.breaches.append("an action in a zone that nobody sees")


def _known_log() -> bytes:
    return encode_ledger_entry(
        LogEntry(identity="log", next_offset=0, observe_until_ms=0, time_ms=EPOCH_MS)
    )


def play(seed: int, family: Family, *, clean: bool = False) -> Result:
    """Play one seed and return its result."""
    run = Run(seed, family, clean=clean)
    with (
        mock.patch.multiple(plan_role, _TICK_S=_TICK_S),
        mock.patch.multiple(act_role, _REPORT_S=_REPORT_S),
        _signatures_checked_once(),
    ):
        return run.play()


@contextmanager
def _signatures_checked_once() -> Iterator[None]:
    """Cache the checks of signatures: the bytes and the signer of valid ones.

    Six readers of one run trust the same keys, and a valid signature stays valid: checking it for
    each of them took a fifth of a run.
    """
    held: dict[tuple[bytes, Headers, tuple[str, ...]], str] = {}
    check = order.check_signature

    def checked(value: bytes, headers: Headers, *, trusted: Mapping[str, Ed25519PublicKey]) -> str:
        known = value, headers, tuple(trusted)
        if known not in held:
            held[known] = check(value, headers, trusted=trusted)
        return held[known]

    with ExitStack() as patches:
        for module in (order, keys, commands):
            patches.enter_context(mock.patch.object(module, "check_signature", checked))
        yield

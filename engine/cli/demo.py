"""`flatline demo`: a simulated site, every role of Flatline, and five claims to observe."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.virtual_time import VirtualLoop, run
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.action.keys import TrustedKeys, open_entry
from flatline.engine.cli.demo_scene import DEADLINE_S, WARM_UP_S, Claim, Referee, plan_of
from flatline.engine.cli.demo_story import Story, follow_log
from flatline.engine.cli.demo_view import View
from flatline.engine.cli.logs import set_up_logs
from flatline.engine.cli.options import console
from flatline.engine.cli.process import INTERRUPTED
from flatline.engine.ports import Record
from flatline.engine.roles.health import Health
from flatline.engine.roles.run import run_roles
from flatline.engine.settings import Collect, Place, Settings
from flatline.engine.wire.order import Entry
from flatline.engine.wiring import Authority, Process, compile_engine, simulated_nodes, site_openers

# Sampling interval, as in the demo's policy: short, so that results show within a minute.
_INTERVAL_S: Final = 2.0
# How often the display and the claims are updated, in simulated seconds.
_CHECK_EVERY_S: Final = 0.5


def run_demo(*, seed: int, speed: float, plain: bool) -> int:
    """Play the demo and return 0 if all its claims came true, else 1; 130 after Ctrl-C.

    Parameters
    ----------
    seed
        Seed of the fleet and its faults.
    speed
        Largest number of simulated seconds per real second.
    plain
        Whether to print lines instead of a live view; without a terminal always so.
    """
    screen = console()
    # Errors are in the journal, which is displayed. Log lines would disturb the display.
    set_up_logs(level=logging.CRITICAL)
    demo = _Demo(seed=seed, speed=speed, screen=screen, plain=plain or not screen.is_terminal)
    try:
        screen.print("Compiling the kernels of the engine.")
        compile_engine()
        claims = run(demo.play())
    except KeyboardInterrupt:
        return INTERRUPTED
    screen.print(_summary(claims))
    return 0 if all(claim.done for claim in claims) else 1


@dataclass(frozen=True, slots=True)
class _Places:
    """The present nodes of the VMs, for the display."""

    fleet: Fleet

    def nodes(self) -> Sequence[tuple[str, Sequence[tuple[str, str]]]]:
        vms: dict[str, list[tuple[str, str]]] = {name: [] for name in self.fleet.nodes}
        for index in range(self.fleet.world.plan.vms):
            text = str(UUID(bytes=self.fleet.vm(index)))
            vms[self.fleet.node_of(index)].append((text, self.fleet.name(index)))
        return list(vms.items())


class _Demo:
    """One run of the demo; the same seed gives the same run."""

    def __init__(self, *, seed: int, speed: float, screen: Console, plain: bool) -> None:
        self._plan = plan_of(seed)
        self._speed = speed
        self._screen = screen
        self._plain = plain
        self._authority = _authority(seed)

    async def play(self) -> tuple[Claim, ...]:
        """Simulate the warm-up at full speed, then play at `speed` until all claims are decided."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = LoopClock(epoch_ms=self._plan.epoch_s * 1000)
        fleet = build_world(self._plan, clock)
        story = Story()
        process = Process(_settings(), clock, Health(clock), f"demo-{self._plan.seed}")
        view = View(self._screen, _Places(fleet), story, plain=self._plain)
        referee = Referee(fleet, story)
        async with EmbeddedLog(EmbeddedConfig(), clock=clock) as log:
            nodes = simulated_nodes(fleet)
            openers = site_openers(process, log, nodes=nodes, authority=self._authority)
            watching = asyncio.create_task(self._watch(loop, clock, referee, view))
            playing = {
                asyncio.create_task(run_roles(openers, health=process.health)),
                asyncio.create_task(follow_log(log, story, open_order=self._open_order)),
                watching,
            }
            with view:
                done, _ = await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
                for task in playing - done:
                    task.cancel()
                await asyncio.wait(playing)
            for task in done - {watching}:
                task.result()
        return referee.claims()

    async def _watch(
        self, loop: VirtualLoop, clock: LoopClock, referee: Referee, view: View
    ) -> None:
        """Display the run until all claims are decided or the time is over."""
        plan = self._plan
        view.say(
            f"{plan.vms} simulated VMs on {plan.cells * plan.nodes_per_cell} nodes in {plan.cells} "
            f"cells (seed {plan.seed}). First, {WARM_UP_S / 60:.0f} min of history are simulated "
            "as fast as possible."
        )
        learning = True
        while loop.time() < DEADLINE_S and not referee.decided():
            if learning and loop.time() >= WARM_UP_S:
                learning = False
                loop.pace(self._speed)
                view.say(f"The simulation now runs at {self._speed:g} times real time.")
            title = f"learning, {loop.time() / WARM_UP_S:.0%}" if learning else "watching"
            view.show(now_ms=clock.now_ms(), title=title)
            await referee.look()
            await asyncio.sleep(_CHECK_EVERY_S)
        view.show(now_ms=clock.now_ms(), title="the end")

    def _open_order(self, record: Record) -> Entry:
        return open_entry(record.value, record.headers, trusted=self._authority.trusted.current())


def _authority(seed: int) -> Authority:
    """Return the demo's policy, and keys that are trusted only here."""

    def key(signer: str) -> Ed25519PrivateKey:
        # From the seed, so that two runs of one seed write the same bytes.
        return Ed25519PrivateKey.from_private_bytes(sha256(f"{signer} {seed}".encode()).digest())

    return Authority(
        policy=parse_policy(read_shipped("demo"), source="the shipped policy 'demo'"),
        key=key,
        trusted=TrustedKeys.of(
            planners=[key("planner").public_key()],
            agents=[key("agent").public_key()],
            engines=[key("engine").public_key()],
        ),
    )


def _settings() -> Settings:
    """Return the demo's settings, independent of files and variables."""
    return Settings.model_construct(
        site=Place(name="demo", node="demo"), collect=Collect(interval_s=_INTERVAL_S)
    )


def _summary(claims: tuple[Claim, ...]) -> Table:
    table = Table("", "what happened", "how", title="Flatline demo")
    for claim in claims:
        mark = Text("yes", style="green") if claim.done else Text("no", style="bold red")
        table.add_row(mark, claim.title, claim.detail)
    return table

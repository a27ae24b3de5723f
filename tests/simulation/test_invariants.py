"""Each invariant of the simulation is violated on purpose, and its check reports it."""

import ast
import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import pytest

from flatline.connectors.simulator import virtual_time
from flatline.engine.action.chain import Head, extend
from flatline.engine.action.incident import BrokenInvariant
from flatline.engine.action.ledger import StepEntry, encode_ledger_entry
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.journal import encode_entry
from flatline.engine.wire.order import Claim, Order, encode_order
from flatline.engine.wire.topics import CONTROL, JOURNAL, ORDERS
from tests.signing import AGENT_KEY, PLANNER_KEY
from tests.simulation import invariants, seeded_run
from tests.simulation.faulty_ports import Faults, Process
from tests.simulation.hostile import order_for
from tests.simulation.seeded_run import Run
from tests.simulation.truthful_fleet import Guest
from tests.slices import ROOT


class World:
    """A site without roles: a test acts, or wrongly acts, in place of planners and agents."""

    def __init__(self) -> None:
        self.run = Run(0, "mixed", clean=True)
        self.process = Process("act", Faults(self.run.chance))

    def dead(self, index: int = 0) -> Guest:
        guest = self.run.fleet.guests[index]
        guest.turn("panic_spin", asyncio.get_running_loop().time())
        return guest

    def ordered(
        self, guest: Guest, number: int = 1, *, claimed: bool = True, **changes: Any
    ) -> Order:
        """Append an order, and claim and announce its call as the agent of its node."""
        order = order_for(guest, number, now_ms=self.run.detector.now_ms())
        order = msgspec.structs.replace(order, **changes)
        self.run.store.put(ORDERS.name, b"c0", *encode_order(order, PLANNER_KEY))
        if claimed:
            claim = Claim(
                incident=order.incident, step=order.step, vm=order.vm, node=order.node,
                agent="a", dry_run=False, time_ms=order.issued_ms,
            )  # fmt: skip
            self.run.store.put(ORDERS.name, b"c0", *encode_order(claim, AGENT_KEY))
        self.remember(order, "accepted", "sent")
        return order

    def remember(self, order: Order, *states: Any) -> None:
        for state in states:
            entry = StepEntry(
                state=state, incident=order.incident, step=order.step, vm=order.vm,
                action=order.action, dry_run=False, time_ms=order.issued_ms, sentence="so it is",
            )  # fmt: skip
            self.run.ledgers[order.node].append(encode_ledger_entry(entry))

    def effect(self, guest: Guest, action: str = "reset", target: str = "") -> None:
        self.run.watch.check(self.process, guest, action, target)

    def reset(self, index: int, number: int) -> None:
        """Reset a dead guest correctly, and end its step."""
        guest = self.dead(index)
        order = self.ordered(guest, number)
        self.effect(guest)
        self.remember(order, "returned", "marked")

    def people_pause(self, guest: Guest) -> None:
        command = Control(
            kind="pause", scope="node", subject=guest.node, active=True, by="ann", reason="work",
            time_ms=self.run.detector.now_ms(),
        )  # fmt: skip
        self.run.store.put(CONTROL.name, command.key(), encode_control(command))


async def by_the_book(world: World) -> None:
    world.reset(0, 1)


async def nothing_readable(world: World) -> None:
    world.run.store.put(ORDERS.name, b"c0", b"no order")


async def the_living(world: World) -> None:
    guest = world.run.fleet.guests[0]
    world.ordered(guest)
    world.effect(guest)


async def unannounced(world: World) -> None:
    world.effect(world.dead())


async def unclaimed(world: World) -> None:
    guest = world.dead()
    world.ordered(guest, claimed=False)
    world.effect(guest)


async def twice(world: World) -> None:
    guest = world.dead()
    world.ordered(guest)
    world.effect(guest)
    world.effect(guest)


async def something_else(world: World) -> None:
    guest = world.dead()
    world.ordered(guest)
    world.effect(guest, "reboot")


async def a_rehearsal(world: World) -> None:
    guest = world.dead()
    world.ordered(guest, dry_run=True)
    world.effect(guest)


async def after_unknown(world: World) -> None:
    guest = world.dead()
    order = world.ordered(guest)
    world.remember(order, "unknown")
    world.ordered(guest, step=1)
    world.effect(guest)


async def over_the_sites_budget(world: World) -> None:
    # Rows 0, 1 and 2 are on one node each, of two cells.
    for index in range(3):
        world.reset(index, index)


async def over_a_cells_budget(world: World) -> None:
    for index in range(2):
        world.reset(index, index)


async def over_a_nodes_budget(world: World) -> None:
    for index in (0, 3, 6):
        world.reset(index, index)


async def over_a_targets_budget(world: World) -> None:
    for index in (1, 4, 7):
        guest = world.run.fleet.guests[index]
        order = world.ordered(guest, index, action="migrate", target="n0")
        world.effect(guest, "migrate", "n0")
        world.remember(order, "returned", "marked")


async def four_times_a_day(world: World) -> None:
    for number in range(4):
        world.reset(0, number)
        await asyncio.sleep(3_600.0)


async def too_soon_again(world: World) -> None:
    world.reset(0, 1)
    await asyncio.sleep(1_700.0)
    world.reset(0, 2)


async def against_a_pause_that_was_read(world: World) -> None:
    guest = world.dead()
    world.ordered(guest)
    world.people_pause(guest)
    await asyncio.sleep(1.0)
    world.process.barrier_s = asyncio.get_running_loop().time()
    world.effect(guest)


async def long_after_a_pause_that_was_not_read(world: World) -> None:
    guest = world.dead()
    world.ordered(guest)
    world.people_pause(guest)
    await asyncio.sleep(6.0)
    world.effect(guest)


async def too_late(world: World) -> None:
    guest = world.dead()
    world.ordered(guest)
    await asyncio.sleep(70.0)
    world.effect(guest)


async def an_edited_journal(world: World) -> None:
    _, entry = extend(Head("w"), time_ms=1, kind="decision", sentence="it was so")
    edited = msgspec.structs.replace(entry, sentence="it was not so")
    world.run.store.put(JOURNAL.name, b"c0", encode_entry(edited))


async def an_unseen_zone(world: World) -> None:
    world.run.result.family = "blackout"
    world.run.detector.silent = True
    world.reset(0, 1)


class _Broken:
    async def run(self) -> None:
        raise BrokenInvariant("two orders for one step of an incident were both admitted")


async def a_broken_planner(world: World) -> None:
    broken: Any = _Broken()
    world.run._spawn("plan p0", lambda process: broken)
    await asyncio.sleep(1.0)


Plant = Callable[[World], Awaitable[None]]
# Each with the message of its check.
PLANTS: Final[dict[Plant, str]] = {
    nothing_readable: "an unreadable entry stands in the log",
    the_living: "reset of a guest that is alive",
    unannounced: "reset with 0 entries in the ledger that announce it",
    unclaimed: "reset of step .* that nobody claimed",
    twice: "second execution of step",
    something_else: "reboot is not what step",
    a_rehearsal: "reset is not what step",
    after_unknown: "incident [0-9a-f]{32} goes on after an unknown outcome",
    over_the_sites_budget: "3 actions of the site in 10 min",
    over_a_cells_budget: "2 actions of cell c0 in 10 min",
    over_a_nodes_budget: "3 actions on node n0",
    over_a_targets_budget: "3 actions on node n0",
    four_times_a_day: "4 actions on one VM",
    too_soon_again: "two actions on one VM within 1700 s",
    against_a_pause_that_was_read: "an action on node n0 after its pause was read",
    long_after_a_pause_that_was_not_read: "an action on node n0 after its pause was read",
    too_late: "an expired order was carried out",
    an_edited_journal: "journal: w, entry 0: the content does not match",
    an_unseen_zone: "an action in a zone that nobody sees",
    a_broken_planner: "invariant of the planner: two orders",
}


def breaches_of(plant: Plant) -> list[str]:
    world = World()

    async def played() -> None:
        await plant(world)
        for task in tuple(world.run.tasks):
            task.cancel()
        world.run._judge_end([])

    virtual_time.run(played())
    return world.run.result.breaches


def test_a_step_by_the_book_breaks_nothing() -> None:
    assert breaches_of(by_the_book) == []


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_breach_is_reported(plant: Plant) -> None:
    found = breaches_of(plant)
    assert any(re.match(PLANTS[plant], breach) for breach in found), found


def sentences() -> set[str]:
    """Return a pattern for each message of a run's checks."""
    found = set()
    for module in (invariants, seeded_run):
        source = (ROOT / f"{module.__name__.replace('.', '/')}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                says = ast.unparse(node.func)
                if says == "self._breach" or says.endswith("breaches.append"):
                    found.add(_pattern(node.args[0]))
    return found - {""}


def _pattern(text: ast.expr) -> str:
    if isinstance(text, ast.JoinedStr):
        parts = (
            re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in text.values
        )
        return "".join(parts)
    return re.escape(str(text.value)) if isinstance(text, ast.Constant) else ""


def test_every_complaint_has_its_planted_breach() -> None:
    found = [breach for plant in PLANTS for breach in breaches_of(plant)]
    patterns = sentences()
    assert len(patterns) >= 16
    assert not [one for one in patterns if not any(re.match(one, breach) for breach in found)]

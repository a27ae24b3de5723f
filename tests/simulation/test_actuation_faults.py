"""Agents and planners with crashes, races, pauses and false alerts, on a loop of `virtual_time`."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.engine.action.chain import verify
from flatline.engine.errors import ActionRefused, ActionUnsent, StateUnwritable
from flatline.engine.faults import Step
from flatline.engine.ports import LedgerStore
from flatline.engine.preflight_data import Permit
from flatline.engine.wire.order import Order
from flatline.engine.wire.topics import ORDERS
from tests.signing import FOREIGN_KEY
from tests.simulation.acting_site import LAB, Site, acting_site, panic

TWO_RESETS = msgspec.structs.replace(
    LAB, ladders={"panic_spin": (Step(action="reset", deadline_s=180, stable_s=20),) * 2}
)


class Killed(BaseException):
    """The process ended here without clean-up."""


class DyingLedger:
    """A ledger whose process dies at the n-th entry, before or after it is durable."""

    def __init__(self, store: LedgerStore, *, at: int, durable: bool) -> None:
        self._store = store
        self._left = at
        self._durable = durable

    def append(self, entry: bytes) -> None:
        self._left -= 1
        if self._left >= 0:
            self._store.append(entry)
            return
        if self._durable and self._left == -1:
            self._store.append(entry)
        raise Killed

    def entries(self) -> Sequence[bytes]:
        return self._store.entries()


class FullDisk(DyingLedger):
    """A ledger that accepts n entries and none after."""

    def append(self, entry: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            raise StateUnwritable("the disk is full")
        self._store.append(entry)


async def _dead_vm_and_its_alert(site: Site) -> None:
    await asyncio.sleep(20.0)
    site.start_planner()
    await site.say(site.alert())


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(7))
def test_an_agent_killed_at_any_ledger_entry_acts_once_at_most_and_says_how_it_ended(
    at: int, durable: bool
) -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            agent = site.start_agent(wrap=lambda store: DyingLedger(store, at=at, durable=durable))
            await _dead_vm_and_its_alert(site)
            await asyncio.wait({agent}, timeout=15.0)
            if agent.done():
                site.running.discard(agent)
                assert isinstance(agent.exception(), Killed)
            site.start_agent()
            await site.keep_firing(site.alert(), seconds=600.0)
            # A result that may not have arrived is published again with the same content.
            (mark, *repeated) = await site.marks()
            assert {one.outcome for one in repeated} <= {mark.outcome}
            # Entries: log, position read, accepted, sent, returned, marked.
            sent = at > 3 or (at == 3 and durable)
            assert site.resets() == (at > 3 or at < 2 or (at == 2 and not durable))
            if sent:
                assert mark.outcome == (
                    "returned" if at > 4 or (at == 4 and durable) else "unknown"
                )
            assert await site.said("The agent of c0-n0 starts")

    virtual_time.run(scene())


@pytest.mark.parametrize("room", [2, 3])
def test_without_room_for_the_record_nothing_is_done(room: int) -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_agent(wrap=lambda store: FullDisk(store, at=room, durable=False))
            await _dead_vm_and_its_alert(site)
            await asyncio.sleep(60.0)
            assert site.resets() == 0
            (mark,) = await site.marks()
            assert mark.outcome == "not_attempted"
            assert mark.sentence == (
                "The ledger cannot be written, so nothing is done: the disk is full"
            )

    virtual_time.run(scene())


def test_forged_altered_and_replayed_orders_are_all_refused_and_kept() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_agent()
            await _dead_vm_and_its_alert(site)
            await asyncio.sleep(20.0)
            (order,) = await site.orders()
            (record, *_) = await site.log.read_to_end(ORDERS.name, 0, offset=0)
            # Altered within the incident's id: an order for another node is not this agent's.
            start = record.value.index(order.incident.encode())
            for number in range(50):
                forged = msgspec.structs.replace(order, incident=f"{number:032x}")
                await site.order(forged, key=FOREIGN_KEY)
                value = bytearray(record.value)
                value[start + number % 32] ^= 1 + number // 32
                for replayed in (record.value, bytes(value)):
                    await site.log.append(
                        ORDERS.name, key=b"c0", value=replayed, headers=record.headers
                    )
            await asyncio.sleep(120.0)
            assert site.resets() == 1
            reasons = [
                entry.detail.get("reason")
                for entry in await site.journal()
                if entry.writer.startswith("act/")
            ]
            assert reasons.count("bad_signature") == 100

    virtual_time.run(scene())


def test_an_agent_on_a_log_it_does_not_know_rehearses_for_a_day() -> None:
    async def scene() -> None:
        limits = msgspec.structs.replace(LAB.limits, new_log_observe_s=86_400)
        async with acting_site(panic(), policy=msgspec.structs.replace(LAB, limits=limits)) as site:
            site.start_agent()
            await _dead_vm_and_its_alert(site)
            await asyncio.sleep(60.0)
            (mark,) = await site.marks()
            assert mark.dry_run
            assert mark.outcome == "returned"
            assert site.resets() == 0
            assert await site.said("the agent only observes for 24 h")

    virtual_time.run(scene())


def test_an_order_that_was_given_before_the_agent_knew_the_log_is_never_carried_out() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            await _dead_vm_and_its_alert(site)
            await asyncio.sleep(2.0)
            assert len(await site.orders()) == 1
            # A new ledger: it is unknown whether an earlier agent executed the order.
            site.start_agent()
            await asyncio.sleep(30.0)
            (mark,) = await site.marks()
            assert mark.outcome == "unknown"
            assert site.resets() == 0

    virtual_time.run(scene())


def test_a_node_whose_hypervisor_is_away_does_nothing_and_may_be_asked_again() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_agent()
            await _dead_vm_and_its_alert(site)
            site.fleet.world.unreachable[:] = True
            await asyncio.sleep(30.0)
            (mark,) = await site.marks()
            assert mark.outcome == "not_attempted"
            assert not site.fleet.world.truth.action_calls

    virtual_time.run(scene())


class FirstResetFails(SimulatedActuator):
    """A hypervisor whose first reset fails, for the reason that a test gives."""

    def __init__(self, site: Site, error: ActionRefused) -> None:
        super().__init__(site.fleet.world, "c0-n0")
        self._errors = [error]

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        if self._errors:
            raise self._errors.pop()
        await super().reset(vm, permit=permit)


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [
        (ActionUnsent("when libvirtd answered, the look was too old"), ["expired", "returned"]),
        (ActionRefused("the VM was restarted after the verdict"), ["refused"]),
    ],
    ids=["too late", "refused"],
)
def test_a_dead_vm_whose_reset_came_too_late_is_ordered_again_and_a_refused_one_is_not(
    error: ActionRefused, outcomes: list[str]
) -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.actuators["c0-n0"] = FirstResetFails(site, error)
            site.start_agent()
            await _dead_vm_and_its_alert(site)
            await site.keep_firing(site.alert(), seconds=3_600.0)
            assert [mark.outcome for mark in await site.marks()] == outcomes
            assert site.resets() == outcomes.count("returned")

    virtual_time.run(scene())


# Three at the same time would be a storm, and no action would follow.
DEAD = 2

ALIVE = ("start_agent", "start_planner", "start_planner", "replay_alert")

# The elements of a run: each is one fault, or time passing.
FAULTS = (
    "kill_agent",
    "start_agent",
    "kill_planner",
    "start_planner",
    "replay_orders",
    "replay_alert",
    "stale_order",
    "pause",
    "resume",
    "hang_after",
    "lose_answer",
    "lie",
    "honest",
    "wait_2",
    "wait_7",
    "wait_40",
    "wait_200",
    "wait_700",
)


class Run:
    """One site with two dead VMs, and the faults that a test draws."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.agents: list[asyncio.Task[None]] = []
        self.planners: list[asyncio.Task[None]] = []

    async def do(self, fault: str) -> None:
        if fault.startswith("wait_"):
            await asyncio.sleep(float(fault.removeprefix("wait_")))
        elif fault in ("hang_after", "lose_answer", "lie", "honest"):
            lie = None if fault == "honest" else fault
            self.site.fleet.world.interference = lambda call: lie
        elif fault in ("pause", "resume"):
            until_ms = self.site.clock.now_ms() + (3_600_000 if fault == "pause" else 0)
            await self.site.control(kind="pause", scope="site", subject="", until_ms=until_ms)
        elif fault.startswith(("kill_", "start_")):
            await self._life(fault)
        else:
            await self._replay(fault)

    async def _life(self, fault: str) -> None:
        site = self.site
        match fault:
            case "kill_agent" if self.agents:
                await site.stop(self.agents.pop())
            case "start_agent" if not self.agents:
                self.agents.append(site.start_agent())
            case "kill_planner" if self.planners:
                await site.stop(self.planners.pop(0))
            case "start_planner" if len(self.planners) < 3:
                self.planners.append(site.start_planner(f"p{len(site.running)}"))

    async def _replay(self, what: str) -> None:
        site = self.site
        if what == "replay_orders":
            for record in await site.log.read_to_end(ORDERS.name, 0, offset=0):
                await site.log.append(
                    ORDERS.name, key=b"c0", value=record.value, headers=record.headers
                )
        elif what == "stale_order":
            for order in (await site.orders())[:2]:
                await site.order(_next_step(order))
        else:
            for index in range(DEAD):
                await site.say(site.alert(index))


def _next_step(order: Order) -> Order:
    """Return the step after `order`, dated now, unlike from a planner that was suspended."""
    return msgspec.structs.replace(order, step=order.step + 1)


def test_no_run_of_faults_acts_twice_over_a_budget_or_on_the_living() -> None:
    calls = 0

    @settings(max_examples=50)
    @given(st.lists(st.sampled_from(FAULTS), min_size=4, max_size=30))
    def runs(faults: list[str]) -> None:
        async def scene() -> None:
            nonlocal calls
            incidents = [panic(index, at_s=5.0 + index) for index in range(DEAD)]
            async with acting_site(*incidents, policy=TWO_RESETS) as site:
                run = Run(site)
                await asyncio.sleep(20.0)
                for fault in (*ALIVE, *faults):
                    await run.do(fault)
                    await _check(site)
                calls += len(site.fleet.world.truth.action_calls)

        virtual_time.run(scene())

    runs()
    # Doing nothing does not count as safety.
    assert calls >= 50


async def _check(site: Site) -> None:
    """Raise if an invariant of every moment of every run is violated."""
    calls = site.fleet.world.truth.action_calls
    assert not site.fleet.world.truth.harms
    # One call per incident step: the ledger has those sent, the world those that arrived.
    sent = [
        entry for store in site.ledgers.values() for entry in store.entries() if b'"sent"' in entry
    ]
    keys = [
        (msgspec.json.decode(entry)["incident"], msgspec.json.decode(entry)["step"])
        for entry in sent
    ]
    assert len(keys) == len(set(keys))
    assert len(calls) <= len(keys)
    for call in calls:
        earlier = [c for c in calls if 0 < call.at_ns - c.at_ns < 600 * 10**9]
        assert len(earlier) < 2, "more than two calls in ten minutes"
        assert not [c for c in earlier if c.vm == call.vm], "no back-off between two calls"
        same = [c for c in calls if c.vm == call.vm and c.at_ns <= call.at_ns]
        assert len(same) <= 3
    assert not verify(await site.journal())

"""One step is executed once, even if others hold the order, and also after a restore."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.embedded.log import EmbeddedConfig
from flatline.connectors.simulator import lifecycle, virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.ports import LedgerStore, Position
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.roles.outbox import PAGE
from flatline.engine.wire.order import Claim, Order
from flatline.engine.wire.topics import CONTROL, ORDERS
from tests.signing import AGENT_KEY
from tests.simulation.acting_site import FaultyLog, Site, acting_site, panic
from tests.unit.engine.action.samples import order as sample_order
from tests.unit.engine.action.samples import past
from tests.unit.engine.roles.test_act import dead_vm, only_result, ordered


def of_its_own(_store: LedgerStore) -> LedgerStore:
    return EmbeddedLedger(None)


def test_of_two_agents_of_one_node_the_first_claim_acts_and_the_other_does_nothing() -> None:
    async def scene(site: Site) -> None:
        site.start_agent(wrap=of_its_own)
        await asyncio.sleep(1.0)
        await ordered(site)
        await asyncio.sleep(30.0)
        assert site.resets() == 1
        first, second = await site.claims()
        (mark,) = await site.marks()
        assert (mark.agent, mark.outcome) == (first.agent, "returned")
        assert first.agent != second.agent
        (reported,) = [e for e in await site.journal() if e.detail.get("rule") == "claimed"]
        assert f"Agent {first.agent} claimed step 0 first" in reported.sentence
        assert reported.detail[PAGE] == "yes"

    dead_vm(scene)


class SlowActuator(SimulatedActuator):
    """An actuator whose preflight check takes almost the agent's limit, and may fail at the end."""

    def __init__(self, site: Site, *, fails: bool) -> None:
        super().__init__(site.fleet.world, "c0-n0")
        self._fails = fails
        self._looks = 0

    async def sample(self, vm: bytes) -> PreflightSample:
        self._looks += 1
        await asyncio.sleep(1.9)
        if self._fails and self._looks > 1:
            raise HypervisorUnreachable("libvirtd is gone")
        return await super().sample(vm)


@pytest.mark.parametrize("fails", [False, True])
def test_an_agent_whose_look_ends_after_the_other_acted_stands_back_from_its_claim(
    fails: bool,
) -> None:
    async def scene(site: Site) -> None:
        site.actuators["c0-n0"] = SlowActuator(site, fails=fails)
        site.start_agent(wrap=of_its_own)
        await asyncio.sleep(1.0)
        await ordered(site)
        await asyncio.sleep(30.0)
        assert site.resets() == 1
        (mark,) = await site.marks()
        assert mark.outcome == "returned"
        (reported,) = [e for e in await site.journal() if e.detail.get("rule") == "claimed"]
        assert f"Agent {mark.agent} claimed step 0 first" in reported.sentence

    dead_vm(scene)


def claim_of(order: Order, **changes: object) -> Claim:
    values = {
        "incident": order.incident,
        "step": order.step,
        "vm": order.vm,
        "node": order.node,
        "agent": "c0-n0/another",
        "dry_run": False,
        "time_ms": order.issued_ms,
    }
    return msgspec.convert(values | changes, Claim)


@pytest.mark.parametrize(
    ("changes", "resets"),
    [({}, 0), ({"node": "c0-n1"}, 1), ({"vm": sample_order().vm}, 1), ({"step": 1}, 1)],
    ids=["of this node", "of another node", "of another VM", "of another step"],
)
def test_a_claim_that_stands_there_first_counts_for_its_own_step_alone(
    changes: dict[str, object], resets: int
) -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        (order,) = await site.orders()
        await site.order(claim_of(order, **changes), key=AGENT_KEY)
        await asyncio.sleep(30.0)
        assert site.resets() == resets
        assert len(await site.marks()) == resets

    dead_vm(scene)


def test_a_claim_that_the_log_does_not_take_is_no_call() -> None:
    async def scene(site: Site) -> None:
        append = site.log.append

        async def refusing(topic: str, **record: Any) -> object:
            if b'"type":"claim"' in record["value"]:
                site.log.hangs = True
                await asyncio.sleep(60.0)
            return await append(topic, **record)

        site.log.append = refusing  # type: ignore[method-assign, assignment]
        await ordered(site)
        await asyncio.sleep(20.0)
        site.log.hangs = False
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith("The step could not be claimed")
        assert not site.resets()

    dead_vm(scene)


def test_a_claim_that_reaches_the_log_after_the_order_s_expiry_is_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flatline.engine.roles.act.BARRIER_S", 100.0)

    async def scene(site: Site) -> None:
        append = site.log.append

        async def late(topic: str, **record: Any) -> object:
            if b'"type":"claim"' in record["value"]:
                await asyncio.sleep(58.0)
            return await append(topic, **record)

        site.log.append = late  # type: ignore[method-assign, assignment]
        await ordered(site)
        mark = await only_result(site, after_s=90.0)
        assert mark.outcome in ("expired", "not_attempted")
        assert not site.resets()

    dead_vm(scene)


def test_a_claim_that_does_not_stand_in_the_log_is_no_call() -> None:
    async def scene(site: Site) -> None:
        append = site.log.append

        async def swallowing(topic: str, **record: Any) -> object:
            if b'"type":"claim"' in record["value"]:
                return Position(0, 0)
            return await append(topic, **record)

        site.log.append = swallowing  # type: ignore[method-assign, assignment]
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith("The claim of the step reached the log too late")
        assert not site.resets()

    dead_vm(scene)


def test_a_pause_that_is_said_while_the_step_is_claimed_holds() -> None:
    async def scene(site: Site) -> None:
        append = site.log.append

        async def paused(topic: str, **record: Any) -> object:
            if b'"type":"claim"' in record["value"]:
                await site.control(kind="pause", scope="site", subject="")
            return await append(topic, **record)

        site.log.append = paused  # type: ignore[method-assign, assignment]
        await ordered(site)
        mark = await only_result(site)
        assert mark.sentence == "Site is paused by ann: work."
        assert not site.resets()

    dead_vm(scene)


class Backup(EmbeddedLedger):
    """A ledger in memory with the entries of an earlier copy."""

    def __init__(self, entries: Sequence[bytes] = ()) -> None:
        super().__init__(None)
        for entry in entries:
            self.append(entry)


async def restore(site: Site, orders: int, control: int) -> None:
    """Replace the site's log by one with only its first records."""
    folder = EmbeddedConfig(folder=None, partitions=2)
    log = await FaultyLog(folder, clock=site.clock).__aenter__()
    for topic, count in ((ORDERS.name, orders), (CONTROL.name, control)):
        for record in (await site.log.read_to_end(topic, 0, offset=0))[:count]:
            await log.append(
                topic,
                key=record.key,
                value=record.value,
                headers=record.headers,
                time_ms=record.time_ms,
            )
    log.swapped = await site.log.identity()
    site.log = log


async def order_again(site: Site, incident: str) -> None:
    """Issue an order for VM 0 like a planner that knows of no earlier one."""
    said = site.alert()
    given = sample_order(
        vm=said.subject,
        group=said.group,
        instance=said.instance,
        node="c0-n0",
        opened_ms=site.clock.now_ms() - 20_000,
        incident=incident,
    )
    await site.order(past(given, ago_s=(given.issued_ms - site.clock.now_ms()) / 1000))


def test_a_log_that_was_restored_makes_the_agent_watch_and_forgets_no_pause() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            agent = site.start_agent()
            await asyncio.sleep(20.0)
            await site.control(kind="pause", scope="site", subject="")
            await asyncio.sleep(2.0)
            await site.stop(agent)
            await restore(site, orders=0, control=0)
            agent = site.start_agent()
            await asyncio.sleep(5.0)
            await order_again(site, "b" * 32)
            mark = await only_result(site)
            assert (mark.outcome, mark.dry_run, site.resets()) == ("returned", True, 0)
            (reported,) = [
                e for e in await site.journal() if "ends before the position" in e.sentence
            ]
            assert reported.detail[PAGE] == "yes"
            await site.stop(agent)
            await site.log.__aexit__(None, None, None)

    virtual_time.run(played())


@pytest.mark.parametrize("topic", [ORDERS.name, CONTROL.name])
def test_a_log_that_goes_on_otherwise_after_its_restore_is_watched(topic: str) -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            agent = site.start_agent()
            await asyncio.sleep(20.0)
            await site.control(kind="silence", scope="cell", subject="c7")
            await ordered(site)
            await site.until_reset()
            await asyncio.sleep(90.0)
            await site.stop(agent)
            orders = len(await site.log.read_to_end(ORDERS.name, 0, offset=0))
            lost = {ORDERS.name: (orders - 3, 1), CONTROL.name: (orders, 0)}[topic]
            await restore(site, *lost)
            for number in range(9):
                if topic == CONTROL.name:
                    await site.control(kind="silence", scope="cell", subject=f"c{number}")
                else:
                    await site.log.append(ORDERS.name, key=b"c0", value=b"%d" % number)
            site.start_agent()
            await asyncio.sleep(5.0)
            assert await site.said("holds other records than those that the agent has read")
            for task in tuple(site.running):
                await site.stop(task)
            await site.log.__aexit__(None, None, None)

    virtual_time.run(played())


def test_a_log_that_is_exchanged_under_a_running_agent_is_not_acted_on() -> None:
    async def scene(site: Site) -> None:
        await site.control(kind="silence", scope="cell", subject="c7")
        await asyncio.sleep(1.0)
        read = site.log.read_to_end

        async def exchanged(topic: str, partition: int, *, offset: int) -> object:
            records = await read(topic, partition, offset=offset)
            if topic != CONTROL.name:
                return records
            return [replace(record, value=b"{}") for record in records]

        await ordered(site)
        site.log.read_to_end = exchanged  # type: ignore[method-assign, assignment]
        await asyncio.sleep(20.0)
        site.log.read_to_end = read  # type: ignore[method-assign]
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert "was truncated or created again" in mark.sentence
        assert not site.resets()

    dead_vm(scene)


def test_an_agent_with_an_older_ledger_than_the_log_watches_and_repeats_nothing() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            ledger = Backup()
            agent = site.start_agent(wrap=lambda _store: ledger)
            await asyncio.sleep(20.0)
            await order_again(site, "c" * 32)
            await site.until_reset()
            await asyncio.sleep(5.0)
            backup = list(ledger.entries())
            await asyncio.sleep(4_000.0)
            lifecycle.panic(site.fleet.world, 0, "panic_spin", spin_cores=1.0)
            await asyncio.sleep(40.0)
            await order_again(site, "d" * 32)
            await asyncio.sleep(30.0)
            assert site.resets() == 2
            lifecycle.panic(site.fleet.world, 0, "panic_spin", spin_cores=1.0)
            (_, order) = await site.orders()
            await site.stop(agent)
            site.start_agent(wrap=lambda _store: Backup(backup))
            await asyncio.sleep(5.0)
            assert await site.said("holds claims of this node that are not in the ledger")
            before = site.resets()
            await site.order(order)
            await asyncio.sleep(4_000.0)
            await order_again(site, "e" * 32)
            await asyncio.sleep(30.0)
            assert site.resets() == before
            assert (await site.marks())[-1].dry_run

    virtual_time.run(played())


def test_limits_are_counted_from_the_ledger_where_the_log_has_forgotten_them() -> None:
    """Its policy trusts any log, and this one has the name of another one."""

    async def played() -> None:
        async with acting_site(panic()) as site:
            agent = site.start_agent()
            await asyncio.sleep(20.0)
            await ordered(site)
            await site.until_reset()
            await asyncio.sleep(660.0)
            await site.stop(agent)
            await restore(site, orders=0, control=0)
            site.log.swapped = "created again"
            site.start_agent()
            await asyncio.sleep(5.0)
            await order_again(site, "b" * 32)
            mark = await only_result(site)
            assert mark.outcome == "not_attempted"
            assert mark.sentence.startswith("The last order for this VM was 6")
            assert site.resets() == 1
            for task in tuple(site.running):
                await site.stop(task)
            await site.log.__aexit__(None, None, None)

    virtual_time.run(played())


def test_a_claim_of_another_key_than_an_agent_s_is_none() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        (order,) = await site.orders()
        await site.order(claim_of(order))
        await site.until_reset()
        assert await site.said("is not allowed to sign a claim")

    dead_vm(scene)

"""The agent's knowledge when it acts: the newest orders, a day of them, and its own ledger."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.engine.action.ledger import StepEntry
from flatline.engine.errors import StateUnwritable
from flatline.engine.ports import Record
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.wire.order import OrderResult
from flatline.engine.wire.topics import ORDERS
from tests.signing import AGENT_KEY
from tests.simulation.acting_site import (
    EPOCH_MS,
    Site,
    acting_site,
    panic,
)
from tests.unit.engine.action.samples import order as sample_order
from tests.unit.engine.action.samples import past
from tests.unit.engine.roles.test_act import (
    HOUR_S,
    dead_vm,
    only_result,
    ordered,
    repaired_three_times,
)


def test_the_barrier_reads_the_orders_that_the_tail_has_not_brought_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(site: Site) -> None:
        tail = site.log.tail

        @asynccontextmanager
        async def slow(
            topic: str, partition: int, *, offset: int
        ) -> AsyncIterator[AsyncIterator[Sequence[Record]]]:
            async def first_only(
                batches: AsyncIterator[Sequence[Record]],
            ) -> AsyncIterator[Sequence[Record]]:
                async for records in batches:
                    yield records
                    await asyncio.sleep(HOUR_S)

            async with tail(topic, partition, offset=offset) as batches:
                yield first_only(batches) if topic == ORDERS.name else batches

        (agent,) = site.running
        await site.stop(agent)
        with monkeypatch.context() as patch:
            patch.setattr(site.log, "tail", slow)
            site.start_agent()
            await asyncio.sleep(1.0)
        await ordered(site)
        (order,) = await site.orders()
        result = OrderResult(
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            node=order.node,
            agent="c0-n0/another",
            outcome="unknown",
            dry_run=False,
            time_ms=site.clock.now_ms(),
            sentence="Another agent of this node was here.",
        )
        await site.order(result, key=AGENT_KEY)
        await asyncio.sleep(30.0)
        assert not site.resets()
        assert [one.outcome for one in await site.marks()] == ["unknown", "refused"]

    dead_vm(scene)


def test_an_agent_that_restarts_counts_the_orders_of_a_whole_day() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            given = await repaired_three_times(site)
            site.start_agent()
            await asyncio.sleep(20.0)
            ago_s = (given.issued_ms - site.clock.now_ms()) / 1000
            await site.order(past(given, ago_s=ago_s, node="c0-n0"))
            mark = await only_result(site)
            assert mark.sentence == "This VM had 3 orders in 24 h; at most 3 are allowed."
            assert not site.resets()

    virtual_time.run(played())


class FullDisk(EmbeddedLedger):
    """A ledger whose disk is full."""

    def append(self, entry: bytes) -> None:
        raise StateUnwritable("no space left on device")


def test_what_the_disk_did_not_take_is_not_believed() -> None:
    async def played() -> None:
        async with acting_site() as site:
            agent = site.new_agent(wrap=lambda _store: FullDisk(None))
            entry = StepEntry(
                state="accepted",
                incident="a" * 32,
                step=0,
                vm=sample_order().vm,
                action="reset",
                dry_run=False,
                time_ms=EPOCH_MS,
                sentence="reset it",
            )
            with pytest.raises(StateUnwritable):
                agent._books.enter(entry)
            assert not agent._books.ledger.holds((entry.incident, entry.step))

    virtual_time.run(played())


class BlindActuator(SimulatedActuator):
    """A hypervisor that never answers a preflight check."""

    async def sample(self, vm: bytes) -> PreflightSample:
        never: asyncio.Future[PreflightSample] = asyncio.get_running_loop().create_future()
        return await never


def test_a_sample_that_hangs_is_given_up_and_nothing_is_done() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            site.actuators["c0-n0"] = BlindActuator(site.fleet.world, "c0-n0")
            site.start_agent()
            await asyncio.sleep(20.0)
            await ordered(site)
            mark = await only_result(site)
            assert mark.outcome == "not_attempted"
            assert "no answer within 2 s" in mark.sentence
            assert not site.resets()

    virtual_time.run(played())

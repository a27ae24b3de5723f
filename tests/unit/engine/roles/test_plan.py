"""What the planner's loop adds to the state machine; on a loop of `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from connectors.clock import ManualClock
from connectors.simulator import virtual_time
from engine.action.chain import verify
from engine.wire.alert import encode_alert
from engine.wire.control import decode_control
from engine.wire.topics import ALERTS, CONTROL, JOURNAL, ORDERS, REJECTED
from tests.simulation.acting_site import EPOCH_MS, FOREIGN_KEY, LAB, Site, acting_site
from tests.unit.engine.action.samples import order


def planned(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Play a scene on a site with a planner and no agent."""

    async def played() -> None:
        async with acting_site() as site:
            site.start_planner()
            await asyncio.sleep(5.0)
            await scene(site)

    virtual_time.run(played())


def test_an_alert_becomes_an_order_within_a_tick() -> None:
    async def scene(site: Site) -> None:
        await site.say(site.alert())
        await asyncio.sleep(0.5)
        (given,) = await site.orders()
        assert given.issued_ms - site.alert().decided_ms <= 1_000

    planned(scene)


def test_a_record_that_is_no_alert_is_kept_and_stops_nothing() -> None:
    async def scene(site: Site) -> None:
        for value in (b"", b"{}", b"\xff\x00"):
            await site.log.append(ALERTS.name, key=b"c0", value=value)
        await site.say(site.alert())
        await asyncio.sleep(1.0)
        assert len(await site.orders()) == 1
        kept = 0
        for partition in range(site.log.partitions(REJECTED.name)):
            kept += len(await site.log.read_to_end(REJECTED.name, partition, offset=0))
        assert kept == 3
        assert await site.said(f"A record of {ALERTS.name} was not read")

    planned(scene)


def test_a_forged_order_is_not_counted() -> None:
    async def scene(site: Site) -> None:
        now_ms = site.clock.now_ms()
        forged = order(
            LAB, node="c0-n0", issued_ms=now_ms, expires_ms=now_ms + 60_000, data_ms=now_ms
        )
        await site.order(forged, key=FOREIGN_KEY)
        await asyncio.sleep(1.0)
        assert await site.said("no signature by a trusted key")
        await site.say(site.alert())
        await asyncio.sleep(1.0)
        # Had it counted, it would be in flight on the same node.
        assert len(await site.orders()) == 1

    planned(scene)


def test_an_order_that_did_not_reach_the_log_is_given_again_after_it_expired() -> None:
    async def scene(site: Site) -> None:
        site.log.away = frozenset({ORDERS.name})
        await site.say(site.alert())
        await asyncio.sleep(30.0)
        site.log.away = frozenset()
        await asyncio.sleep(20.0)
        await site.say(site.alert(opened_ms=EPOCH_MS))
        assert not await site.orders()
        await asyncio.sleep(30.0)
        (given,) = await site.orders()
        assert given.step == 0

    planned(scene)


def test_the_journal_waits_for_the_log_and_keeps_its_chain() -> None:
    async def scene(site: Site) -> None:
        site.log.away = frozenset({JOURNAL.name})
        await site.say(site.alert())
        await asyncio.sleep(60.0)
        site.log.away = frozenset()
        await asyncio.sleep(60.0)
        journal = await site.journal()
        assert [entry.kind for entry in journal][:2] == ["start", "decision"]
        assert not verify(journal)

    planned(scene)


def test_a_storm_stands_as_a_pause_on_the_control_topic() -> None:
    async def scene(site: Site) -> None:
        for lane in range(3):
            await site.say(site.alert(lane, state="suppressed"))
        await asyncio.sleep(2.0)
        (record,) = await site.log.read_to_end(CONTROL.name, 0, offset=0)
        word = decode_control(record.value)
        assert (word.kind, word.scope, word.subject) == ("pause", "cell", "c0")
        await site.say(site.alert(4))
        await asyncio.sleep(2.0)
        assert not await site.orders()
        assert await site.said("Cell c0 is paused by storm breaker")

    planned(scene)


def test_a_planner_that_starts_during_a_pause_knows_it() -> None:
    async def played() -> None:
        async with acting_site() as site:
            await site.control(kind="pause", scope="site", subject="")
            await site.say(site.alert())
            site.start_planner()
            await asyncio.sleep(5.0)
            assert not await site.orders()
            assert await site.said("Site is paused by ann")

    virtual_time.run(played())


def test_a_word_of_control_that_cannot_be_read_holds_as_a_pause_for_planners_too() -> None:
    async def scene(site: Site) -> None:
        key = b"pause/cell/c7/"
        await site.log.append(CONTROL.name, key=key, value=b'{"v":2}')
        await asyncio.sleep(1.0)
        await site.say(site.alert())
        await asyncio.sleep(5.0)
        assert not await site.orders()
        assert await site.said("Site is paused by a control record that is unreadable")
        await site.control(kind="pause", scope="cell", subject="c7")
        await asyncio.sleep(2.0)
        await site.say(site.alert(1))
        await asyncio.sleep(2.0)
        assert await site.orders()

    planned(scene)


def test_a_planner_whose_clock_runs_late_gives_only_orders_that_no_agent_takes() -> None:
    async def played() -> None:
        async with acting_site() as site:
            site.start_agent()
            site.start_planner(clock=ManualClock(now_ms=EPOCH_MS - 3_600_000))
            await asyncio.sleep(1.0)
            await site.say(site.alert(decided_ms=EPOCH_MS - 3_600_000))
            await asyncio.sleep(30.0)
            (given,) = await site.orders()
            assert given.issued_ms == EPOCH_MS - 3_600_000
            (mark,) = await site.marks()
            assert mark.outcome == "expired"
            assert not site.fleet.world.truth.verb_calls

    virtual_time.run(played())


def test_ending_a_planner_leaves_its_journal_complete() -> None:
    async def played() -> None:
        async with acting_site() as site:
            planner = site.start_planner()
            await asyncio.sleep(1.0)
            value, headers = encode_alert(site.alert())
            await site.log.append(ALERTS.name, key=b"c0", value=value, headers=headers)
            await asyncio.sleep(0.1)
            await site.stop(planner)
            assert [entry.kind for entry in await site.journal()] == ["start", "decision"]

    virtual_time.run(played())

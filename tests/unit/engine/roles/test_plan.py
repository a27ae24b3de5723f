"""The planner's loop in addition to the state machine; on a loop of `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flatline.connectors.clock import ManualClock
from flatline.connectors.simulator import virtual_time
from flatline.engine import instruments
from flatline.engine.action.chain import verify
from flatline.engine.wire.control import decode_control
from flatline.engine.wire.order import KEY_HEADER, key_id
from flatline.engine.wire.score import encode_scores
from flatline.engine.wire.topics import ALERTS, CONTROL, JOURNAL, ORDERS, REJECTED, SCORES
from tests.signing import FOREIGN_KEY, OPERATOR_KEY, said
from tests.simulation.acting_site import EPOCH_MS, LAB, Site, acting_site, panic
from tests.unit.engine.action.samples import NOW_MS, order, past


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
        assert await site.said(f"A record of {ALERTS.name} was rejected")

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
        # If it counted, it would be in flight on the same node.
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
        for index in range(3):
            await site.say(site.alert(index, state="suppressed"))
        await asyncio.sleep(2.0)
        (record,) = await site.log.read_to_end(CONTROL.name, 0, offset=0)
        command = decode_control(record.value)
        assert (command.kind, command.scope, command.subject) == ("pause", "cell", "c0")
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


def test_a_command_of_control_that_cannot_be_read_holds_as_a_pause_for_planners_too() -> None:
    async def scene(site: Site) -> None:
        key = b"pause/cell/c7/"
        await site.log.append(CONTROL.name, key=key, value=b'{"v":2}')
        await asyncio.sleep(1.0)
        await site.say(site.alert())
        await asyncio.sleep(5.0)
        assert not await site.orders()
        assert await site.said("Site is paused by an unreadable control record")
        await site.control(kind="pause", scope="cell", subject="c7")
        await asyncio.sleep(2.0)
        await site.say(site.alert(1))
        await asyncio.sleep(2.0)
        assert await site.orders()

    planned(scene)


def test_a_forged_alert_leads_to_nothing_and_is_counted_and_kept() -> None:
    async def scene(site: Site) -> None:
        counted = instruments.RECORDS_REJECTED.labels(ALERTS.name, "bad_signature")
        before = counted._value.get()
        value, _ = said(site.alert())
        other = said(site.alert(1))
        for headers in ((), said(site.alert(), key=FOREIGN_KEY)[1], other[1]):
            await site.log.append(ALERTS.name, key=b"c0", value=value, headers=headers)
        await asyncio.sleep(5.0)
        assert not await site.orders()
        assert counted._value.get() - before == 3
        assert await site.said(f"A record of {ALERTS.name} was rejected: no signature")
        await site.say(site.alert())
        await asyncio.sleep(2.0)
        assert len(await site.orders()) == 1

    planned(scene)


@pytest.mark.parametrize("compacted", [False, True], ids=["live", "restarted"])
def test_a_pause_stands_for_planner_and_agent_though_somebody_writes_that_it_is_over(
    compacted: bool,
) -> None:
    """The embedded log compacts at each append: the forged record has erased the pause."""

    async def played() -> None:
        async with acting_site(panic()) as site:
            planner, agent = site.start_planner(), site.start_agent()
            await site.control(kind="pause", scope="site", subject="")
            await asyncio.sleep(2.0)
            if compacted:
                await site.stop(planner)
                await site.stop(agent)
            await site.anybody(kind="pause", scope="site", subject="", active=False)
            await asyncio.sleep(20.0)
            if compacted:
                site.start_planner()
                site.start_agent()
                await asyncio.sleep(1.0)
            await site.say(site.alert())
            await asyncio.sleep(30.0)
            assert not await site.orders()
            alert, ago_s = site.alert(), (NOW_MS - site.clock.now_ms()) / 1000
            given = past(
                order(vm=alert.subject, instance=alert.instance, node="c0-n0", policy=LAB.hash),
                ago_s=ago_s,
            )
            await site.order(given)
            await asyncio.sleep(30.0)
            (mark,) = await site.marks()
            assert (mark.outcome, site.resets()) == ("not_attempted", 0)
            assert mark.sentence.startswith("Site is paused by")
            await site.control(kind="pause", scope="site", subject="", active=False)
            await asyncio.sleep(2.0)
            await site.say(site.alert(1))
            await asyncio.sleep(2.0)
            assert len(await site.orders()) == 2

    virtual_time.run(played())


def test_a_planner_writes_back_what_a_refused_record_has_displaced() -> None:
    async def played() -> None:
        async with acting_site() as site:
            planner = site.start_planner()
            await site.control(kind="pause", scope="cell", subject="c7")
            await asyncio.sleep(2.0)
            await site.anybody(kind="pause", scope="cell", subject="c7", active=False)
            await asyncio.sleep(2.0)
            await site.stop(planner)
            (record,) = await site.log.read_to_end(CONTROL.name, 0, offset=0)
            assert decode_control(record.value).active
            assert dict(record.headers)[KEY_HEADER].decode() == key_id(OPERATOR_KEY.public_key())

    virtual_time.run(played())


@pytest.mark.parametrize(
    "change", [{}, {"site": "elsewhere"}, {"minute_ms": EPOCH_MS + 3_600_000}], ids=str
)
def test_scores_that_no_engine_of_the_site_stands_for_choose_no_target(
    change: dict[str, Any],
) -> None:
    async def scene(site: Site) -> None:
        loads = {"c0-n0": 0.95, "c0-n1": 0.3}
        if change:
            await site.load(loads, **change)
        else:
            value = encode_scores(site.scores(loads))
            await site.log.append(SCORES.name, key=b"c0", value=value)
        kind: dict[str, Any] = {
            "kind": "node_contention", "suggested_action": "migrate", "cpu_shape": "unknown",
        }  # fmt: skip
        await site.say(site.alert(**kind))
        await asyncio.sleep(2.0)
        assert not await site.orders()
        assert await site.said("The load of the nodes in cell c0 is unknown")
        await site.load(loads)
        await site.say(site.alert(id="b" * 32, **kind))
        await asyncio.sleep(2.0)
        assert [order.target for order in await site.orders()] == ["c0-n1"]

    planned(scene)


def test_a_command_that_is_refused_is_journaled_by_the_planner_and_by_no_agent() -> None:
    async def played() -> None:
        async with acting_site() as site:
            site.start_planner()
            site.start_agent()
            site.start_agent("c0-n1")
            await asyncio.sleep(2.0)
            await site.anybody(kind="pause", scope="cell", subject="c7", active=False)
            await site.log.append(CONTROL.name, key=b"nonsense", value=b"nonsense")
            await asyncio.sleep(2.0)
            reported = [entry for entry in await site.journal() if "was rejected" in entry.sentence]
            assert [entry.detail["reason"] for entry in reported] == ["bad_signature", "malformed"]
            assert all(entry.writer.startswith("plan/") for entry in reported)

    virtual_time.run(played())


def test_a_pause_of_any_length_is_written_back_as_what_it_says() -> None:
    async def played() -> None:
        async with acting_site() as site:
            planner = site.start_planner()
            await site.anybody(kind="pause", scope="cell", subject="c7", reason="x" * 60_000)
            await asyncio.sleep(2.0)
            await site.anybody(kind="pause", scope="cell", subject="c7", active=False)
            await asyncio.sleep(2.0)
            await site.stop(planner)
            (record,) = await site.log.read_to_end(CONTROL.name, 0, offset=0)
            assert decode_control(record.value).active
            assert len(record.value) < 2_000

    virtual_time.run(played())


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
            assert not site.fleet.world.truth.action_calls

    virtual_time.run(played())


def test_ending_a_planner_leaves_its_journal_complete() -> None:
    async def played() -> None:
        async with acting_site() as site:
            planner = site.start_planner()
            await asyncio.sleep(1.0)
            await site.say(site.alert())
            await asyncio.sleep(0.1)
            await site.stop(planner)
            assert [entry.kind for entry in await site.journal()] == ["start", "decision"]

    virtual_time.run(played())

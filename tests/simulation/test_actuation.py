"""Planner, log, agent and hypervisor together, in virtual time."""

import asyncio

import msgspec

from flatline.connectors.simulator import virtual_time
from flatline.engine.action.catalogue import Modes
from flatline.engine.faults import Step
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.order import Order
from tests.simulation.acting_site import LAB, Site, acting_site, panic

ESCALATION = (Step(action="reset", deadline_s=300, stable_s=20),) * 2
TWO_RESETS = msgspec.structs.replace(LAB, ladders={"panic_spin": ESCALATION})
OBSERVING = msgspec.structs.replace(LAB, modes=Modes())


async def _until_panicked(site: Site) -> Alert:
    await asyncio.sleep(20.0)
    return site.alert()


def test_a_panicked_vm_is_reset_once_and_its_repair_is_reported() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_planner()
            site.start_agent()
            alert = await _until_panicked(site)
            await site.say(alert)
            await asyncio.sleep(15.0)
            assert site.resets(0) == 1
            assert await site.acted() == ["action_sent", "action_returned"]
            await site.resolve(alert)
            await asyncio.sleep(2.0)
            assert await site.said("recovered after the reset")
            assert [mark.outcome for mark in await site.marks()] == ["returned"]
            assert not site.fleet.world.truth.harms

    virtual_time.run(scene())


def test_a_live_guest_that_a_forged_alert_calls_dead_is_not_reset() -> None:
    async def scene() -> None:
        async with acting_site() as site:
            site.start_planner()
            site.start_agent()
            await site.say(await _until_panicked(site))
            await asyncio.sleep(20.0)
            assert len(await site.orders()) == 1
            assert site.resets() == 0
            (mark,) = await site.marks()
            assert mark.outcome == "refused"
            assert mark.sentence.startswith("Refused: the VM is alive: disk-write requests")
            assert await site.said("A person must inspect the VM")

    virtual_time.run(scene())


def test_two_planners_give_one_execution_for_one_step() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_planner("p1")
            site.start_planner("p2")
            site.start_agent()
            await site.keep_firing(await _until_panicked(site), seconds=90.0)
            # Both issued the order: only the log's order can have decided.
            assert {order.planner for order in await site.orders()} == {"p1", "p2"}
            assert site.resets() == 1
            assert len(await site.marks()) == 1

    virtual_time.run(scene())


def test_the_order_of_a_planner_that_slept_too_long_is_not_carried_out() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_planner()
            agent = site.start_agent()
            alert = await _until_panicked(site)
            await site.say(alert)
            await asyncio.sleep(15.0)
            (order,) = await site.orders()
            await site.stop(agent)
            # The same step again, and the next one, both as decided a minute ago.
            late = {name: getattr(order, name) for name in order.__struct_fields__}
            await asyncio.sleep(61.0)
            await site.order(order)
            await site.order(Order(**(late | {"step": 1})))
            site.start_agent()
            await asyncio.sleep(30.0)
            assert site.resets() == 1

    virtual_time.run(scene())


def test_an_agent_killed_during_the_call_ends_unknown_and_is_never_repeated() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.fleet.world.interference = lambda call: "hang_after"
            site.start_planner()
            agent = site.start_agent()
            alert = await _until_panicked(site)
            await site.say(alert)
            await asyncio.sleep(12.0)
            assert site.resets() == 1
            await site.stop(agent)
            site.fleet.world.interference = None
            site.start_agent()
            await site.keep_firing(alert, seconds=3600.0)
            assert site.resets() == 1
            assert [mark.outcome for mark in await site.marks()] == ["unknown"]
            assert (await site.acted())[-1] == "action_unknown"

    virtual_time.run(scene())


def test_nothing_is_done_after_a_pause_stands_in_the_log() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.start_planner()
            site.start_agent()
            await site.say(await _until_panicked(site))
            await asyncio.sleep(2.0)
            assert len(await site.orders()) == 1
            await site.control(kind="pause", scope="site", subject="")
            await asyncio.sleep(30.0)
            assert site.resets() == 0
            (mark,) = await site.marks()
            assert mark.sentence == "Site is paused by ann: work."

    virtual_time.run(scene())


def test_a_second_reset_follows_only_a_failed_verification_and_the_back_off() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.fleet.world.interference = lambda call: "lie"
            site.policy = TWO_RESETS
            site.start_planner()
            site.start_agent()
            alert = await _until_panicked(site)
            await site.keep_firing(alert, seconds=590.0)
            assert len(await site.orders()) == 1
            await site.keep_firing(alert, seconds=3000.0)
            first, second = await site.orders()
            assert second.step == 1
            assert second.issued_ms - first.issued_ms >= 600_000
            assert await site.said("No step of the policy helped")

    virtual_time.run(scene())


def test_a_hypervisor_without_an_answer_leaves_the_step_unknown() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.fleet.world.interference = lambda call: "lose_answer"
            site.policy = TWO_RESETS
            site.start_planner()
            site.start_agent()
            await site.keep_firing(await _until_panicked(site), seconds=7200.0)
            assert site.resets() == 1
            assert [mark.outcome for mark in await site.marks()] == ["unknown"]
            assert await site.said("No more orders for this incident")

    virtual_time.run(scene())


def test_telemetry_that_stays_away_until_the_deadline_leaves_the_step_unknown() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.policy = TWO_RESETS
            site.start_planner()
            site.start_agent()
            alert = await _until_panicked(site)
            await site.say(alert)
            await asyncio.sleep(400.0)
            await site.keep_firing(alert, seconds=3600.0)
            assert len(await site.orders()) == 1
            assert await site.said("the engine reported nothing about it before the deadline")

    virtual_time.run(scene())


def test_a_restarted_planner_goes_on_where_the_log_stands() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            planner = site.start_planner()
            site.start_agent()
            alert = await _until_panicked(site)
            await site.say(alert)
            await asyncio.sleep(15.0)
            await site.stop(planner)
            site.start_planner("p2")
            await site.keep_firing(alert, seconds=120.0)
            assert len(await site.orders()) == 1
            assert site.resets() == 1

    virtual_time.run(scene())


def test_a_planner_that_was_away_at_the_deadline_reads_what_was_said_then() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.fleet.world.interference = lambda call: "lie"
            site.policy = TWO_RESETS
            planner = site.start_planner()
            site.start_agent()
            alert = await _until_panicked(site)
            await site.keep_firing(alert, seconds=100.0)
            await site.stop(planner)
            await site.keep_firing(alert, seconds=600.0)
            site.start_planner("p2")
            await site.keep_firing(alert, seconds=120.0)
            assert [order.planner for order in await site.orders()] == ["p1", "p2"]

    virtual_time.run(scene())


def test_a_vm_on_a_loaded_node_is_moved_to_the_least_loaded_other_one() -> None:
    async def scene() -> None:
        async with acting_site() as site:
            site.start_planner()
            site.start_agent()
            await asyncio.sleep(20.0)
            await site.load({"c0-n0": 0.95, "c0-n1": 0.3})
            await site.say(
                site.alert(kind="node_contention", suggested_action="migrate", cpu_shape="unknown")
            )
            await asyncio.sleep(60.0)
            (order,) = await site.orders()
            assert (order.action, order.target) == ("migrate", "c0-n1")
            (move,) = site.fleet.world.truth.moves
            assert (move.vm, move.target) == (0, "c0-n1")

    virtual_time.run(scene())


def test_in_observe_everything_is_done_but_the_call() -> None:
    async def scene() -> None:
        async with acting_site(panic()) as site:
            site.policy = OBSERVING
            site.start_planner()
            site.start_agent()
            await site.keep_firing(await _until_panicked(site), seconds=600.0)
            (order,) = await site.orders()
            (mark,) = await site.marks()
            assert order.dry_run
            assert mark.dry_run
            assert mark.outcome == "returned"
            assert site.resets() == 0
            assert await site.said("passed all checks; no call was made")

    virtual_time.run(scene())

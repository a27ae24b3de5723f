"""A planner orders the new action, and the agent of the node carries it out."""

import asyncio

import msgspec

from flatline.connectors.simulator import virtual_time
from flatline.engine.action.catalogue import Modes, Step
from tests.simulation.acting_site import LAB, acting_site, panic

POLICY = msgspec.structs.replace(
    LAB,
    modes=Modes(actions={"inject_nmi": "auto"}),
    ladders={"panic_spin": (Step(action="inject_nmi"),)},
)


def test_an_nmi_is_ordered_and_sent_once_to_a_dead_guest() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            site.policy = POLICY
            site.start_agent()
            await asyncio.sleep(20.0)
            site.start_planner()
            await site.say(site.alert())
            await asyncio.sleep(30.0)
            (given,) = await site.orders()
            (mark,) = await site.marks()
            assert (given.action, mark.outcome) == ("inject_nmi", "returned")
            assert [call.vm for call in site.fleet.truth.calls("inject_nmi")] == [0]
            assert site.fleet.truth.harms == []

    virtual_time.run(played())


def test_a_guest_that_comes_back_during_the_check_gets_no_nmi() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            site.policy = POLICY
            site.start_agent()
            await asyncio.sleep(20.0)
            site.start_planner()
            await site.say(site.alert())
            await asyncio.sleep(1.5)
            await site.fleet.actuator("c0-n0").reset(site.fleet.vm(0))
            await asyncio.sleep(30.0)
            (mark,) = await site.marks()
            assert mark.outcome == "refused"
            assert site.fleet.truth.calls("inject_nmi") == []

    virtual_time.run(played())

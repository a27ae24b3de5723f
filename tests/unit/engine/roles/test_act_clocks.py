"""Time in the agent: its clocks may be set, and the awaited steps may take long."""

import asyncio
from collections.abc import Callable

import pytest

from flatline.connectors.simulator import virtual_time
from tests.simulation.acting_site import Site, acting_site, panic
from tests.unit.engine.action.samples import past
from tests.unit.engine.roles.test_act import (
    HOUR_S,
    LeapingClock,
    StallingDisk,
    only_result,
    ordered,
    repaired_three_times,
)


def stalled(state: str, stall: Callable[[LeapingClock], None]) -> list[str]:
    """Return the result of an order whose ledger entry `state` takes as long as `stall` sets."""
    ends: list[str] = []

    async def played() -> None:
        async with acting_site(panic()) as site:
            clock = site.clock = LeapingClock(site.clock)
            site.start_agent(
                wrap=lambda store: StallingDisk(store, lambda: stall(clock), state=state)
            )
            await asyncio.sleep(20.0)
            await ordered(site)
            mark = await only_result(site)
            assert not site.resets()
            ends.extend((mark.outcome, mark.sentence))

    virtual_time.run(played())
    return ends


def test_a_pause_that_was_read_five_seconds_ago_is_no_longer_the_one_that_holds() -> None:
    def five_seconds_pass(clock: LeapingClock) -> None:
        clock.wall_s += 5.5
        clock.mono_s += 5.5

    # The preflight check is 9.6 s old by then, and so still valid.
    outcome, sentence = stalled("sent", five_seconds_pass)
    # No call was made, so the step may be ordered again later.
    assert outcome == "expired"
    assert "the newest control records (5.5 s old)" in sentence


def test_an_order_expires_though_the_clock_was_set_back_while_it_waited() -> None:
    def a_minute_passes_unseen(clock: LeapingClock) -> None:
        clock.mono_s += 65

    outcome, sentence = stalled("accepted", a_minute_passes_unseen)
    assert (outcome, sentence[:17]) == ("expired", "The order expired")


@pytest.mark.parametrize("ahead_h", [8, 25])
def test_an_agent_whose_clock_was_ahead_when_it_started_does_not_forget_the_day(
    ahead_h: int,
) -> None:
    async def scene(site: Site, clock: LeapingClock) -> None:
        given = await repaired_three_times(site)
        # An earlier run knows the log, so no day of observation covers the following.
        earlier = site.start_agent()
        await asyncio.sleep(1.0)
        await site.stop(earlier)
        clock.wall_s = ahead_h * HOUR_S
        site.start_agent()
        await asyncio.sleep(20.0)
        clock.wall_s = 0
        ago_s = (given.issued_ms - site.clock.now_ms()) / 1000
        await site.order(past(given, ago_s=ago_s, node="c0-n0"))
        mark = await only_result(site)
        assert not site.resets()
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith("The clock of this node was ahead when its agent started")

    async def played() -> None:
        async with acting_site(panic()) as site:
            clock = site.clock = LeapingClock(site.clock)
            await scene(site, clock)

    virtual_time.run(played())

"""The agent's loop in addition to the pure rules; on a loop of `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.truth import ActionCall
from flatline.engine.ports import Bounds, Clock, LedgerStore, Record
from flatline.engine.wire.frame import Frame, decode_frame
from flatline.engine.wire.order import Order, OrderResult, encode_order
from flatline.engine.wire.topics import CONTROL, FRAMES, JOURNAL, ORDERS, REJECTED
from tests.signing import AGENT_KEY, PLANNER_KEY
from tests.simulation.acting_site import (
    EPOCH_MS,
    Site,
    acting_site,
    panic,
)
from tests.unit.engine.action.samples import order as sample_order
from tests.unit.engine.action.samples import past

HOUR_S = 3_600


class LeapingClock:
    """The site's clock, whose wall or monotonic time can jump as on a stalled machine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.wall_s = 0.0
        self.mono_s = 0.0

    def now_ms(self) -> int:
        return self._clock.now_ms() + round(1e3 * self.wall_s)

    def mono_ns(self) -> int:
        return self._clock.mono_ns() + round(1e9 * self.mono_s)


class StallingDisk:
    """A ledger whose entry before the call, or another, takes as long as `stall` sets."""

    def __init__(
        self, store: LedgerStore, stall: Callable[[], None], *, state: str = "sent"
    ) -> None:
        self._store = store
        self._stall = stall
        self._entry = f'"state":"{state}"'.encode()

    def append(self, entry: bytes) -> None:
        self._store.append(entry)
        if self._entry in entry:
            self._stall()

    def entries(self) -> Sequence[bytes]:
        return self._store.entries()


def dead_vm(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Play a scene on a site where VM 0 has panicked and an agent waits for orders."""

    async def played() -> None:
        async with acting_site(panic()) as site:
            site.start_agent()
            await asyncio.sleep(20.0)
            await scene(site)

    virtual_time.run(played())


async def ordered(site: Site) -> None:
    """Let a planner issue its order for VM 0, and stop it."""
    planner = site.start_planner()
    await site.say(site.alert())
    await asyncio.sleep(0.5)
    await site.stop(planner)
    assert len(await site.orders()) == 1


async def repaired_three_times(site: Site) -> Order:
    """Fill the log with three repairs of VM 0 within the last day, and return their order."""
    said = site.alert()
    given = sample_order(
        vm=said.subject, group=said.group, instance=said.instance, node="c0-n1", opened_ms=EPOCH_MS
    )
    for hours in (20, 10, 5):
        ago_s = (given.issued_ms - EPOCH_MS) / 1000 + hours * HOUR_S
        old = past(given, ago_s=ago_s, incident=f"{hours:032x}")
        value, headers = encode_order(old, PLANNER_KEY)
        await site.log.append(
            ORDERS.name, key=b"c0", value=value, headers=headers, time_ms=old.issued_ms
        )
    return given


async def only_result(site: Site, *, after_s: float = 30.0) -> OrderResult:
    await asyncio.sleep(after_s)
    (mark,) = await site.marks()
    return mark


def test_the_check_lasts_four_seconds_and_the_call_follows_it() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        await site.until_reset()
        (given,) = await site.orders()
        assert 4_000 <= site.clock.now_ms() - given.issued_ms <= 5_000

    dead_vm(scene)


def test_a_guest_that_comes_back_during_the_check_is_left_alone() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        await asyncio.sleep(1.0)
        actuator = site.fleet.actuator("c0-n0")
        await actuator.reset(site.fleet.vm(0))
        mark = await only_result(site)
        assert mark.outcome == "refused"
        # The only reset is the test's own.
        assert site.resets() == 1

    dead_vm(scene)


@pytest.mark.parametrize(("wall_s", "mono_s"), [(170, 0), (0, 170)], ids=["expiry", "look"])
def test_a_disk_that_stands_still_before_the_call_lets_the_order_lapse(
    wall_s: int, mono_s: int
) -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            clock = site.clock = LeapingClock(site.clock)

            def stall() -> None:
                clock.wall_s, clock.mono_s = wall_s, mono_s

            site.start_agent(wrap=lambda store: StallingDisk(store, stall))
            await asyncio.sleep(20.0)
            await ordered(site)
            mark = await only_result(site)
            assert mark.outcome == "expired"
            assert mark.sentence.startswith("When the ledger had the entry, the order had expired")
            assert not site.resets()
            assert not await site.acted()

    virtual_time.run(played())


def test_a_log_that_hangs_at_the_barrier_stops_the_call_within_five_seconds() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        site.log.hangs = True
        await asyncio.sleep(11.0)
        site.log.hangs = False
        mark = await only_result(site, after_s=1.0)
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith("The log could not be read to its end within 5 s")
        assert not site.resets()

    dead_vm(scene)


@pytest.mark.parametrize("shown", [Bounds(0, 0), Bounds(9, 12)], ids=["cut_back", "made_anew"])
@pytest.mark.parametrize("topic", [CONTROL.name, ORDERS.name])
def test_a_topic_that_lost_what_was_read_is_not_acted_on(topic: str, shown: Bounds) -> None:
    async def scene(site: Site) -> None:
        await site.control(kind="silence", scope="cell", subject="c7")
        await ordered(site)
        site.log.shows[topic] = shown
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith(f"The topic {topic} was truncated or created again")
        assert not site.resets()

    dead_vm(scene)


def test_a_log_that_was_swapped_is_not_acted_on() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        site.log.swapped = "another"
        mark = await only_result(site)
        assert mark.outcome == "refused"
        assert not site.resets()

    dead_vm(scene)


def test_what_cannot_be_journalled_is_not_done() -> None:
    async def scene(site: Site) -> None:
        site.log.away = frozenset({JOURNAL.name})
        await ordered(site)
        await asyncio.sleep(30.0)
        site.log.away = frozenset()
        mark = await only_result(site, after_s=60.0)
        assert mark.outcome == "not_attempted"
        assert not site.resets()

    dead_vm(scene)


def test_how_an_order_ended_is_reported_when_the_log_is_back() -> None:
    async def scene(site: Site) -> None:
        def cut(call: ActionCall) -> None:
            site.log.away = frozenset({ORDERS.name, FRAMES.name, JOURNAL.name})

        site.fleet.world.interference = cut
        await ordered(site)
        await asyncio.sleep(120.0)
        assert not await site.marks()
        site.log.away = frozenset()
        mark = await only_result(site, after_s=60.0)
        assert mark.outcome == "returned"
        assert site.resets() == 1

    dead_vm(scene)


def test_an_agent_that_could_not_tell_the_end_still_knows_it_after_a_restart() -> None:
    async def scene(site: Site) -> None:
        def cut(call: ActionCall) -> None:
            site.log.away = frozenset({ORDERS.name, FRAMES.name, JOURNAL.name})

        (agent,) = site.running
        site.fleet.world.interference = cut
        await ordered(site)
        await asyncio.sleep(10.0)
        await site.stop(agent)
        agent = site.start_agent()
        await asyncio.sleep(60.0)
        assert not agent.done()
        site.log.away = frozenset()
        mark = await only_result(site, after_s=60.0)
        assert mark.outcome == "returned"
        assert site.resets() == 1

    dead_vm(scene)


def test_an_agent_is_ready_only_while_its_hypervisor_answers() -> None:
    async def scene(site: Site) -> None:
        health, world = site.health["c0-n0"], site.fleet.world
        node = world.topology.node_index["c0-n0"]
        assert health.ready().ok
        world.unreachable[node] = True
        await asyncio.sleep(2.0)
        expected = "hypervisor is waiting: node c0-n0 does not answer. Retrying."
        assert health.ready().sentences == (expected,)
        assert health.live().ok
        world.unreachable[node] = False
        await asyncio.sleep(2.0)
        assert health.ready().ok

    dead_vm(scene)


def test_an_order_that_names_another_cell_is_refused() -> None:
    async def scene(site: Site) -> None:
        await asyncio.sleep(0)
        planner = site.start_planner()
        await site.say(site.alert(cell="c7"))
        await asyncio.sleep(1.0)
        await site.stop(planner)
        mark = await only_result(site)
        assert mark.sentence == (
            "The order names site site and cell c7, but this node belongs to another site or cell."
        )
        assert not site.resets()

    dead_vm(scene)


@pytest.mark.parametrize(("place", "outcome"), [("elsewhere", "refused"), ("site", "returned")])
def test_an_order_of_another_site_with_a_cell_of_the_same_name_is_refused(
    place: str, outcome: str
) -> None:
    async def scene(site: Site) -> None:
        said = site.alert()
        given = sample_order(
            vm=said.subject,
            group=said.group,
            instance=said.instance,
            node="c0-n0",
            opened_ms=said.opened_ms,
        )
        ago_s = (given.issued_ms - site.clock.now_ms()) / 1000
        await site.order(past(given, ago_s=ago_s, site=place))
        mark = await only_result(site)
        assert mark.outcome == outcome
        assert site.resets() == (outcome == "returned")

    dead_vm(scene)


def test_an_order_for_a_vm_that_is_not_here_is_refused() -> None:
    async def scene(site: Site) -> None:
        planner = site.start_planner()
        await site.say(site.alert(subject="6e1a2b3c-0000-4000-8000-00000000abcd"))
        await asyncio.sleep(1.0)
        await site.stop(planner)
        mark = await only_result(site)
        assert mark.outcome == "refused"
        assert mark.sentence.startswith("The VM is not on this node")

    dead_vm(scene)


def test_an_action_that_the_hypervisor_refuses_was_not_done_and_is_not_repeated() -> None:
    async def scene(site: Site) -> None:
        site.fleet.world.interference = lambda call: "refuse"
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "refused"
        assert mark.sentence.startswith("The hypervisor refused the call, so nothing was done")
        assert len(site.fleet.world.truth.action_calls) == 1

    dead_vm(scene)


def test_an_action_that_never_returns_is_unknown_at_the_order_s_deadline() -> None:
    async def scene(site: Site) -> None:
        site.fleet.world.interference = lambda call: "hang"
        await ordered(site)
        (order,) = await site.orders()
        mark = await only_result(site, after_s=400.0)
        assert mark.outcome == "unknown"
        assert abs(mark.time_ms - order.deadline_ms) < 1_000

    dead_vm(scene)


def test_a_second_order_for_the_step_does_not_close_the_first() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        (order,) = await site.orders()
        await site.order(msgspec.structs.replace(order, planner="p2"))
        mark = await only_result(site)
        assert mark.outcome == "returned"
        assert site.resets() == 1
        await asyncio.sleep(60.0)
        assert len(await site.marks()) == 1

    dead_vm(scene)


def test_an_order_that_reached_the_log_long_after_its_expiry_is_expired() -> None:
    async def scene(site: Site) -> None:
        await ordered(site)
        (order,) = await site.orders()
        await asyncio.sleep(70.0)
        await site.order(msgspec.structs.replace(order, incident="b" * 32))
        await asyncio.sleep(10.0)
        first, late = await site.marks()
        assert (first.outcome, late.outcome) == ("returned", "expired")
        assert late.sentence.startswith("The order reached the log")

    dead_vm(scene)


def test_the_same_step_ordered_for_another_node_is_journalled_there_and_nothing_else() -> None:
    async def scene(site: Site) -> None:
        site.start_agent("c0-n1")
        await ordered(site)
        (order,) = await site.orders()
        await site.order(msgspec.structs.replace(order, node="c0-n1"))
        mark = await only_result(site)
        assert (mark.node, mark.outcome) == ("c0-n0", "returned")
        assert await site.said("An order for step 0 of this incident is already in the log.")

    dead_vm(scene)


def test_a_result_in_the_log_ends_a_step_that_has_not_begun() -> None:
    async def scene(site: Site) -> None:
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

    dead_vm(scene)


def test_the_engine_is_informed_in_frames_of_the_agent_s_own_source() -> None:
    async def frames(site: Site) -> list[Frame]:
        found: list[Frame] = []
        for partition in range(site.log.partitions(FRAMES.name)):
            records = await site.log.read_to_end(FRAMES.name, partition, offset=0)
            assert {record.key for record in records} <= {b"c0"}
            found += [decode_frame(record.value) for record in records]
        return found

    async def scene(site: Site) -> None:
        await ordered(site)
        await asyncio.sleep(10.0)
        (order,) = await site.orders()
        sent, returned = await frames(site)
        assert [sent.header.sequence, returned.header.sequence] == [0, 1]
        assert (sent.header.role, sent.header.node) == ("agent", "c0-n0")
        (event,) = sent.events
        assert event.kind == "action_sent"
        assert event.vm == site.fleet.vm(0)
        assert event.detail == {
            "incident": order.incident,
            "step": "0",
            "action": "reset",
            "dry_run": "false",
        }

    dead_vm(scene)


def test_what_is_no_order_is_kept_and_stops_nothing() -> None:
    async def scene(site: Site) -> None:
        for value in (b"", b"{}", b"\xff" * 100):
            await site.log.append(ORDERS.name, key=b"c0", value=value)
        await ordered(site)
        await asyncio.sleep(20.0)
        assert site.resets() == 1
        kept = 0
        for partition in range(site.log.partitions(REJECTED.name)):
            kept += len(await site.log.read_to_end(REJECTED.name, partition, offset=0))
        # By the planner: none of them names this node, so its agent only counts them.
        assert kept == 3

    dead_vm(scene)


def test_a_record_that_barrier_and_tail_both_bring_is_taken_in_once() -> None:
    async def played() -> None:
        async with acting_site() as site:
            agent = site.new_agent()
            value = b'{"node": "' + agent._config.node.encode() + b'"}'
            record = Record(
                topic=ORDERS.name, partition=0, offset=3, time_ms=EPOCH_MS, key=b"c0", value=value
            )
            await agent._reading.read(record)
            await agent._reading.read(record)
            assert agent._journal.head.sequence == 1

    virtual_time.run(played())

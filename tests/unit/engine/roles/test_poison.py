"""An order, alert or command that raises in planner or agent fails alone; on `virtual_time`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flatline.connectors.simulator import virtual_time
from flatline.engine.action import admit
from flatline.engine.action.events import AlertSeen, CaughtUp
from flatline.engine.action.planner import step as planner_step
from flatline.engine.ports import Record
from flatline.engine.roles import act, hearing, plan, reading
from flatline.engine.wire.control import UNREADABLE
from flatline.engine.wire.order import Order, encode_order
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.topics import REJECTED, SCORES
from tests.simulation.acting_site import Site, acting_site, panic
from tests.unit.engine.roles.test_act import StallingDisk

# The alert of VM 0 always raises.
POISON = f"{0:032x}"


def failing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises at its first call."""
    calls: list[int] = []

    def failing(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("a field that nobody thought of")
        return function(*args, **rest)

    return failing


async def reasons(site: Site) -> list[str]:
    """Return the reasons in `rejected`."""
    found: list[str] = []
    for partition in range(site.log.partitions(REJECTED.name)):
        records = await site.log.read_to_end(REJECTED.name, partition, offset=0)
        found += [decode_rejected(record.value).reason for record in records]
    return found


def played(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Play a scene on a site where VM 0 and VM 2 have panicked."""

    async def play() -> None:
        async with acting_site(panic(0), panic(2)) as site:
            await scene(site)

    virtual_time.run(play())


@pytest.mark.parametrize(
    ("spoilt", "outcome", "events"),
    [("judge", "refused", []), ("Permit", "unknown", ["action_unknown"])],
    ids=["before the call", "after the entry that precedes the call"],
)
def test_an_order_at_which_the_agent_fails_is_closed_by_the_worst_case_and_the_next_goes_on(
    spoilt: str, outcome: str, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act, spoilt, failing_once(getattr(act, spoilt)))

    async def scene(site: Site) -> None:
        agent = site.start_agent()
        await asyncio.sleep(20.0)
        site.start_planner()
        await site.say(site.alert(0))
        await asyncio.sleep(30.0)
        (mark,) = await site.marks()
        assert mark.outcome == outcome
        assert await site.acted() == events
        assert site.resets() == 0
        assert not agent.done()
        assert [one.detail.get("page") for one in await site.journal() if one.step == 0][-1]
        # The first counts as used, because its outcome is unknown.
        await asyncio.sleep(1_300.0)
        await site.say(site.alert(2))
        await site.until_reset(2)

    played(scene)


def test_an_order_whose_entry_in_the_ledger_fails_leaves_an_agent_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[int] = []

    def fail() -> None:
        if not failures:
            failures.append(1)
            raise RuntimeError("a disk that nobody thought of")

    async def scene(site: Site) -> None:
        agent = site.start_agent(wrap=lambda store: StallingDisk(store, fail, state="accepted"))
        await asyncio.sleep(20.0)
        site.start_planner()
        await site.say(site.alert(0))
        await asyncio.sleep(30.0)
        (mark,) = await site.marks()
        assert (mark.outcome, site.resets(), failures) == ("refused", 0, [1])
        assert not agent.done()

    played(scene)


def test_an_order_that_an_agent_cannot_count_is_set_aside_and_holds_back_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def logged(history: Any, order: Order, *args: Any, **rest: Any) -> Any:
        if order.incident == POISON:
            tried.append(order.incident)
            raise KeyError("a field that nobody thought of")
        return kept(history, order, *args, **rest)

    kept = admit.logged
    monkeypatch.setattr(reading, "logged", logged)
    read = reading.Reading.read
    agents: list[reading.Reading] = []

    async def noted(self: reading.Reading, record: Record) -> None:
        agents.append(self)
        await read(self, record)

    monkeypatch.setattr(reading.Reading, "read", noted)

    async def scene(site: Site) -> None:
        agent = site.start_agent()
        await asyncio.sleep(20.0)
        site.start_planner()
        await site.say(site.alert(0))
        await asyncio.sleep(5.0)
        assert tried == [POISON, POISON]
        assert await reasons(site) == ["poison"]
        (hold,) = agents[-1].controls.values()
        assert (hold.kind, hold.scope, hold.source, hold.active) == (
            "pause", "site", UNREADABLE, True,
        )  # fmt: skip
        await site.say(site.alert(2))
        await asyncio.sleep(30.0)
        assert site.resets() == 0
        assert not agent.done()

    played(scene)


def test_a_command_at_which_an_agent_fails_once_holds_as_it_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "hear_record", failing_once(hearing.hear_record))

    async def scene(site: Site) -> None:
        agent = site.start_agent()
        await asyncio.sleep(20.0)
        await site.control(kind="pause", scope="cell", subject="c0")
        await asyncio.sleep(5.0)
        assert await reasons(site) == []
        await site.control(kind="pause", scope="cell", subject="c0", active=False)
        site.start_planner()
        await site.say(site.alert(0))
        await site.until_reset(0)
        assert not agent.done()

    played(scene)


def test_an_alert_that_a_planner_fails_at_twice_is_set_aside_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    kept = planner_step

    def step(state: Any, event: Any, policy: Any) -> Any:
        if isinstance(event, AlertSeen) and event.alert.id == POISON:
            tried.append(event.alert.id)
            raise KeyError("a field that nobody thought of")
        return kept(state, event, policy)

    monkeypatch.setattr(plan, "step", step)

    async def scene(site: Site) -> None:
        planner = site.start_planner()
        await asyncio.sleep(20.0)
        await site.say(site.alert(0))
        await site.say(site.alert(2))
        await asyncio.sleep(5.0)
        assert tried == [POISON, POISON]
        assert await reasons(site) == ["poison"]
        assert [one.incident for one in await site.orders()] == [f"{2:032x}"]
        # A planner that starts later reads it again, also in the week that it learns from.
        await site.resolve(site.alert(0))
        again = site.start_planner("p2")
        await asyncio.sleep(5.0)
        assert not planner.done()
        assert not again.done()

    played(scene)


def test_a_record_whose_reading_raises_is_set_aside_by_a_planner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_scores(*_: Any, **__: Any) -> Any:
        raise KeyError("a field that nobody thought of")

    monkeypatch.setattr(plan, "open_scores", open_scores)

    async def scene(site: Site) -> None:
        planner = site.start_planner()
        await asyncio.sleep(5.0)
        await site.log.append(SCORES.name, key=b"c0", value=b"minute")
        await asyncio.sleep(5.0)
        assert await reasons(site) == ["poison"]
        assert not planner.done()

    played(scene)


def test_a_planner_that_cannot_begin_begins_with_the_next_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, calls = planner_step, list[int]()

    def step(state: Any, event: Any, policy: Any) -> Any:
        if isinstance(event, CaughtUp):
            calls.append(1)
            if len(calls) < 3:
                raise KeyError("a place that nobody thought of")
        return kept(state, event, policy)

    monkeypatch.setattr(plan, "step", step)

    async def scene(site: Site) -> None:
        await asyncio.sleep(20.0)
        await site.say(site.alert(0))
        site.start_planner()
        await asyncio.sleep(5.0)
        assert len(calls) == 3
        assert len(await site.orders()) == 1

    played(scene)


def test_a_command_of_a_planner_that_cannot_be_written_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "encode_order", failing_once(encode_order))

    async def scene(site: Site) -> None:
        planner = site.start_planner()
        await asyncio.sleep(20.0)
        await site.say(site.alert(0))
        await site.keep_firing(site.alert(0), seconds=180.0)
        assert [one.incident for one in await site.orders()] == [POISON]
        assert not planner.done()

    played(scene)

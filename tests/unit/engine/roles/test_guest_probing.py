"""Probe rounds: the agent's targets, its reports, and the signs in a preflight check."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from flatline.connectors.simulator import lifecycle, virtual_time
from flatline.engine import instruments
from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from flatline.engine.liveness_ports import ProbeAnswer
from flatline.engine.preflight_data import Card, ObservedGuest, Sign
from flatline.engine.wire.frame import Event, decode_frame
from flatline.engine.wire.topics import FRAMES
from tests.simulation.acting_site import Site, acting_site, panic
from tests.unit.engine.roles.test_act import only_result, ordered

CARD = Card("52:54:00:00:00:01", "virbr0")
NEIGHBOUR = Card("52:54:00:00:00:02", "virbr0")
Told = list[tuple[str, dict[str, str]]]


class Neighbourhood:
    """VM 0 as seen by its neighbours, its agent and its console; both ports in one.

    Another guest on its bridge answers as long as `others` names its card.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._watch = site.fleet.watch("c0-n0")
        self.vm = site.fleet.vm(0)
        self.probe: Sign = "answered"
        self.silent: frozenset[str] = frozenset()
        self.agent: Sign = "answered"
        self.text = "lab: up\n"
        self.shows: dict[str, Any] = {"cards": (CARD,), "agent_connected": True}
        self.others: tuple[Card, ...] = (NEIGHBOUR,)
        self.away = False
        self.known: dict[str, tuple[str, ...]] = {CARD.mac: ("192.0.2.7",)}
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.balloons: list[tuple[bytes, int]] = []
        self.refuses = False

    async def __aenter__(self) -> "Neighbourhood":
        return self

    async def __aexit__(self, *_error: object) -> None: ...

    async def roster(self) -> tuple[ObservedGuest, ...]:
        if self.away:
            raise HypervisorUnreachable("libvirtd is away")
        found = await self._watch.roster()
        (own,) = (one for one in found if one.vm == self.vm)
        other = replace(own, vm=bytes(15) + b"\x01", cards=self.others)
        return replace(own, **self.shows), other

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        return self.known

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        return self.agent

    async def console(self, vm: bytes) -> str:
        return self.text

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None:
        self.balloons.append((vm, period_s))
        if self.refuses:
            raise ActionRefused("not supported")

    async def ask(self, card: Card, addresses: Sequence[str], *, within_s: float) -> ProbeAnswer:
        if card in self.others:
            return ProbeAnswer("answered", address="192.0.2.8")
        self.asked.append((card.bridge, tuple(addresses)))
        if not addresses:
            return ProbeAnswer("unknown")
        return ProbeAnswer("silent" if card.mac in self.silent else self.probe, addresses[0])


def watched(
    scene: Callable[[Site, Neighbourhood], Coroutine[Any, Any, None]], *, balloons: bool = False
) -> None:
    """Play a scene on a site whose VM 0 panics at 60 s, with an agent that probes it."""

    async def played() -> None:
        async with acting_site(panic(at_s=60.0)) as site:
            around = Neighbourhood(site)
            agent = site.new_agent(watch=around, prober=around, sets_balloons=balloons)
            site.spawn(agent.run())
            await asyncio.sleep(55.0)
            await scene(site, around)

    virtual_time.run(played())


async def told(site: Site) -> Told:
    """Return the agent's events about VM 0 on the frames topic."""
    found: list[Event] = []
    for partition in range(site.log.partitions(FRAMES.name)):
        for record in await site.log.read_to_end(FRAMES.name, partition, offset=0):
            found += decode_frame(record.value).events
    return [(event.kind, event.detail) for event in found if event.vm == site.fleet.vm(0)]


def test_a_guest_that_dies_is_reported_silent_after_two_rounds_with_its_last_answer() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        assert await told(site) == [
            ("probe_answered", {"address": "192.0.2.7"}), ("agent_answered", {}),
        ]  # fmt: skip
        last_ms = site.clock.now_ms() - 5_000
        around.probe = around.agent = "silent"
        await asyncio.sleep(20.0)
        probe, agent = (await told(site))[2:]
        assert (probe[0], agent[0]) == ("probe_silent", "agent_silent")
        assert abs(int(probe[1]["last_answer_ms"]) - last_ms) <= 1_000
        await asyncio.sleep(300.0)
        assert len(await told(site)) == 4

    watched(scene)


def test_a_guest_that_answers_during_the_check_is_not_reset() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        await asyncio.sleep(40.0)
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "refused"
        assert mark.sentence == (
            "Refused: the VM is alive: it answered a probe during the preflight check."
        )
        assert not site.resets()

    watched(scene)


def test_a_guest_whose_agent_answers_during_the_check_is_not_reset() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        around.probe = "silent"
        await asyncio.sleep(40.0)
        await ordered(site)
        mark = await only_result(site)
        assert "it answered the guest agent" in mark.sentence
        assert not site.resets()

    watched(scene)


def test_a_guest_that_fell_silent_is_reset_on_that_witness_alone() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        world = site.fleet.world
        await asyncio.sleep(10.0)
        world.guests.reported_s[0] = -float("inf")  # its balloon is no witness
        around.probe, around.shows["agent_connected"] = "silent", False
        await asyncio.sleep(30.0)
        await ordered(site)
        await site.until_reset()
        assert await site.said("witnesses: activity, probe.")

    watched(scene)


@pytest.mark.parametrize(
    "others", [(), (NEIGHBOUR._replace(bridge="virbr1"),)], ids=["alone", "on another bridge"]
)
def test_silence_on_a_bridge_where_nobody_else_answers_is_no_witness(
    others: tuple[Card, ...],
) -> None:
    """A bridge that is down loses the guest's traffic and its answers alike."""

    async def scene(site: Site, around: Neighbourhood) -> None:
        around.others = others
        await asyncio.sleep(30.0)
        site.fleet.world.guests.reported_s[0] = -float("inf")
        around.probe, around.shows["agent_connected"] = "silent", False
        await asyncio.sleep(40.0)
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert not site.resets()
        assert "probe_silent" not in dict(await told(site))

    watched(scene)


def test_a_guest_of_two_cards_is_silent_only_where_neither_answers() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        second = Card("52:54:00:00:00:03", "virbr0")
        around.shows["cards"], around.known[second.mac] = (CARD, second), ("192.0.2.9",)
        around.silent = frozenset({CARD.mac})
        await asyncio.sleep(40.0)
        assert "probe_silent" not in dict(await told(site))
        around.silent = frozenset({CARD.mac, second.mac})
        await asyncio.sleep(30.0)
        assert "probe_silent" in dict(await told(site))

    watched(scene)


def test_a_guest_that_never_answered_has_no_witness_in_its_silence() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        await asyncio.sleep(40.0)
        site.fleet.world.guests.reported_s[0] = -float("inf")
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert "no probe has answered before" in mark.sentence
        assert not site.resets()

    async def played() -> None:
        async with acting_site(panic(at_s=60.0)) as site:
            around = Neighbourhood(site)
            around.probe, around.shows["agent_connected"] = "silent", False
            site.spawn(site.new_agent(watch=around, prober=around).run())
            await asyncio.sleep(55.0)
            await scene(site, around)

    virtual_time.run(played())


def test_a_panic_on_the_console_is_reported_once_with_its_line() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        around.text += "[ 9.9] Kernel panic - not syncing: Fatal exception\n"
        await asyncio.sleep(30.0)
        lines = [detail["line"] for kind, detail in await told(site) if kind == "console_panic"]
        assert lines == ["Kernel panic - not syncing: Fatal exception"]

    async def played() -> None:
        async with acting_site(panic(at_s=60.0)) as site:
            around = Neighbourhood(site)
            around.shows["has_console"] = True
            site.spawn(site.new_agent(watch=around, prober=around).run())
            await asyncio.sleep(55.0)
            await scene(site, around)

    virtual_time.run(played())


def test_a_balloon_without_a_period_is_given_one_once_and_only_where_that_is_asked_for() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        around.shows["balloon_period_s"] = 0
        await asyncio.sleep(60.0)
        assert around.balloons == [(around.vm, 10)]
        vm = str(UUID(bytes=around.vm))
        assert await site.said(f"The balloon of {vm} had no statistics period. It now reports")
        around.refuses = True
        world = site.fleet.world
        lifecycle.stop(world, 0)
        lifecycle.start(world, 0, by="its owner")
        await asyncio.sleep(60.0)
        assert len(around.balloons) == 2
        assert await site.said("setting one failed: not supported")

    async def left_alone(site: Site, around: Neighbourhood) -> None:
        around.shows["balloon_period_s"] = 0
        await asyncio.sleep(60.0)
        assert around.balloons == []

    watched(scene, balloons=True)
    watched(left_alone)


def test_a_balloon_that_has_a_period_or_is_none_is_left_alone() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        await asyncio.sleep(30.0)
        around.shows["balloon_period_s"] = None
        await asyncio.sleep(30.0)
        assert around.balloons == []

    watched(scene, balloons=True)


def test_a_guest_without_card_or_address_is_not_asked() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        before = len(around.asked)
        around.shows["cards"] = ()
        await asyncio.sleep(30.0)
        assert len(around.asked) == before

    watched(scene)


def test_a_hypervisor_that_is_away_makes_nobody_silent_and_ends_nothing() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        around.away = True
        await asyncio.sleep(60.0)
        assert [kind for kind, _ in await told(site)] == ["probe_answered", "agent_answered"]
        assert not site.health["c0-n0"].ready().ok
        around.away = False
        await asyncio.sleep(20.0)
        assert site.health["c0-n0"].ready().ok

    watched(scene)


def unread(channel: str) -> float:
    return float(instruments.SIGNS_UNREAD.labels(channel)._value.get())


def test_an_answer_that_cannot_be_understood_is_no_silence_and_is_counted_and_logged_once() -> None:
    async def scene(site: Site, around: Neighbourhood) -> None:
        around.others = ()

        async def broken(*_words: Any, **_named: Any) -> Any:
            raise RuntimeError("what is this")

        around.ask = around.ping_agent = around.console = broken  # type: ignore[method-assign]
        around.shows["has_console"] = True
        before = {channel: unread(channel) for channel in ("probe", "agent", "console")}
        with capture_logs() as lines:
            await asyncio.sleep(60.0)
        assert [kind for kind, _ in await told(site)] == ["probe_answered", "agent_answered"]
        for channel, count in before.items():
            assert unread(channel) >= count + 5
        logged = [line["channel"] for line in lines if "sign of life" in line["event"]]
        assert sorted(logged) == ["agent", "console", "probe"]

    watched(scene)

"""Conditions for an action: control commands, dates and preflight checks that are still valid."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

import msgspec
import pytest

from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.simulator import lifecycle, virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.engine.preflight_data import Permit
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.topics import CONTROL
from tests.simulation.acting_site import LAB, Site, acting_site, panic
from tests.unit.engine.action.samples import order as sample_order
from tests.unit.engine.action.samples import past
from tests.unit.engine.roles.test_act import LeapingClock, dead_vm, only_result, ordered


def test_a_node_whose_clock_is_behind_the_log_s_revives_no_expired_order() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            agent = site.start_agent()
            await asyncio.sleep(20.0)
            await site.stop(agent)
            await ordered(site)
            await asyncio.sleep(600.0)
            await site.control(kind="silence", scope="cell", subject="c8")
            slow = LeapingClock(site.clock)
            slow.wall_s = -600
            site.clock = slow
            site.start_agent()
            mark = await only_result(site)
            assert mark.outcome == "not_attempted"
            assert mark.sentence.startswith("The clock of this node is 600 s behind the log")
            assert not site.resets()

    virtual_time.run(played())


@pytest.mark.parametrize("kind", ["pause", "maintenance", "quarantine"])
def test_a_command_older_than_the_agent_holds(kind: str) -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            await site.control(kind=kind, scope="cell", subject="c0")
            site.start_agent()
            await asyncio.sleep(20.0)
            # A planner that had not read the command yet.
            said = site.alert()
            given = sample_order(
                vm=said.subject,
                group=said.group,
                instance=said.instance,
                node="c0-n0",
                opened_ms=said.opened_ms,
            )
            ago_s = (given.issued_ms - site.clock.now_ms()) / 1000
            await site.order(past(given, ago_s=ago_s))
            mark = await only_result(site)
            assert mark.outcome == "not_attempted"
            assert mark.sentence.startswith("Cell c0 is ")
            assert not site.resets()

    virtual_time.run(played())


class NotingActuator(SimulatedActuator):
    """A hypervisor that records the permit of each reset."""

    permits: ClassVar[list[Permit | None]] = []

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        self.permits.append(permit)
        await super().reset(vm, permit=permit)


@pytest.mark.parametrize(
    ("look_gap_s", "left_s"), [(6.0, 3.9), (4.0, 5.0)], ids=["of the check", "of the barrier"]
)
def test_a_call_is_permitted_for_what_is_left_and_for_the_run_that_was_judged(
    look_gap_s: float, left_s: float
) -> None:
    limits = msgspec.structs.replace(LAB.limits, look_gap_s=look_gap_s)

    async def played() -> None:
        NotingActuator.permits.clear()
        policy = msgspec.structs.replace(LAB, limits=limits)
        async with acting_site(panic(), policy=policy) as site:
            site.actuators["c0-n0"] = NotingActuator(site.fleet.world, "c0-n0")
            site.start_agent()
            await asyncio.sleep(20.0)
            await ordered(site)
            await site.until_reset()
            (permit,) = NotingActuator.permits
            assert permit is not None
            assert permit.instance == (await site.orders())[0].instance
            assert left_s - 0.5 < permit.within_s <= left_s + 0.01

    virtual_time.run(played())


def newer(command: Control) -> bytes:
    return encode_control(command).replace(b"{", b'{"v":2,', 1)


def of_a_new_scope(command: Control) -> bytes:
    return encode_control(command).replace(b'"scope":"cell"', b'"scope":"rack"')


def cut_short(command: Control) -> bytes:
    return encode_control(command)[:-3]


@pytest.mark.parametrize("bytes_of", [newer, of_a_new_scope, cut_short, lambda _word: b""])
def test_a_command_of_control_that_cannot_be_read_holds_as_a_pause_until_its_key_is_written_anew(
    bytes_of: Callable[[Control], bytes],
) -> None:
    async def scene(site: Site) -> None:
        command = Control(
            kind="pause",
            scope="cell",
            subject="c7",
            active=True,
            by="ann",
            reason="work",
            time_ms=site.clock.now_ms(),
        )
        await ordered(site)
        await asyncio.sleep(2.0)
        await site.log.append(CONTROL.name, key=command.key(), value=bytes_of(command))
        mark = await only_result(site)
        assert mark.outcome == "not_attempted"
        assert mark.sentence.startswith(
            "Site is paused by an unreadable control record that counts as a pause: key "
            "'pause/cell/c7/'"
        )
        assert not site.resets()
        await site.control(kind="pause", scope="cell", subject="c7")
        await asyncio.sleep(1_900.0)
        planner = site.start_planner("p2")
        await site.say(site.alert(opened_ms=site.clock.now_ms() - 20_000))
        await site.until_reset()
        await site.stop(planner)

    dead_vm(scene)


def test_a_forged_approval_approves_nothing_and_pauses_nothing() -> None:
    async def scene(site: Site) -> None:
        await site.anybody(kind="approval", scope="vm", subject="0" * 32)
        await ordered(site)
        mark = await only_result(site)
        assert mark.outcome == "returned"
        assert await site.said("requires an operator key")

    dead_vm(scene)


class OwnerResetsWhenSent(EmbeddedLedger):
    """A ledger whose VM is reset by its owner during the entry before the call."""

    def __init__(self, site: Site) -> None:
        super().__init__(None)
        self._site = site

    def append(self, entry: bytes) -> None:
        super().append(entry)
        if b'"state":"sent"' in entry:
            self._site.fleet.world.sync()
            lifecycle.boot(self._site.fleet.world, 0, by="its owner")


def test_a_guest_that_its_owner_reset_right_before_the_call_is_left_alone() -> None:
    async def played() -> None:
        async with acting_site(panic()) as site:
            site.start_agent(wrap=lambda _store: OwnerResetsWhenSent(site))
            await asyncio.sleep(20.0)
            await ordered(site)
            mark = await only_result(site)
            assert mark.outcome == "refused"
            assert "the VM was reset or rebooted during the preflight check" in mark.sentence
            assert not site.resets()

    virtual_time.run(played())


def test_an_order_that_names_another_tenant_than_the_live_definition_is_refused() -> None:
    """A forged inventory item does not enable orders for an observe-only tenant's VM."""

    async def scene(site: Site) -> None:
        planner = site.start_planner()
        await site.say(site.alert(tenant="forged"))
        await asyncio.sleep(0.5)
        await site.stop(planner)
        mark = await only_result(site)
        assert mark.outcome == "refused"
        assert "the order names tenant 'forged'" in mark.sentence
        assert not site.resets()

    dead_vm(scene)

"""libvirt, the simulator and the fleet of the seeded runs describe a guest in the same way."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import msgspec
import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.libvirt.actuator import LibvirtActuator
from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.inventory import NAMESPACE
from flatline.connectors.simulator import lifecycle, virtual_time
from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.preflight_data import Permit, PreflightSample
from tests.contracts.preflight.suite import CONDITIONS, PreflightContract
from tests.simulation.faulty_ports import Faults, Hands, Process
from tests.simulation.truthful_fleet import small_fleet
from tests.unit.connectors.libvirt.scripted import FULL, ScriptedDomain, ScriptedLibrary

LIFECYCLE, REBOOT, CRASHED_EVENT, PANICKED = 0, 1, 8, 0


def tagged(*, tenant: str = "acme", group: str = "web", actionable: str = "yes") -> str:
    marks = f"tenant='{tenant}' group='{group}' actionable='{actionable}'"
    return f"<metadata><f:vm xmlns:f='{NAMESPACE}' {marks}/></metadata>"


class ScriptedHarness:
    """libvirt's adapter over a scripted libvirt."""

    def __init__(self) -> None:
        self.library = ScriptedLibrary()
        self.guest = self.library.vms[0]
        self.guest.inside = tagged()
        self.guest.full |= {"state.reason": 1, "block.0.rd.bytes": 512}
        self.vm = self.guest.uuid
        self.actuator = LibvirtActuator(library=cast(Library, self.library))

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            async with self.actuator:
                await scene()

        asyncio.run(played())

    def tell(self, event: int, *words: int) -> None:
        callback = self.library.connections[0].callbacks[event]
        callback(self.library.connections[0], ScriptedDomain(self.guest), *words, None)

    async def make(self, condition: str) -> None:
        guest = self.guest
        await self.sample()
        match condition:
            case "crashed":
                guest.full |= {"state.state": 6, "state.reason": 1}
            case "told of its crash":
                self.tell(LIFECYCLE, CRASHED_EVENT, PANICKED)
            case "paused by a person":
                guest.full |= {"state.state": 3, "state.reason": 1}
            case "monitor silent":
                guest.taken.acquire(blocking=True)
            case "a job":
                guest.job = 2
            case "opted out":
                guest.inside = tagged(actionable="no")
            case "of another owner":
                guest.inside = tagged(tenant="bmce", group="other")
            case "a device without counters":
                guest.inside += "<devices><hostdev/></devices>"
            case "interrupts counted":
                names = ("irq_injections", "io_exits", "mmio_exits")
                counts = dict(
                    zip((f"vcpu.0.{name}.sum" for name in names), (70, 10, 20), strict=True)
                )
                guest.full |= counts
            case "a balloon that reports":
                guest.inside += (
                    "<devices><memballoon model='virtio'><stats period='5'/></memballoon></devices>"
                )
                guest.full |= {"balloon.last-update": 1_789_999_995}
            case _:
                raise AssertionError(condition)

    async def sample(self) -> PreflightSample:
        return await self.actuator.sample(self.vm)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def boot_from_outside(self) -> None:
        self.tell(REBOOT)

    async def reset(self, permit: Permit) -> None:
        await self.actuator.reset(self.vm, permit=permit)

    def resets(self) -> int:
        return self.guest.done.count("reset")


class SimulatedHarness:
    """The adapter of the simulated site."""

    # A pinned guest that reports its memory every 5 s.
    lane = 1

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            plan = WorldPlan(seed=7, vms_per_node=5, pinned={self.lane: "database"})
            self.fleet = build_world(plan, LoopClock(epoch_ms=1_790_000_000_000))
            self.world = self.fleet.world
            self.actuator: SimulatedActuator = self.fleet.actuator(self.fleet.nodes[0])
            self.vm = self.fleet.vm(self.lane)
            await asyncio.sleep(1.0)
            await scene()

        virtual_time.run(played())

    async def make(self, condition: str) -> None:
        world, index = self.world, self.lane
        world.sync()
        match condition:
            case "crashed":
                world.topology.panic_device[index] = True
                lifecycle.panic(world, index, "panic_halt", spin_cores=0.0)
            case "told of its crash":
                world.topology.panic_device[index] = True
                lifecycle.panic(world, index, "panic_spin", spin_cores=1.0, is_stopped=False)
            case "paused by a person":
                lifecycle.pause(world, index)
            case "monitor silent":
                world.guests.silent_since_s[index] = 0.0
            case "a job":
                world.guests.job[index] = True
            case "opted out":
                self._relabel(actionable=False)
            case "of another owner":
                self._relabel(tenant="bmce", group="other")
            case "a balloon that reports":
                world.guests.reported_s[index] = -5.0
            case _:
                raise AssertionError(condition)

    def _relabel(self, **changes: object) -> None:
        topology, item = self.world.topology, self.world.topology.item
        topology.item = lambda index: msgspec.structs.replace(  # type: ignore[method-assign]
            item(index), **changes
        )

    async def sample(self) -> PreflightSample:
        return await self.actuator.sample(self.vm)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def boot_from_outside(self) -> None:
        self.world.sync()
        lifecycle.boot(self.world, self.lane, by="its owner")

    async def reset(self, permit: Permit) -> None:
        await self.actuator.reset(self.vm, permit=permit)

    def resets(self) -> int:
        return len(self.world.truth.calls("reset", vm=self.lane))


class FleetHarness:
    """The hypervisors of the seeded runs, whose guests support few conditions."""

    def __init__(self) -> None:
        self.fleet = small_fleet(random.Random(1))
        self.guest = self.fleet.guests[0]
        self.vm = self.guest.vm
        self.done = 0

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            process = Process("agent", Faults(random.Random(1)))

            def check(*_said: object) -> None:
                self.done += 1

            self.hands = Hands(self.fleet, self.guest.node, process, check)
            await scene()

        virtual_time.run(played())

    async def make(self, condition: str) -> None:
        match condition:
            case "a job":
                self.guest.job = True
            case "opted out":
                self.guest.opted_in = False
            case "of another owner":
                self.guest.tenant, self.guest.group = "bmce", "other"
            case "a balloon that reports":
                self.guest.turn("panic_spin", -5.0)
            case _:
                raise AssertionError(condition)

    async def sample(self) -> PreflightSample:
        return await self.hands.sample(self.vm)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def boot_from_outside(self) -> None:
        loop = asyncio.get_running_loop()
        self.fleet.boots(self.guest, loop.time(), loop.call_later)

    async def reset(self, permit: Permit) -> None:
        await self.hands.reset(self.vm, permit=permit)

    def resets(self) -> int:
        return self.done


class TestLibvirt(PreflightContract):
    knows = frozenset(CONDITIONS)

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHarness]:
        monkeypatch.setattr("flatline.connectors.libvirt.sight._HELD_TRIES", 0)
        harness = ScriptedHarness()
        yield harness
        harness.library.let_go()

    def test_a_count_that_one_vcpu_does_not_tell_is_unknown(self, harness: ScriptedHarness) -> None:
        async def scene() -> None:
            await harness.make("interrupts counted")
            harness.guest.full |= {"vcpu.maximum": 2, "vcpu.current": 2, "vcpu.1.time": 9}
            assert (await harness.sample()).kvm_irq_injections is None

        harness.play(scene)

    def test_what_was_heard_before_the_connection_ended_is_forgotten(
        self, harness: ScriptedHarness
    ) -> None:
        async def scene() -> None:
            await harness.make("told of its crash")
            first = await harness.sample()
            harness.library.connections[0].closed = True
            second = await harness.sample()
            assert (first.reported, second.reported) == ("panicked", None)
            assert first.reported_ns is not None
            assert second.reported_ns is None
            assert second.boots_seen != first.boots_seen

        harness.play(scene)

    def test_a_guest_that_boots_takes_its_report_back(self, harness: ScriptedHarness) -> None:
        async def scene() -> None:
            await harness.make("told of its crash")
            await harness.boot_from_outside()
            assert (await harness.sample()).reported is None

        harness.play(scene)

    def test_a_state_without_a_reason_is_of_unknown_reason(self, harness: ScriptedHarness) -> None:
        async def scene() -> None:
            harness.guest.full = {k: v for k, v in FULL.items() if k != "state.reason"}
            assert (await harness.sample()).state_reason == "unknown"

        harness.play(scene)


class TestSimulator(PreflightContract):
    knows = frozenset(CONDITIONS) - {"a device without counters", "interrupts counted"}

    @pytest.fixture
    def harness(self) -> SimulatedHarness:
        return SimulatedHarness()


class TestFleetOfSeededRuns(PreflightContract):
    knows = frozenset({"a job", "opted out", "of another owner", "a balloon that reports"})

    @pytest.fixture
    def harness(self) -> FleetHarness:
        return FleetHarness()

"""libvirt, the simulator and the packet sockets keep the promises of the guest probing ports."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.heard import Heard
from flatline.connectors.libvirt.inventory import NAMESPACE
from flatline.connectors.libvirt.liveness import LibvirtLiveness
from flatline.connectors.probe import prober as probing
from flatline.connectors.probe.packets import ETH_ARP
from flatline.connectors.probe.prober import BridgeProber, NoProber
from flatline.connectors.simulator import lifecycle, virtual_time
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.liveness import SimulatedLiveness
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.liveness_ports import ProbeAnswer, Prober
from tests.contracts.signs.suite import CARD, LivenessContract, ProberContract
from tests.unit.connectors.libvirt.scripted import ScriptedError, ScriptedLibrary
from tests.unit.connectors.probe.test_packets import ARP_REPLY, packet
from tests.unit.connectors.probe.test_prober import Wire


def _no_agent(domain: object, *, within_s: int) -> None:
    raise ScriptedError(74, "agent is not configured")


class ScriptedNode:
    def __init__(self) -> None:
        self.library = ScriptedLibrary(vms=2)
        guest = self.library.vms[0]
        marks = f"<f:vm xmlns:f='{NAMESPACE}' actionable='yes'/>"
        guest.inside = f"<metadata>{marks}</metadata><devices><memballoon/></devices>"
        guest.full |= {"vcpu.0.delay": 6}
        self.vm = guest.uuid
        self.heard = Heard()
        self.heard.begin()
        self.watch = LibvirtLiveness(
            uri="test",
            heard=self.heard,
            library=cast(Library, self.library),
            neighbours=Path("/nowhere"),
            ping=_no_agent,
        )

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            async with self.watch:
                await scene()

        asyncio.run(played())

    async def boot(self) -> None:
        self.heard.add("rebooted", vm=self.vm)

    async def work(self) -> None:
        self.library.vms[0].full["block.0.wr.reqs"] += 1


class SimulatedNode:
    lane = 1

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            plan = WorldPlan(seed=7, vms_per_node=5, pinned={self.lane: "database"})
            fleet = build_world(plan, LoopClock(epoch_ms=1_790_000_000_000))
            self.world, self.vm = fleet.world, fleet.vm(self.lane)
            topology, item = self.world.topology, self.world.topology.item
            topology.item = lambda index: msgspec.structs.replace(  # type: ignore[method-assign]
                item(index), actionable=index == self.lane
            )
            self.watch: SimulatedLiveness = fleet.watch(fleet.nodes[0])
            await asyncio.sleep(1.0)
            await scene()

        virtual_time.run(played())

    async def boot(self) -> None:
        self.world.sync()
        lifecycle.boot(self.world, self.lane, by="its owner")

    async def work(self) -> None:
        await asyncio.sleep(10.0)


class TestLibvirt(LivenessContract):
    @pytest.fixture
    def node(self) -> Iterator[ScriptedNode]:
        node = ScriptedNode()
        yield node
        node.library.let_go()


class TestSimulator(LivenessContract):
    @pytest.fixture
    def node(self) -> SimulatedNode:
        return SimulatedNode()


class TestPacketSockets(ProberContract):
    answers = ProbeAnswer("answered")

    @pytest.fixture
    def prober(self, monkeypatch: pytest.MonkeyPatch) -> BridgeProber:
        monkeypatch.setattr(probing, "_PAUSE_S", 0.01)
        wire = Wire(lambda kind, _number: packet(ARP_REPLY) if kind == ETH_ARP else None)
        return BridgeProber(wire.open)

    def ask(self, prober: Prober, *addresses: str) -> ProbeAnswer:
        return asyncio.run(_asked(prober, addresses))


class TestNoProber(ProberContract):
    @pytest.fixture
    def prober(self) -> NoProber:
        return NoProber("the capability CAP_NET_RAW is missing")

    def ask(self, prober: Prober, *addresses: str) -> ProbeAnswer:
        return asyncio.run(_asked(prober, addresses))


async def _asked(prober: Prober, addresses: tuple[str, ...]) -> ProbeAnswer:
    return await prober.ask(CARD, addresses, within_s=5.0)

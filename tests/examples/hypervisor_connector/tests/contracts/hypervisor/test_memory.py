"""A host in memory keeps every promise of the ports, and settings choose it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from flatline.connectors.memory.actuator import MemoryActuator
from flatline.connectors.memory.host import Host
from flatline.connectors.memory.hypervisor import MemoryEvidence, MemoryHypervisor
from flatline.connectors.memory.liveness import MemoryLiveness

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator import virtual_time
from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.settings import load_settings
from flatline.engine.wiring_nodes import this_node
from tests.contracts.hypervisor.suite import (
    ActuatorContract,
    EvidenceContract,
    GuestRebootContract,
    HypervisorContract,
)
from tests.contracts.preflight.suite import PreflightContract
from tests.contracts.signs.suite import LivenessContract

VM = (1).to_bytes(16, "big")


def two_hosts(vms: int) -> tuple[Host, Host]:
    clock = LoopClock(epoch_ms=1_790_000_000_000)
    here = Host("here", clock)
    here.run(vms)
    return here, Host("there", clock, here.peers)


class MemoryLab:
    vm = VM
    target = "there"

    def __init__(self) -> None:
        here, there = two_hosts(3)
        self.hypervisor, self.actuator = MemoryHypervisor(here), MemoryActuator(here)
        self.evidence = MemoryEvidence(here)
        self.target_hypervisor, self.target_actuator = (
            MemoryHypervisor(there),
            MemoryActuator(there),
        )

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TestHost(HypervisorContract, ActuatorContract, GuestRebootContract, EvidenceContract):
    @pytest_asyncio.fixture
    async def lab(self) -> AsyncIterator[MemoryLab]:
        yield MemoryLab()


class MemoryHarness:
    """One guest, as the suites of `PreflightSample` and `Liveness` want it."""

    vm = VM

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def played() -> None:
            self.host, _ = two_hosts(1)
            self.guest = self.host.find(VM)
            self.actuator, self.watch = MemoryActuator(self.host), MemoryLiveness(self.host)
            await scene()

        virtual_time.run(played())

    async def make(self, condition: str) -> None:
        match condition:
            case "opted out":
                self.guest.actionable = False
            case "of another owner":
                self.guest.tenant, self.guest.group = "bmce", "other"
            case _:
                raise AssertionError(condition)

    async def sample(self) -> PreflightSample:
        return await self.actuator.sample(VM)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def boot(self) -> None:
        self.host.boot(self.guest)

    async def boot_from_outside(self) -> None:
        self.host.boot(self.guest)

    async def work(self) -> None:
        await asyncio.sleep(1.0)

    async def reset(self, permit: Permit) -> None:
        await self.actuator.reset(VM, permit=permit)

    def resets(self) -> int:
        return self.guest.boots


class TestLook(PreflightContract):
    knows = frozenset({"opted out", "of another owner"})

    @pytest.fixture
    def harness(self) -> MemoryHarness:
        return MemoryHarness()


class TestLiveness(LivenessContract):
    @pytest.fixture
    def node(self) -> MemoryHarness:
        return MemoryHarness()


@pytest.mark.asyncio
async def test_settings_choose_it_and_collector_and_agent_see_the_same_vms() -> None:
    flags = {"hypervisor.kind": "memory", "hypervisor.memory_vms": "2", "site.node": "n1"}
    node = this_node(load_settings(flags=flags)[0])
    async with node.hypervisor() as hypervisor, node.actuator() as actuator:
        sample = await hypervisor.sample()
        assert len(sample.rows) == 2
        assert (await actuator.sample(sample.rows.vm(1))).state == "running"

"""The simulated site keeps every promise of the ports, in virtual_time."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.plan import FIELD, Telemetry, WorldPlan
from tests.contracts.hypervisor.suite import (
    ActuatorContract,
    EvidenceContract,
    GuestRebootContract,
    HypervisorContract,
)


class SimulatedLab:
    def __init__(self, fleet: Fleet) -> None:
        here, self.target = fleet.nodes[:2]
        self.vm = fleet.vm(1)
        self.hypervisor = fleet.hypervisor(here)
        self.actuator = fleet.actuator(here)
        self.evidence = fleet.evidence(here)
        self.target_hypervisor = fleet.hypervisor(self.target)
        self.target_actuator = fleet.actuator(self.target)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def lab_of(sight: Telemetry) -> SimulatedLab:
    plan = WorldPlan(seed=7, vms_per_node=5, pinned={1: "web"}, telemetry=sight)
    return SimulatedLab(build_world(plan, LoopClock(epoch_ms=1_790_000_000_000)))


class TestSeenPerfectly(
    HypervisorContract, ActuatorContract, GuestRebootContract, EvidenceContract
):
    @pytest_asyncio.fixture
    async def lab(self) -> AsyncIterator[SimulatedLab]:
        yield lab_of(Telemetry())


class TestSeenAsInTheField(
    HypervisorContract, ActuatorContract, GuestRebootContract, EvidenceContract
):
    @pytest_asyncio.fixture
    async def lab(self) -> AsyncIterator[SimulatedLab]:
        yield lab_of(FIELD)

"""Real libvirt keeps every promise of the ports."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.lab.libvirt_lab import Guest, Lab
from flatline.connectors.libvirt.actuator import LibvirtActuator
from flatline.connectors.libvirt.evidence import LibvirtEvidence
from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor
from tests.contracts.hypervisor.suite import (
    ActuatorContract,
    EvidenceContract,
    GuestRebootContract,
    HypervisorContract,
)
from tests.integration.libvirt.nodes import actuator_of, hypervisor_of, vm_of, writes

pytestmark = pytest.mark.libvirt


class RealLab:
    def __init__(
        self,
        vm: bytes,
        target: str,
        here: tuple[LibvirtHypervisor, LibvirtActuator],
        there: tuple[LibvirtHypervisor, LibvirtActuator],
        evidence: LibvirtEvidence,
    ) -> None:
        self.vm = vm
        self.target = target
        self.evidence = evidence
        self.hypervisor, self.actuator = here
        self.target_hypervisor, self.target_actuator = there

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TestLibvirt(HypervisorContract, ActuatorContract, GuestRebootContract, EvidenceContract):
    @pytest_asyncio.fixture
    async def lab(
        self, hypervisors: Lab, pair: tuple[Guest, Guest], tmp_path: Path
    ) -> AsyncIterator[RealLab]:
        # The shared guest is up again when a test begins, after any earlier test.
        guest = pair[0]
        node = await asyncio.to_thread(lambda: guest.hypervisor)
        vm = vm_of(hypervisors, guest.name, node)
        async with hypervisor_of(hypervisors, node) as earlier:
            await writes(earlier, vm)
        other = "b" if node == "a" else "a"
        async with (
            hypervisor_of(hypervisors, node) as hypervisor,
            actuator_of(hypervisors, node) as actuator,
            hypervisor_of(hypervisors, other) as target_hypervisor,
            actuator_of(hypervisors, other) as target_actuator,
            LibvirtEvidence(tmp_path, uri=hypervisors.uri(node)) as evidence,
        ):
            there = target_hypervisor, target_actuator
            yield RealLab(vm, other, (hypervisor, actuator), there, evidence)

"""Real libvirt keeps every promise of the ports."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from connectors.libvirt.evidence import LibvirtEvidence
from connectors.libvirt.hypervisor import LibvirtHypervisor
from connectors.libvirt.verbs import LibvirtVerbs
from deploy.lab.libvirt_lab import Guest, Lab
from tests.contracts.hypervisor.suite import (
    EvidenceContract,
    GuestRebootContract,
    HypervisorContract,
    VerbsContract,
)
from tests.integration.libvirt.nodes import hypervisor_of, verbs_of, vm_of, writes

pytestmark = pytest.mark.libvirt


class RealLab:
    def __init__(
        self,
        vm: bytes,
        target: str,
        here: tuple[LibvirtHypervisor, LibvirtVerbs],
        there: tuple[LibvirtHypervisor, LibvirtVerbs],
        evidence: LibvirtEvidence,
    ) -> None:
        self.vm = vm
        self.target = target
        self.evidence = evidence
        self.hypervisor, self.verbs = here
        self.target_hypervisor, self.target_verbs = there

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TestLibvirt(HypervisorContract, VerbsContract, GuestRebootContract, EvidenceContract):
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
            verbs_of(hypervisors, node) as verbs,
            hypervisor_of(hypervisors, other) as target_hypervisor,
            verbs_of(hypervisors, other) as target_verbs,
            LibvirtEvidence(tmp_path, uri=hypervisors.uri(node)) as evidence,
        ):
            there = target_hypervisor, target_verbs
            yield RealLab(vm, other, (hypervisor, verbs), there, evidence)

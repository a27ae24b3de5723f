"""Real libvirt keeps every promise of the ports."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from connectors.libvirt.hypervisor import LibvirtHypervisor
from connectors.libvirt.verbs import LibvirtVerbs
from deploy.lab.libvirt_lab import Guest, Lab
from tests.contracts.hypervisor.suite import GuestRebootContract, HypervisorContract, VerbsContract
from tests.integration.libvirt.nodes import hypervisor_of, verbs_of, vm_of, writes

pytestmark = pytest.mark.libvirt


class RealLab:
    def __init__(
        self,
        vm: bytes,
        target: str,
        here: tuple[LibvirtHypervisor, LibvirtVerbs],
        there: tuple[LibvirtHypervisor, LibvirtVerbs],
    ) -> None:
        self.vm = vm
        self.target = target
        self.hypervisor, self.verbs = here
        self.target_hypervisor, self.target_verbs = there

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TestLibvirt(HypervisorContract, VerbsContract, GuestRebootContract):
    @pytest_asyncio.fixture
    async def lab(self, hypervisors: Lab, pair: tuple[Guest, Guest]) -> AsyncIterator[RealLab]:
        # Whatever an earlier test did to the shared guest, it is up again when this one begins.
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
        ):
            yield RealLab(vm, other, (hypervisor, verbs), (target_hypervisor, target_verbs))

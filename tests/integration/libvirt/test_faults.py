"""Real faults through the adapter, and the effect of its actions on them."""

import asyncio

import pytest

from deploy.lab.libvirt_lab import Guests, Lab
from flatline.engine.ports import NodeSample
from flatline.engine.wire.metrics import VM_STATES
from tests.integration.libvirt.nodes import actuator_of, hears, hypervisor_of, known, vm_of, writes

pytestmark = [pytest.mark.libvirt, pytest.mark.asyncio]

RUNNING, CRASHED = VM_STATES.index("running"), VM_STATES.index("crashed")


def wanted_ns(sample: NodeSample, vm: bytes) -> int:
    """Return how long the VM has run or waited for a core, in ns."""
    ran, waited = (known(sample.rows, vm, name) for name in ("cpu_time_ns", "vcpu_delay_ns"))
    assert ran is not None
    assert waited is not None
    return ran + waited


async def test_a_panic_without_a_device_spins_in_silence_until_a_reset(
    hypervisors: Lab, guests: Guests
) -> None:
    guest = await asyncio.to_thread(guests.boot, "spinner", "--nic")
    vm = vm_of(hypervisors, guest.name, "a")
    async with hypervisor_of(hypervisors, "a") as node, actuator_of(hypervisors, "a") as actuator:
        await writes(node, vm)
        await asyncio.to_thread(guest.tell, "panic")
        await asyncio.sleep(1)
        before = await node.sample()
        looked = await actuator.sample(vm)
        node.drain_events()
        await asyncio.sleep(5)
        after = await node.sample()

        assert known(after.rows, vm, "state") == RUNNING
        # On a busy machine it gets less than the core it needs, but it always either runs or waits
        # to run.
        elapsed_ns = after.mono_ns - before.mono_ns
        assert wanted_ns(after, vm) - wanted_ns(before, vm) > 0.8 * elapsed_ns
        for name in ("block_wr_reqs", "net_tx_pkts"):
            assert known(after.rows, vm, name) == known(before.rows, vm, name)
        stamp_s = known(after.rows, vm, "balloon_last_update_s")
        assert stamp_s is not None
        assert after.event_time_ns / 1e9 - stamp_s > 5
        assert node.drain_events() == ()
        assert (await actuator.sample(vm)).block_wr_reqs == looked.block_wr_reqs

        await actuator.reset(vm)
        await hears(node, "rebooted", vm)
        await writes(node, vm)
        assert (await actuator.sample(vm)).instance == looked.instance


async def test_a_panic_device_reports_at_once_and_a_reset_resumes_the_vm(
    hypervisors: Lab, guests: Guests
) -> None:
    guest = await asyncio.to_thread(guests.boot, "device", "--pvpanic")
    vm = vm_of(hypervisors, guest.name, "a")
    async with hypervisor_of(hypervisors, "a") as node, actuator_of(hypervisors, "a") as actuator:
        await writes(node, vm)
        [item] = [item for item in await node.inventory() if item.vm == vm]
        assert item.panic_device
        node.drain_events()
        await asyncio.to_thread(guest.tell, "panic")
        await hears(node, "panicked", vm)
        assert known((await node.sample()).rows, vm, "state") == CRASHED
        assert (await actuator.sample(vm)).state == "crashed"

        await actuator.reset(vm)
        assert (await actuator.sample(vm)).state == "running"
        await writes(node, vm)


async def test_an_owner_who_switches_a_guest_off_is_heard_and_its_row_goes(
    hypervisors: Lab, guests: Guests
) -> None:
    guest = await asyncio.to_thread(guests.boot, "leaver")
    vm = vm_of(hypervisors, guest.name, "a")
    async with hypervisor_of(hypervisors, "a") as node, actuator_of(hypervisors, "a") as actuator:
        first = await node.sample()
        before = known(first.rows, vm, "instance")
        await asyncio.to_thread(guest.tell, "off")
        await hears(node, "stopped", vm)
        assert known((await node.sample()).rows, vm, "state") is None
        assert (await actuator.sample(vm)).state == "shut_off"
        await asyncio.to_thread(guest.start)
        await hears(node, "started", vm)
        after = known((await node.sample()).rows, vm, "instance")
        assert after is not None
        assert after != before

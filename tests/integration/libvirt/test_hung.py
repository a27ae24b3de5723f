"""One qemu, or libvirtd itself, stops answering: the others' interval, and the recovery.

The same with 60 s instead of 12: FLATLINE_HANG_S=60 in the environment.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab
from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Event
from tests.integration.libvirt.nodes import (
    Taken,
    actuator_of,
    gaps_s,
    hears,
    hypervisor_of,
    known,
    vm_of,
    writes,
)

pytestmark = [pytest.mark.libvirt, pytest.mark.asyncio]

INTERVAL_S = 2.0
JITTER_S = 1.0
HANG_S = float(os.environ.get("FLATLINE_HANG_S", "12"))
# The keepalive detects a suspended libvirtd after 20 s; only then is there anything to reopen.
FREEZE_S = max(HANG_S, 25.0)


@pytest.fixture(scope="module")
def four(hypervisors: Lab) -> Iterator[list[Guest]]:
    made = Guests(hypervisors)
    try:
        booting = [made.define(f"peer{number}") for number in range(4)]
        for guest in booting:
            guest.start()
        for guest in booting:
            guest.wait()
        yield booting
    finally:
        made.destroy()


@asynccontextmanager
async def collected(node: LibvirtHypervisor) -> AsyncIterator[list[Taken]]:
    """Sample every 2 s inside the block, like the collector, in spite of any failure."""
    turns: list[Taken] = []

    async def turn_by_turn() -> None:
        due = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                sample = await node.sample()
            except HypervisorUnreachable:
                turns.append(Taken(time.monotonic(), None))
            else:
                turns.append(Taken(time.monotonic(), sample))
            due = max(due + INTERVAL_S, time.monotonic())

    async with asyncio.TaskGroup() as group:
        task = group.create_task(turn_by_turn())
        try:
            yield turns
        finally:
            task.cancel()


def last_of(turns: list[Taken]) -> NodeSample:
    sample = turns[-1].sample
    assert sample is not None
    return sample


def threads() -> int:
    return sum(thread.name.startswith("libvirt-") for thread in threading.enumerate())


def kinds_about(events: list[Event], vm: bytes | None) -> list[str]:
    return [event.kind for event in events if event.vm == vm]


async def test_a_stopped_qemu_delays_nobody_and_is_reported(
    hypervisors: Lab, four: list[Guest]
) -> None:
    victim, *others = [vm_of(hypervisors, guest.name, "a") for guest in four]
    qemu_pid = four[0].qemu_pid
    async with hypervisor_of(hypervisors, "a") as node:
        for vm in (victim, *others):
            await writes(node, vm)
        node.drain_events()
        async with collected(node) as turns:
            await asyncio.sleep(2 * INTERVAL_S)
            healthy = last_of(turns)
            with hypervisors.frozen(qemu_pid):
                await asyncio.sleep(HANG_S)
                hung, most_threads = last_of(turns), threads()
            await asyncio.sleep(3 * INTERVAL_S)
            back = last_of(turns)

        assert all(turn.sample is not None for turn in turns)
        assert max(abs(gap - INTERVAL_S) for gap in gaps_s(turns)) < JITTER_S
        # The event loop, the stuck call, and at most one more running call.
        assert most_threads <= 3
        assert hung.hung == (victim,)
        assert known(hung.rows, victim, "cpu_time_ns") is not None
        assert known(hung.rows, victim, "block_wr_reqs") is None
        assert known(hung.rows, victim, "balloon_last_update_s") is None
        for vm in others:
            before = known(healthy.rows, vm, "block_wr_reqs")
            meanwhile = known(hung.rows, vm, "block_wr_reqs")
            assert before is not None
            assert meanwhile is not None
            assert meanwhile > before
        assert back.hung == ()
        assert known(back.rows, victim, "block_wr_reqs") is not None
        reported = kinds_about([*node.drain_events()], victim)
        assert reported == ["monitor_hung", "monitor_back"]


async def test_a_frozen_libvirtd_is_unreachable_and_is_back_at_once_with_its_events(
    hypervisors: Lab, four: list[Guest]
) -> None:
    vm = vm_of(hypervisors, four[1].name, "a")
    libvirtd_pid = hypervisors.pid("a")
    async with hypervisor_of(hypervisors, "a") as node, actuator_of(hypervisors, "a") as actuator:
        await node.sample()
        async with collected(node) as turns:
            with hypervisors.frozen(libvirtd_pid):
                await asyncio.sleep(1)
                frozen_s = time.monotonic()
                await asyncio.sleep(FREEZE_S)
                thawed_s = time.monotonic()
            await asyncio.sleep(8 * INTERVAL_S)

        assert [t for t in turns if frozen_s < t.at_s < thawed_s and t.sample is not None] == []
        back_s = min(t.at_s for t in turns if t.at_s > thawed_s and t.sample is not None)
        assert back_s - thawed_s < 15
        assert last_of(turns).hung == ()
        assert known(last_of(turns).rows, vm, "block_wr_reqs") is not None
        assert threads() <= 2
        reported = kinds_about([*node.drain_events()], None)
        assert reported == ["hypervisor_lost", "hypervisor_back"]
        await actuator.reset(vm)
        await hears(node, "rebooted", vm)


async def test_a_killed_libvirtd_is_found_again_with_its_vms_instances_and_events(
    hypervisors: Lab, four: list[Guest]
) -> None:
    vm = vm_of(hypervisors, four[2].name, "a")
    async with hypervisor_of(hypervisors, "a") as node, actuator_of(hypervisors, "a") as actuator:
        before = known((await node.sample()).rows, vm, "instance")
        async with collected(node) as turns:
            await asyncio.to_thread(hypervisors.kill, "a")
            await asyncio.sleep(INTERVAL_S + 1)
            lost = turns[-1]
            await asyncio.to_thread(hypervisors.start, "a")
            await asyncio.sleep(8 * INTERVAL_S)
        assert lost.sample is None
        assert known(last_of(turns).rows, vm, "instance") == before
        await actuator.reset(vm)
        events = await hears(node, "rebooted", vm)
        assert kinds_about(events, None) == ["hypervisor_lost", "hypervisor_back"]


async def test_an_agent_gets_no_answer_about_a_hung_vm_and_then_none_about_its_disks(
    hypervisors: Lab, four: list[Guest]
) -> None:
    vm = vm_of(hypervisors, four[3].name, "a")
    qemu_pid = four[3].qemu_pid
    async with actuator_of(hypervisors, "a") as actuator:
        with hypervisors.frozen(qemu_pid):
            with pytest.raises(HypervisorUnreachable, match="no answer"):
                await actuator.sample(vm)
            sample = await actuator.sample(vm)
            assert (sample.monitor_answered, sample.job_active) == (False, None)
            assert sample.block_wr_reqs is None

"""A hung VM or libvirtd delays no other VM and is reported as such."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
import pytest_asyncio

from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor
from flatline.connectors.libvirt.polling import MAX_STUCK, Patience
from flatline.engine.errors import HypervisorStuck, HypervisorUnreachable
from flatline.engine.ports import NodeSample
from flatline.engine.wire.metrics import INTEGER_ROW
from tests.unit.connectors.libvirt.scripted import (
    ScriptedConnection,
    ScriptedError,
    ScriptedLibrary,
)

# As in the field, some ten times faster.
QUICK = Patience(second_call_s=0.05, answer_s=0.6, hung_s=0.0, silence_s=1.0)


@pytest.fixture
def library() -> Iterator[ScriptedLibrary]:
    library = ScriptedLibrary(vms=8)
    yield library
    library.let_go()


@pytest_asyncio.fixture
async def hypervisor(library: ScriptedLibrary) -> AsyncIterator[LibvirtHypervisor]:
    async with over(library) as hypervisor:
        yield hypervisor


def over(library: ScriptedLibrary, patience: Patience = QUICK) -> LibvirtHypervisor:
    return LibvirtHypervisor(library=cast(Library, library), patience=patience)


def known(sample: NodeSample, vm: bytes, name: str) -> int | None:
    place = next(i for i in range(len(sample.rows)) if sample.rows.vm(i) == vm)
    row = INTEGER_ROW[name]
    return int(sample.rows.integers[row, place]) if sample.rows.present()[row, place] else None


def kinds(hypervisor: LibvirtHypervisor) -> list[tuple[str, bytes | None]]:
    return [(event.kind, event.vm) for event in hypervisor.drain_events()]


@pytest.mark.asyncio
async def test_a_healthy_node_costs_one_bulk_call_a_sample(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    for _ in range(3):
        sample = await hypervisor.sample()
    assert library.bulk_calls == 3
    assert [sample.rows.vm(i) for i in range(8)] == [vm.uuid for vm in library.vms]
    assert sample.hung == ()
    assert sample.node["hypervisor_reachable"] == 1.0


@pytest.mark.asyncio
async def test_the_collectors_connections_are_read_only(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    await hypervisor.sample()
    await hypervisor.inventory()
    assert set(library.opened_read_only) == {True}


@pytest.mark.asyncio
async def test_a_hung_vm_keeps_its_row_and_the_others_their_counters(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    hung, other = library.vms[3], library.vms[5]
    hung.answers.clear()
    sample = await hypervisor.sample()
    assert sample.hung == (hung.uuid,)
    assert known(sample, hung.uuid, "cpu_time_ns") == 5
    assert known(sample, hung.uuid, "block_wr_reqs") is None
    assert known(sample, hung.uuid, "job_active") is None
    assert known(sample, other.uuid, "block_wr_reqs") == 3


@pytest.mark.asyncio
async def test_a_hung_vm_holds_one_thread_however_long_it_hangs(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    library.vms[3].answers.clear()
    await hypervisor.sample()
    begun = library.bulk_calls
    for _ in range(10):
        await hypervisor.sample()
    assert library.bulk_calls == begun + 10


@pytest.mark.asyncio
async def test_hanging_and_coming_back_are_reported_once_each(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    hung = library.vms[3]
    hung.answers.clear()
    for _ in range(3):
        await hypervisor.sample()
    assert kinds(hypervisor) == [("monitor_hung", hung.uuid)]
    hung.answers.set()
    # The stuck call's thread must run before the VM is free again.
    for _ in range(1000):
        if not (await hypervisor.sample()).hung:
            break
    await hypervisor.sample()
    assert kinds(hypervisor) == [("monitor_back", hung.uuid)]


@pytest.mark.asyncio
async def test_a_monitor_that_is_busy_for_a_moment_is_not_hung(library: ScriptedLibrary) -> None:
    patient = Patience(second_call_s=0.05, answer_s=0.6, hung_s=3600.0)
    async with over(library, patient) as hypervisor:
        library.vms[3].answers.clear()
        assert (await hypervisor.sample()).hung == ()
        assert (await hypervisor.sample()).hung == ()
        assert kinds(hypervisor) == []


@pytest.mark.asyncio
async def test_three_vms_that_hang_at_once_cost_no_sample(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    for vm in library.vms[:3]:
        vm.answers.clear()
    sample = await hypervisor.sample()
    assert sample.hung == tuple(vm.uuid for vm in library.vms[:3])
    assert library.bulk_calls == 4


@pytest.mark.asyncio
async def test_four_vms_that_hang_at_once_cost_one_sample_and_are_then_reported(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    for vm in library.vms[:MAX_STUCK]:
        vm.answers.clear()
    with pytest.raises(HypervisorUnreachable, match="none of 4 calls"):
        await hypervisor.sample()
    for _ in range(3):
        sample = await hypervisor.sample()
    assert sample.hung == tuple(vm.uuid for vm in library.vms[:MAX_STUCK])


@pytest.mark.asyncio
async def test_a_fifth_vm_that_hangs_ends_the_process(library: ScriptedLibrary) -> None:
    async with over(library) as hypervisor:
        for vm in library.vms[:MAX_STUCK]:
            vm.answers.clear()
            await hypervisor.sample()
        library.vms[MAX_STUCK].answers.clear()
        with pytest.raises(HypervisorStuck, match="5 calls wait"):
            await hypervisor.sample()


@pytest.mark.asyncio
async def test_five_vms_that_hang_at_once_look_like_a_silent_libvirtd_until_patience_ends(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    for vm in library.vms[: MAX_STUCK + 1]:
        vm.answers.clear()
    with pytest.raises(HypervisorUnreachable, match="none of 4 calls"):
        await hypervisor.sample()
    with pytest.raises(HypervisorStuck, match="only keepalives"):
        await hypervisor.sample()


@pytest.mark.asyncio
async def test_a_vm_whose_lock_is_held_is_a_row_of_unknowns(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    migrating = library.vms[2]
    migrating.job = 2
    assert known(await hypervisor.sample(), migrating.uuid, "job_active") == 1
    # The end of a migration blocks even a call with NOWAIT that names the VM.
    migrating.taken = library.frozen_lock()
    sample = await hypervisor.sample()
    assert known(sample, migrating.uuid, "cpu_time_ns") is None
    assert known(sample, migrating.uuid, "instance") is not None
    assert known(sample, library.vms[0].uuid, "block_wr_reqs") == 3


@pytest.mark.asyncio
async def test_a_frozen_libvirtd_gets_five_calls_at_most_until_it_answers(
    library: ScriptedLibrary,
) -> None:
    patient = Patience(second_call_s=0.05, answer_s=0.4, hung_s=0.0, silence_s=3600.0)
    async with over(library, patient) as hypervisor:
        await hypervisor.sample()
        begun = library.bulk_calls
        library.frozen.clear()
        for _ in range(6):
            with pytest.raises(HypervisorUnreachable, match="none of"):
                await hypervisor.sample()
        assert library.bulk_calls == begun + MAX_STUCK + 1
        library.frozen.set()
        assert len((await hypervisor.sample()).rows) == 8


@pytest.mark.asyncio
async def test_an_unreachable_libvirtd_is_tried_again_after_a_while_only(
    library: ScriptedLibrary,
) -> None:
    library.refusal = ScriptedError(38, "Connection refused")
    async with over(library) as hypervisor:
        library.refusal = None
        with pytest.raises(HypervisorUnreachable, match=r"Connection refused\. Check that"):
            await hypervisor.sample()
    assert library.connections == []


@pytest.mark.asyncio
async def test_a_call_that_failed_with_its_connection_is_no_answer(
    library: ScriptedLibrary,
) -> None:
    patient = Patience(second_call_s=0.05, answer_s=0.4, hung_s=0.0, silence_s=3600.0)
    async with over(library, patient) as hypervisor:
        await hypervisor.sample()
        library.frozen.clear()
        with pytest.raises(HypervisorUnreachable, match="none of"):
            await hypervisor.sample()
        library.broken = ScriptedError(38, "keepalive timeout")
        library.frozen.set()
        for _ in range(6):
            with pytest.raises(HypervisorUnreachable, match="keepalive timeout"):
                await hypervisor.sample()


@pytest.mark.asyncio
async def test_events_are_heard_before_the_first_sample(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    fire_reboot(library.connections[0], library)
    assert kinds(hypervisor) == [("rebooted", library.vms[0].uuid)]


@pytest.mark.asyncio
async def test_a_lost_connection_is_opened_again_and_its_events_registered(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    await hypervisor.sample()
    listener = library.connections[0]
    assert listener.on_close is not None
    listener.on_close(listener, 2, None)
    await hypervisor.sample()
    events = hypervisor.drain_events()
    assert [event.kind for event in events] == ["hypervisor_lost", "hypervisor_back"]
    assert events[0].detail == {"reason": "keepalive timed out"}
    again = [c for c in library.connections if c.callbacks and c is not listener]
    assert len(again) == 1
    fire_reboot(again[0], library)
    assert kinds(hypervisor) == [("rebooted", library.vms[0].uuid)]


def fire_reboot(connection: ScriptedConnection, library: ScriptedLibrary) -> None:
    domain = connection.listAllDomains()[0]
    connection.callbacks[1](connection, domain, None)


@pytest.mark.asyncio
async def test_statistics_that_libvirtd_refuses_are_no_sample(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    library.broken = ScriptedError(1, "client socket is closed")
    with pytest.raises(HypervisorUnreachable, match="client socket is closed"):
        await hypervisor.sample()


@pytest.mark.asyncio
async def test_inventory_reports_every_running_vm(
    library: ScriptedLibrary, hypervisor: LibvirtHypervisor
) -> None:
    items = await hypervisor.inventory()
    assert [item.vm for item in items] == [vm.uuid for vm in library.vms]


@pytest.mark.asyncio
async def test_leaving_closes_every_connection(library: ScriptedLibrary) -> None:
    async with over(library) as hypervisor:
        await hypervisor.sample()
    assert all(connection.closed for connection in library.connections)
    assert library.connections[0].callbacks == {}

"""An action is sent only as permitted: this run of the VM, in time, and in the checked state."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import cast
from uuid import UUID

import pytest
import pytest_asyncio

from flatline.connectors.libvirt import actuator as actuator_module
from flatline.connectors.libvirt.actuator import LibvirtActuator, MigrationTarget
from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.inventory import NAMESPACE
from flatline.engine.action.preflight import last_check
from flatline.engine.errors import ActionRefused, ActionUnsent
from flatline.engine.preflight_data import Permit, PreflightSample
from tests.unit.connectors.libvirt.scripted import (
    ScriptedDomain,
    ScriptedLibrary,
    Vm,
)
from tests.unit.engine.action.samples import order

RUNNING, CRASHED, PAUSED_CRASHED, PAUSED_BY_USER = (1, 1), (6, 1), (3, 10), (3, 1)
LIVE, PEER2PEER, PERSIST_DEST, UNDEFINE_SOURCE, UNSAFE, ABORT_ON_ERROR = 1, 2, 8, 16, 512, 4096
INTERNAL, NO_DOMAIN, OPERATION_INVALID, OPERATION_TIMEOUT, AGENT_SILENT = 1, 42, 55, 68, 86
TARGETS = {
    "b": MigrationTarget("qemu+tls://b/system", data_uri="tcp://10.0.0.2"),
    "c": MigrationTarget("qemu+tls://c/system", unsafe=True),
}


@pytest.fixture
def library() -> Iterator[ScriptedLibrary]:
    library = ScriptedLibrary(vms=2)
    yield library
    library.let_go()


@pytest.fixture
def vm(library: ScriptedLibrary) -> Vm:
    return library.vms[0]


@pytest_asyncio.fixture
async def actuator(library: ScriptedLibrary) -> AsyncIterator[LibvirtActuator]:
    async with LibvirtActuator(library=cast(Library, library), targets=TARGETS) as actuator:
        yield actuator


def permitted(seen: PreflightSample, *, within_s: float = 60.0) -> Permit:
    return Permit(seen.instance, within_s, last_check=lambda _look: None)


PERMITTED: dict[str, Callable[[LibvirtActuator, bytes, Permit], Awaitable[object]]] = {
    "reset": lambda actuator, vm, permit: actuator.reset(vm, permit=permit),
    "reboot": lambda actuator, vm, permit: actuator.reboot(vm, permit=permit),
    "migrate": lambda actuator, vm, permit: actuator.migrate(
        vm, target="b", within_s=60.0, permit=permit
    ),
    "finish_reset": lambda actuator, vm, permit: actuator.finish_reset(vm, permit=permit),
}


@pytest.mark.parametrize("action", PERMITTED)
@pytest.mark.asyncio
async def test_an_action_that_is_permitted_is_sent(
    actuator: LibvirtActuator, vm: Vm, action: str
) -> None:
    if action == "finish_reset":
        vm.now = PAUSED_CRASHED
    seen = await actuator.sample(vm.uuid)
    await PERMITTED[action](actuator, vm.uuid, permitted(seen))
    assert len(vm.done) == 1


@pytest.mark.parametrize("action", PERMITTED)
@pytest.mark.asyncio
async def test_an_action_is_not_sent_to_a_vm_that_was_started_anew_while_libvirtd_was_silent(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm, action: str
) -> None:
    seen = await actuator.sample(vm.uuid)
    library.frozen.clear()
    library.looked_up.clear()
    asked = asyncio.ensure_future(PERMITTED[action](actuator, vm.uuid, permitted(seen)))
    await asyncio.to_thread(library.looked_up.wait, 10.0)
    vm.id = 99
    library.frozen.set()
    with pytest.raises(ActionRefused, match="the VM was restarted after the verdict"):
        await asked
    assert not vm.done


@pytest.mark.parametrize("action", PERMITTED)
@pytest.mark.asyncio
async def test_an_action_is_not_sent_once_its_look_is_too_old(
    actuator: LibvirtActuator, vm: Vm, action: str
) -> None:
    seen = await actuator.sample(vm.uuid)
    with pytest.raises(ActionUnsent, match="the preflight check was too old"):
        await PERMITTED[action](actuator, vm.uuid, permitted(seen, within_s=-0.001))
    assert not vm.done


@pytest.mark.parametrize("action", PERMITTED)
@pytest.mark.asyncio
async def test_an_action_is_not_sent_where_no_last_sample_is_young_enough(
    actuator: LibvirtActuator, vm: Vm, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await actuator.sample(vm.uuid)
    monkeypatch.setattr(actuator_module, "LAST_SAMPLE_S", -1.0)
    with pytest.raises(ActionUnsent, match="the preflight check was too old"):
        await PERMITTED[action](actuator, vm.uuid, permitted(seen, within_s=0.02))
    assert not vm.done


STIRRED: dict[str, Callable[[ScriptedLibrary, Vm], None]] = {
    "it wrote": lambda _library, vm: vm.full.update({"block.0.wr.reqs": 4}),
    "it was reset": lambda library, vm: library.connections[0].callbacks[1](
        library.connections[0], ScriptedDomain(vm), None
    ),
    "its second vCPU ran": lambda _library, vm: vm.full.update({"vcpu.1.time": 5_000_001}),
    "somebody paused it": lambda _library, vm: vm.full.update({"state.state": 3}),
    "a job began": lambda _library, vm: setattr(vm, "job", 2),
    "its owner opted out": lambda _library, vm: setattr(vm, "inside", ""),
}


@pytest.mark.parametrize("what", [None, *STIRRED])
@pytest.mark.asyncio
async def test_a_guest_that_stirs_after_the_check_is_not_reset(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm, what: str | None
) -> None:
    vm.inside = (
        f"<metadata><f:vm xmlns:f='{NAMESPACE}' tenant='acme' group='web' actionable='yes'/>"
        "</metadata>"
    )
    vm.full |= {"state.reason": 1, "vcpu.maximum": 2, "vcpu.current": 2, "vcpu.1.time": 5}
    samples = [await actuator.sample(vm.uuid)]
    vm.full["vcpu.0.time"] += 4_000_000_000
    samples.append(await actuator.sample(vm.uuid))
    given = order(vm=str(UUID(bytes=vm.uuid)), instance=samples[0].instance)
    permit = Permit(samples[0].instance, 60.0, last_check(given, samples))
    if what is None:
        await actuator.reset(vm.uuid, permit=permit)
        assert vm.done == ["reset"]
        return
    STIRRED[what](library, vm)
    with pytest.raises(ActionRefused, match="was not sent: Refused: "):
        await actuator.reset(vm.uuid, permit=permit)
    assert vm.done == []


@pytest.mark.asyncio
async def test_a_caller_who_is_cancelled_takes_back_what_was_not_sent(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm
) -> None:
    await actuator.sample(vm.uuid)
    library.frozen.clear()
    library.looked_up.clear()
    asked = asyncio.create_task(actuator.reset(vm.uuid))
    await asyncio.to_thread(library.looked_up.wait, 10.0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    library.frozen.set()
    for thread in threading.enumerate():
        if thread.name == "libvirt-action":
            await asyncio.to_thread(thread.join, 10.0)
    assert not vm.done

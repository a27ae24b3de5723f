"""An action is done, rejected or of unknown outcome, and is always reported correctly."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import pytest_asyncio

from flatline.connectors.libvirt import actuator as actuator_module
from flatline.connectors.libvirt.actuator import LibvirtActuator, MigrationTarget
from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.inventory import NAMESPACE
from flatline.engine.errors import ActionRefused, ActionUnsent, HypervisorUnreachable, VmNotFound
from flatline.engine.preflight_data import Permit, PreflightSample
from tests.unit.connectors.libvirt.scripted import (
    FULL,
    SHUT_OFF,
    ScriptedDomain,
    ScriptedError,
    ScriptedLibrary,
    TakenFor,
    Vm,
)

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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actuator_module, "ACTION_DEADLINE_S", 0.05)
    monkeypatch.setattr(actuator_module, "SAMPLE_DEADLINE_S", 0.05)


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("flatline.connectors.libvirt.sight.time.sleep", slept.append)
    return slept


def permitted(seen: PreflightSample, *, within_s: float = 60.0) -> Permit:
    return Permit(seen.instance, within_s, last_check=lambda _look: None)


Act = Callable[[LibvirtActuator, bytes], Awaitable[object]]
CHANGING: dict[str, Act] = {
    "reset": lambda actuator, vm: actuator.reset(vm),
    "reboot": lambda actuator, vm: actuator.reboot(vm),
}


@pytest.mark.asyncio
async def test_a_reset_of_a_running_vm_is_one_reset(actuator: LibvirtActuator, vm: Vm) -> None:
    await actuator.reset(vm.uuid)
    assert vm.done == ["reset"]


@pytest.mark.parametrize("before", [CRASHED, PAUSED_CRASHED])
@pytest.mark.asyncio
async def test_a_vm_stopped_by_its_own_crash_is_resumed_after_the_reset(
    actuator: LibvirtActuator, vm: Vm, before: tuple[int, int]
) -> None:
    vm.now, vm.after_reset = before, PAUSED_CRASHED
    await actuator.reset(vm.uuid)
    assert vm.done == ["reset", "resume"]


@pytest.mark.asyncio
async def test_a_vm_paused_by_a_person_stays_paused_after_a_reset(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.now = vm.after_reset = PAUSED_BY_USER
    await actuator.reset(vm.uuid)
    assert vm.done == ["reset"]


@pytest.mark.asyncio
async def test_a_resume_that_came_too_late_is_a_reset_that_worked(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.now, vm.after_reset = CRASHED, RUNNING
    vm.errors["resume"] = ScriptedError(OPERATION_INVALID, "domain is already running")
    await actuator.reset(vm.uuid)
    assert vm.done == ["reset"]


@pytest.mark.asyncio
async def test_a_reset_whose_resume_fails_was_not_nothing(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.now, vm.after_reset = CRASHED, PAUSED_CRASHED
    vm.errors["resume"] = ScriptedError(OPERATION_INVALID)
    with pytest.raises(HypervisorUnreachable, match="reset but stays paused"):
        await actuator.reset(vm.uuid)


@pytest.mark.asyncio
async def test_a_vm_that_a_reset_left_paused_is_resumed_without_another_reset(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.now = PAUSED_CRASHED
    permit = permitted(await actuator.sample(vm.uuid))
    await actuator.finish_reset(vm.uuid, permit=permit)
    assert vm.done == ["resume"]


@pytest.mark.parametrize("state", [PAUSED_BY_USER, CRASHED, RUNNING])
@pytest.mark.asyncio
async def test_a_vm_that_no_reset_left_paused_is_not_resumed(
    actuator: LibvirtActuator, vm: Vm, state: tuple[int, int]
) -> None:
    vm.now = state
    permit = permitted(await actuator.sample(vm.uuid))
    with pytest.raises(ActionRefused, match="which a reset does not cause"):
        await actuator.finish_reset(vm.uuid, permit=permit)
    assert vm.done == []


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (OPERATION_INVALID, ActionRefused),
        (OPERATION_TIMEOUT, ActionRefused),
        (NO_DOMAIN, HypervisorUnreachable),
        (INTERNAL, HypervisorUnreachable),
        (AGENT_SILENT, HypervisorUnreachable),
        (9999, HypervisorUnreachable),
    ],
)
@pytest.mark.asyncio
async def test_an_error_says_what_is_known_and_the_unrecognised_one_is_unknown(
    actuator: LibvirtActuator, vm: Vm, name: str, code: int, expected: type[Exception]
) -> None:
    vm.errors[name] = ScriptedError(code)
    with pytest.raises(expected):
        await CHANGING[name](actuator, vm.uuid)


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.asyncio
async def test_a_vm_that_libvirt_does_not_know_was_not_touched(
    actuator: LibvirtActuator, name: str
) -> None:
    with pytest.raises(VmNotFound):
        await CHANGING[name](actuator, bytes(16))


@pytest.mark.parametrize("code", [NO_DOMAIN, OPERATION_INVALID])
@pytest.mark.asyncio
async def test_a_vm_out_of_sight_after_its_reset_was_not_nothing(
    actuator: LibvirtActuator, vm: Vm, code: int
) -> None:
    vm.lost = ScriptedError(code)
    with pytest.raises(HypervisorUnreachable, match="the VM was reset"):
        await actuator.reset(vm.uuid)
    assert vm.done == ["reset"]


@pytest.mark.parametrize("code", [NO_DOMAIN, OPERATION_INVALID])
@pytest.mark.asyncio
async def test_a_failed_migration_of_a_vm_out_of_sight_is_of_unknown_outcome(
    actuator: LibvirtActuator, vm: Vm, code: int
) -> None:
    vm.errors["migrate"], vm.lost = ScriptedError(INTERNAL), ScriptedError(code)
    with pytest.raises(HypervisorUnreachable, match="the migration failed"):
        await actuator.migrate(vm.uuid, target="b", within_s=60.0)


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.asyncio
async def test_an_action_that_cannot_connect_was_not_asked_for(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm, name: str
) -> None:
    library.refusal = ScriptedError(38, "Connection refused")
    with pytest.raises(ActionUnsent, match="was not requested"):
        await CHANGING[name](actuator, vm.uuid)
    assert vm.done == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.asyncio
async def test_an_action_given_up_before_it_was_sent_is_never_sent(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm, name: str
) -> None:
    library.frozen.clear()
    with pytest.raises(ActionUnsent, match="was not requested"):
        await CHANGING[name](actuator, vm.uuid)
    library.frozen.set()
    for thread in threading.enumerate():
        if thread.name == "libvirt-action":
            thread.join(5)
    assert vm.done == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.asyncio
async def test_an_action_without_an_answer_is_of_unknown_outcome(
    actuator: LibvirtActuator, vm: Vm, name: str
) -> None:
    vm.gates[name] = threading.Event()
    with pytest.raises(HypervisorUnreachable, match="may still happen"):
        await CHANGING[name](actuator, vm.uuid)


@pytest.mark.asyncio
async def test_a_connection_that_breaks_before_the_action_is_a_refusal(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm
) -> None:
    await actuator.sample(vm.uuid)
    library.broken = ScriptedError(INTERNAL, "client socket is closed")
    with pytest.raises(ActionRefused, match="client socket is closed"):
        await actuator.reset(vm.uuid)
    assert vm.done == []


@pytest.mark.asyncio
async def test_a_sample_shows_what_libvirt_reports(actuator: LibvirtActuator, vm: Vm) -> None:
    sample = await actuator.sample(vm.uuid)
    assert sample.state == "running"
    assert not sample.job_active
    assert sample.vcpu_time_ns == (4,)
    assert (sample.block_wr_reqs, sample.block_wr_bytes, sample.block_rd_reqs) == (3, 512, 1)
    assert sample.net_tx_pkts is None
    assert sample.balloon_last_update_s is None
    assert sample.monitor_answered is True


@pytest.mark.asyncio
async def test_a_sample_shows_how_long_each_vcpu_waited_for_a_core(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    assert (await actuator.sample(vm.uuid)).vcpu_delay_ns == ()
    vm.full |= {"vcpu.0.delay": 6}
    assert (await actuator.sample(vm.uuid)).vcpu_delay_ns == (6,)


@pytest.mark.asyncio
async def test_a_sample_asks_again_while_somebody_holds_the_monitor_for_a_moment(
    actuator: LibvirtActuator, vm: Vm, slept_s: list[float]
) -> None:
    vm.taken = TakenFor(samples=5)
    sample = await actuator.sample(vm.uuid)
    assert not sample.job_active
    assert (sample.block_wr_reqs, sample.monitor_answered) == (3, True)
    assert slept_s == [0.1] * 5


@pytest.mark.asyncio
async def test_a_sample_at_a_vm_whose_monitor_is_taken_knows_of_no_job_and_no_disks(
    actuator: LibvirtActuator, vm: Vm, slept_s: list[float]
) -> None:
    with cast("threading.Lock", vm.taken):
        sample = await actuator.sample(vm.uuid)
    assert sample.job_active is None
    assert sample.block_wr_reqs is None
    assert (sample.monitor_answered, len(slept_s)) == (False, 5)


@pytest.mark.asyncio
async def test_a_sample_at_a_vm_that_is_off_shows_that_and_knows_of_no_job(
    actuator: LibvirtActuator, vm: Vm, slept_s: list[float]
) -> None:
    vm.full = {"state.state": SHUT_OFF, "state.reason": 1}
    sample = await actuator.sample(vm.uuid)
    assert (sample.state, sample.job_active, len(slept_s)) == ("shut_off", None, 5)


@pytest.mark.asyncio
async def test_a_sample_asks_for_counters_after_all_that_it_waits_for(
    actuator: LibvirtActuator, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes_meanwhile(domain: ScriptedDomain) -> list[int]:
        domain.vm.full["block.0.wr.reqs"] += 1
        return [0]

    monkeypatch.setattr(ScriptedDomain, "jobInfo", writes_meanwhile)
    assert (await actuator.sample(vm.uuid)).block_wr_reqs == FULL["block.0.wr.reqs"] + 1


@pytest.mark.asyncio
async def test_a_sample_shows_a_job(actuator: LibvirtActuator, vm: Vm) -> None:
    vm.job = 2
    assert (await actuator.sample(vm.uuid)).job_active


@pytest.mark.asyncio
async def test_a_sample_shows_the_copy_of_a_disk_as_a_job(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.inside = "<devices><disk><mirror job='copy'/></disk></devices>"
    assert (await actuator.sample(vm.uuid)).job_active


TAP = "<interface type='bridge'/>"
DISKS = "".join(
    f"<disk type='file' device='{kind}'><target dev='{name}'/></disk>"
    for kind, name in (("disk", "vda"), ("lun", "vdb"), ("cdrom", "sda"))
)
NAMED = {"block.count": 3, "block.0.name": "vda", "block.1.name": "vdb", "block.2.name": "sda"}


@pytest.mark.parametrize(
    ("devices", "counters", "seen"),
    [
        ("", {}, None),
        (TAP, {"net.count": 1, "net.0.tx.pkts": 3}, None),
        (TAP, {"net.count": 1}, "network card without counters"),
        (TAP * 2, {"net.count": 2, "net.0.tx.pkts": 3}, "network card without counters"),
        ("<hostdev mode='subsystem' type='pci'/>", {}, "hostdev"),
        ("<filesystem type='mount'/>", {}, "filesystem"),
        ("<disk type='file'/><disk type='vhostuser'/>", {}, "vhostuser disk"),
        (DISKS, NAMED, "disk without counters"),
        (DISKS, NAMED | {"block.1.wr.reqs": 0}, None),
        (DISKS, NAMED | {"block.2.wr.reqs": 5}, "disk without counters"),
    ],
)
@pytest.mark.asyncio
async def test_a_sample_names_a_device_whose_traffic_libvirt_does_not_count(
    actuator: LibvirtActuator, vm: Vm, devices: str, counters: dict[str, Any], seen: str | None
) -> None:
    vm.inside = f"<devices>{devices}</devices>"
    vm.full |= counters
    assert (await actuator.sample(vm.uuid)).uncounted == seen


@pytest.mark.parametrize(
    ("marks", "opted_out"),
    [('actionable="yes"', False), ('actionable="no"', True), ("", True)],
)
@pytest.mark.asyncio
async def test_a_sample_shows_whether_the_owner_agreed_to_actions(
    actuator: LibvirtActuator, vm: Vm, marks: str, opted_out: bool
) -> None:
    vm.inside = f'<metadata><f:vm xmlns:f="{NAMESPACE}" tenant="acme" {marks}/></metadata>'
    assert (await actuator.sample(vm.uuid)).opted_out is opted_out


@pytest.mark.usefixtures("hasty")
@pytest.mark.asyncio
async def test_a_sample_does_not_wait_for_a_silent_monitor(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.answers.clear()
    with pytest.raises(HypervisorUnreachable, match="no answer"):
        await actuator.sample(vm.uuid)


@pytest.mark.asyncio
async def test_a_migration_goes_peer_to_peer_and_leaves_one_definition(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    await actuator.migrate(vm.uuid, target="b", within_s=60.0)
    flags = LIVE | PEER2PEER | ABORT_ON_ERROR | PERSIST_DEST | UNDEFINE_SOURCE
    expected = ("migrate", "qemu+tls://b/system", {"migrate_uri": "tcp://10.0.0.2"}, flags)
    assert vm.done == [expected]


@pytest.mark.asyncio
async def test_a_transient_vm_is_not_made_persistent_by_a_migration(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.persistent = False
    await actuator.migrate(vm.uuid, target="c", within_s=60.0)
    flags = LIVE | PEER2PEER | ABORT_ON_ERROR | UNSAFE
    assert vm.done == [("migrate", "qemu+tls://c/system", {}, flags)]


@pytest.mark.parametrize(
    ("state", "job", "expected"),
    [
        (RUNNING, 0, ActionRefused),
        (RUNNING, 2, HypervisorUnreachable),
        (PAUSED_BY_USER, 0, HypervisorUnreachable),
    ],
    ids=["still runs here", "still migrating", "stands still"],
)
@pytest.mark.asyncio
async def test_what_a_failed_migration_did_is_read_from_the_vm(
    actuator: LibvirtActuator, vm: Vm, state: tuple[int, int], job: int, expected: type[Exception]
) -> None:
    vm.errors["migrate"] = ScriptedError(OPERATION_INVALID)
    vm.now, vm.job = state, job
    with pytest.raises(expected, match="the migration failed"):
        await actuator.migrate(vm.uuid, target="b", within_s=60.0)


@pytest.mark.asyncio
async def test_a_migration_to_a_node_without_an_address_is_refused(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    with pytest.raises(ActionRefused, match=r"'z' is not a migration target .*known: b, c\)"):
        await actuator.migrate(vm.uuid, target="z", within_s=60.0)
    assert vm.done == []


@pytest.mark.asyncio
async def test_a_job_of_somebody_else_is_not_aborted(actuator: LibvirtActuator, vm: Vm) -> None:
    vm.job = 2
    with pytest.raises(ActionRefused, match="that this agent started"):
        await actuator.abort_job(vm.uuid)
    assert vm.done == []


@pytest.mark.asyncio
async def test_a_migration_under_way_is_the_agents_own_to_abort(
    actuator: LibvirtActuator, vm: Vm
) -> None:
    vm.gates["migrate"] = threading.Event()
    migrating = asyncio.create_task(actuator.migrate(vm.uuid, target="b", within_s=60.0))
    await asyncio.sleep(0)
    await actuator.abort_job(vm.uuid)
    assert vm.done == ["abortJob"]
    vm.gates["migrate"].set()
    await migrating
    with pytest.raises(ActionRefused, match="that this agent started"):
        await actuator.abort_job(vm.uuid)


@pytest.mark.asyncio
async def test_the_agents_own_connection_may_write(
    library: ScriptedLibrary, actuator: LibvirtActuator, vm: Vm
) -> None:
    await actuator.sample(vm.uuid)
    assert set(library.opened_read_only) == {False}


@pytest.mark.asyncio
async def test_reaching_libvirtd_connects_and_says_why_it_cannot_in_the_same_words(
    library: ScriptedLibrary, actuator: LibvirtActuator
) -> None:
    library.refusal = ScriptedError(38, "Connection refused")
    said = [str(found) for found in await asyncio.gather(*both(actuator), return_exceptions=True)]
    with pytest.raises(HypervisorUnreachable) as later:
        await actuator.reach()
    assert {*said, str(later.value)} == {str(later.value)}
    assert "Connection refused. Check that it runs" in said[0]
    # Both waited for one attempt: the second one would follow after 2 s.
    assert actuator._link._backoff.failed() == 2.0


@pytest.mark.asyncio
async def test_two_who_wait_for_a_connection_share_one_session(
    library: ScriptedLibrary, actuator: LibvirtActuator
) -> None:
    await asyncio.gather(*both(actuator))
    assert len(library.connections) == 1


def both(actuator: LibvirtActuator) -> list[Awaitable[None]]:
    return [actuator.reach(), actuator.reach()]

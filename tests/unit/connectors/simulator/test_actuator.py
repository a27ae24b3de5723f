import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.meters import ROW
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.connectors.simulator.virtual_time import run
from flatline.engine.errors import ActionRefused, HypervisorUnreachable, VmNotFound
from tests.unit.connectors.simulator.screening_plan import NODE, VM, incident

Story = Callable[[Fleet], Coroutine[Any, Any, None]]


def play(story: Story, *incidents: Incident, **changes: Any) -> Fleet:
    """Play a story on a small site in virtual time."""
    fleets: list[Fleet] = []

    async def main() -> None:
        plan = {"seed": 3, "vms_per_node": 10, "pinned": {VM: "database"}, **changes}
        fleets.append(
            build_world(
                WorldPlan(incidents=incidents, **plan), LoopClock(epoch_ms=1_790_000_000_000)
            )
        )
        await story(fleets[0])

    run(main())
    return fleets[0]


def test_a_reset_brings_a_dead_guest_back_to_work() -> None:
    async def story(fleet: Fleet) -> None:
        actuator, vm = fleet.actuator(NODE), fleet.vm(VM)
        await asyncio.sleep(60)
        dead = await actuator.sample(vm)
        await asyncio.sleep(5)
        assert (await actuator.sample(vm)).block_wr_reqs == dead.block_wr_reqs
        await actuator.reset(vm)
        await asyncio.sleep(60)
        alive = await actuator.sample(vm)
        assert alive.instance == dead.instance
        assert (alive.block_wr_reqs or 0) > (dead.block_wr_reqs or 0) + 100
        assert (alive.net_tx_pkts or 0) > (dead.net_tx_pkts or 0) + 100

    truth = play(story, incident("panic_spin")).truth
    (death,) = truth.deaths
    assert death.repaired_by == "reset"
    assert death.alive_ns is not None
    assert truth.harms == []


def test_a_reset_of_a_healthy_guest_hurts_it_and_is_counted() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(10)
        await fleet.actuator(NODE).reset(fleet.vm(VM))
        assert fleet.conditions()["booting"] == 1

    (harm,) = play(story).truth.harms
    assert (harm.vm, harm.action, harm.was) == (VM, "reset", "running")


@pytest.mark.parametrize("kind", ["kdump", "pool_stall", "owner_reboot", "pause", "batch_compute"])
def test_a_reset_hurts_whoever_is_not_past_helping_itself(kind: str) -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(13)
        await fleet.actuator(NODE).reset(fleet.vm(VM))

    assert len(play(story, incident(kind, lasts_s=30)).truth.harms) == 1


def test_a_reset_does_not_mend_what_lies_outside_the_guest() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        await fleet.actuator(NODE).reset(fleet.vm(VM))
        await asyncio.sleep(120)
        assert fleet.conditions()["booting"] == 1

    play(story, incident("hung_io"))


def test_a_reset_ends_what_lived_in_the_guests_memory() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(40)
        await fleet.actuator(NODE).reset(fleet.vm(VM))
        await asyncio.sleep(40)
        fleet.world.sync()
        assert fleet.world.guests.extra_cores[VM] == 0.0
        assert fleet.world.guests.leaked_kib[VM] == 0.0

    play(story, incident("cpu_runaway"), incident("mem_leak"))


def test_a_vm_stopped_by_its_panic_device_runs_again_after_a_reset() -> None:
    async def story(fleet: Fleet) -> None:
        actuator, vm = fleet.actuator(NODE), fleet.vm(VM)
        await asyncio.sleep(20)
        assert (await actuator.sample(vm)).state == "crashed"
        await actuator.reset(vm)
        assert (await actuator.sample(vm)).state == "running"

    assert play(story, incident("panic_halt"), panic_device_ratio=1.0).truth.harms == []


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("batch_end_idle", "ok"),
        ("panic_spin", "nothing_happened"),
        ("hung_userland", "nothing_happened"),
    ],
)
def test_a_reboot_needs_a_guest_that_listens(kind: str, outcome: str) -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        await fleet.actuator(NODE).reboot(fleet.vm(VM))
        await asyncio.sleep(60)

    truth = play(story, incident(kind)).truth
    assert [call.outcome for call in truth.calls("reboot")] == [outcome]
    assert len(truth.harms) == (outcome == "ok")


def test_a_migration_takes_time_and_shows_a_job_meanwhile() -> None:
    async def story(fleet: Fleet) -> None:
        actuator, vm = fleet.actuator(NODE), fleet.vm(VM)
        began = asyncio.get_running_loop().time()
        moving = asyncio.create_task(actuator.migrate(vm, target="c0-n1", within_s=60.0))
        await asyncio.sleep(0.5)
        assert (await actuator.sample(vm)).job_active
        with pytest.raises(ActionRefused, match="already has a job"):
            await actuator.migrate(vm, target="c0-n1", within_s=60.0)
        await moving
        assert asyncio.get_running_loop().time() - began >= 1.0
        assert not (await fleet.actuator("c0-n1").sample(vm)).job_active

    truth = play(story).truth
    assert [(move.vm, move.target, move.by) for move in truth.moves] == [(VM, "c0-n1", "the agent")]
    assert truth.harms == []


def test_a_vm_that_moved_away_from_a_sick_node_is_well() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        fleet.world.sync()
        delay, meters = ROW["vcpu_delay_ns"], fleet.world.meters
        assert meters.pace.gains[delay, VM] > 0.05
        await fleet.actuator(NODE).migrate(fleet.vm(VM), target="c0-n1", within_s=60.0)
        await asyncio.sleep(2)
        fleet.world.sync()
        assert meters.pace.gains[delay, VM] < 0.01
        assert fleet.node_of(VM) == "c0-n1"

    play(story, incident("sick_node", lasts_s=300))


@pytest.mark.parametrize(
    ("target", "incidents", "why"),
    [
        ("c7-n0", (), "not a migration target"),
        (NODE, (), "already runs"),
        ("c1-n0", (), "cannot open the pool of the VM"),
        ("c0-n1", (Incident(kind="host_silence", at_s=0, node="c0-n1"),), "does not answer"),
        ("c0-n1", (incident("pause", at_s=0),), "is not running"),
    ],
)
def test_a_migration_that_cannot_be_is_refused_and_nothing_is_done(
    target: str, incidents: tuple[Incident, ...], why: str
) -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(1)
        with pytest.raises(ActionRefused, match=why):
            await fleet.actuator(NODE).migrate(fleet.vm(VM), target=target, within_s=60.0)

    fleet = play(story, *incidents, cells=2)
    assert fleet.node_of(VM) == NODE
    assert not fleet.world.guests.job.any()
    assert [call.outcome for call in fleet.truth.action_calls] == ["refused"]


def test_a_vm_with_a_stuck_disk_does_not_arrive_until_it_moves_again() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        moving = asyncio.create_task(
            fleet.actuator(NODE).migrate(fleet.vm(VM), target="c0-n1", within_s=600.0)
        )
        await asyncio.sleep(60)
        assert not moving.done()
        await moving
        assert asyncio.get_running_loop().time() > 111

    play(story, incident("pool_stall", lasts_s=100))


def test_an_aborted_migration_leaves_the_vm_where_it_is() -> None:
    async def story(fleet: Fleet) -> None:
        actuator, vm = fleet.actuator(NODE), fleet.vm(VM)
        moving = asyncio.create_task(actuator.migrate(vm, target="c0-n1", within_s=60.0))
        await asyncio.sleep(0.5)
        with pytest.raises(ActionRefused, match="no job that this agent started"):
            await fleet.actuator(NODE).abort_job(vm)
        await actuator.abort_job(vm)
        with pytest.raises(ActionRefused, match="aborted"):
            await moving
        assert not (await actuator.sample(vm)).job_active

    fleet = play(story)
    assert fleet.node_of(VM) == NODE
    assert fleet.truth.moves == []


def test_a_node_out_of_reach_refuses_actions_and_hides_its_vms() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        actuator, vm = fleet.actuator(NODE), fleet.vm(VM)
        with pytest.raises(HypervisorUnreachable):
            await actuator.sample(vm)
        with pytest.raises(ActionRefused, match="was not requested"):
            await actuator.reset(vm)

    assert play(story, incident("host_silence", lasts_s=60)).truth.action_calls == []


def test_a_vm_on_another_node_or_switched_off_is_not_found() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        with pytest.raises(VmNotFound, match="does not know VM"):
            await fleet.actuator("c0-n1").sample(fleet.vm(VM))
        with pytest.raises(VmNotFound, match="is not running"):
            await fleet.actuator(NODE).reset(fleet.vm(VM))

    play(story, incident("power_off", lasts_s=100))


def test_a_sample_at_a_silent_monitor_knows_what_libvirt_knows() -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        sample = await fleet.actuator(NODE).sample(fleet.vm(VM))
        assert sample.block_wr_reqs is None
        assert sample.balloon_last_update_s is None
        assert sample.cpu_time_ns is not None
        assert sample.net_tx_pkts is not None
        assert sample.monitor_answered is False
        assert sample.job_active is None

    play(story, incident("vm_silence", lasts_s=60))


@pytest.mark.parametrize(
    ("how", "error", "boots"),
    [
        ("refuse", ActionRefused, False),
        ("lose", HypervisorUnreachable, False),
        ("lose_answer", HypervisorUnreachable, True),
        ("lie", None, False),
        ("hang", TimeoutError, False),
        ("hang_after", TimeoutError, True),
    ],
)
def test_actions_lie_and_hang_as_a_test_wants(
    how: str, error: type[Exception] | None, boots: bool
) -> None:
    async def story(fleet: Fleet) -> None:
        await asyncio.sleep(20)
        fleet.interfere(lambda call: how if call.action == "reset" else None)

        async def reset() -> None:
            async with asyncio.timeout(60):
                await fleet.actuator(NODE).reset(fleet.vm(VM))

        if error is None:
            await reset()
        else:
            with pytest.raises(error):
                await reset()

    fleet = play(story, incident("panic_spin"))
    assert (fleet.world.guests.boot[VM] == 1) == boots
    assert len(fleet.truth.calls("reset")) == (how != "refuse")


def test_an_unknown_interference_is_named() -> None:
    async def story(fleet: Fleet) -> None:
        fleet.interfere(lambda _: "explode")
        with pytest.raises(ValueError, match="'explode' is not a known interference"):
            await fleet.actuator(NODE).reboot(fleet.vm(VM))

    play(story)

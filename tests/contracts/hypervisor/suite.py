"""The promises of `engine.ports.Hypervisor` and `Actuator`, one test each, for every adapter.

An adapter's test module subclasses these classes and provides a fixture `lab`: two nodes that can
migrate to each other, with at least two VMs on the first that have been up for a while, write to
their disks and send packets; and a way to let time pass there.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import pytest

from deploy.lab.kafka_jars import PATIENCE
from flatline.engine.errors import ActionRefused, EvidenceUnsaved, VmNotFound
from flatline.engine.ports import Actuator, Evidence, Hypervisor, NodeSample
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.wire.frame import UUID_BYTES, Event, Frame, Header, decode_frame, encode_frame
from flatline.engine.wire.metrics import (
    COUNTERS,
    EVENT_KINDS,
    GAUGE_ROW,
    INTEGER_ROW,
    NODE_METRICS,
    VM_STATES,
)

STRANGER = b"\x00" * UUID_BYTES
RUNNING = VM_STATES.index("running")
# Longer than any boot or migration of the labs' small guests under load.
PATIENCE_S = 90.0 * PATIENCE


class Lab(Protocol):
    """Two entered nodes, and time."""

    hypervisor: Hypervisor
    actuator: Actuator
    evidence: Evidence
    vm: bytes
    target: str
    target_hypervisor: Hypervisor
    target_actuator: Actuator

    async def pass_time(self, seconds: float) -> None: ...


def column(sample: NodeSample, vm: bytes) -> int | None:
    rows = sample.rows
    places = [index for index in range(len(rows)) if rows.vm(index) == vm]
    assert len(places) <= 1
    return places[0] if places else None


def value(sample: NodeSample, vm: bytes, name: str) -> int | None:
    place = column(sample, vm)
    row = INTEGER_ROW[name]
    if place is None or not sample.rows.present()[row, place]:
        return None
    return int(sample.rows.integers[row, place])


async def samples(lab: Lab, count: int, *, every_s: float = 1.0) -> list[NodeSample]:
    taken = [await lab.hypervisor.sample()]
    while len(taken) < count:
        await lab.pass_time(every_s)
        taken.append(await lab.hypervisor.sample())
    return taken


async def until(lab: Lab, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    waited_s = 0.0
    while not await condition():
        assert waited_s < PATIENCE_S, f"{what}: not within {PATIENCE_S} s"
        await lab.pass_time(0.5)
        waited_s += 0.5


async def heard(lab: Lab, source: Hypervisor, kind: str) -> Event:
    """Wait for an event of this kind about the lab's VM."""
    found: list[Event] = []

    async def look_for() -> bool:
        found.extend(e for e in source.drain_events() if (e.kind, e.vm) == (kind, lab.vm))
        return bool(found)

    await until(lab, look_for, f"event {kind}")
    return found[0]


def counters_of(sample: PreflightSample) -> list[int]:
    known = (sample.cpu_time_ns, sample.block_rd_reqs, sample.block_wr_reqs, sample.block_wr_bytes)
    return [*sample.vcpu_time_ns, *(counter for counter in known if counter is not None)]


@pytest.mark.asyncio
class HypervisorContract:
    """Promises to the collector."""

    async def test_rows_are_vms_by_ascending_uuid(self, lab: Lab) -> None:
        sample = await lab.hypervisor.sample()
        vms = [sample.rows.vm(index) for index in range(len(sample.rows))]
        assert lab.vm in vms
        assert vms == sorted(set(vms))

    async def test_counters_never_go_back_within_an_instance(self, lab: Lab) -> None:
        taken = await samples(lab, 5)
        for before, after in pairwise(taken):
            assert before.rows.uuids == after.rows.uuids
            instance = INTEGER_ROW["instance"]
            assert np.array_equal(before.rows.integers[instance], after.rows.integers[instance])
            known = before.rows.present() & after.rows.present()
            went_back = known & (after.rows.integers < before.rows.integers)
            assert not went_back[: len(COUNTERS)].any()

    async def test_what_a_living_vm_does_is_counted(self, lab: Lab) -> None:
        first, *_, last = await samples(lab, 8)
        for name in ("cpu_time_ns", "block_wr_reqs", "block_wr_bytes"):
            before, after = value(first, lab.vm, name), value(last, lab.vm, name)
            assert before is not None
            assert after is not None
            assert after > before, name

    async def test_what_is_missing_is_said_and_holds_no_number(self, lab: Lab) -> None:
        first, second = await samples(lab, 2)
        for rows in (first.rows, second.rows):
            assert not rows.integers[~rows.present()].any()
        assert value(first, lab.vm, "state") == RUNNING
        assert value(first, lab.vm, "vcpus_busy") is None
        assert value(second, lab.vm, "vcpus_busy") is not None

    async def test_the_busiest_vcpu_is_known_from_the_second_sample_on(self, lab: Lab) -> None:
        first, second = await samples(lab, 2)
        place = column(first, lab.vm)
        row = GAUGE_ROW["vcpu_busiest_ratio"]
        assert np.isnan(first.rows.gauges[row, place])
        assert 0.0 <= second.rows.gauges[row, place] <= 1.2

    async def test_monotonic_time_grows_by_what_has_passed(self, lab: Lab) -> None:
        first, second = await samples(lab, 2, every_s=2.0)
        assert 1.9e9 <= second.mono_ns - first.mono_ns < 20e9

    async def test_a_living_balloon_is_fresh(self, lab: Lab) -> None:
        sample = (await samples(lab, 3, every_s=4.0))[-1]
        stamp_s = value(sample, lab.vm, "balloon_last_update_s")
        assert stamp_s is not None
        assert -2 <= sample.event_time_ns / 1e9 - stamp_s <= 15

    async def test_the_node_reports_its_load_under_known_names(self, lab: Lab) -> None:
        sample = await lab.hypervisor.sample()
        assert set(sample.node) <= set(NODE_METRICS)
        assert sample.node["hypervisor_reachable"] == 1.0
        assert sample.node["cpu_cores"] >= 1

    async def test_a_sample_travels_as_a_frame(self, lab: Lab) -> None:
        sample = (await samples(lab, 2))[-1]
        header = Header(
            site="s", zone="z", cell="c", node="n", role="collector", run="r", sequence=0,
            event_time_ns=sample.event_time_ns, mono_ns=sample.mono_ns, interval_ms=1000,
        )  # fmt: skip
        frame = Frame(header=header, rows=sample.rows, node=dict(sample.node), pools=sample.pools)
        assert decode_frame(encode_frame(frame)).rows == sample.rows

    async def test_inventory_names_every_vm_of_the_sample(self, lab: Lab) -> None:
        sample = await lab.hypervisor.sample()
        items = {item.vm: item for item in await lab.hypervisor.inventory()}
        assert {sample.rows.vm(index) for index in range(len(sample.rows))} == set(items)
        item = items[lab.vm]
        assert item.name
        assert item.disks
        assert item.vcpus == value(sample, lab.vm, "vcpus")

    async def test_each_event_is_reported_once_with_an_id_of_its_own(self, lab: Lab) -> None:
        lab.hypervisor.drain_events()
        await lab.actuator.reset(lab.vm)
        events: list[Event] = []

        async def rebooted() -> bool:
            events.extend(lab.hypervisor.drain_events())
            return any(event.kind == "rebooted" for event in events)

        await until(lab, rebooted, "event rebooted")
        await lab.pass_time(2.0)
        events += lab.hypervisor.drain_events()
        assert lab.hypervisor.drain_events() == ()
        assert len({event.id for event in events}) == len(events)
        assert {event.kind for event in events} <= set(EVENT_KINDS)
        assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)


@pytest.mark.asyncio
class ActuatorContract:
    """Promises to the agent."""

    async def test_a_sample_of_a_vm_agrees_with_the_sample_of_its_node(self, lab: Lab) -> None:
        sample = await lab.hypervisor.sample()
        vm_sample = await lab.actuator.sample(lab.vm)
        assert vm_sample.vm == lab.vm
        assert vm_sample.state == "running"
        assert not vm_sample.job_active
        assert vm_sample.instance == value(sample, lab.vm, "instance")
        assert len(vm_sample.vcpu_time_ns) == value(sample, lab.vm, "vcpus")
        sampled = value(sample, lab.vm, "block_wr_reqs")
        assert sampled is not None
        assert vm_sample.block_wr_reqs is not None
        assert vm_sample.block_wr_reqs >= sampled

    async def test_two_samples_show_a_living_vm_move(self, lab: Lab) -> None:
        first = await lab.actuator.sample(lab.vm)
        await lab.pass_time(8.0)
        second = await lab.actuator.sample(lab.vm)
        assert second.mono_ns - first.mono_ns >= 7.9e9
        before, after = counters_of(first), counters_of(second)
        assert all(new >= old for old, new in zip(before, after, strict=True))
        assert sum(after) > sum(before)

    @pytest.mark.parametrize("vm", [STRANGER, b"not a uuid", b""], ids=["stranger", "junk", "none"])
    async def test_every_action_on_an_unknown_vm_says_so(self, lab: Lab, vm: bytes) -> None:
        calls: Sequence[Callable[[], Awaitable[object]]] = (
            lambda: lab.actuator.sample(vm),
            lambda: lab.actuator.reset(vm),
            lambda: lab.actuator.reboot(vm),
            lambda: lab.actuator.migrate(vm, target=lab.target, within_s=60.0),
        )
        for call in calls:
            with pytest.raises(VmNotFound):
                await call()

    async def test_a_reset_boots_the_guest_in_the_same_instance(self, lab: Lab) -> None:
        before = await lab.actuator.sample(lab.vm)
        lab.hypervisor.drain_events()
        await lab.actuator.reset(lab.vm)
        await heard(lab, lab.hypervisor, "rebooted")
        after = await lab.actuator.sample(lab.vm)
        assert after.instance == before.instance

        async def writes_again() -> bool:
            one = await lab.actuator.sample(lab.vm)
            await lab.pass_time(6.0)
            two = await lab.actuator.sample(lab.vm)
            return (two.block_wr_reqs or 0) > (one.block_wr_reqs or 0)

        await until(lab, writes_again, "disk writes after a reset")

    async def test_a_migration_to_nowhere_is_refused_and_nothing_moves(self, lab: Lab) -> None:
        with pytest.raises(ActionRefused):
            await lab.actuator.migrate(lab.vm, target="no-such-node", within_s=60.0)
        assert (await lab.actuator.sample(lab.vm)).state == "running"

    async def test_a_migrated_vm_runs_on_the_target_as_a_new_instance(self, lab: Lab) -> None:
        before = await lab.actuator.sample(lab.vm)
        for side in (lab.hypervisor, lab.target_hypervisor):
            await side.sample()
            side.drain_events()
        await lab.actuator.migrate(lab.vm, target=lab.target, within_s=60.0)
        await heard(lab, lab.hypervisor, "migrated_out")
        await heard(lab, lab.target_hypervisor, "migrated_in")
        assert column(await lab.hypervisor.sample(), lab.vm) is None
        assert column(await lab.target_hypervisor.sample(), lab.vm) is not None
        with pytest.raises(VmNotFound):
            await lab.actuator.sample(lab.vm)
        after = await lab.target_actuator.sample(lab.vm)
        assert after.state == "running"
        assert after.instance != before.instance
        assert sum(after.vcpu_time_ns) < sum(before.vcpu_time_ns)

    async def test_a_disk_that_is_not_there_or_has_nowhere_to_go_stays(self, lab: Lab) -> None:
        for disk, pool in (("vdz", "hdd"), ("vda", "no-such-pool")):
            with pytest.raises(ActionRefused):
                await lab.actuator.move_disk(lab.vm, disk=disk, target=pool, within_s=60.0)
        assert not (await lab.actuator.sample(lab.vm)).job_active

    async def test_a_migration_that_nobody_began_is_found_to_have_come_to_nothing(
        self, lab: Lab
    ) -> None:
        with pytest.raises(ActionRefused):
            await lab.actuator.find_migration(lab.vm, target=lab.target, within_s=60.0)
        assert (await lab.actuator.sample(lab.vm)).state == "running"

    async def test_there_is_no_job_to_abort_that_was_not_started_here(self, lab: Lab) -> None:
        with pytest.raises(ActionRefused):
            await lab.actuator.abort_job(lab.vm)
        assert (await lab.actuator.sample(lab.vm)).state == "running"


@pytest.mark.asyncio
class GuestRebootContract:
    """The effect of a reboot on a guest that reacts."""

    async def test_a_guest_that_listens_reboots_in_the_same_instance(self, lab: Lab) -> None:
        before = await lab.actuator.sample(lab.vm)
        lab.hypervisor.drain_events()
        await lab.actuator.reboot(lab.vm)
        await heard(lab, lab.hypervisor, "rebooted")
        assert (await lab.actuator.sample(lab.vm)).instance == before.instance


@pytest.mark.asyncio
class EvidenceContract:
    """Promises to the agent before it destroys a VM's state."""

    async def test_what_is_kept_of_a_vm_is_said_in_one_phrase(self, lab: Lab) -> None:
        where = await lab.evidence.save(lab.vm, incident="1" * 32, step=0)
        assert "console.txt" in where
        assert "\n" not in where

    async def test_evidence_of_an_unknown_vm_is_none(self, lab: Lab) -> None:
        with pytest.raises(EvidenceUnsaved):
            await lab.evidence.save(STRANGER, incident="1" * 32, step=0)

    async def test_keeping_evidence_leaves_the_vm_as_it_was(self, lab: Lab) -> None:
        before = await lab.actuator.sample(lab.vm)
        await lab.evidence.save(lab.vm, incident="2" * 32, step=0)
        after = await lab.actuator.sample(lab.vm)
        assert (after.state, after.instance) == (before.state, before.instance)
        assert not after.job_active

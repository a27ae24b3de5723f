"""Real guests are moved while they write: memory to another node, a disk to another pool."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from deploy.lab.records import missing, read_records
from flatline.connectors.libvirt.actuator import LibvirtActuator
from flatline.engine.errors import ActionRefused
from tests.integration.libvirt.acting import NODE, OTHER, ActingNode
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--group", "web", "--actionable", "yes")
MOVE: dict[str, Any] = {"target": OTHER, "cpu_shape": "unknown", "kind": "node_contention"}


def domains_of(lab: Lab, name: str) -> list[Any]:
    """Return the guest as each hypervisor knows it."""
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    found = []
    for hypervisor in (NODE, OTHER):
        try:
            found.append(libvirt.openReadOnly(lab.ro_uri(hypervisor)).lookupByName(name))
        except libvirt.libvirtError:
            continue
    return found


@contextmanager
def never_twice(lab: Lab, name: str) -> Iterator[None]:
    """Check continuously that the guest never runs on both hypervisors."""
    over, twice = Event(), []

    def watch() -> None:
        import libvirt

        while not over.wait(0.05):
            try:
                running = [d for d in domains_of(lab, name) if d.state()[0] == 1]
            except libvirt.libvirtError:
                continue  # gone between the question and the answer
            if len(running) > 1 and all(d.state()[0] == 1 for d in running):
                twice.append(time.time())

    thread = Thread(target=watch, name="never twice", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not twice


def migrating(lab: Lab, name: str) -> Callable[[], bool]:
    """Return a function that returns whether a migration is running."""

    def asked() -> bool:
        return any(d.jobStats().get("operation") == 5 for d in domains_of(lab, name))

    return asked


@pytest.fixture(scope="module")
def mover(hypervisors: Lab) -> Iterator[Guest]:
    """A guest that writes, shared by the tests that move it."""
    made = Guests(hypervisors)
    try:
        guest = made.boot("mover", *OWNED)
        wait_until(lambda: len(guest.records()) >= 3, within_s=30, what="records")
        yield guest
    finally:
        made.destroy()


def test_a_migration_that_does_not_converge_is_aborted_and_the_guest_is_fine(
    mover: Guest, hypervisors: Lab, tmp_path: Path
) -> None:
    vm = vm_of(hypervisors, mover.name, NODE)
    mover.tell("dirty")
    try:
        with (
            ActingNode(tmp_path, hypervisors, bandwidth_mib_s=8) as node,
            never_twice(hypervisors, mover.name),
        ):
            mark = node.end_of(node.order(vm, "migrate", **MOVE), within_s=150)
        assert mark.outcome == "refused"
        assert "the migration does not converge" in mark.sentence
        assert "It was aborted, and the VM still runs here" in mark.sentence
    finally:
        mover.tell("clean")
    assert mover.hypervisor == NODE
    last = mover.records()[-1]
    wait_until(lambda: mover.records()[-1] > last, within_s=20, what="records after the abort")
    assert missing(mover.records()) == []
    assert mover.boots == 1


def test_a_disk_is_moved_while_its_guest_writes_and_the_guest_reads_it_back(
    mover: Guest, hypervisors: Lab
) -> None:
    vm = vm_of(hypervisors, mover.name, NODE)
    old = Path(mover.disk)
    new = hypervisors.home / "pools/hdd" / old.name

    async def move() -> None:
        async with LibvirtActuator(uri=hypervisors.uri(NODE)) as actuator:
            with pytest.raises(ActionRefused, match="no disk vdz"):
                await actuator.move_disk(vm, disk="vdz", target="hdd", within_s=60.0)
            with pytest.raises(ActionRefused, match="pool nowhere is unknown"):
                await actuator.move_disk(vm, disk="vda", target="nowhere", within_s=60.0)
            with pytest.raises(ActionRefused, match="already is in pool ssd"):
                await actuator.move_disk(vm, disk="vda", target="ssd", within_s=60.0)
            await actuator.move_disk(vm, disk="vda", target="hdd", within_s=60.0)
            await actuator.find_disk_move(vm, disk="vda", target="hdd")

    before = mover.records()[-1]
    asyncio.run(move())
    moved = read_records(new)[-1]
    assert moved.sequence >= before.sequence
    wait_until(
        lambda: read_records(new)[-1].sequence >= moved.sequence + 3,
        within_s=30,
        what="records on the new disk",
    )
    assert read_records(old)[-1].sequence <= moved.sequence
    assert missing(read_records(new)) == []
    [domain] = domains_of(hypervisors, mover.name)
    assert str(new) in domain.XMLDesc()
    # Its definition for the next start uses the new disk as well.
    assert str(new) in domain.XMLDesc(2)
    mover.tell("check")
    wait_until(lambda: "lab: records good=" in mover.console, within_s=60, what="the guest's check")
    good, bad = mover.console.rsplit("lab: records good=", 1)[1].split()[:2]
    assert int(good) > 3
    assert bad == "bad=0"
    mover.note_disk(new)


def test_a_copy_that_was_left_behind_is_given_up_and_the_guest_stays_on_its_disk(
    mover: Guest, hypervisors: Lab
) -> None:
    vm, disk = vm_of(hypervisors, mover.name, NODE), Path(mover.disk)
    here, there = disk.parent.name, {"hdd": "ssd", "ssd": "hdd"}[disk.parent.name]
    goal = hypervisors.home / "pools" / there / "left.raw"
    import libvirt

    domain = libvirt.open(hypervisors.uri(NODE)).lookupByName(mover.name)
    xml = f"<disk type='file'><source file='{goal}'/><driver type='raw'/></disk>"
    domain.blockCopy("vda", xml, {}, 4)

    async def find() -> None:
        async with LibvirtActuator(uri=hypervisors.uri(NODE)) as actuator:
            with pytest.raises(ActionRefused, match="was aborted"):
                await actuator.find_disk_move(vm, disk="vda", target=there)

    asyncio.run(find())
    goal.unlink()
    assert here in str(disk)
    last = mover.records()[-1]
    wait_until(lambda: mover.records()[-1] > last, within_s=20, what="records on the old disk")
    assert missing(mover.records()) == []


def test_a_migration_goes_on_without_its_agent_and_is_found_by_the_next_one(
    mover: Guest, hypervisors: Lab, tmp_path: Path
) -> None:
    vm = vm_of(hypervisors, mover.name, NODE)
    before = mover.records()[-1]
    with (
        # Slow enough for the agent to be killed in the middle of it.
        ActingNode(tmp_path, hypervisors, bandwidth_mib_s=8) as node,
        never_twice(hypervisors, mover.name),
    ):
        order = node.order(vm, "migrate", **MOVE)
        wait_until(migrating(hypervisors, mover.name), within_s=60, what="a migration")
        node.agent.kill()
        last = mover.records()[-1]
        wait_until(lambda: mover.records()[-1] > last, within_s=20, what="records meanwhile")
        node.start()
        mark = node.end_of(order, within_s=120)
        assert mark.outcome == "returned"
        assert "continued while the agent was not running, and is complete" in mark.sentence
        assert node.acted().count("action_sent") == 1
    assert mover.hypervisor == OTHER
    arrived = mover.records()[-1]
    assert arrived.sequence > before.sequence
    wait_until(lambda: mover.records()[-1] > arrived, within_s=20, what="records on the target")
    assert missing(mover.records()) == []
    assert mover.boots == 1

"""Orders that a real agent rejects on a real node, each with its sentence and without effect."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from tests.integration.libvirt.acting import NODE, ActingNode
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--group", "web", "--actionable", "yes")


@pytest.fixture(scope="module")
def living(hypervisors: Lab) -> Iterator[Guest]:
    """A healthy guest that writes, and whose owner agreed to actions."""
    made = Guests(hypervisors)
    try:
        yield made.boot("living", *OWNED)
    finally:
        made.destroy()


def domain_of(guest: Guest) -> Any:
    # Imported here, so that a machine without libvirt can collect this file and report the lack.
    import libvirt

    return libvirt.open(guest.lab.uri(NODE)).lookupByName(guest.name)


@contextmanager
def paused(guest: Guest) -> Iterator[None]:
    domain = domain_of(guest)
    domain.suspend()
    try:
        yield
    finally:
        domain.resume()


@contextmanager
def copying(guest: Guest) -> Iterator[None]:
    """Copy the guest's disk inside the block, as its owner may do."""
    domain = domain_of(guest)
    goal = guest.lab.home / "pools/hdd" / "backup.raw"
    xml = f"<disk type='file'><source file='{goal}'/><driver type='raw'/></disk>"
    domain.blockCopy("vda", xml, {}, 4)
    try:
        yield
    finally:
        domain.blockJobAbort("vda", 0)
        goal.unlink(missing_ok=True)


@dataclass(frozen=True)
class Case:
    """An order, its circumstances, and the agent's answer."""

    sentence: str
    outcome: str = "refused"
    action: str = "reset"
    vm: bytes | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    ago_s: int = 0
    word: dict[str, str] = field(default_factory=dict)
    policy: dict[str, str] = field(default_factory=dict)


ANY_TIME = {
    "alive": Case("Refused: the VM is alive: "),
    "another run": Case("Refused: this is run", changes={"instance": 1}),
    "wrong uuid": Case("The VM is not on this node", vm=uuid4().bytes, changes={"instance": 1}),
    "another site": Case("this node belongs to another site or cell", changes={"site": "other"}),
    "in maintenance": Case(
        "is in maintenance by ann: work",
        outcome="not_attempted",
        word={"kind": "maintenance", "scope": "node", "subject": NODE},
    ),
    "kill switch": Case(
        "Site is paused by ann: work",
        outcome="not_attempted",
        word={"kind": "pause", "scope": "site", "subject": ""},
    ),
    "newborn": Case(
        "The VM has 100 s of history",
        changes={"history_s": 100.0},
        policy={"newborn_s = 0": "newborn_s = 86400"},
    ),
    "expired": Case("The order expired", outcome="expired", ago_s=61),
}
DURING_A_JOB = {
    "a reset": Case("Refused: a job is active on the VM."),
    "a migration": Case(
        "Refused: a job is active on the VM.",
        action="migrate",
        changes={"target": "b", "cpu_shape": "unknown"},
    ),
}


def all_refused(cases: dict[str, Case], living: Guest, folder: Path) -> None:
    """Send orders to agents, one for each case, in parallel; each is rejected without effect."""
    vm, lab = vm_of(living.lab, living.name, NODE), living.lab
    boots, pid = living.boots, living.qemu_pid
    with ExitStack() as stack:
        asked = {}
        for name, case in cases.items():
            place = folder / name.replace(" ", "-")
            node = stack.enter_context(ActingNode(place, lab, policy=case.policy))
            if case.word:
                node.control(**case.word)
            asked[name] = (
                node,
                node.order(case.vm or vm, case.action, ago_s=case.ago_s, **case.changes),
            )
        for name, (node, order) in asked.items():
            mark = node.end_of(order)
            assert cases[name].sentence in mark.sentence, name
            assert mark.outcome == cases[name].outcome, name
            assert node.acted() == [], name
            node.wait_for_words(mark.sentence)
    assert (living.boots, living.qemu_pid, living.hypervisor) == (boots, pid, NODE)
    last = living.records()[-1]
    wait_until(lambda: living.records()[-1] > last, within_s=20, what="records of the living guest")


def test_an_order_that_something_speaks_against_touches_nothing(
    living: Guest, tmp_path: Path
) -> None:
    all_refused(ANY_TIME, living, tmp_path)


def test_a_paused_guest_is_left_to_whoever_paused_it(living: Guest, tmp_path: Path) -> None:
    with paused(living):
        vm = vm_of(living.lab, living.name, NODE)
        with ActingNode(tmp_path, living.lab) as node:
            mark = node.end_of(node.order(vm, "reset"))
            assert "Refused: the VM is paused; the reset requires" in mark.sentence
            assert node.acted() == []
    assert living.boots == 1


def test_a_guest_that_somebody_copies_is_neither_reset_nor_moved(
    living: Guest, tmp_path: Path
) -> None:
    # One after the other: the screenshot of one agent holds the monitor for another.
    with copying(living):
        for name, case in DURING_A_JOB.items():
            all_refused({name: case}, living, tmp_path)


def test_a_guest_whose_owner_has_not_agreed_is_left_alone(
    hypervisors: Lab, guests: Guests, tmp_path: Path
) -> None:
    guest = guests.boot("private", "--tenant", "acme", "--group", "web", "--actionable", "no")
    vm = vm_of(hypervisors, guest.name, NODE)
    with ActingNode(tmp_path, hypervisors) as node:
        assert node.sample(vm).opted_out
        mark = node.end_of(node.order(vm, "reset"))
        assert mark.outcome == "refused"
        assert node.acted() == []
    assert guest.boots == 1

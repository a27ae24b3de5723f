"""Real guests die; a real agent saves the evidence and resets them, or does not."""

import json
import time
from pathlib import Path

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.engine.action.ledger import StepEntry, encode_ledger_entry
from flatline.engine.wire.order import Order
from tests.integration.libvirt.acting import NODE, OTHER, ActingNode
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

# DESIGN 8: the agent acts again within this time after libvirtd's return.
RECOVERED_MS = 30_000
# The lab's balloons report every 2 s: two missed reports and 5 s make one late.
BALLOON_LATE_S = 10.0
# libvirt's states.
PAUSED, CRASHED = 3, 6
OWNED = ("--tenant", "acme", "--group", "web", "--actionable", "yes")


@pytest.fixture
def spinner(guests: Guests) -> Guest:
    """A guest without a panic device, whose owner agreed to screenshots."""
    guest = guests.boot("spinner", "--screen", "--screenshots", "yes", *OWNED)
    wait_until(lambda: len(guest.records()) >= 2, within_s=30, what="records")
    return guest


def panics(guest: Guest) -> None:
    """Wait until the guest is dead: a panic on its console, and no more balloon reports."""
    count = guest.console.count("Kernel panic")
    guest.tell("panic")
    wait_until(
        lambda: guest.console.count("Kernel panic") > count, within_s=60, what="a kernel panic"
    )
    dead_s = time.monotonic()
    wait_until(
        lambda: time.monotonic() > dead_s + BALLOON_LATE_S, within_s=30, what="a late balloon"
    )


def test_evidence_of_a_dead_guest_is_saved_before_its_reset(
    spinner: Guest, hypervisors: Lab, tmp_path: Path
) -> None:
    vm = vm_of(hypervisors, spinner.name, NODE)
    panics(spinner)
    with ActingNode(tmp_path, hypervisors) as node:
        order = node.order(vm, "reset", attested=True)
        mark = node.end_of(order)
        assert mark.outcome == "returned", mark.sentence
        sentences = node.said(order)
        saved = next(i for i, s in enumerate(sentences) if s.startswith("Evidence of"))
        called = next(i for i, s in enumerate(sentences) if "The agent now calls" in s)
        assert saved < called
        [bundle] = node.evidence()
        assert b"Kernel panic" in bundle["console.txt"]
        assert bundle["screen.png"].startswith(b"\x89PNG")
        samples = json.loads(bundle["samples.json"])
        writes = {sample["statistics"]["block.0.wr.reqs"] for sample in samples}
        assert len(samples) > 1
        assert len(writes) == 1
        assert node.missing_of(bundle) == {}
    spinner.wait(boots=2)


def test_a_guest_with_a_panic_device_is_reset_and_resumed_and_keeps_its_screen_to_itself(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    guest = guests.boot("device", "--pvpanic", "--screen", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    panics(guest)
    with ActingNode(tmp_path, hypervisors) as node:
        wait_until(lambda: node.sample(vm).state == "crashed", within_s=20, what="state crashed")
        order = node.order(
            vm,
            "reset",
            kind="panic_halt",
            cpu_shape="idle",
            attested=True,
            witnesses=("activity", "guest"),
        )
        assert node.end_of(order).outcome == "returned"
        [bundle] = node.evidence()
        assert b"Kernel panic" in bundle["console.txt"]
        assert "has not allowed" in node.missing_of(bundle)["screen"]
        guest.wait(boots=2)
        assert node.sample(vm).state == "running"


def test_a_guest_whose_requests_are_stuck_is_not_migrated_and_its_evidence_is_kept(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    guest = guests.boot("stuck", "--nbd", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    with ActingNode(tmp_path, hypervisors) as node:
        first = node.sample(vm).block_wr_reqs
        wait_until(lambda: node.sample(vm).block_wr_reqs != first, within_s=30, what="writes")
        with hypervisors.frozen(guest.nbd_pid):
            before = node.sample(vm).block_wr_reqs
            order = node.order(
                vm, "migrate", target=OTHER, cpu_shape="unknown", kind="node_contention"
            )
            mark = node.end_of(order)
            assert node.sample(vm).block_wr_reqs in (before, (before or 0) + 1)
            assert mark.outcome == "refused"
            assert "no disk request of the VM completed" in mark.sentence
            assert node.acted() == []
            [bundle] = node.evidence()
            assert b"lab: up" in bundle["console.txt"]
        now = node.sample(vm).block_wr_reqs
        wait_until(lambda: node.sample(vm).block_wr_reqs != now, within_s=30, what="writes again")
    assert guest.boots == 1


def test_a_libvirtd_that_stands_still_is_unknown_and_no_reason_to_act(
    spinner: Guest, hypervisors: Lab, tmp_path: Path
) -> None:
    vm = vm_of(hypervisors, spinner.name, NODE)
    panics(spinner)
    with ActingNode(tmp_path, hypervisors) as node:
        sample = node.sample(vm)
        with hypervisors.frozen(hypervisors.pid(NODE)):
            frozen_s = time.monotonic()
            order = node.order(vm, "reset", instance=sample.instance, attested=True)
            mark = node.end_of(order)
            assert mark.outcome == "not_attempted"
            assert "The VM is not visible, so nothing is done" in mark.sentence
            # Long enough for every keepalive to fail.
            wait_until(lambda: time.monotonic() > frozen_s + 60, within_s=70, what="a minute")
        thawed_ms = time.time() * 1000
        assert node.acted() == []
        # A dry run, since an unattempted order counts as well; the preflight check is real.
        again = node.order(
            vm, "reset", instance=sample.instance, attested=True, dry_run=True, incident="2" * 32
        )
        mark = node.end_of(again, within_s=30)
        assert mark.outcome == "returned"
        assert mark.time_ms - thawed_ms < RECOVERED_MS
    assert spinner.boots == 1


def cut_off(node: ActingNode, order: Order) -> None:
    """Write the ledger of a stopped agent as a kill during the call leaves it."""
    with EmbeddedLedger(node.agent.state / f"agent-{NODE}.sqlite") as ledger:
        for state in ("accepted", "sent"):
            entry = StepEntry(
                state=state,
                incident=order.incident,
                step=order.step,
                vm=order.vm,
                action=order.action,
                dry_run=False,
                time_ms=order.issued_ms,
                sentence=order.sentence,
                deadline_ms=order.deadline_ms,
                instance=order.instance,
            )
            ledger.append(encode_ledger_entry(entry))


def test_a_guest_whose_agent_was_killed_between_reset_and_resume_is_resumed_and_no_other(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    import libvirt

    cut, held = (guests.define(name, "--pvpanic", *OWNED) for name in ("cut", "held"))
    for guest in (cut, held):
        guest.start()
    for guest in (cut, held):
        guest.wait()
    connection = libvirt.open(hypervisors.uri(NODE))
    try:
        crashed, paused = (connection.lookupByName(guest.name) for guest in (cut, held))
        with ActingNode(tmp_path, hypervisors) as node:
            node.agent.kill()
            cut.tell("panic")
            wait_until(lambda: crashed.state()[0] == CRASHED, within_s=30, what="a crash")
            ends = []
            for domain in (crashed, paused):
                order = node.order(
                    domain.UUID(), "reset", attested=True, incident=domain.UUIDString()
                )
                cut_off(node, order)
                ends.append(order)
            crashed.reset()
            paused.suspend()
            assert crashed.state()[0] == paused.state()[0] == PAUSED
            node.start()
            results = [node.end_of(order) for order in ends]
            assert [mark.outcome for mark in results] == ["returned", "unknown"]
            assert "between the reset" in results[0].sentence
            assert "state paused of the VM does not show the result" in results[1].sentence
            cut.wait(boots=2)
            assert paused.state()[0] == PAUSED
    finally:
        connection.close()
    assert held.boots == 1

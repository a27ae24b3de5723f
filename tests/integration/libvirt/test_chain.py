"""The whole chain on real libvirt: a guest panics, is detected, recorded, reset and verified."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from flatline.engine.wire.journal import JournalEntry
from flatline.engine.wire.order import Order
from tests.integration.e2e.fleet import FIRST, set_priority
from tests.integration.libvirt.acting import NODE
from tests.integration.libvirt.nodes import vm_of
from tests.integration.libvirt.watched import WatchedNode

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--actionable", "yes", "--group")
# Ten signs of life make a silence significant.
KNOWN_FRAMES = 15
VERIFIED_S = 180.0


@pytest.fixture
def three(guests: Guests) -> tuple[Guest, Guest, Guest]:
    """One without a panic device, one with, and one that lives."""
    plain = guests.define("plain", *OWNED, "web")
    device = guests.define("device", "--pvpanic", *OWNED, "mail")
    living = guests.define("living", *OWNED, "cache")
    for guest in (plain, device, living):
        guest.start()
    for guest in (plain, device, living):
        guest.wait()
        # Other load on the machine is not under test.
        set_priority(guest.qemu_pid, vcpus=FIRST, session=FIRST)
    return plain, device, living


@pytest.fixture
def node(tmp_path: Path, hypervisors: Lab) -> Iterator[WatchedNode]:
    """A node with all four roles."""
    with WatchedNode(tmp_path, hypervisors) as node:
        yield node


def told(node: WatchedNode, order: Order) -> list[JournalEntry]:
    return [entry for entry in node.journal() if entry.incident == order.incident]


def test_a_panic_is_found_kept_as_evidence_reset_and_verified_with_and_without_a_panic_device(
    three: tuple[Guest, Guest, Guest], node: WatchedNode, hypervisors: Lab
) -> None:
    plain, device, living = three
    vms = {guest.name: vm_of(hypervisors, guest.name, NODE) for guest in three}
    node.knows(KNOWN_FRAMES)
    plain.tell("panic")
    orders = [node.ordered(vms[plain.name])]
    # One at a time: two of three that fall silent together are a common cause.
    assert node.end_of(orders[0]).outcome == "returned"
    device.tell("panic")
    orders.append(node.ordered(vms[device.name]))
    assert node.end_of(orders[1]).outcome == "returned"

    def verified() -> bool:
        return all(
            any(entry.detail.get("rule") == "verified" for entry in told(node, order))
            for order in orders
        )

    wait_until(verified, within_s=VERIFIED_S, what="the engine's word that both are well")
    for order, guest in zip(orders, (plain, device), strict=True):
        assert (order.action, order.step, order.dry_run) == ("reset", 0, False)
        sentences = [entry.sentence for entry in told(node, order)]
        saved = next(
            n for n, sentence in enumerate(sentences) if sentence.startswith("Evidence of")
        )
        called = next(
            n for n, sentence in enumerate(sentences) if "The agent now calls" in sentence
        )
        assert saved < called
        assert guest.boots == 2
    assert [order.attested for order in orders] == [False, True]
    assert all(b"Kernel panic" in bundle["console.txt"] for bundle in node.evidence())
    assert len(node.evidence()) == len(node.orders()) == 2
    assert living.boots == 1

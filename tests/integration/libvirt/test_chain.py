"""The whole way on real libvirt: a guest panics, its evidence is kept, it is reset, and verified.

Collector, engine, planner and agent are processes of their own on one embedded log; nothing
here gives an alert or an order.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from connectors.clock import SystemClock
from connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from engine.wire.frame import decode_frame
from engine.wire.journal import JournalEntry
from engine.wire.order import Order
from engine.wire.topics import FRAMES
from tests.integration.e2e.fleet import FIRST, set_priority
from tests.integration.e2e.process import Process
from tests.integration.libvirt.acting import NODE, PARTITIONS, ActingNode
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--actionable", "yes", "--group")
# The collector samples every 2 s; ten signs of life make a silence mean something.
SAMPLED = """
[collect]
interval_s = 2.0
libvirt_uri = "{uri}"
"""
KNOWN_FRAMES = 15
# An engine compiles for 10 s of a core; each step of a repair is waited for as long as in the
# end-to-end tests.
ENGINE_S = 120.0
ORDER_S = 150.0
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
        # Who else is at work on the machine is not what this is about.
        set_priority(guest.qemu_pid, vcpus=FIRST, session=FIRST)
    return plain, device, living


@pytest.fixture
def node(tmp_path: Path, hypervisors: Lab) -> Iterator[ActingNode]:
    """A node with all four roles."""
    node = ActingNode(tmp_path, hypervisors)
    settings = node.agent.config.read_text() + SAMPLED.format(uri=hypervisors.ro_uri(NODE))
    watching = [
        Process(role, role, folder=tmp_path / role, settings=settings)
        for role in ("engine", "collect")
    ]
    with node:
        node.start_planner()
        try:
            for process in watching:
                process.start()
            yield node
        except AssertionError as error:
            for process in watching:
                error.add_note(process.log[-3000:])
            raise
        finally:
            for process in watching:
                process.end()


def samples(node: ActingNode) -> int:
    """Return how many frames with VMs stand in the log."""

    async def counted() -> int:
        config = EmbeddedConfig(folder=node.agent.state / "log", partitions=PARTITIONS)
        async with EmbeddedLog(config, clock=SystemClock()) as log:
            records = await log.read_to_end(FRAMES.name, 0, offset=0)
        return sum(len(decode_frame(record.value).rows) > 0 for record in records)

    return asyncio.run(counted())


def ordered(node: ActingNode, vm: str) -> Order:
    def found() -> list[Order]:
        return [order for order in node.orders() if order.vm == vm]

    wait_until(lambda: bool(found()), within_s=ORDER_S, what=f"an order for {vm}")
    return found()[0]


def told(node: ActingNode, order: Order) -> list[JournalEntry]:
    return [entry for entry in node.journal() if entry.incident == order.incident]


def test_a_panic_is_found_kept_as_evidence_reset_and_verified_with_and_without_a_panic_device(
    three: tuple[Guest, Guest, Guest], node: ActingNode, hypervisors: Lab
) -> None:
    plain, device, living = three
    names = {guest.name: str(UUID(bytes=vm_of(hypervisors, guest.name, NODE))) for guest in three}
    wait_until(
        lambda: samples(node) >= KNOWN_FRAMES, within_s=ENGINE_S, what="a node that is known"
    )
    plain.tell("panic")
    orders = [ordered(node, names[plain.name])]
    # One at a time: two of three that fall silent together are one fault of what they share.
    assert node.end_of(orders[0]).outcome == "returned"
    device.tell("panic")
    orders.append(ordered(node, names[device.name]))
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
        saved = next(n for n, words in enumerate(sentences) if words.startswith("Evidence of"))
        called = next(n for n, words in enumerate(sentences) if "is called now" in words)
        assert saved < called
        assert guest.boots == 2
    assert [order.attested for order in orders] == [False, True]
    assert all(b"Kernel panic" in bundle["console.txt"] for bundle in node.evidence())
    assert len(node.evidence()) == len(node.orders()) == 2
    assert living.boots == 1

"""Real guests answer their neighbours while they live, and one order is executed once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from deploy.lab.libvirt_lab import Guests, Lab, wait_until
from tests.integration.libvirt.acting import NODE, ActingNode
from tests.integration.libvirt.nodes import vm_of
from tests.integration.libvirt.test_deaths import panics

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--group", "web", "--actionable", "yes")
# Orders that two agents race for; 50 by hand: FLATLINE_RACES=50.
RACES = int(os.environ.get("FLATLINE_RACES", "3"))

# Probes one card and prints the result; runs in the network namespace of the bridge.
ASK = """
import asyncio, json, sys
from flatline.connectors.probe.prober import BridgeProber
from flatline.engine.preflight_data import Card
bridge, mac, *addresses = sys.argv[1:]
found = asyncio.run(BridgeProber().ask(Card(mac, bridge), addresses, within_s=3.0))
sys.stdout.write(json.dumps([found.sign, found.address, found.why]))
"""


def asked(inside: list[str], bridge: str, mac: str, *addresses: str) -> list[str]:
    """Return sign, address and reason of one probe."""
    done = subprocess.run(
        [*inside, sys.executable, "-c", ASK, bridge, mac, *addresses],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    answer: list[str] = json.loads(done.stdout)
    return answer


def answers(inside: list[str], mac: str, address: str) -> bool:
    return asked(inside, "probebr", mac, address)[:2] == ["answered", address]


def stood_back(node: ActingNode) -> int:
    """Return how often an agent found a step claimed by another one."""
    return sum("first and reports its result" in entry.sentence for entry in node.journal())


def network_of(lab: Lab) -> str:
    """Return the name of the lab's network namespace."""
    script = f'. {Path("deploy/lab/lab.sh").resolve()}; echo "$NETWORK"'
    env = os.environ | {"FLATLINE_LAB_DIR": str(lab.home)}
    done = subprocess.run(
        ["bash", "-c", script, "deploy/lab/up"],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()[-1]


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Create a node with a bridge `probebr` and a guest on it, both only network namespaces."""
    node, guest = (f"flatline-{what}-{os.getpid()}" for what in ("node", "guest"))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in (node, guest):
            ip("netns", "add", name)
        ip("-n", node, "link", "add", "probebr", "type", "bridge")
        ip(
            "-n",
            node,
            "link",
            "add",
            "port",
            "type",
            "veth",
            "peer",
            "name",
            "card",
            "netns",
            guest,
        )
        ip("-n", node, "link", "set", "port", "master", "probebr")
        ip("-n", guest, "link", "set", "card", "address", "52:54:00:99:00:01")
        ip("-n", guest, "address", "add", "192.0.2.7/24", "dev", "card")
        ip("-n", guest, "address", "add", "2001:db8::7/64", "dev", "card", "nodad")
        for where, what in ((node, "probebr"), (node, "port"), (guest, "card")):
            ip("-n", where, "link", "set", what, "up")
        yield node, guest
    finally:
        for name in (node, guest):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_a_kernel_answers_by_arp_and_by_neighbour_solicitation_and_no_other_card_does() -> None:
    with namespaces() as (node, guest):
        inside = ["ip", "netns", "exec", node]
        mac = "52:54:00:99:00:01"
        for address in ("192.0.2.7", "2001:db8::7"):
            wait_until(
                partial(answers, inside, mac, address), within_s=20, what=f"an answer of {address}"
            )
        assert asked(inside, "probebr", mac, "192.0.2.8")[0] == "silent"
        assert asked(inside, "probebr", "52:54:00:99:00:02", "192.0.2.7")[0] == "silent"
        assert asked(inside, "absent", mac, "192.0.2.7")[0] == "unknown"
        assert asked(inside, "probebr", mac)[0] == "unknown"
        subprocess.run(["ip", "-n", guest, "link", "set", "card", "down"], check=True)
        assert asked(inside, "probebr", mac, "192.0.2.7", "2001:db8::7")[0] == "silent"


def test_a_panicked_guest_stops_answering_and_one_whose_processes_hang_still_answers(
    hypervisors: Lab, guests: Guests, tmp_path: Path
) -> None:
    guest = guests.boot("neighbour", "--nic", "--agent", *OWNED)
    # Its answers prove that the bridge works.
    other = guests.boot("other", "--nic", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    inside = ["nsenter", f"--net=/run/netns/{network_of(hypervisors)}", "--"]
    address = hypervisors.run("guest", "address", guest.name)
    mac = f"52:54:00:73:00:{int(address.rpartition('.')[2]):02x}"
    assert asked(inside, "lab0", mac, address) == ["answered", address, ""]
    # So that the node's own table has the guest, as on a node with traffic.
    assert guest.answers_ping()
    assert other.answers_ping()

    with ActingNode(tmp_path, hypervisors, inside=inside) as node:

        def heard(kind: str) -> bool:
            return any(reported == kind for reported, _detail in node.noticed(vm))

        wait_until(lambda: heard("probe_answered"), within_s=60, what="an answer to a probe")
        assert ("probe_answered", {"address": address}) in node.noticed(vm)
        wait_until(lambda: heard("agent_answered"), within_s=60, what="the guest agent")
        guest.tell("freeze")
        assert asked(inside, "lab0", mac, address)[0] == "answered"
        wait_until(lambda: heard("agent_silent"), within_s=90, what="a silent guest agent")
        assert not heard("probe_silent")
        # The kernel lives and answers probes: no reset, in any state of the disks. A dry run, so
        # that it uses none of the next order's limits.
        refused = node.order(vm, "reset", cpu_shape="idle", kind="panic_halt", dry_run=True)
        mark = node.end_of(refused)
        assert "the VM is alive: it answered a probe" in mark.sentence
        assert mark.outcome == "refused"
        guest.tell("thaw")
        panics(guest)
        assert asked(inside, "lab0", mac, address)[0] == "silent"
        wait_until(lambda: heard("probe_silent"), within_s=60, what="a silent guest")
        mark = node.end_of(node.order(vm, "reset"))
        assert mark.outcome == "returned", mark.sentence
        (called,) = [s for s in node.said(node.orders()[-1]) if "The agent now calls" in s]
        assert "probe" in called.partition("witnesses: ")[2]
    guest.wait(boots=2)


def test_a_guest_that_its_owner_resets_during_the_check_is_not_reset_again(
    hypervisors: Lab, guests: Guests, tmp_path: Path
) -> None:
    import libvirt

    guest = guests.boot("owned", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    panics(guest)
    connection = libvirt.open(hypervisors.uri(NODE))
    try:
        with ActingNode(tmp_path, hypervisors) as node:
            order = node.order(vm, "reset")
            # Saved between the preflight check's two samples, in half of the 4 s between them.
            node.wait_for_words("Evidence of")
            connection.lookupByUUID(vm).reset()
            mark = node.end_of(order)
            assert mark.outcome == "refused", mark.sentence
            assert node.acted() == []
    finally:
        connection.close()
    guest.wait(boots=2)
    assert guest.boots == 2


def test_two_agents_in_two_network_namespaces_carry_each_order_out_once(
    hypervisors: Lab, guests: Guests, tmp_path: Path
) -> None:
    """Neither a lock nor a ledger connects the two agents; only the log does.

    Saving evidence uses no limit, so it can be repeated at will; one reset is among the orders.
    """
    guest = guests.boot("raced", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    policy = {'migrate = "auto" }': 'migrate = "auto", save_evidence = "auto" }'}
    with ActingNode(tmp_path, hypervisors, policy=policy) as node:
        twin = node.twin(tmp_path / "twin", inside=("unshare", "--net"))
        twin.start()
        twin.says("starts under policy", within_s=60)
        try:
            orders, ends = [], []
            for action in (*["save_evidence"] * (RACES - 1), "reset"):
                if action == "reset":
                    panics(guest)
                orders.append(node.order(vm, action))
                ends.append(node.end_of(orders[-1]))
                assert ends[-1].outcome == "returned", ends[-1].sentence
            guest.wait(boots=2)
            # The agent that came second has read each order and done nothing.
            wait_until(
                lambda: (
                    sum("first and reports its result" in e.sentence for e in node.journal())
                    >= RACES
                ),
                within_s=60 + 10 * RACES,
                what="a second agent that stands back",
            )
        finally:
            twin.end()
        assert node.acted().count("action_sent") == RACES
        first = {order.incident: node.claims(order)[0].agent for order in orders}
        assert first == {mark.incident: mark.agent for mark in ends}
        assert len({claim.agent for order in orders for claim in node.claims(order)}) >= 1
    assert guest.boots == 2

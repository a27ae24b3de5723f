"""A live guest that computes and writes nothing is left alone until its kernel dies.

Sampled every 2 s for a minute in all, in which the agent learns too little of the guest to act
alone. Ten minutes as operators run it, every 10 s, and the reset: FLATLINE_TWIN_S=600
FLATLINE_TWIN_INTERVAL_S=10 in the environment.
"""

import asyncio
import os
import time
from pathlib import Path

import pytest

from benchmarks.guest_past import past_of
from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from tests.integration.libvirt.acting import CELL, NODE
from tests.integration.libvirt.nodes import vm_of
from tests.integration.libvirt.watched import ORDER_S, WatchedNode

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

INTERVAL_S = float(os.environ.get("FLATLINE_TWIN_INTERVAL_S", "2"))
# Together with the time before, longer than the 39 s after which such a guest was reset once.
COMPUTES_S = float(os.environ.get("FLATLINE_TWIN_S", "45"))
# How long an agent watches a vCPU before its standstill counts as a death.
WATCHED_S = 300.0
# Far enough apart that neither explains the other's silence.
APART_S = 15.0
KNOWN_FRAMES = 6

# Its kernel prints no panic on the console, which would be a witness.
SILENT = ("--words", "loglevel=0")

# The default policy, with settings of an operator. A new log is trusted immediately, since only
# this test ever wrote to it; a day of history is still required.
AUTOMATIC = {
    'purpose = "production"': 'purpose = "lab"',
    '# actions = { reset = "auto" }          # for every tenant': 'actions = { reset = "auto" }',
    "new_log_observe_s = 86400": "new_log_observe_s = 0",
}


@pytest.fixture
def twins(guests: Guests) -> tuple[Guest, Guest]:
    """Two guests that will compute, with two vCPUs and with one, and two that only work."""
    owned = ("--no-balloon-stats", "--tenant", "acme", "--actionable", "yes")
    two = guests.define("two", "--vcpus", "2", "--group", "web", *SILENT, *owned)
    one = guests.define("one", "--group", "mail", *SILENT, *owned)
    working = [guests.define(f"working{n}", "--group", "cache", *owned) for n in range(2)]
    for guest in (two, one, *working):
        guest.start()
    for guest in (two, one, *working):
        guest.wait()
    return two, one


def test_a_guest_that_computes_is_alerted_and_left_alone_until_its_other_vcpus_stand_still(
    twins: tuple[Guest, Guest], hypervisors: Lab, tmp_path: Path
) -> None:
    two, one = twins
    vms = {guest.name: vm_of(hypervisors, guest.name, NODE) for guest in twins}
    past = asyncio.run(past_of(hypervisors, NODE, CELL))
    with WatchedNode(
        tmp_path, hypervisors, past=past, base="default", policy=AUTOMATIC, interval_s=INTERVAL_S
    ) as node:
        node.knows(KNOWN_FRAMES)
        two.tell("compute 1")
        apart_s = time.monotonic() + APART_S
        wait_until(lambda: time.monotonic() > apart_s, within_s=2 * APART_S, what="the second")
        one.tell("compute 1")
        end_s = time.monotonic() + COMPUTES_S
        wait_until(
            lambda: bool(node.orders()) or time.monotonic() > end_s,
            within_s=2 * COMPUTES_S,
            what="the end of the computing",
        )
        assert node.orders() == []
        for guest in twins:
            firing = [alert for alert in node.alerts(vms[guest.name]) if alert.state == "firing"]
            assert {alert.suggested_action for alert in firing} <= {"alert", "inspect"}
        last = firing[-1]
        assert last.witnesses == ("activity",)
        assert last.suggested_action == "inspect"
        assert last.history_s is not None
        assert last.history_s > 86_400
        assert "balloon" in last.sentence

        two.tell("panic")
        one.tell("panic")
        order = node.ordered(vms[two.name])
        assert (order.action, order.dry_run) == ("reset", False)
        assert order.witnesses == ("activity", "vcpus")
        mark = node.end_of(order)
        if COMPUTES_S > WATCHED_S:
            assert mark.outcome == "returned", mark.sentence
            wait_until(lambda: two.boots == 2, within_s=ORDER_S, what="a second boot")
        else:  # A new agent accepts only its own observations.
            assert mark.outcome == "not_attempted"
            assert "its vCPUs were idle for as long before, or were not observed" in mark.sentence
        # A single vCPU has no others to compare with: this one is left to its owner.
        assert [order.vm for order in node.orders()] == [order.vm]
        assert node.alerts(vms[one.name])[-1].suggested_action == "inspect"
        assert one.boots == 1

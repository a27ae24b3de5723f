"""A real agent is stopped beyond an order's life, on a real Kafka and with guests that are dead.

`FLATLINE_STOPS` says how often (5; 50 before a release).
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from uuid import UUID

import pytest

from connectors.libvirt.verbs import LibvirtVerbs
from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from tests.integration.e2e.trial import NODE, Trial
from tests.integration.libvirt.acting import alias
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.kafka, pytest.mark.libvirt, pytest.mark.slow]

# Each trial mostly waits; four at once leave two cores busy.
AT_ONCE = 4
STOPS = int(os.environ.get("FLATLINE_STOPS", "5"))


@pytest.fixture(scope="module")
def dying(hypervisors: Lab) -> Iterator["SimpleQueue[Guest]"]:
    """Guests that panic at each boot and stand still then, for one trial at a time each."""
    made = Guests(hypervisors)
    try:
        guests = [
            made.define(
                f"dying{n}", "--dies", "--pvpanic", "--tenant", "acme", "--group", f"g{n}",
                "--actionable", "yes",
            )
            for n in range(AT_ONCE)
        ]  # fmt: skip
        free: SimpleQueue[Guest] = SimpleQueue()
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.wait()
            free.put(guest)
        yield free
    finally:
        made.destroy()


def crashed(guest: Guest) -> bool:
    import libvirt

    connection = libvirt.openReadOnly(guest.lab.ro_uri(NODE))
    try:
        return bool(connection.lookupByName(guest.name).state()[0] == 6)
    finally:
        connection.close()


def instance_of(lab: Lab, vm: bytes) -> int:
    import asyncio

    async def look() -> int:
        async with LibvirtVerbs(uri=lab.uri(NODE)) as verbs:
            return (await verbs.look(vm)).instance

    return asyncio.run(look())


def prepared(folder: Path, broker: Cluster, lab: Lab, guest: Guest) -> Trial:
    wait_until(lambda: crashed(guest), within_s=60, what=f"{guest.name} to have crashed")
    vm = vm_of(lab, guest.name, NODE)
    trial = Trial(folder, broker=broker, guest=guest, uri=alias(lab.uri(NODE)), vm=vm)
    trial.instance = instance_of(lab, vm)
    return trial


def stopped(trial: Trial, *, after: bool) -> None:
    """Stop the agent beyond the life of an order, given before or while it sleeps."""
    with ExitStack() as stack:
        stack.enter_context(trial)
        trial.start("act")
        agent = trial.processes["act"]
        if after:
            order = trial.order(lifetime_s=6)
            trial.wait_for("accepted")
            agent.pause()
        else:
            agent.pause()
            order = trial.order(lifetime_s=3)
        over_ms = order.expires_ms + 500
        wait_until(lambda: time.time() * 1000 > over_ms, within_s=30, what="the order's expiry")
        agent.resume()
        wait_until(lambda: bool(trial.marks()), within_s=60, what=f"an end of {trial.name}")
        [mark] = trial.marks()
        assert mark.outcome != "returned", mark.sentence
        assert trial.executions() == 0
        assert str(UUID(order.vm)) == mark.vm


def test_an_agent_that_slept_beyond_an_orders_life_does_not_act(
    kafka_broker: Cluster, hypervisors: Lab, dying: "SimpleQueue[Guest]", tmp_path: Path
) -> None:
    def one(number: int) -> None:
        guest = dying.get()
        try:
            trial = prepared(tmp_path / f"stop-{number}", kafka_broker, hypervisors, guest)
            stopped(trial, after=number % 2 == 1)
        finally:
            dying.put(guest)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(STOPS)))

"""Planner and agent are killed at each durable step, and suspended beyond an order's lifetime.

`FLATLINE_KILLS` sets how often at each step (1; 20 before a release), `FLATLINE_STOPS` how often
the agent is suspended (5; 50).
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

from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from flatline.connectors.libvirt.actuator import LibvirtActuator
from tests.integration.e2e.site import NODE
from tests.integration.e2e.trial import Trial, report_ends
from tests.integration.libvirt.acting import alias
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.kafka, pytest.mark.libvirt, pytest.mark.slow]

# Each trial mostly waits; seven in parallel keep two cores busy, and two waves cover all steps.
AT_ONCE = 7
KILLS = int(os.environ.get("FLATLINE_KILLS", "1"))
STOPS = int(os.environ.get("FLATLINE_STOPS", "5"))
STEPS = ("alert", "order", "accepted", "sent", "effect", "returned", "closed")
# DESIGN: an incident ends within its deadline; nothing here waits for a back-off.
END_S = 240.0
# libvirt's states: a guest that boots, and one stopped by its panic device.
RUNNING, CRASHED = 1, 6


@pytest.fixture(scope="module")
def dying(hypervisors: Lab) -> Iterator["SimpleQueue[Guest]"]:
    """Guests that panic at each boot and then stay dead, for one trial at a time each."""
    made = Guests(hypervisors)
    try:
        guests = [
            made.define(
                f"dying{n}", "--dies", "--pvpanic", "--tenant", "acme", "--group", f"dying{n}",
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


def dies_again(guest: Guest) -> None:
    """Make a guest dead by its own panic, from any state of the previous trial."""
    import libvirt

    connection = libvirt.open(guest.lab.uri(NODE))
    try:
        domain = connection.lookupByName(guest.name)
        if domain.state()[0] not in (RUNNING, CRASHED):
            domain.destroy()
            domain.create()
        what = f"{guest.name} to have crashed"
        wait_until(lambda: domain.state()[0] == CRASHED, within_s=60, what=what)
    finally:
        connection.close()


def instance_of(lab: Lab, vm: bytes) -> int:
    import asyncio

    async def sample() -> int:
        async with LibvirtActuator(uri=lab.uri(NODE)) as actuator:
            return (await actuator.sample(vm)).instance

    return asyncio.run(sample())


def prepared(folder: Path, broker: Cluster, lab: Lab, guest: Guest) -> Trial:
    dies_again(guest)
    vm = vm_of(lab, guest.name, NODE)
    trial = Trial(folder, broker=broker, guest=guest, uri=alias(lab.uri(NODE)), vm=vm)
    trial.instance = instance_of(lab, vm)
    return trial


def killed(role: str, step: str, trial: Trial) -> str:
    """Kill a process at a step, and return how the incident ended."""
    with trial:
        trial.start()
        trial.say("firing")
        trial.wait_for(step)
        trial.restart(role)
        # The engine publishes again once a minute; here as soon as both run again.
        trial.processes[role].says("starts under policy", within_s=90)
        trial.say("firing")
        wait_until(lambda: bool(trial.marks()), within_s=END_S, what=f"an end of {trial.name}")
        [order] = {(o.incident, o.step) for o in trial.orders()}
        assert order == (trial.incident, 0)
        outcomes = {mark.outcome for mark in trial.marks()}
        assert outcomes <= {"returned", "unknown", "not_attempted"}, outcomes
        if "returned" in outcomes:
            wait_until(lambda: trial.executions() == 1, within_s=60, what="the guest's boot")
            trial.resolve()
        # A second action would have happened by now: the preflight check takes four seconds.
        seen_s = time.monotonic()
        trial.say("firing", transition=1)
        wait_until(lambda: time.monotonic() > seen_s + 8, within_s=20, what="eight seconds")
        assert trial.executions() <= 1
        assert trial.promised().count("sent") <= 1
        if outcomes == {"not_attempted"}:
            assert trial.executions() == 0
    return outcomes.pop()


def test_a_kill_at_any_durable_step_never_leads_to_a_second_reset(
    kafka_broker: Cluster,
    hypervisors: Lab,
    dying: "SimpleQueue[Guest]",
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [(role, step, n) for n in range(KILLS) for role in ("plan", "act") for step in STEPS]

    def one(case: tuple[str, str, int]) -> str:
        role, step, number = case
        guest = dying.get()
        try:
            name = f"kill-{role}-{step}-{number}"
            return killed(role, step, prepared(tmp_path / name, kafka_broker, hypervisors, guest))
        finally:
            dying.put(guest)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = dict(zip(cases, pool.map(one, cases), strict=True))
    with capsys.disabled():
        report_ends(
            "actuation_kills",
            claim="How orders end when their planner or agent is killed at each durable step",
            ends=[(f"{role} at {step}", end) for (role, step, _), end in ends.items()],
            words=("returned", "unknown", "not_attempted"),
        )
    # A killed planner does not stop others: ordered resets are done, or nothing is done if a busy
    # machine made an agent's preflight check too slow.
    planners = [end for (role, _, _), end in ends.items() if role == "plan"]
    assert set(planners) <= {"returned", "not_attempted"}
    assert planners.count("returned") > len(planners) / 2


def stopped(trial: Trial, *, after: bool) -> None:
    """Suspend the agent beyond the lifetime of an order, issued before or during that."""
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

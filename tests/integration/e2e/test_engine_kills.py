"""The engine is killed at each durable step of an incident that it detected itself.

`FLATLINE_KILLS` sets how often at each step (20 before a release); without it there is time for one
kill while the call is running and one while its effect is awaited.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple

import pytest

from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from tests.integration.e2e.trial import Trial, report_ends
from tests.integration.libvirt.acting import alias
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.kafka, pytest.mark.libvirt, pytest.mark.slow]

KILLS = int(os.environ.get("FLATLINE_KILLS", "0"))
STEPS = (
    "alert", "firing", "order", "sent", "effect", "returned", "closed", "resolved", "snapshot",
)  # fmt: skip
CASES = [(step, n) for n in range(KILLS) for step in STEPS] or [("sent", 0), ("closed", 0)]
# Each engine sees its whole hypervisor, and guests that die together are a common cause.
NODES = ("a", "b")
ROLES = ("collect", "engine", "plan", "act")
# A guest counts as known after ten signs of life, which make a silence significant.
FRAMES_BEFORE = 15
# DESIGN: an incident ends within ten minutes.
END_S = 600.0
RUNNING = 1
# Of engines that start together only one has the cached kernels; the others would compile.
STARTING = Lock()
# The planner's journal text for each end of an incident.
ENDS = {
    "verified": "done",
    "briefly_stable": "done",
    "resolved": "done",
    "failed": "failed",
    "not_attempted": "failed",
    "exhausted": "failed",
    "refused": "failed",
    "unknown": "unknown",
}


class Place(NamedTuple):
    """A hypervisor, and the only guest on it."""

    node: str
    guest: Guest


@pytest.fixture(scope="module")
def places(hypervisors: Lab) -> Iterator["SimpleQueue[Place]"]:
    """One live guest with a panic device on each hypervisor, for one trial at a time."""
    made = Guests(hypervisors)
    try:
        found = [
            Place(node, made.define(f"lives-{node}", "--on", node, "--pvpanic", *owned(node)))
            for node in NODES
        ]
        free: SimpleQueue[Place] = SimpleQueue()
        for place in found:
            place.guest.start()
        for place in found:
            place.guest.wait()
            free.put(place)
        yield free
    finally:
        made.destroy()


def owned(node: str) -> tuple[str, ...]:
    return ("--tenant", "acme", "--group", f"g-{node}", "--actionable", "yes")


def lives_again(place: Place) -> None:
    """Revive a guest that a failed trial has left dead."""
    import libvirt

    boots = place.guest.boots
    connection = libvirt.open(place.guest.lab.uri(place.node))
    try:
        domain = connection.lookupByName(place.guest.name)
        if domain.state()[0] == RUNNING:
            return
        domain.destroy()
        domain.create()
    finally:
        connection.close()
    place.guest.wait(boots + 1)


def prepared(folder: Path, broker: Cluster, place: Place) -> Trial:
    lives_again(place)
    lab = place.guest.lab
    return Trial(
        folder, broker=broker, guest=place.guest, uri=alias(lab.uri(place.node)),
        vm=vm_of(lab, place.guest.name, place.node), node=place.node, roles=ROLES,
    )  # fmt: skip


def engines(trial: Trial) -> set[str]:
    """Return the runs of the engine that have written ticks, so they hold the partition."""
    headers = [frame.header for frame in trial.watcher.frames()]
    return {header.run for header in headers if header.role == "shell"}


def start_engine(trial: Trial) -> None:
    """Wait until the engine holds the frames; one trial at a time."""
    with STARTING:
        trial.processes["engine"].start()
        trial.processes["engine"].says("Partitions are assigned", within_s=180)


def samples(trial: Trial) -> int:
    return sum(len(frame.rows) > 0 for frame in trial.watcher.frames())


def ended(trial: Trial) -> str | None:
    """Return how the incident has ended, from its planner's journal."""
    rules = [entry.detail.get("rule", "") for entry in trial.watcher.journal()]
    return next((ENDS[rule] for rule in rules if rule in ENDS), None)


def killed(step: str, trial: Trial) -> str:
    """Kill the engine at a step, and return how the incident ended."""
    with trial:
        trial.start("collect", "plan", "act")
        start_engine(trial)
        wait_until(lambda: samples(trial) >= FRAMES_BEFORE, within_s=120, what="frames")
        wait_until(lambda: bool(engines(trial)), within_s=120, what="a tick of the engine")
        trial.guest.tell("panic")
        wait_until(
            lambda: trial.reached(step) or ended(trial) is not None,
            within_s=END_S,
            what=f"{step} in {trial.name}",
        )
        lives = engines(trial)
        trial.processes["engine"].kill()
        start_engine(trial)
        wait_until(lambda: engines(trial) > lives, within_s=180, what="the engine's next life")
        wait_until(lambda: ended(trial) is not None, within_s=END_S, what=f"an end of {trial.name}")
        # A second action would have happened by now: a preflight check takes two samples.
        last = samples(trial)
        wait_until(lambda: samples(trial) >= last + 5, within_s=60, what="five frames")
        [incident] = {alert.id for alert in trial.alerts()}
        assert {(order.incident, order.step) for order in trial.orders()} == {(incident, 0)}
        assert trial.promised().count("sent") <= 1
        [outcome] = {mark.outcome for mark in trial.marks()}
        assert trial.executions() in {"returned": {1}, "unknown": {0, 1}}.get(outcome, {0})
        end = ended(trial)
        assert end is not None
    return end


def test_an_engine_killed_at_any_durable_step_goes_on_with_its_incident(
    kafka_broker: Cluster,
    places: "SimpleQueue[Place]",
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def one(case: tuple[str, int]) -> str:
        step, number = case
        place = places.get()
        try:
            return killed(step, prepared(tmp_path / f"kill-{step}-{number}", kafka_broker, place))
        finally:
            places.put(place)

    with ThreadPoolExecutor(len(NODES)) as pool:
        ends = list(pool.map(one, CASES))
    with capsys.disabled():
        report_ends(
            "engine_kills",
            claim="How incidents end when their engine is killed at each durable step",
            ends=[(f"engine at {step}", end) for (step, _), end in zip(CASES, ends, strict=True)],
            words=("done", "failed", "unknown"),
        )
    # A killed engine does not stop others: nothing is done if a busy machine made the preflight
    # check too slow.
    assert ends.count("done") > len(ends) / 2

"""Verdict, kind and delay of the engine for real guests that die, hang, work or rest.

Guests of `deploy/lab` run under real libvirtds and real collectors sample them every 2 s. The
shipped engine judges them from an embedded log, and agents on both nodes probe them. No action is
taken on any guest. Two are broken at a time, seconds apart and among working guests, so that
neither explains the other's silence.

`python -m benchmarks.bench_guests [WORD ...]`: the cases whose names contain one of the words, or
all of them, which takes 40 minutes.

    --times 20            repeat each case
    --interval-s 10       as operators sample, instead of every 2 s
    --watch-s 600         how long to watch each live guest
    --at-once 10          number of guests broken together
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.guest_cases import CASES, Case
from benchmarks.guest_past import past_of
from benchmarks.report import Figure, report
from deploy.lab.kafka_jars import PATIENCE, cache_dir
from deploy.lab.libvirt_lab import Guest, Guests, Lab, sweep
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.action.keys import TrustedKeys
from flatline.engine.ports import Log
from flatline.engine.roles.run import run_roles
from flatline.engine.settings import load_settings
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.score import decode_scores
from flatline.engine.wire.topics import ALERTS, FRAMES, SCORES
from flatline.engine.wiring import (
    Authority,
    act_opener,
    collect_opener,
    compile_engine,
    engine_opener,
    policy_of,
    process,
    this_node,
)

# By then a guest of the lab is up and writes once a second, which becomes its past. A busy machine
# needs longer: FLATLINE_LAB_PATIENCE=4 in the environment.
BOOT_S = 40.0 * PATIENCE
# By then balloons have reported, agents have listed the guests to probe, and the idle behaviour of
# vCPUs between two writes is known.
WARM_UP_S = 90.0
AT_A_TIME = 6
LIVES_S = 120.0
# They work all the time, so that the silence of one guest is not common to all.
BYSTANDERS = 4
# Agents probe only guests that they may act on.
OWNED = ("--tenant", "lab", "--actionable", "yes", "--group", "guests")
# The next guest is broken later than the window of a common cause: 12 s and two samples.
APART_S = 13.0
DISRUPTIVE = frozenset({"reboot", "migrate"})


class Trial(NamedTuple):
    """Sampling interval, duration and number of guests watched together."""

    interval_s: float
    watch_s: float
    at_once: int


class Liveness:
    """Alerts as they arrive, and the guests' UUIDs."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.began_s = time.time()
        self.alerts: list[tuple[float, Alert]] = []

    async def follow(self) -> None:
        """Record every alert with its append time."""
        async with self._log.tail(ALERTS.name, 0, offset=0) as batches:
            async for batch in batches:
                for record in batch:
                    alert = decode_alert(record.value)
                    self.alerts.append((record.time_ms / 1000, alert))

    async def judges(self) -> None:
        """Wait until the engine has read the past of the guests."""
        since_ms = 1000 * time.time() - 120_000
        while True:
            records = await self._log.read_to_end(SCORES.name, 0, offset=0)
            if records and decode_scores(records[-1].value).minute_ms >= since_ms:
                return
            await asyncio.sleep(1)

    async def vm(self, name: str) -> str:
        """Return the UUID of a guest from the inventory."""
        records = await self._log.read_to_end(FRAMES.name, 0, offset=0)
        for record in reversed(records):
            for item in decode_frame(record.value).inventory:
                if item.name == name:
                    return str(UUID(bytes=item.vm))
        raise LookupError(f"no frame names {name}")

    async def signs(self, vm: str, since_s: float) -> str:
        """Return the agents' reports on a VM since then, each kind with its last time."""
        records = await self._log.read_to_end(FRAMES.name, 0, offset=0)
        reported: dict[str, float] = {}
        for record in records:
            frame = decode_frame(record.value)
            for event in frame.events if record.time_ms >= 1000 * since_s else ():
                if event.vm == UUID(vm).bytes and frame.header.role == "agent":
                    reported[event.kind] = record.time_ms / 1000 - since_s
        return " ".join(f"{kind} {at_s:.0f}" for kind, at_s in reported.items())

    def since(self, vm: str, since_s: float) -> list[tuple[float, Alert]]:
        """Return the alerts on a VM, in seconds after `since_s`."""
        return [
            (at_s - since_s, alert)
            for at_s, alert in self.alerts
            if alert.subject == vm and at_s >= since_s
        ]


@asynccontextmanager
async def watched(lab: Lab, state: Path, *, interval_s: float) -> AsyncIterator[Liveness]:
    """Run collectors and agents of both hypervisors and the engine inside the block.

    All guests that run at the start count as known for a day.
    """
    async with EmbeddedLog(EmbeddedConfig(), clock=SystemClock()) as log:
        openers, health = {}, None
        key = Ed25519PrivateKey.generate()
        allowed = Authority(
            policy_of(load_settings()[0]),
            key=lambda _: key,
            trusted=TrustedKeys.of(planners=[], agents=[], engines=[key.public_key()]),
        )
        for node in ("a", "b"):
            flags = {
                "site.node": node,
                "site.cell": "lab",
                "collect.interval_s": str(interval_s),
                "collect.libvirt_uri": lab.ro_uri(node),
                "act.libvirt_uri": lab.uri(node),
                "state.folder": str(state / node),
            }
            here = process(load_settings(flags=flags)[0])
            health = here.health
            reached = this_node(here.settings)
            here.settings.state.folder.mkdir(mode=0o700, parents=True)
            openers[f"collect {node}"] = collect_opener(
                here, lambda: nullcontext(log), reached, allowed.frames
            )
            # No planner is trusted, so no agent receives orders.
            openers[f"act {node}"] = act_opener(here, lambda: nullcontext(log), reached, allowed)
            openers["engine"] = engine_opener(here, lambda: nullcontext(log), allowed)
        assert health is not None
        sign = allowed.frames.signer("node", "a")
        for time_ms, frame in await past_of(lab, "a", "lab"):
            await log.append(
                FRAMES.name, key=b"lab", value=frame, headers=sign(b"lab", frame), time_ms=time_ms
            )
        watch = Liveness(log)
        tasks = [
            asyncio.create_task(run_roles(openers, health=health)),
            asyncio.create_task(watch.follow()),
        ]
        try:
            yield watch
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def judged(
    watch: Liveness, lab: Lab, case: Case, guest: Guest, *, watch_s: float
) -> dict[str, Figure]:
    """Break one guest, wait, and return the alerts on it."""
    vm = await watch.vm(guest.name)
    boots = guest.boots if case.boots_itself else 0
    too_soon_s = None
    if case.lives is not None:
        lives_s = time.time()
        await asyncio.to_thread(case.lives, lab, guest)
        await asyncio.sleep(max(LIVES_S, watch_s))
        too_soon_s = ordered_s(watch.since(vm, lives_s))
    began_s = time.time()
    if case.act is not None:
        await asyncio.to_thread(case.act, lab, guest)
    ends_s = began_s + (case.watch_s if case.dead else max(case.watch_s, watch_s))
    while time.time() < ends_s:
        await asyncio.sleep(0.5)
        if case.dead and case.orderable and ordered_s(watch.since(vm, began_s)) is not None:
            break
    if case.undo is not None:
        await asyncio.to_thread(case.undo, lab, guest)
    if case.boots_itself:
        await asyncio.to_thread(guest.wait, boots + 1)
    # A guest that is busy from its start may be a suspect from then on.
    said = watch.since(vm, began_s if case.act is not None else watch.began_s)
    line = row(case, said)
    return line | {
        "right": line["right"] and too_soon_s is None,
        "ordered_alive_s": too_soon_s,
        "signs_s": await watch.signs(vm, began_s),
    }


def ordered_s(said: Sequence[tuple[float, Alert]]) -> float | None:
    """Return when an action was first suggested, None for never."""
    return next(
        (
            at_s
            for at_s, alert in said
            if alert.state == "firing" and alert.suggested_action in DISRUPTIVE
        ),
        None,
    )


def row(case: Case, said: Sequence[tuple[float, Alert]]) -> dict[str, Figure]:
    """Return one row of the table."""
    firing = [(at_s, alert) for at_s, alert in said if alert.state == "firing"]
    order_s = ordered_s(said)
    last = firing[-1][1] if firing else None
    vetoes = sorted({veto for _, alert in said for veto in alert.vetoes})
    right = order_s is None
    if case.dead and case.orderable:
        right = order_s is not None and order_s <= case.watch_s
    elif case.dead:
        right = order_s is None and bool(firing)
    return {
        "guest": case.name,
        "dead": case.dead,
        "alert_s": round(firing[0][0], 1) if firing else None,
        "kind": last.kind if last else None,
        "order_s": None if order_s is None else round(order_s, 1),
        "suggestion": last.suggested_action if last else None,
        "witnesses": " ".join(last.witnesses) if last else "",
        "vetoes": " ".join(vetoes),
        "right": right and {alert.kind for _, alert in firing} <= case.kinds,
    }


async def measure(lab: Lab, cases: Sequence[Case], trial: Trial) -> list[dict[str, Figure]]:
    """Return one row for each case."""
    rows = []
    bystanders = Guests(lab)
    try:
        # An answer of one of them to the probe proves that the bridge works.
        working = [
            bystanders.define(f"works{place}", *(() if place else (*OWNED, "--nic")))
            for place in range(BYSTANDERS)
        ]
        for guest in working:
            await asyncio.to_thread(guest.start)
        with working[0].pinged():
            size = max(AT_A_TIME, trial.at_once)
            for first in range(0, len(cases), size):
                rows += await together(lab, cases[first : first + size], first, trial)
    finally:
        await asyncio.to_thread(bystanders.destroy)
    return rows


async def together(
    lab: Lab, cases: Sequence[Case], first: int, trial: Trial
) -> list[dict[str, Figure]]:
    """Boot the guests of some cases, then break them, few at a time; return a row for each."""
    made = Guests(lab)
    try:
        guests = [
            await asyncio.to_thread(made.define, f"g{first + place}", *OWNED, *case.options)
            for place, case in enumerate(cases)
        ]
        turns = list(zip(cases, guests, strict=True))
        for case, guest in turns:
            await asyncio.to_thread(guest.start)
            if case.lives is not None:
                # Many that boot side by side are late, and one that is not up has no past.
                await asyncio.to_thread(guest.wait)
        await asyncio.sleep(BOOT_S)

        async def index(watch: Liveness, number: int) -> list[dict[str, Figure]]:
            await asyncio.sleep(number * (APART_S + trial.interval_s))
            rows = []
            for case, guest in turns[number :: trial.at_once]:
                rows.append(await judged(watch, lab, case, guest, watch_s=trial.watch_s))
                await asyncio.to_thread(guest.destroy)
            return rows

        with TemporaryDirectory() as state, ExitStack() as pings:
            # Before the agents look up addresses, so that the node knows the guest's.
            for case, guest in turns:
                if case.pinged:
                    pings.enter_context(guest.pinged())
            async with watched(lab, Path(state), interval_s=trial.interval_s) as watch:
                await watch.judges()
                await asyncio.sleep(WARM_UP_S)
                table = await asyncio.gather(*(index(watch, n) for n in range(trial.at_once)))
    finally:
        await asyncio.to_thread(made.destroy)
    return [row for turn in zip_longest(*table) for row in turn if row is not None]


def chosen(words: Sequence[str], times: int) -> list[Case]:
    """Return the cases whose names contain one of the words, repeated; no word means all.

    A word that is a complete name selects only that case.
    """
    names = {case.name for case in CASES}

    def meant(case: Case) -> bool:
        return any(word == case.name if word in names else word in case.name for word in words)

    cases = [case for case in CASES if not words or meant(case)]
    if not cases:
        raise SystemExit(f"no case has a name like {' or '.join(words)}")
    return cases * times


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_guests")
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--times", type=int, default=1, metavar="N")
    parser.add_argument("--interval-s", type=float, default=2.0, metavar="S")
    parser.add_argument("--watch-s", type=float, default=0.0, metavar="S")
    parser.add_argument("--at-once", type=int, default=2, metavar="N")
    parser.add_argument("--lab", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    cases = chosen(asked.words, asked.times)
    if asked.lab is not None:
        trial = Trial(asked.interval_s, asked.watch_s, asked.at_once)
        return judge(Lab(Path(asked.lab)), cases, trial)
    sweep()
    lab = Lab(cache_dir() / f"lab-test-{os.getpid()}")
    try:
        lab.up()
        lab.run("lockup")
        # Agents probe guests over the lab's bridge, which is in a separate network namespace.
        again = (sys.executable, "-m", "benchmarks.bench_guests", *sys.argv[1:])
        subprocess.run(lab.inside(*again, "--lab", str(lab.home)), check=True)
    finally:
        lab.down()


def judge(lab: Lab, cases: Sequence[Case], trial: Trial) -> None:
    """Measure in the lab's network, and report."""
    compile_engine()
    rows = asyncio.run(measure(lab, cases, trial))
    report(
        "guests",
        claim=f"Real guests under real libvirtds, sampled every {trial.interval_s:g} s: a dead one"
        " is to be ordered within a minute where a second witness exists (a minute and a half"
        " where its silence to the agent is that), a live one never",
        rows=rows,
        goals_met=all(row["right"] for row in rows),
    )


if __name__ == "__main__":
    main()

"""What the engine says of real guests that die, hang, work or rest: verdict, kind and delay.

Guests of `deploy/lab` under real libvirtds, sampled every 2 s by real collectors; the engine as
shipped judges them from an embedded log. Nothing is done to any of them. Two are broken at a time,
seconds apart and among guests that work on, so that neither explains the other's silence.

`python -m benchmarks.bench_guests [--times N] [WORD ...]`: the cases whose names hold one of the
words, or all of them, N times; all of them once take 25 minutes.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from itertools import zip_longest
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.guest_cases import CASES, Case
from benchmarks.report import Figure, report
from connectors.clock import SystemClock
from connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from deploy.lab.kafka_jars import cache_dir
from deploy.lab.libvirt_lab import Guest, Guests, Lab, sweep
from engine.action.keys import TrustedKeys
from engine.ports import Log
from engine.roles.run import run_roles
from engine.settings import load_settings
from engine.wire.alert import Alert, decode_alert
from engine.wire.frame import decode_frame
from engine.wire.topics import ALERTS, FRAMES
from engine.wiring import (
    Authority,
    collect_opener,
    compile_engine,
    engine_opener,
    libvirt_node,
    policy_of,
    process,
)

INTERVAL_S = 2
# A guest of the lab writes once a second; this many samples make its silence mean something.
WARM_UP_S = 80.0
AT_A_TIME = 6
# They work all the time: what falls silent among them is not what all of them share.
BYSTANDERS = 4
# The second of two guests is broken later, by more samples than make a common cause.
APART_S = 15.0
ORDER_GOAL_S = 60.0
DISRUPTIVE = frozenset({"reboot", "migrate"})


class Watch:
    """Alerts as they come, and what the guests' UUIDs are."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.alerts: list[tuple[float, Alert]] = []

    async def follow(self) -> None:
        """Note every alert with the moment at which it was appended."""
        async with self._log.tail(ALERTS.name, 0, offset=0) as batches:
            async for batch in batches:
                for record in batch:
                    alert = decode_alert(record.value)
                    self.alerts.append((record.time_ms / 1000, alert))

    async def vm(self, name: str) -> str:
        """Return the UUID of a guest, as the inventory says."""
        records = await self._log.read_to_end(FRAMES.name, 0, offset=0)
        for record in reversed(records):
            for item in decode_frame(record.value).inventory:
                if item.name == name:
                    return str(UUID(bytes=item.vm))
        raise LookupError(f"no frame tells what {name} is")

    def since(self, vm: str, since_s: float) -> list[tuple[float, Alert]]:
        """Return what was said of a VM, in seconds after `since_s`."""
        return [
            (at_s - since_s, alert)
            for at_s, alert in self.alerts
            if alert.subject == vm and at_s >= since_s
        ]


@asynccontextmanager
async def watched(lab: Lab) -> AsyncIterator[Watch]:
    """Run the collectors of both hypervisors and the engine inside the block."""
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
                "collect.interval_s": str(INTERVAL_S),
                "collect.libvirt_uri": lab.ro_uri(node),
            }
            here = process(load_settings(flags=flags)[0])
            health = here.health
            opener = collect_opener(
                here, lambda: nullcontext(log), libvirt_node(here.settings), allowed.frames
            )
            openers[f"collect {node}"] = opener
            openers["engine"] = engine_opener(here, lambda: nullcontext(log), allowed)
        assert health is not None
        watch = Watch(log)
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


async def judged(watch: Watch, lab: Lab, case: Case, guest: Guest) -> dict[str, Figure]:
    """Break one guest, wait, and return what was said of it."""
    vm = await watch.vm(guest.name)
    async with AsyncExitStack() as stack:
        if case.pinged:
            stack.enter_context(guest.pinged())
            await asyncio.sleep(5)
        boots = guest.boots if case.boots_itself else 0
        began_s = time.time()
        if case.act is not None:
            await asyncio.to_thread(case.act, lab, guest)
        while time.time() - began_s < case.watch_s:
            await asyncio.sleep(0.5)
            if case.dead and case.orderable and ordered_s(watch.since(vm, began_s)) is not None:
                break
        if case.undo is not None:
            await asyncio.to_thread(case.undo, lab, guest)
        if case.boots_itself:
            await asyncio.to_thread(guest.wait, boots + 1)
    # What burns since its start was suspect, if ever, from its start on.
    said = watch.since(vm, began_s if case.act is not None else 0.0)
    return row(case, said)


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
    """Return one line of the table."""
    firing = [(at_s, alert) for at_s, alert in said if alert.state == "firing"]
    order_s = ordered_s(said)
    last = firing[-1][1] if firing else None
    vetoes = sorted({veto for _, alert in said for veto in alert.vetoes})
    right = order_s is None
    if case.dead and case.orderable:
        right = order_s is not None and order_s <= ORDER_GOAL_S
    elif case.dead:
        right = order_s is None and bool(firing)
    return {
        "guest": case.name,
        "dead": case.dead,
        "alert_s": round(firing[0][0], 1) if firing else None,
        "kind": last.kind if last else None,
        "order_s": None if order_s is None else round(order_s, 1),
        "suggestion": last.suggested_action if last else None,
        "vetoes": " ".join(vetoes),
        "right": right and {alert.kind for _, alert in firing} <= case.kinds,
    }


async def measure(lab: Lab, cases: Sequence[Case]) -> list[dict[str, Figure]]:
    """Return one line for each case."""
    rows = []
    bystanders = Guests(lab)
    try:
        working = [bystanders.define(f"works{place}") for place in range(BYSTANDERS)]
        for guest in working:
            await asyncio.to_thread(guest.start)
        async with watched(lab) as watch:
            for first in range(0, len(cases), AT_A_TIME):
                rows += await together(watch, lab, cases[first : first + AT_A_TIME], first)
    finally:
        await asyncio.to_thread(bystanders.destroy)
    return rows


async def together(
    watch: Watch, lab: Lab, cases: Sequence[Case], first: int
) -> list[dict[str, Figure]]:
    """Boot the guests of some cases, then break them, two at a time; return a line for each."""
    made = Guests(lab)
    try:
        guests = [
            await asyncio.to_thread(made.define, f"g{first + place}", *case.options)
            for place, case in enumerate(cases)
        ]
        for guest in guests:
            await asyncio.to_thread(guest.start)
        await asyncio.sleep(WARM_UP_S)
        turns = list(zip(cases, guests, strict=True))

        async def lane(number: int) -> list[dict[str, Figure]]:
            await asyncio.sleep(number * APART_S)
            rows = []
            for case, guest in turns[number::2]:
                rows.append(await judged(watch, lab, case, guest))
                await asyncio.to_thread(guest.destroy)
            return rows

        even, odd = await asyncio.gather(lane(0), lane(1))
    finally:
        await asyncio.to_thread(made.destroy)
    return [row for pair in zip_longest(even, odd) for row in pair if row is not None]


def chosen(words: Sequence[str], times: int) -> list[Case]:
    """Return the cases whose names hold one of the words, so many times; no word means all."""
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    if not cases:
        raise SystemExit(f"no case is called like {' or '.join(words)}")
    return cases * times


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_guests")
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--times", type=int, default=1, metavar="N")
    asked = parser.parse_args()
    cases = chosen(asked.words, asked.times)
    compile_engine()
    sweep()
    lab = Lab(cache_dir() / f"lab-test-{os.getpid()}")
    try:
        lab.up()
        lab.run("lockup")
        rows = asyncio.run(measure(lab, cases))
    finally:
        lab.down()
    report(
        "guests",
        claim="Real guests under real libvirtds, sampled every 2 s: a dead one is to be ordered"
        f" within {ORDER_GOAL_S:.0f} s where a second witness exists, a live one never",
        rows=rows,
        goals_met=all(row["right"] for row in rows),
    )


if __name__ == "__main__":
    main()

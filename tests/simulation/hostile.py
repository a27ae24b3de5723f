"""Hostile orders, journals and targets, any number: none gets through, all are reported.

A site under attack runs on a `virtual_time` loop, as every seed does.
"""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import UUID

import msgspec

from flatline.engine import instruments
from flatline.engine.action.admit import admit
from flatline.engine.action.chain import Head, extend, link_of, verify
from flatline.engine.action.preflight import judge
from flatline.engine.ports import Headers
from flatline.engine.preflight_data import PreflightSample, Signs
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.order import Order, encode_order
from flatline.engine.wire.topics import JOURNAL, ORDERS
from tests.signing import AGENT_KEY, FOREIGN_KEY, PLANNER_KEY
from tests.simulation.seeded_run import POLICY, Run
from tests.simulation.truthful_fleet import EPOCH_MS, Guest, small_fleet

# A new site after this many, so that its limits do not hide the other reasons for rejection.
_AT_ONE_SITE: Final = 50
# Values with which an attacker or a broken planner may replace the target.
_NO_TARGETS: Final = (
    "", " ", "*", "%", "all", "null", "None", "nil", "0", "-", ".*", "vm*", "[]", "{}",
    "00000000-0000-0000-0000-000000000000", "web-1", "../..", "NULL", "undefined", "\x00",
)  # fmt: skip


def order_for(guest: Guest, number: int, *, now_ms: int) -> Order:
    """Return an order that meets all conditions: the guest is dead."""
    return Order(
        incident=f"{number:032x}", step=0, action="reset", vm=guest.text,
        instance=guest.instance, site="site", cell=guest.cell, node=guest.node,
        kind="panic_spin", cpu_shape="one_core", issued_ms=now_ms, expires_ms=now_ms + 60_000,
        deadline_ms=now_ms + 300_000, data_ms=now_ms, dry_run=False, planner="p",
        policy=POLICY.hash, sentence="reset it", tenant="acme", group=guest.group,
        opened_ms=now_ms - 20_000, history_s=200_000.0, witnesses=("activity", "balloon"),
    )  # fmt: skip


def _bytes_of(
    chance: random.Random, good: Order, executed: tuple[bytes, Headers]
) -> tuple[bytes, Headers]:
    """Return one hostile record derived from an order that would be executed."""
    change = partial(msgspec.structs.replace, good)
    value, headers = encode_order(good, PLANNER_KEY)
    late = 60_001 + chance.randrange(10**8)
    kind = chance.randrange(8)
    if kind == 0:
        return encode_order(good, chance.choice((FOREIGN_KEY, AGENT_KEY)))
    if kind == 1:
        altered = bytearray(value)
        altered[chance.randrange(len(altered))] ^= chance.randrange(1, 256)
        return bytes(altered), headers
    if kind == 2:
        return value, chance.choice(((), headers[:1], headers[1:]))
    if kind == 3:
        return executed
    if kind == 4:
        past = {name: getattr(good, name) - late for name in ("issued_ms", "expires_ms")}
        return encode_order(change(**past), PLANNER_KEY)
    if kind == 5:
        return encode_order(change(vm=chance.choice(_NO_TARGETS)), PLANNER_KEY)
    if kind == 6:
        wrong: Sequence[Order] = (
            change(expires_ms=good.expires_ms + 1),
            change(cell="c9"),
            change(site="elsewhere"),
            change(data_ms=good.data_ms - late - 60_000),
            change(tenant=None),
            change(history_s=5.0),
            change(witnesses=("activity",)),
            change(target="n1"),
            change(step=1 + chance.randrange(3)),
        )
        return encode_order(chance.choice(wrong), PLANNER_KEY)
    return chance.randbytes(chance.randrange(400)), headers


def _unread() -> int:
    """Return how many records of orders were counted as unreadable in this process."""
    samples = (one for metric in instruments.RECORDS_REJECTED.collect() for one in metric.samples)
    counted = (s for s in samples if s.name.endswith("_total") and s.labels["topic"] == ORDERS.name)
    return round(sum(sample.value for sample in counted))


class _Attack(Run):
    """A site without a planner, with one dead guest that every hostile order would reset."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__(seed, "mixed", clean=True)
        self._count = count
        self.reported = 0

    async def _main(self) -> None:
        here = [guest for guest in self.fleet.guests if guest.node == "n0"]
        self._spawn("act n0", partial(self._agent, "n0"))
        for guest in here:
            self.fleet.dies(guest, "panic_spin", 0.0)
        # By then their balloons are late, which is the second witness.
        await asyncio.sleep(20.0)
        now_ms = self.detector.now_ms()
        executed = encode_order(order_for(here[0], 10**30, now_ms=now_ms), PLANNER_KEY)
        self.store.put(ORDERS.name, b"c0", *executed)
        # After half an hour no limit forbids another one.
        await asyncio.sleep(1_900.0)
        assert self.result.effects == 1, "the order that is replayed must have been good"
        here[0].turn("panic_spin", asyncio.get_running_loop().time())
        await asyncio.sleep(20.0)
        before, unread = len(self.store.topics[JOURNAL.name]), _unread()
        for number in range(self._count):
            good = order_for(self.chance.choice(here), number, now_ms=self.detector.now_ms())
            self.store.put(ORDERS.name, b"c0", *_bytes_of(self.chance, good, executed))
            await asyncio.sleep(1.0)
        await asyncio.sleep(30.0)
        entries = [decode_entry(record.value) for record in self.store.topics[JOURNAL.name]]
        # An unreadable record is counted by each agent, and kept by a planner where one runs.
        self.reported = _unread() - unread
        self.reported += sum(
            entry.kind == "refusal" and "was rejected" not in entry.sentence
            for entry in entries[before:]
        )
        assert not verify(entries)
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def attack(count: int) -> tuple[int, int]:
    """Send `count` hostile orders; return how many were executed and how many were reported."""
    executed = reported = 0
    for number, first in enumerate(range(0, count, _AT_ONE_SITE)):
        run = _Attack(number, min(_AT_ONE_SITE, count - first))
        run.play()
        executed += run.result.effects - 1
        reported += run.reported
    return executed, reported


def _journal(chance: random.Random) -> tuple[list[JournalEntry], list[Head]]:
    """Return a journal of three writers from the log, and their heads."""
    heads = [Head(f"act/n{number}") for number in range(3)]
    entries = []
    for number in range(120):
        writer = chance.randrange(3)
        heads[writer], entry = extend(
            heads[writer], time_ms=EPOCH_MS + number, kind="decision", sentence=f"word {number}",
            incident="a" * 32, step=number, vm="vm", cell="c0", detail={"rule": "order"},
        )  # fmt: skip
        entries.append(entry)
    return entries, heads


def _edited(chance: random.Random, entries: list[JournalEntry]) -> list[JournalEntry]:
    """Return the journal with one edit, deletion, move, insertion or cut."""
    at = chance.randrange(len(entries))
    entry, rest = entries[at], [*entries[:at], *entries[at + 1 :]]
    change = partial(msgspec.structs.replace, entry)
    other = f"{entry.sentence}!"
    mine = [index for index, one in enumerate(entries) if one.writer == entry.writer]
    kind = chance.randrange(6)
    if kind == 0:
        field = chance.choice(("sentence", "writer", "previous", "link", "incident", "vm", "cell"))
        return [*entries[:at], change(**{field: other}), *entries[at + 1 :]]
    if kind == 1:
        number = chance.choice(("time_ms", "step", "sequence"))
        return [*entries[:at], change(**{number: 7_000_000}), *entries[at + 1 :]]
    if kind == 2:
        return rest
    if kind == 3:
        # The end of one writer's chain, or of everything.
        gone = set(mine[-chance.randint(1, len(mine)) :])
        return [one for index, one in enumerate(entries) if index not in gone]
    if kind == 4:
        # A careful attacker forges the link too.
        forged = change(sentence=other)
        forged = msgspec.structs.replace(forged, link=link_of(forged))
        return [*entries[:at], forged, *entries[at + 1 :]]
    first, second = chance.sample(mine, 2)
    swapped = list(entries)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return swapped


def tamper(count: int) -> int:
    """Edit journals `count` times; return how many edits were detected."""
    found = 0
    for seed in range(count):
        chance = random.Random(seed)
        entries, heads = _journal(chance)
        assert not verify(entries, heads=heads)
        found += bool(verify(_edited(chance, entries), heads=heads))
    return found


def _seems_dead(order: Order, samples: Sequence[PreflightSample]) -> bool:
    return judge(order, samples, gap_s=4.0, age_s=4.5, signs=Signs(), newborn_s=0.0).agrees


def aim(count: int) -> int:
    """Send orders for `count` invalid targets; return how many would have been acted on."""
    chance, touched = random.Random(0), 0
    guest = small_fleet(chance).guests[0]
    guest.turn("panic_spin", 0.0)
    samples = (guest.sample(20.0), guest.sample(24.5))
    good = order_for(guest, 1, now_ms=EPOCH_MS)

    def would_run(order: Order) -> bool:
        admission = admit(order, (), POLICY, at_ms=EPOCH_MS, now_ms=EPOCH_MS, controls={})
        return admission.admitted and _seems_dead(order, samples)

    assert would_run(good), "but for its target the order must be good"
    for _ in range(count):
        kind = chance.randrange(5)
        if kind == 0:
            order = msgspec.structs.replace(good, vm=chance.choice(_NO_TARGETS))
        elif kind == 1:
            pattern = list(good.vm)
            pattern[chance.randrange(len(pattern))] = chance.choice("*?%._ \x00g{,;")
            order = msgspec.structs.replace(good, vm="".join(pattern))
        elif kind == 2:
            # The same VM by other names, and another VM.
            names = (good.vm.upper(), f"{{{good.vm}}}", f"urn:uuid:{good.vm}",
                     good.vm.replace("-", ""), str(UUID(int=chance.getrandbits(128))))  # fmt: skip
            order = msgspec.structs.replace(good, vm=chance.choice(names))
        elif kind == 3:
            order = msgspec.structs.replace(good, instance=good.instance - chance.randint(1, 10**6))
        else:
            target = chance.choice((*_NO_TARGETS, good.node))
            order = msgspec.structs.replace(good, action="migrate", target=target)
        touched += would_run(order)
    return touched

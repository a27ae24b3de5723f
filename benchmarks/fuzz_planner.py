"""Hostile records of every type that a planner reads, with alerts of dead guests among them."""

import asyncio
import random
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import Counter

from benchmarks.fuzz_frames import Tally
from benchmarks.hostile_values import Hostile
from flatline.connectors.clock import ManualClock
from flatline.engine import instruments
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.action.keys import TrustedKeys
from flatline.engine.ports import Headers, Log, Position, Record
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import Journal, Outbox
from flatline.engine.roles.plan import PlanConfig, Planner
from flatline.engine.roles.reading import Reading
from flatline.engine.wire.alert import Alert, SamplePosition, encode_alert
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.order import Claim, Entry, Order, OrderResult, encode_order, signed
from flatline.engine.wire.score import FEATURES, Scores, encode_scores
from flatline.engine.wire.topics import ALERTS, CONTROL, ORDERS, SCORES

NOW_MS: Final = 1_790_000_000_000
_SITE: Final = "site"
_POLICY: Final = parse_policy(read_shipped("default"), source="default")
# Records of one planner; then a new one begins, so that its full limits do not hide later errors.
_AT_ONE_PLANNER: Final = 2_000
# One alert in this many is of a dead guest, and must be known at the end.
_GOOD_EVERY: Final = 50
_KINDS: Final = (
    *("alert",) * 8, *("order",) * 3, "closed", "closed", "claim", "control", "control", "scores",
    "junk",
)  # fmt: skip


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(31) + bytes([number]))


PLANNER_KEY: Final = _key(1)
AGENT_KEY: Final = _key(2)
ENGINE_KEY: Final = _key(3)
OPERATOR_KEY: Final = _key(4)
TRUSTED: Final = TrustedKeys.of(
    planners=[PLANNER_KEY.public_key()],
    agents=[AGENT_KEY.public_key()],
    engines=[ENGINE_KEY.public_key()],
    operators=[OPERATOR_KEY.public_key()],
)


class Sink:
    """A log that accepts appends; nothing reads from it."""

    async def append(self, *_: object, **__: object) -> Position:
        """Accept a record."""
        return Position(0, 0)

    def partitions(self, _topic: str) -> int:
        """Return one."""
        return 1


def good_alert(number: int, *, now_ms: int = NOW_MS) -> Alert:
    """Return the alert of a dead guest, with a second witness."""
    return Alert(
        id=f"{number:032x}", transition=1, scope="vm", subject=str(UUID(int=1 + number)),
        site=_SITE, zone="z", cell="c0", kind="panic_spin", state="firing", severity="critical",
        confidence=0.99, onset_ms=now_ms - 30_000, opened_ms=now_ms - 20_000, decided_ms=now_ms,
        suggested_action="reboot", sentence="its kernel has panicked",
        position=SamplePosition(node="n0", role="collector", run="r", sequence=number),
        configuration="0" * 16, node="n0", instance=7, tenant="acme", group="web",
        actionable=True, history_s=200_000.0, data_ms=now_ms, pools=("pool",), networks=("net",),
        witnesses=("activity", "balloon"),
    )  # fmt: skip


def _order() -> Order:
    return Order(
        incident="a" * 32, step=0, action="reset", vm=str(UUID(int=7)), instance=7, site=_SITE,
        cell="c0", node="n0", kind="panic_spin", cpu_shape="one_core", issued_ms=NOW_MS,
        expires_ms=NOW_MS + 60_000, deadline_ms=NOW_MS + 300_000, data_ms=NOW_MS - 2_000,
        dry_run=False, planner="p", policy=_POLICY.hash, sentence="reset it", tenant="acme",
        group="web", opened_ms=NOW_MS - 20_000, history_s=200_000.0,
        witnesses=("activity", "balloon"),
    )  # fmt: skip


_CLOSED: Final = OrderResult(
    incident="a" * 32, step=0, vm=str(UUID(int=7)), node="n0", agent="a", outcome="returned",
    dry_run=False, time_ms=NOW_MS, sentence="done",
)  # fmt: skip
_CLAIM: Final = Claim(
    incident="a" * 32, step=0, vm=str(UUID(int=7)), node="n0", agent="a", dry_run=False,
    time_ms=NOW_MS,
)  # fmt: skip
_ENTRIES: Final[dict[str, Entry]] = {"order": _order(), "closed": _CLOSED, "claim": _CLAIM}
# A control command without effect: a pause of the site would hide other errors.
_CONTROL: Final = Control(
    kind="pause", scope="vm", subject=str(UUID(int=7)), active=True, by="ann", reason="why",
    time_ms=NOW_MS,
)  # fmt: skip
_SCORES: Final = Scores(
    site=_SITE, cell="c0", minute_ms=NOW_MS, uuids=bytes(32), values=bytes(4 * 2 * len(FEATURES)),
    classes=("web", "batch"), node_load={"n0": 0.5}, configuration="0" * 16,
)  # fmt: skip


class HostileRecords:
    """Draws records of every topic that planner and agent read, validly signed or not."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._json = Hostile(chance, is_json=True)
        self._packed = Hostile(chance, is_json=False)
        self._ids = [f"{number:032x}" for number in range(1_000_000, 1_000_020)]

    def draw(self) -> tuple[str, bytes, bytes, Headers]:
        """Return topic, key, value and headers of one record."""
        kind = self._chance.choice(_KINDS)
        if kind == "junk":
            topic = self._chance.choice((ALERTS, ORDERS, CONTROL, SCORES)).name
            return topic, b"c0", self._chance.randbytes(self._chance.randrange(200)), ()
        if kind == "scores":
            good = msgspec.msgpack.decode(encode_scores(_SCORES))
            changed = self._packed.record(good, Scores)
            value = msgspec.msgpack.encode(changed)
            return SCORES.name, b"c0", value, self._signed(value, ENGINE_KEY)
        if kind == "control":
            return self._control()
        if kind == "alert":
            good = msgspec.json.decode(encode_alert(good_alert(1_000_000))[0])
            value = self._value(good, Alert)
            return ALERTS.name, b"c0", value, self._signed(value, ENGINE_KEY)
        sample = _ENTRIES[kind]
        signer = PLANNER_KEY if kind == "order" else AGENT_KEY
        good = msgspec.json.decode(encode_order(sample, signer)[0])
        value = self._value(good, type(sample))
        return ORDERS.name, b"c0", value, self._signed(value, signer)

    def _control(self) -> tuple[str, bytes, bytes, Headers]:
        value = self._value(msgspec.json.decode(encode_control(_CONTROL)), Control)
        key = self._chance.choice((_CONTROL.key(), b"", b"\xff" * 300, b"pause/site/"))
        return CONTROL.name, key, value, self._signed(value, OPERATOR_KEY)

    def _value(self, good: dict[str, Any], kind: type[msgspec.Struct]) -> bytes:
        changed = self._json.record(good, kind)
        # Of few incidents and VMs, so that records collide with earlier ones.
        for name in ("id", "incident"):
            if name in good and self._chance.random() < 0.8:
                changed[name] = self._chance.choice(self._ids)
        for name in ("decided_ms", "issued_ms", "expires_ms", "deadline_ms", "time_ms", "data_ms"):
            if name in good and self._chance.random() < 0.5:
                changed[name] = NOW_MS + self._chance.randrange(-100_000, 400_000)
        return msgspec.json.encode(changed)

    def _signed(self, value: bytes, key: Ed25519PrivateKey) -> Headers:
        # Readers check the signature first: most must be valid for anything to be read.
        return () if self._chance.random() < 0.02 else signed(value, key)


def _total(counter: Counter) -> float:
    samples = (one for metric in counter.collect() for one in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def _poisoned() -> float:
    return _total(instruments.POISON)


def _rejected() -> float:
    return _total(instruments.RECORDS_REJECTED)


class Roles:
    """A planner and an agent's reader of orders and control, given the same records."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._clock = ManualClock(now_ms=NOW_MS)
        log = cast(Log, Sink())
        config = PlanConfig(
            site=_SITE, name="p", run="r", policy=_POLICY, key=PLANNER_KEY, trusted=TRUSTED
        )
        health = Health(self._clock)
        self.planner = Planner(log=log, config=config, clock=self._clock, health=health)
        # Journal entries are not stored: the outbox does not run.
        journal = Journal(Outbox(log, health=health), clock=self._clock, writer="a", cell="c0")
        self.reading = Reading(
            log, node="n0", policy=_POLICY, trusted=TRUSTED, journal=journal,
            deliver=lambda *_: None,
        )  # fmt: skip
        self._offset = 0

    async def begin(self) -> None:
        """Inform the planner that it has read everything."""
        await self.planner._step_time()  # noqa: SLF001 - a whole site would read a log

    async def give(self, topic: str, key: bytes, value: bytes, headers: Headers) -> None:
        """Pass a record to both; count where one raises or rejects a readable one."""
        record = Record(
            topic=topic, partition=0, offset=self._offset, time_ms=self._clock.now_ms(), key=key,
            value=value, headers=headers,
        )  # fmt: skip
        self._offset += 1
        poisoned = _poisoned()
        try:
            await self.planner._read(record)  # noqa: SLF001
            if topic in (ORDERS.name, CONTROL.name):
                await self.reading.read(record)
        except Exception as error:  # noqa: BLE001 - any escape at all is a death
            self._tally.died(topic, error)
        if _poisoned() != poisoned:
            self._tally.died(topic, RuntimeError(f"poison: {value[:2_000]!r}"))

    async def tick(self) -> None:
        """Advance time by a second."""
        self._clock.advance(1.0)
        poisoned = _poisoned()
        await self.begin()
        if _poisoned() != poisoned:
            self._tally.died("tick", RuntimeError("time could not be stepped"))

    def knows(self, number: int) -> bool:
        """Return whether a good alert is known with its own content."""
        incident = self.planner.state.incidents.get(f"{number:032x}")
        return incident is not None and incident.alert is not None


async def _play(tally: Tally, count: int, *, seed: int) -> None:
    chance = random.Random(seed)
    records, roles, good = HostileRecords(chance), Roles(tally), 0
    await roles.begin()
    for number in range(count):
        await roles.give(*records.draw())
        tally.hostile += 1
        if number % _GOOD_EVERY == 0:
            value, headers = encode_alert(good_alert(good))
            await roles.give(ALERTS.name, b"c0", value, (*headers, *signed(value, ENGINE_KEY)))
            good += 1
        if number % 20 == 0:
            await roles.tick()
    tally.good += good
    tally.good_lost += sum(not roles.knows(number) for number in range(good))


def fuzz_planner(count: int, *, seed: int) -> Tally:
    """Send `count` hostile records to planners one after the other."""
    tally, before = Tally(), _rejected()
    for number, first in enumerate(range(0, count, _AT_ONE_PLANNER)):
        size = min(_AT_ONE_PLANNER, count - first)
        asyncio.run(_play(tally, size, seed=seed * 1_000_003 + number))
    tally.rejected = round(_rejected() - before)
    return tally

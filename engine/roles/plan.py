"""The loop of the planner: reads the log, steps the state machine, carries out its instructions.

Any number of planners may run: if two of them order the same step, the first record in the log
counts. All state follows from the log.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine import instruments
from flatline.engine.action.catalogue import VERDICT_WINDOW_MS, Policy
from flatline.engine.action.commands import Heard
from flatline.engine.action.events import (
    AlertSeen,
    AppendControl,
    AppendOrder,
    CaughtUp,
    ControlSeen,
    Instruction,
    LoadSeen,
    OrderSeen,
    PlannerEvent,
    ResultSeen,
    Tick,
    WriteJournal,
)
from flatline.engine.action.keys import Trust, open_alert, open_entry, open_scores
from flatline.engine.action.planner import step
from flatline.engine.action.request_context import DAY_MS
from flatline.engine.action.state import PlannerState
from flatline.engine.action.target import CellLoad, NodeRoom, has_room
from flatline.engine.errors import (
    FoldFailed,
    LogError,
    LogProducerBroken,
    LogUnreachable,
    RecordRejected,
    RecordTooLarge,
)
from flatline.engine.ports import Clock, Headers, Log, Record
from flatline.engine.roles.health import Health
from flatline.engine.roles.hearing import hear_record
from flatline.engine.roles.outbox import Journal, Outbox, follow, plain_errors
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.control import encode_control, unreadable
from flatline.engine.wire.frame import UUID_BYTES
from flatline.engine.wire.order import Order, OrderResult, encode_order, signed
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import ALERTS, CONTROL, ORDERS, SCORES

# Deadlines and back-offs are minutes; a second of delay costs nothing.
_TICK_S: Final = 1.0
# Scores come once a minute; older ones do not describe the current load of the nodes.
_SCORES_BACK_MS: Final = 300_000
# How far back recoveries are read: a week of alerts takes a second. Older recoveries are forgotten;
# the next recovery of such a VM is learned again.
_RECOVERIES_BACK_MS: Final = 7 * DAY_MS
# How long to wait for pending records at the end of the process.
_LEAVE_S: Final = 2.0

_log = structlog.get_logger()

# Limits of the records kept for `_write_back`: bytes of an unsigned command, and number of records.
# A command has a few hundred bytes, but any writer may write one of the maximal record size for
# each key that `engine.action.commands` keeps.
_STANDING_BYTES: Final = 4_096
_MOST_STANDING: Final = 30_000

# The feature that contains the use of a VM in cores.
_CORES: Final = "cpu_cores"

Place = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """The configuration of a planner.

    Attributes
    ----------
    name, run
        Name this planner and this run of its process.
    key
        Signs its orders; the public half is in `trusted.planners` of every agent.
    trusted
        The keys for orders, results, alerts, scores and control commands.
    """

    site: str
    name: str
    run: str
    policy: Policy
    key: Ed25519PrivateKey
    trusted: Trust


class Planner:
    """Reads alerts, orders, control and scores, and appends orders, until cancelled.

    Parameters
    ----------
    log
        The site's log, opened.
    """

    def __init__(self, *, log: Log, config: PlanConfig, clock: Clock, health: Health) -> None:
        self._log = log
        self._config = config
        self._clock = clock
        self._health = health
        self._state = PlannerState(name=config.name, site=config.site)
        self._turn = asyncio.Lock()
        # `_standing` holds, by record key, the record of the command in force. `_displaced` holds
        # the keys whose command in the log was displaced by a rejected record.
        self._standing: dict[bytes, tuple[bytes, Headers]] = {}
        self._displaced: set[bytes] = set()
        self._outbox = Outbox(log, health=health)
        self._journal = Journal(
            self._outbox,
            clock=clock,
            # A role may be reopened within one process; each time it is a new chain.
            writer=f"plan/{config.name}/{config.run}.{clock.mono_ns():x}",
            cell=config.site,
        )

    @property
    def state(self) -> PlannerState:
        """The current state of the planner."""
        return self._state

    async def run(self) -> None:
        """Plan until cancelled.

        Raises
        ------
        LogError
            The log refused, or was unreachable during the start.
        """
        self._journal.write(
            "start",
            f"Planner {self._config.name} starts under policy {self._config.policy.name}.",
            detail={"policy": self._config.policy.hash},
        )
        with plain_errors():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._outbox.run(), name="plan: outbox")
                try:
                    for (topic, partition), offset in (await self._catch_up()).items():
                        reader = follow(
                            self._log,
                            topic,
                            partition,
                            offset=offset,
                            deliver=self._read,
                            health=self._health,
                        )
                        tasks.create_task(reader, name=f"plan: {topic}/{partition}")
                    await self._tick()
                finally:
                    await self._outbox.emptied(within_s=_LEAVE_S)

    async def _catch_up(self) -> dict[Place, int]:
        """Read the records that determine the state; return the next offset of each partition."""
        now_ms = self._clock.now_ms()
        next_offsets: dict[Place, int] = {}
        await self._replay(CONTROL.name, 0, next_offsets)
        self._write_back()
        await self._learn_recoveries(now_ms)
        await self._replay(ORDERS.name, 0, next_offsets, since_ms=now_ms - DAY_MS)
        # An incident whose step still runs needs every alert since its first order, so alerts are
        # read from the oldest order of the last day on.
        given = [entry.order.issued_ms for entry in self._state.history]
        alerts_ms = min(now_ms - VERDICT_WINDOW_MS, *given, now_ms)
        for partition in range(self._log.partitions(ALERTS.name)):
            await self._replay(ALERTS.name, partition, next_offsets, since_ms=alerts_ms)
        scores_ms = now_ms - _SCORES_BACK_MS
        for partition in range(self._log.partitions(SCORES.name)):
            await self._replay(SCORES.name, partition, next_offsets, since_ms=scores_ms)
        await self._step_time()
        return next_offsets

    async def _learn_recoveries(self, now_ms: int) -> None:
        """Read which VMs recovered by themselves lately, so that they get time to do so again."""
        for partition in range(self._log.partitions(ALERTS.name)):
            offset = await self._log.offset_at(
                ALERTS.name, partition, time_ms=now_ms - _RECOVERIES_BACK_MS
            )
            for record in await self._log.read_to_end(ALERTS.name, partition, offset=offset):
                # Rejected alerts are skipped here. Those that are recent are read again by
                # `_replay`, which journals them.
                with suppress(RecordRejected, FoldFailed):
                    seen = self._read_as(record)
                    if isinstance(seen, AlertSeen) and seen.alert.state == "resolved":
                        await self._feed(replace(seen, now_ms=seen.alert.decided_ms))

    async def _replay(
        self,
        topic: str,
        partition: int,
        next_offsets: dict[Place, int],
        *,
        since_ms: int | None = None,
    ) -> None:
        if since_ms is None:
            offset = (await self._log.bounds(topic, partition)).earliest
        else:
            offset = await self._log.offset_at(topic, partition, time_ms=since_ms)
        for record in await self._log.read_to_end(topic, partition, offset=offset):
            await self._read(record)
            offset = record.offset + 1
        next_offsets[topic, partition] = offset

    async def _tick(self) -> None:
        while True:
            self._write_back()
            await self._step_time()
            await asyncio.sleep(_TICK_S)

    async def _step_time(self) -> None:
        """Advance time; the first call announces that the log was read to its end."""
        now_ms = self._clock.now_ms()
        try:
            await self._feed(Tick(now_ms) if self._state.live else CaughtUp(now_ms))
        except FoldFailed as failure:
            # While this fails, the planner gives no orders. Its health reports that it waits, so
            # that a person is notified.
            instruments.POISON.labels("planner").inc()
            self._health.waiting("plan", f"The planner cannot process a timer event: {failure}")
            _log.error("The planner cannot process a timer event.", exc_info=failure.cause)
        else:
            self._health.done("plan")
            self._health.progress("plan")

    async def _read(self, record: Record) -> None:
        """Process one record; no content of a record stops the planner."""
        try:
            try:
                await self._take_in(record)
            except FoldFailed as failure:
                # The first failure may be a transient fault of the machine.
                _log.warning(f"A record is processed once more: {failure}", topic=record.topic)
                await self._take_in(record)
        except RecordRejected as error:
            self._journal.reject(record, reason=error.reason, detail=error.detail)
        except FoldFailed as failure:
            instruments.POISON.labels("planner").inc()
            self._journal.reject(record, reason="poison", detail=str(failure), page=True)
            if record.topic in (CONTROL.name, ORDERS.name):
                # The record may be an order that is now missing from the limits, or a pause. So it
                # is replaced by a pause of the whole site, which stops all orders.
                hold = unreadable(record.key, time_ms=record.time_ms, why=str(failure))
                await self._feed(ControlSeen(hold, self._clock.now_ms(), record.key))

    async def _take_in(self, record: Record) -> None:
        event = self._read_as(record)
        if event is not None:
            await self._feed(event)

    def _read_as(self, record: Record) -> PlannerEvent | None:
        """Return the event in a record; `FoldFailed` if reading it raises."""
        try:
            return self._event(record)
        except RecordRejected:
            raise
        except Exception as error:
            raise FoldFailed(record.topic, error) from error

    def _event(self, record: Record) -> PlannerEvent | None:
        """Return the event in a record; None for a claim, which concerns only agents."""
        now_ms = self._clock.now_ms()
        if record.topic == ALERTS.name:
            return AlertSeen(self._alert(record), record.time_ms, now_ms)
        if record.topic == CONTROL.name:
            return self._heard(record, now_ms)
        if record.topic == SCORES.name:
            return self._scores(record, now_ms)
        trusted = self._config.trusted.current()
        entry = open_entry(record.value, record.headers, trusted=trusted, time_ms=record.time_ms)
        if isinstance(entry, Order):
            return OrderSeen(entry, record.offset, record.time_ms, now_ms)
        return ResultSeen(entry, record.time_ms, now_ms) if isinstance(entry, OrderResult) else None

    def _alert(self, record: Record) -> Alert:
        trusted = self._config.trusted.current()
        return open_alert(record.value, record.headers, trusted=trusted, time_ms=record.time_ms)

    def _scores(self, record: Record, now_ms: int) -> LoadSeen:
        scores = open_scores(
            record.value,
            record.headers,
            trusted=self._config.trusted.current(),
            site=self._config.site,
            time_ms=record.time_ms,
        )
        if not has_room(self._state.loads, scores.cell, now_ms=now_ms):
            raise RecordRejected(
                "too_many",
                f"cell {scores.cell!r} would be number {len(self._state.loads) + 1} among those "
                "that report their load, so nothing is moved there. Check what the engine that "
                "signed the record reads",
            )
        return LoadSeen(scores.cell, _load(scores), now_ms)

    def _heard(self, record: Record, now_ms: int) -> ControlSeen | None:
        """Return the effect of a control record, and note the command in force under its key."""
        known, trust = self._state.controls, self._config.trusted
        heard = hear_record(record, trust=trust, controls=known, journal=self._journal)
        if heard.displaces:
            self._displaced.add(record.key)
        elif heard.rejected is None:
            self._stand(record, heard)
            self._displaced.discard(record.key)
        if heard.command is None:
            return None
        return ControlSeen(heard.command, now_ms, record.key, heard.by_operator)

    def _stand(self, record: Record, heard: Heard) -> None:
        """Keep the record now in force under a key, in case a rejected record displaces it."""
        value, headers = record.value, record.headers
        size = len(value) + sum(len(name) + len(content) for name, content in headers)
        if heard.command is not None and not heard.by_operator and size > _STANDING_BYTES:
            # A command that needs no signature can be encoded again without the excess bytes.
            value, headers = encode_control(heard.command), ()
        if len(self._standing) >= _MOST_STANDING:
            held = self._state.controls
            self._standing = {
                key: kept
                for key, kept in self._standing.items()
                if (command := held.get(key)) is not None and command.active
            }
        self._standing[record.key] = value, headers

    def _write_back(self) -> None:
        """Append again the commands that rejected records have displaced from the log.

        Compaction keeps only the newest record of a key, so a planner or agent that starts later
        would not find the command that is still in force here.
        """
        for key in sorted(self._displaced):
            standing = self._standing.get(key)
            if standing is not None:
                value, headers = standing
                self._outbox.put(CONTROL.name, key=key, value=value, headers=headers)
        self._displaced.clear()

    async def _feed(self, event: PlannerEvent) -> None:
        """Step one event and carry out its instructions before the next one.

        Raises
        ------
        FoldFailed
            Stepping raised an error. The state is immutable, so it is still the one before the
            event.
        """
        async with self._turn:
            try:
                self._state, instructions = step(self._state, event, self._config.policy)
            except Exception as error:
                raise FoldFailed(type(event).__name__, error) from error
            for instruction in instructions:
                try:
                    await self._do(instruction)
                except LogError:
                    raise
                except Exception as error:  # noqa: BLE001 - the others must still be done
                    # The state machine waits for a missing order until it has expired, then gives
                    # it again; the following instructions are still carried out.
                    instruments.POISON.labels("planner").inc()
                    _log.error("The planner failed to carry out its own command.", exc_info=error)

    async def _do(self, instruction: Instruction) -> None:
        match instruction:
            case AppendOrder(order):
                await self._append(order)
            case AppendControl(control):
                value = encode_control(control)
                headers = signed(value, self._config.key)
                self._outbox.put(CONTROL.name, key=control.key(), value=value, headers=headers)
            case WriteJournal():
                self._report(instruction)

    async def _append(self, order: Order) -> None:
        value, headers = encode_order(order, self._config.key)
        try:
            await self._log.append(
                ORDERS.name, key=order.cell.encode(), value=value, headers=headers
            )
        except (LogUnreachable, LogProducerBroken, RecordTooLarge) as error:
            # The order may be in the log or not: the state machine waits for it until it has
            # expired, and only then gives the step again.
            _log.warning(f"It is unknown whether the order reached the log: {error}", vm=order.vm)
            return
        instruments.ORDERS_GIVEN.labels(order.action, str(order.dry_run).lower()).inc()

    def _report(self, entry: WriteJournal) -> None:
        if entry.kind == "refusal":
            instruments.ORDERS_HELD.labels(entry.rule).inc()
        if entry.page:
            instruments.PAGES.labels(entry.rule).inc()
        self._journal.write(
            entry.kind,
            entry.sentence,
            incident=entry.incident,
            step=entry.step,
            vm=entry.vm,
            cell=entry.cell,
            detail={"rule": entry.rule, "policy": self._config.policy.hash},
            page=entry.page,
        )


@lru_cache(maxsize=1 << 17)
def _vm_text(vm: bytes) -> str:
    """Return a UUID as text; cached, since every minute contains the same VMs."""
    return str(UUID(bytes=vm))


def _load(scores: Scores) -> CellLoad:
    """Return the load of a cell in one minute of scores, for the choice of a target."""
    size = len(scores.uuids) // UUID_BYTES
    cores = scores.matrix()[scores.features.index(_CORES)] if _CORES in scores.features else ()
    names = (
        _vm_text(scores.uuids[index * UUID_BYTES : (index + 1) * UUID_BYTES])
        for index in range(size)
    )
    return CellLoad(
        minute_ms=scores.minute_ms,
        nodes=scores.node_load,
        vm_count=scores.vm_count,
        rooms={
            name: NodeRoom(node.cores, node.memory_available_bytes, frozenset(node.groups))
            for name, node in scores.nodes.items()
        },
        vm_cores={vm: float(used) for vm, used in zip(names, cores, strict=False)},
        pools=scores.pool_vms,
        networks=scores.network_vms,
    )

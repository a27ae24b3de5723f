"""The historian's loop: records of the log in, rows of the history out, offsets after them.

Nothing is committed before the store has acknowledged it, and a store that is away is asked
again for ever: meanwhile nothing is read, so memory is bounded by one batch. Rows that the
store will never take stand in `rejected` with its reason. Detection knows nothing of this.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from engine.capacity.fold import FrameFold, Hour
from engine.capacity.rollups import hour_points, hour_questions
from engine.capacity.rows import action_points, alert_points, forecast_points, score_points
from engine.capacity.state import restore, take_state
from engine.errors import HistoryError, HistoryUnreachable, RecordRejected
from engine.ports import Clock, Delivery, History, Log, OpenFrame, Record, RefusedRow, Subscription
from engine.refusals import Backoff
from engine.roles import instruments
from engine.roles.appending import append_or_give_up
from engine.roles.generations import StateKeys, append_generation, newest_state
from engine.roles.health import Health, told
from engine.roles.refolding import Refolding
from engine.wire.frame import Frame, decode_frame
from engine.wire.measurement import FAMILIES
from engine.wire.points import Points
from engine.wire.rejected import encode_rejected
from engine.wire.topics import ALERTS, FORECASTS, FRAMES, JOURNAL, REJECTED, SCORES, SNAPSHOTS

# What is read before it is written: 200 frames of 200 VMs are a third of a million rows' worth
# of numbers, some 60 MB while they become text.
_MAX_RECORDS: Final = 50
_POLL_S: Final = 0.5
# Rows that wait for company: a request of a few thousand costs the store least.
_ENOUGH_ROWS: Final = 20_000
# A store that restarts is back in seconds; one that stays away is asked twice a minute.
_FIRST_BACKOFF_S: Final = 0.5
_LAST_BACKOFF_S: Final = 30.0
# Often enough that group membership never ends and probes hear that the part waits.
_KEEP_S: Final = 1.0

_FAMILY_OF: Final = {family[0].name: family for family in FAMILIES}
_EACH: Final[dict[str, Callable[[Record], list[Points]]]] = {
    ALERTS.name: alert_points,
    FORECASTS.name: forecast_points,
    JOURNAL.name: action_points,
    SCORES.name: score_points,
}

T = TypeVar("T")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConfig:
    """What the historian is told.

    Attributes
    ----------
    group
        Historians of one group share the partitions.
    gather_s
        How long rows may wait for company before they are written.
    snapshot_every_s
        Append time between two states of one partition of frames.
    """

    group: str = "flatline-history"
    gather_s: float = 2.0
    snapshot_every_s: float = 180.0


def decoded(record: Record) -> Frame:
    """Return the frame of a record whoever wrote it, for tests."""
    return decode_frame(record.value)


class Recorder:
    """Writes the history of the partitions it is given, until cancelled.

    Parameters
    ----------
    open_frame
        Checks who wrote a frame and decodes it.
    state_keys
        Sign the state and tell whose is believed; None believes every writer, for tests.
    """

    def __init__(
        self,
        *,
        log: Log,
        history: History,
        config: RecordConfig,
        clock: Clock,
        health: Health,
        open_frame: OpenFrame = decoded,
        state_keys: StateKeys | None = None,
    ) -> None:
        self._open_frame = open_frame
        self._state_keys = state_keys
        self._log = log
        self._history = history
        self._config = config
        self._clock = clock
        self._health = health

    async def run(self) -> None:
        """Record until cancelled.

        Raises
        ------
        LogError
            The log refused or went away; whoever runs this opens it anew.
        SnapshotTooNew
            A later release wrote the newest state.
        """
        streams = [
            asyncio.create_task(self._run_frames()),
            *(asyncio.create_task(self._run_each(topic)) for topic in _EACH),
        ]
        try:
            done, _ = await asyncio.wait(streams, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        for stream in done:
            stream.result()

    async def _run_frames(self) -> None:
        async with self._log.subscribe(FRAMES.name, group=self._config.group) as subscription:
            stream = _Frames(
                self._log, self._history, subscription, self._config, self._clock, self._health
            )
            stream.open_frame = self._open_frame
            stream.state_keys = self._state_keys
            await stream.run()

    async def _run_each(self, topic: str) -> None:
        async with self._log.subscribe(topic, group=self._config.group) as subscription:
            stream = _Stream(
                self._log, self._history, subscription, self._config, self._clock, self._health
            )
            await stream.run(topic)


class _Stream:
    """One topic: what was read and not yet written, and how far the store has it."""

    def __init__(
        self,
        log: Log,
        history: History,
        subscription: Subscription,
        config: RecordConfig,
        clock: Clock,
        health: Health,
    ) -> None:
        self._log = log
        self._history = history
        self._subscription = subscription
        self._config = config
        self._clock = clock
        self._health = health
        self._part = "history"
        self._generation = -1
        self._forget()

    def _forget(self) -> None:
        """Begin anew: what was not acknowledged is read again by whoever holds its partition."""
        self._points: list[Points] = []
        # The record that each of the points came from.
        self._origins: list[Record] = []
        self._rows = 0
        self._next: dict[int, int] = {}
        self._since_ns: int | None = None

    async def run(self, topic: str) -> None:
        """Write what each record says by itself."""
        self._part = f"history of {topic}"
        while True:
            delivery = await self._poll()
            for record in delivery.records:
                try:
                    self._put(_EACH[topic](record), record)
                except RecordRejected as rejection:
                    await self._reject(
                        record, record.value, reason=rejection.reason, detail=rejection.detail
                    )
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this record's
                    # Each record is rows by itself: a second try would end the same.
                    instruments.POISON.labels("historian").inc()
                    detail = f"{type(error).__name__}: {error}"
                    await self._reject(record, record.value, reason="poison", detail=detail)
                self._next[record.partition] = record.offset + 1
            if self._is_due() and await self._write():
                await self._subscription.commit(self._next)
                self._next = {}
            self._health.progress(self._part)
            await asyncio.sleep(0)

    async def _poll(self) -> Delivery:
        delivery = await self._subscription.poll(max_records=_MAX_RECORDS, wait_s=_POLL_S)
        if delivery.generation != self._generation:
            self._generation = delivery.generation
            self._forget()
        return delivery

    def _put(self, points: Sequence[Points], record: Record) -> None:
        if self._since_ns is None:
            self._since_ns = self._clock.mono_ns()
        self._points += points
        self._origins += [record] * len(points)
        self._rows += sum(map(len, points))

    def _is_due(self) -> bool:
        if self._since_ns is None:
            return bool(self._next)
        waited_ns = self._clock.mono_ns() - self._since_ns
        return self._rows >= _ENOUGH_ROWS or waited_ns >= self._config.gather_s * 1e9

    async def _write(self) -> bool:
        """Write what waits; False where its partitions went to somebody else meanwhile."""
        if self._points:
            refused = await self._insist(lambda: self._history.write(self._points))
            if refused is None:
                self._forget()
                return False
            for row in refused:
                await self._reject_row(row)
            instruments.HISTORY_ROWS.inc(self._rows - len(refused))
        self._points, self._origins, self._rows, self._since_ns = [], [], 0, None
        return True

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Try for ever; None where the partitions were given to somebody else meanwhile."""
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        while True:
            try:
                found = await self._kept_alive(call)
            except HistoryError as error:
                instruments.HISTORY_FAILURES.labels(type(error).__name__).inc()
                asked_s = error.retry_after_s if isinstance(error, HistoryUnreachable) else None
                if not await self._wait(backoff.failed(asked_s), f"{told(error)} Trying again."):
                    return None
                continue
            self._health.progress(self._part)
            return found

    async def _kept_alive(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await a call that may take long, and stay a member of the group meanwhile."""
        task = asyncio.ensure_future(call())
        try:
            while True:
                done, _ = await asyncio.wait((task,), timeout=_KEEP_S)
                if done:
                    return task.result()
                self._health.progress(self._part)
                await self._subscription.poll(max_records=0, wait_s=0.0)
        finally:
            task.cancel()

    async def _wait(self, wait_s: float, sentence: str) -> bool:
        """Wait without reading; False as soon as the partitions were shared out anew."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        while (left_s := deadline_s - loop.time()) > 0:
            self._health.waiting(self._part, sentence)
            delivery = await self._subscription.poll(max_records=0, wait_s=min(left_s, _KEEP_S))
            if delivery.generation != self._generation:
                return False
        return True

    async def _reject_row(self, row: RefusedRow) -> None:
        origin = self._origins[row.points]
        await self._reject(origin, row.text, reason="unstorable", detail=row.reason)

    async def _reject(self, record: Record, value: bytes, *, reason: str, detail: str) -> None:
        """Keep what the history cannot hold, with the reason."""
        instruments.HISTORY_REJECTED.labels(reason).inc()
        _log.warning("The history does not take this.", topic=record.topic, reason=detail[:500])
        await append_or_give_up(
            self._log,
            REJECTED.name,
            key=record.key or b"-",
            value=encode_rejected(
                value,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=reason,
                detail=detail,
            ),
        )


class _Frames(_Stream):
    """Frames: their rows, their minutes, and the hours that end; state beside the offsets."""

    open_frame: OpenFrame = staticmethod(decoded)
    state_keys: StateKeys | None = None

    async def run(self, topic: str = FRAMES.name) -> None:
        """Write what frames say, and keep what the next ones need."""
        self._part = f"history of {topic}"
        self._refolding: Refolding[FrameFold, list[Points]] = Refolding(
            self._log, "historian", self._load, FrameFold.fold_record
        )
        while True:
            delivery = await self._poll()
            await self._assign(delivery)
            for record in delivery.records:
                await self._fold(record)
            if self._is_due() and await self._write():
                await self._close_hours()
                await self._save_due()
            self._health.progress(self._part)
            await asyncio.sleep(0)

    def _forget(self) -> None:
        super()._forget()
        self._folds: dict[int, FrameFold] = {}
        self._saved_ms: dict[int, int] = {}
        self._committed: dict[int, list[int]] = {}
        self._beyond = 0

    async def _assign(self, delivery: Delivery) -> None:
        """Hold the state of exactly the partitions assigned."""
        for number in self._folds.keys() - delivery.assigned:
            del self._folds[number]
        for number in sorted(delivery.assigned - self._folds.keys()):
            fold = await self._load(number)
            self._folds[number] = fold
            self._saved_ms[number] = fold.time_ms
            self._committed[number] = [fold.next_offset] if fold.next_offset else []

    async def _load(self, number: int) -> FrameFold:
        stored = await newest_state(
            self._log,
            number,
            group=self._config.group,
            topic=SNAPSHOTS,
            restore=restore,
            keys=self.state_keys,
        )
        fold = FrameFold() if stored is None else stored
        fold.open_frame = self.open_frame
        return fold

    async def _fold(self, record: Record) -> None:
        fold = self._folds.get(record.partition)
        if fold is None or record.offset < fold.next_offset:
            return
        fold, points = await self._refolding.fold(fold, record)
        self._folds[record.partition] = fold
        self._next[record.partition] = fold.next_offset
        if fold.unreadable:
            instruments.HISTORY_UNREADABLE.inc(fold.unreadable)
            fold.unreadable = 0
        if fold.beyond_int64:
            instruments.HISTORY_BEYOND_INT64.inc(fold.beyond_int64)
            fold.beyond_int64 = 0
        if points:
            self._put(points, record)

    async def _close_hours(self) -> None:
        """Roll up the hours that have ended, from the rows that the store has."""
        for fold in tuple(self._folds.values()):
            for hour in fold.due_hours():
                if not await self._close_hour(hour):
                    return
                fold.open_hours.discard(hour)

    async def _close_hour(self, hour: Hour) -> bool:
        family = _FAMILY_OF[hour.family]
        answers = []
        for question in hour_questions(family, cell=hour.cell, begin_s=hour.begin_s):
            found = await self._insist(lambda asked=question: self._history.ask(asked))  # type: ignore[misc]
            if found is None:
                self._forget()
                return False
            answers.append(found)
        points = hour_points(family, answers, cell=hour.cell, begin_s=hour.begin_s)
        if points:
            refused = await self._insist(lambda: self._history.write(points))
            if refused is None:
                self._forget()
                return False
            for row in refused:
                _log.error("A closed hour was refused.", reason=row.reason, hour=hour)
                instruments.HISTORY_REJECTED.labels("unstorable").inc()
        instruments.HISTORY_HOURS.inc()
        return True

    async def _save_due(self) -> None:
        """Write the state of partitions that are due, and let a successor start before it."""
        every_ms = self._config.snapshot_every_s * 1000
        for number, fold in self._folds.items():
            if fold.time_ms - self._saved_ms[number] < every_ms and self._saved_ms[number]:
                continue
            taken = take_state(fold)
            # One that cannot be saved is tried again when the next one is due.
            self._saved_ms[number] = fold.time_ms
            if not await append_generation(
                self._log,
                number,
                group=self._config.group,
                generation=taken.name,
                chunks=taken.chunks,
                manifest=taken.manifest,
                keys=self.state_keys,
            ):
                continue
            kept = [*self._committed[number][-1:], fold.next_offset]
            self._committed[number] = kept
            # As with the engine: two generations are kept, the older one's offset is committed.
            if len(kept) == 2:
                await self._subscription.commit({number: kept[0]})

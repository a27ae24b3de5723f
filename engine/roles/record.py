"""The loop of the historian: records of the log in, rows of the history out, then the offsets.

Offsets are committed only after the store has acknowledged the rows. A store that is down is
retried without limit; meanwhile nothing is read, so memory is bounded by one batch. Rows that the
store never accepts are written to `rejected` with the reason. Detection does not depend on the
historian.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from flatline.engine import instruments
from flatline.engine.errors import HistoryError, HistoryUnreachable, RecordRejected
from flatline.engine.history.history_fold import FrameFold, Hour
from flatline.engine.history.history_state import restore, take_state
from flatline.engine.history.rollups import hour_points, hour_queries
from flatline.engine.history.rows import action_points, alert_points, forecast_points, score_points
from flatline.engine.ports import (
    Clock,
    Delivery,
    HistoryQuery,
    HistorySink,
    Log,
    OpenFrame,
    Record,
    RefusedRow,
    Subscription,
)
from flatline.engine.roles.appending import append_or_give_up
from flatline.engine.roles.health import Health, as_sentence
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.stream.backoff import Backoff
from flatline.engine.stream.consumer import Consumer, Saving
from flatline.engine.wire.frame import Frame, decode_frame
from flatline.engine.wire.measurement import FAMILIES
from flatline.engine.wire.points import Points
from flatline.engine.wire.rejected import encode_rejected
from flatline.engine.wire.topics import (
    ALERTS,
    FORECASTS,
    FRAMES,
    JOURNAL,
    REJECTED,
    SCORES,
    SNAPSHOTS,
)

# The most records of one poll. 50 frames of 200 VMs are 90,000 rows, some 15 MB as text.
_MAX_RECORDS: Final = 50
_POLL_S: Final = 0.5
# The target size of a batch: requests of a few thousand rows cost the store least.
_ENOUGH_ROWS: Final = 20_000
# A store that restarts is available again within seconds; one that stays unreachable is tried twice
# a minute.
_FIRST_BACKOFF_S: Final = 0.5
_LAST_BACKOFF_S: Final = 30.0
# How often the historian polls and reports while it waits for the store: often enough to stay a
# member of its group and not to count as stuck.
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
    """The configuration of the historian.

    Attributes
    ----------
    group
        Historians of one group share the partitions.
    gather_s
        How long rows may wait for a larger batch before they are written.
    snapshot_every_s
        Append time between two states of one partition of frames.
    """

    group: str = "flatline-history"
    gather_s: float = 2.0
    snapshot_every_s: float = 180.0


def decoded(record: Record) -> Frame:
    """Return the frame of a record without checking its writer, for tests.

    Raises
    ------
    RecordRejected
        The record is not a frame.
    """
    return decode_frame(record.value)


class Recorder:
    """Writes the history of the partitions assigned to it, until cancelled.

    Parameters
    ----------
    history
        Stores the rows. A store that is no `HistoryQuery` gets no hourly rows, since these are
        computed from the minutes in the store.
    open_frame
        Verifies the writer of a frame and decodes it.
    state_keys
        Signs the state and decides which states are trusted; None trusts every writer, for tests.
    """

    def __init__(
        self,
        *,
        log: Log,
        history: HistorySink,
        config: RecordConfig,
        clock: Clock,
        health: Health,
        open_frame: OpenFrame = decoded,
        state_keys: StateKeys | None = None,
    ) -> None:
        self._log = log
        self._history = history
        self._config = config
        self._clock = clock
        self._health = health
        self._consumer: Consumer[FrameFold, list[Points]] = Consumer(
            log,
            role="historian",
            saving=Saving(
                new=FrameFold,
                take=take_state,
                restore=restore,
                group=config.group,
                topic=SNAPSHOTS,
                every_s=config.snapshot_every_s,
                saves_first=True,
                keys=state_keys,
            ),
            step=FrameFold.fold_record,
            open_frame=open_frame,
        )

    async def run(self) -> None:
        """Record until cancelled.

        Raises
        ------
        LogError
            The log refused or was lost; the caller opens the role again.
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
            stream.consumer = self._consumer
            await stream.run()

    async def _run_each(self, topic: str) -> None:
        async with self._log.subscribe(topic, group=self._config.group) as subscription:
            stream = _Stream(
                self._log, self._history, subscription, self._config, self._clock, self._health
            )
            await stream.run(topic)


class _Stream:
    """One topic: the rows that wait to be written, and the offsets to commit after them."""

    def __init__(
        self,
        log: Log,
        history: HistorySink,
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
        """Reset: unacknowledged records are read again by the new owner of their partition."""
        self._points: list[Points] = []
        # For each element of `_points`, the record that it came from.
        self._origins: list[Record] = []
        self._rows = 0
        self._next: dict[int, int] = {}
        self._since_ns: int | None = None

    async def run(self, topic: str) -> None:
        """Turn each record into rows, independently of other records, and write them in batches."""
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
                except Exception as error:  # noqa: BLE001 - one record must not stop the others
                    # The rows depend on this record alone, so a second attempt would fail too.
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
        """Write the waiting rows; False if their partitions were reassigned meanwhile."""
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
        """Retry a call without limit; None if the partitions were reassigned meanwhile."""
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        while True:
            try:
                found = await self._kept_alive(call)
            except HistoryError as error:
                instruments.HISTORY_FAILURES.labels(type(error).__name__).inc()
                asked_s = error.retry_after_s if isinstance(error, HistoryUnreachable) else None
                if not await self._wait(backoff.failed(asked_s), f"{as_sentence(error)} Retrying."):
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
        """Wait without reading; return False as soon as the partitions are reassigned."""
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
        """Write content that the store refuses to the topic `rejected`, with the reason."""
        instruments.HISTORY_REJECTED.labels(reason).inc()
        _log.warning("The history rejects these rows.", topic=record.topic, reason=detail[:500])
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
    """The topic of frames: writes samples, minutes and ended hours, and saves the state."""

    consumer: Consumer[FrameFold, list[Points]]

    async def run(self, topic: str = FRAMES.name) -> None:
        """Write the rows of frames, and save the state that the next frames need."""
        self._part = f"history of {topic}"
        while True:
            delivery = await self._poll()
            await self.consumer.assign(delivery)
            for record in delivery.records:
                await self._fold(record)
            if self._is_due() and await self._write() and await self._close_hours():
                await self.consumer.save_due(self._subscription)
            self._health.progress(self._part)
            await asyncio.sleep(0)

    async def _fold(self, record: Record) -> None:
        points = await self.consumer.fold(record)
        if points is None:
            return
        fold = self.consumer.states[record.partition]
        self._next[record.partition] = fold.next_offset
        if fold.unreadable:
            instruments.HISTORY_UNREADABLE.inc(fold.unreadable)
            fold.unreadable = 0
        if fold.beyond_int64:
            instruments.HISTORY_BEYOND_INT64.inc(fold.beyond_int64)
            fold.beyond_int64 = 0
        if points:
            self._put(points, record)

    async def _close_hours(self) -> bool:
        """Aggregate the ended hours from the rows in the store.

        False if the partitions were reassigned meanwhile.
        """
        for fold in self.consumer.states.values():
            for hour in fold.due_hours():
                if isinstance(self._history, HistoryQuery) and not await self._close_hour(
                    hour, self._history
                ):
                    return False
                fold.open_hours.discard(hour)
        return True

    async def _close_hour(self, hour: Hour, history: HistoryQuery) -> bool:
        family = _FAMILY_OF[hour.family]
        answers = []
        for query in hour_queries(family, cell=hour.cell, begin_s=hour.begin_s):
            found = await self._insist(partial(history.ask, query))
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
                _log.error("A complete hour was rejected.", reason=row.reason, hour=hour)
                instruments.HISTORY_REJECTED.labels("unstorable").inc()
        instruments.HISTORY_HOURS.inc()
        return True

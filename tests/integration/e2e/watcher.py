"""The content of a site's log, read independently of its roles and without a group."""

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.action.keys import TrustedKeys, open_entry
from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Headers, Record
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.frame import Frame, decode_frame
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.order import Entry, Order, OrderResult
from flatline.engine.wire.topics import ALERTS, FRAMES, JOURNAL, ORDERS, REJECTED, SNAPSHOTS

FOLLOWED = (FRAMES, ALERTS, ORDERS, JOURNAL, REJECTED, SNAPSHOTS)


class SeenAlert(NamedTuple):
    """One published state of an alert, and its append time."""

    time_s: float
    alert: Alert


class SeenOrder(NamedTuple):
    """An order in the log."""

    time_s: float
    order: Order


class SeenResult(NamedTuple):
    """The result of an order in the log."""

    time_s: float
    result: OrderResult


class Watcher:
    """Follows every topic in a separate thread; entering it waits for the broker."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._records: list[Record] = []
        self._frames: list[Frame] = []
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log: KafkaLog | None = None
        self._ended: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._opened.wait()
        self.check()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._ended is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10.0)

    def check(self) -> None:
        """Raise the error that ended the thread, if any."""
        if self._failure is not None:
            raise AssertionError(f"the log cannot be watched: {self._failure}") from self._failure

    def records(self, topic: str) -> list[Record]:
        """Return the records so far of any topic but frames, in the order of reading."""
        return [record for record in list(self._records) if record.topic == topic]

    def frames(self) -> list[Frame]:
        """Return the frames so far."""
        return list(self._frames)

    def alerts(self, subject: str | None = None) -> list[SeenAlert]:
        """Return the alerts so far, of one subject or of all."""
        seen = [
            SeenAlert(record.time_ms / 1000, decode_alert(record.value))
            for record in self.records(ALERTS.name)
        ]
        return [one for one in seen if subject in (None, one.alert.subject)]

    def orders(self, trusted: TrustedKeys) -> list[SeenOrder]:
        """Return the orders so far that a trusted planner signed."""
        return [
            SeenOrder(record.time_ms / 1000, entry)
            for record in self.records(ORDERS.name)
            if isinstance(entry := _opened(record, trusted), Order)
        ]

    def marks(self, trusted: TrustedKeys) -> list[SeenResult]:
        """Return the results so far that a trusted agent signed."""
        return [
            SeenResult(record.time_ms / 1000, entry)
            for record in self.records(ORDERS.name)
            if isinstance(entry := _opened(record, trusted), OrderResult)
        ]

    def journal(self) -> list[JournalEntry]:
        """Return the journal so far."""
        return [decode_entry(record.value) for record in self.records(JOURNAL.name)]

    def append(self, topic: str, *, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Append a record as any client with write access to the topic can."""
        assert self._loop is not None
        assert self._log is not None
        appended = self._log.append(topic, key=key, value=value, headers=headers)
        asyncio.run_coroutine_threadsafe(appended, self._loop).result(30.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._follow_all())
        # The test must see every error, and this thread can report it nowhere else.
        except BaseException as error:  # noqa: BLE001
            self._failure = error
        finally:
            self._opened.set()

    async def _follow_all(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        async with KafkaLog(self._config) as self._log:
            places = [
                (topic.name, partition)
                for topic in FOLLOWED
                for partition in range(self._log.partitions(topic.name))
            ]
            self._opened.set()
            tails = [asyncio.create_task(self._follow(*place)) for place in places]
            ended = asyncio.create_task(self._ended.wait())
            done, _ = await asyncio.wait({*tails, ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tails, ended):
                task.cancel()
            await asyncio.wait({*tails, ended})
            for task in done:
                task.result()

    async def _follow(self, topic: str, partition: int) -> None:
        assert self._log is not None
        async with self._log.tail(topic, partition, offset=0) as batches:
            async for records in batches:
                self._take(records)

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.topic == FRAMES.name:
                self._frames.append(decode_frame(record.value))
            else:
                self._records.append(record)


def _opened(record: Record, trusted: TrustedKeys) -> Entry | None:
    try:
        return open_entry(record.value, record.headers, trusted=trusted)
    except RecordRejected:
        return None

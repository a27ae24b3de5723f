"""The run of the demo as sentences, all read from the log, as a consumer would."""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from flatline.engine.ports import Log, Record
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.journal import decode_entry
from flatline.engine.wire.order import Entry, Order, OrderResult
from flatline.engine.wire.topics import ALERTS, JOURNAL, ORDERS

# More lines than any terminal shows.
_LINES_KEPT: Final = 200
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence, its append time and the kind of its record."""

    time_ms: int
    kind: str
    text: str


@dataclass(slots=True)
class Story:
    """The content of the log so far.

    Attributes
    ----------
    alerts
        All published states of each alert by its id, oldest first.
    suspects
        State of the unresolved alert on each VM that has one, by UUID text.
    explained
        VMs in an unresolved wider incident; they are not judged separately while it lasts.
    acted
        VMs on which an order was executed.
    names
        Names of VMs with alerts by UUID text; sentences show the names instead of the UUIDs.
    """

    alerts: dict[str, list[Alert]] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    closed: list[OrderResult] = field(default_factory=list)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))
    suspects: dict[str, str] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)
    acted: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    _unread: list[Line] = field(default_factory=list)

    def latest(self) -> list[Alert]:
        """Return the newest state of each alert, in the order in which they opened."""
        return [states[-1] for states in self.alerts.values()]

    def hear(self, line: Line) -> None:
        """Add a sentence."""
        named = _UUID.sub(lambda found: self.names.get(found[0], found[0]), line.text)
        line = replace(line, text=named)
        self.lines.append(line)
        self._unread.append(line)

    def take_unread(self) -> list[Line]:
        """Return the sentences since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def read(self, record: Record) -> None:
        """Process one record of the topic `alerts` or `journal`; others are ignored.

        Raises
        ------
        RecordRejected
            The record cannot be decoded.
        """
        if record.topic == ALERTS.name:
            self._alert(record.time_ms, decode_alert(record.value))
        elif record.topic == JOURNAL.name:
            entry = decode_entry(record.value)
            if entry.kind in {"refusal", "call", "outcome", "effect", "control"}:
                self.hear(Line(record.time_ms, entry.kind, entry.sentence))

    def order(self, time_ms: int, entry: Entry) -> None:
        """Process an order or its result, after its signature was verified.

        `time_ms` is the append time of the record. Other entries are ignored.
        """
        if isinstance(entry, Order):
            self.orders.append(entry)
            self.hear(Line(time_ms, "order", entry.sentence))
        elif isinstance(entry, OrderResult):
            self.closed.append(entry)
            if entry.outcome == "returned" and not entry.dry_run:
                self.acted.add(entry.vm)

    def _alert(self, time_ms: int, alert: Alert) -> None:
        states = self.alerts.setdefault(alert.id, [])
        again = bool(states) and states[-1].transition == alert.transition
        states.append(alert)
        if alert.scope == "vm":
            self.names[alert.subject] = alert.name or alert.subject
            if alert.state == "resolved":
                self.suspects.pop(alert.subject, None)
            else:
                self.suspects[alert.subject] = alert.state
        elif alert.state == "resolved":
            self.explained -= set(alert.vms)
        else:
            self.explained |= set(alert.vms)
        if not again and alert.state != "pending":
            self.hear(Line(time_ms, f"alert {alert.state}", alert.sentence))


async def follow_log(log: Log, story: Story, *, open_order: Callable[[Record], Entry]) -> None:
    """Read all records into `story` until cancelled.

    `open_order` verifies and decodes a record of the topic `orders`. Its errors and
    `RecordRejected` end the reading, in an exception group.
    """

    async def tail(topic: str, partition: int) -> None:
        async with log.tail(topic, partition, offset=0) as batches:
            async for records in batches:
                for record in records:
                    if topic == ORDERS.name:
                        story.order(record.time_ms, open_order(record))
                    else:
                        story.read(record)

    async with asyncio.TaskGroup() as tasks:
        for topic in (ALERTS.name, ORDERS.name, JOURNAL.name):
            for partition in range(log.partitions(topic)):
                tasks.create_task(tail(topic, partition), name=f"demo: {topic}/{partition}")

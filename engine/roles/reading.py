"""Reads orders and control for one agent, each record once, and detects a replaced log."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from flatline.engine import instruments
from flatline.engine.action.admit import History, claimed, closed, logged
from flatline.engine.action.catalogue import Policy
from flatline.engine.action.commands import fold_command, with_command
from flatline.engine.action.keys import Trust, open_entry
from flatline.engine.action.ledger import LogPosition
from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Log, Record
from flatline.engine.roles.hearing import hear_record
from flatline.engine.roles.outbox import Journal
from flatline.engine.wire.control import Control, unreadable
from flatline.engine.wire.order import Claim, Entry, Order, names_node
from flatline.engine.wire.topics import CONTROL, ORDERS

TOPICS: Final = (CONTROL.name, ORDERS.name)


class LogChanged(Exception):
    """A topic holds another record at an offset read before; the message names the topic."""


# The receiver of orders: the order, its record, and the history before it.
Deliver = Callable[[Order, Record, History], None]


class Reading:
    """The content of the log, as far as it was read.

    Parameters
    ----------
    deliver
        Receives every order, in the order of the log.
    journal
        Keeps rejected records.

    Attributes
    ----------
    history, controls
        The orders of the last day, and the control commands in force by key.
    next_offsets
        The next offset of each topic.
    log_ms
        The newest append time seen.
    """

    def __init__(
        self,
        log: Log,
        *,
        node: str,
        policy: Policy,
        trusted: Trust,
        journal: Journal,
        deliver: Deliver,
    ) -> None:
        self._log = log
        self._node = node
        self._policy = policy
        self._trusted = trusted
        self._journal = journal
        self._deliver = deliver
        self._hashes = dict.fromkeys(TOPICS, "")
        self.history: History = ()
        self.controls: Mapping[bytes, Control] = {}
        self.next_offsets = dict.fromkeys(TOPICS, 0)
        self.log_ms = 0

    @property
    def log_position(self) -> LogPosition:
        """The read position of both topics, and the hash of the last record of each."""
        return LogPosition(
            orders=self.next_offsets[ORDERS.name],
            orders_hash=self._hashes[ORDERS.name],
            control=self.next_offsets[CONTROL.name],
            control_hash=self._hashes[CONTROL.name],
        )

    async def begin(self, *, since_ms: int) -> None:
        """Read control from its beginning and orders from `since_ms` on, to their ends.

        `since_ms` is an append time. The log may raise `LogError`.
        """
        bounds = await self._log.bounds(CONTROL.name, 0)
        self.next_offsets[CONTROL.name] = bounds.earliest
        self.next_offsets[ORDERS.name] = await self._log.offset_at(ORDERS.name, 0, time_ms=since_ms)
        await self.read_to_ends()

    async def cut_topic(self) -> str | None:
        """Return a topic that no longer holds the read position, None if both topics hold it.

        In such a topic, records after that position may have been deleted unread. The log may raise
        `LogError`.
        """
        for topic in TOPICS:
            bounds = await self._log.bounds(topic, 0)
            if not bounds.earliest <= self.next_offsets[topic] <= bounds.end:
                return topic
        return None

    async def read_to_ends(self) -> None:
        """Read both topics to their current ends.

        Raises
        ------
        LogChanged
            The record that was read last has another content now: the log was replaced.
        LogError
            The log cannot be read.
        """
        for topic in TOPICS:
            last, known = self.next_offsets[topic] - 1, self._hashes[topic]
            for record in await self._log.read_to_end(topic, 0, offset=max(0, last)):
                if record.offset == last and known and record_hash(record) != known:
                    raise LogChanged(topic)
                await self.read(record)

    async def read(self, record: Record) -> None:
        """Process one record, if it is new: `read_to_ends` and the tail may both deliver it."""
        if record.offset < self.next_offsets[record.topic]:
            return
        self.next_offsets[record.topic] = record.offset + 1
        self._hashes[record.topic] = record_hash(record)
        self.log_ms = max(self.log_ms, record.time_ms)
        try:
            try:
                self._take_in(record)
            except Exception:  # noqa: BLE001 - the first failure may be a fault of the machine
                self._take_in(record)
        except Exception as error:  # noqa: BLE001 - an error of one record must not stop the others
            # The state is immutable, so it is unchanged and lacks this record. The record may be an
            # order or a pause, so a pause of the whole site takes its place.
            detail = f"{type(error).__name__}: {error}"
            instruments.POISON.labels("agent").inc()
            self._journal.reject(record, reason="poison", detail=detail, page=True)
            hold = unreadable(record.key, time_ms=record.time_ms, why=detail)
            self.controls = with_command(self.controls, record.key, hold)

    def _take_in(self, record: Record) -> None:
        """Apply one record."""
        if record.topic == CONTROL.name:
            # Planners write a rejected record to the topic `rejected`. If agents did so too, each
            # of a thousand agents would write a copy.
            heard = hear_record(record, trust=self._trusted, controls=self.controls)
            self.controls = fold_command(self.controls, record.key, heard)
            return
        earlier, trusted = self.history, self._trusted.current()
        try:
            entry = open_entry(
                record.value, record.headers, trusted=trusted, time_ms=record.time_ms
            )
        except RecordRejected as error:
            if names_node(record.value, self._node):
                self._journal.reject(record, reason=error.reason, detail=error.detail)
            else:
                instruments.RECORDS_REJECTED.labels(record.topic, error.reason).inc()
            return
        self.history = self._with(entry, record)
        if isinstance(entry, Order):
            self._deliver(entry, record, earlier)

    def _with(self, entry: Entry, record: Record) -> History:
        """Return the history with one more order, claim or result."""
        at_ms = record.time_ms
        if isinstance(entry, Order):
            return logged(self.history, entry, self._policy, offset=record.offset, time_ms=at_ms)
        if isinstance(entry, Claim):
            return claimed(self.history, entry, time_ms=at_ms)
        return closed(self.history, entry, time_ms=at_ms)


def record_hash(record: Record) -> str:
    """Return the hash of a record and its position: 32 hex digits."""
    place = f"{record.topic}/{record.offset}/{record.time_ms}/{len(record.key)}/".encode()
    return blake2b(place + record.key + record.value, digest_size=16).hexdigest()


async def found_at(log: Log, position: LogPosition) -> LogPosition:
    """Return `position` with the current hashes of the last records before its offsets.

    A hash is empty if the log has no record there: it was deleted or compacted, or the log ends
    before it. The log may raise `LogError`.
    """
    hashes = []
    for topic, offset in ((ORDERS.name, position.orders - 1), (CONTROL.name, position.control - 1)):
        bounds = await log.bounds(topic, 0)
        stands = bounds.earliest <= offset < bounds.end
        records = await log.read_to_end(topic, 0, offset=offset) if stands else []
        here = [record for record in records[:1] if record.offset == offset]
        hashes.append(record_hash(here[0]) if here else "")
    return LogPosition(
        orders=position.orders,
        orders_hash=hashes[0],
        control=position.control,
        control_hash=hashes[1],
    )

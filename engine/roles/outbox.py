"""The outbox and the journal of a role: records that wait, in order, until the log has them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog

from flatline.engine import instruments
from flatline.engine.action.chain import Head, extend
from flatline.engine.errors import LogProducerBroken, LogUnreachable, RecordTooLarge
from flatline.engine.plain_text import one_line
from flatline.engine.ports import Clock, Headers, Log, Record
from flatline.engine.roles.appending import give_up
from flatline.engine.roles.health import Health
from flatline.engine.stream.backoff import Backoff
from flatline.engine.wire.journal import EntryKind, encode_entry
from flatline.engine.wire.rejected import encode_rejected, rejected_key
from flatline.engine.wire.topics import JOURNAL, REJECTED

# A log that restarts is available again within seconds; one that stays unreachable is tried twice a
# minute.
_FIRST_BACKOFF_S: Final = 0.5
_LAST_BACKOFF_S: Final = 30.0

# The detail that marks a journal entry of which a person must be notified.
PAGE: Final = "page"

_log = structlog.get_logger()


class Outbox:
    """Appends records in order and retries each until the log has it: at-least-once delivery."""

    def __init__(self, log: Log, *, health: Health) -> None:
        self._log = log
        self._health = health
        self._waiting: deque[tuple[str, bytes, bytes, Headers]] = deque()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, topic: str, *, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Queue a record; it is appended after `run` has started."""
        self._waiting.append((topic, key, value, headers))
        self._empty.clear()
        self._filled.set()

    async def emptied(self, *, within_s: float) -> bool:
        """Wait for at most `within_s` and return whether all queued records are in the log."""
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Append until cancelled.

        Raises
        ------
        LogError
            The log refused; waiting would not help.
        """
        try:
            await self._append_for_ever()
        finally:
            self._report_lost()

    def _report_lost(self) -> None:
        """Count and log the records that are lost with the end of the process."""
        for topic, key, _value, _headers in self._waiting:
            instruments.RECORDS_UNSAID.labels(topic).inc()
            _log.error(
                "The role ended before the log had this record.",
                topic=topic,
                key=key.decode(errors="replace"),
            )

    async def _append_for_ever(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        while True:
            await self._filled.wait()
            topic, key, value, headers = self._waiting[0]
            given_up: bytes | None = None
            try:
                await self._log.append(topic, key=key, value=value, headers=headers)
            except (LogUnreachable, LogProducerBroken) as error:
                # The log connector creates a new producer. The record may be appended twice;
                # readers recognise the duplicate by its ids.
                pause_s = backoff.failed()
                self._health.waiting("outbox", f"{error} Retrying in {pause_s:g} s.")
                await asyncio.sleep(pause_s)
                continue
            except RecordTooLarge as error:
                given_up = give_up(topic, key, value, str(error))
            if backoff.has_failed:
                self._health.progress("outbox")
                self._health.done("outbox")
                backoff.worked()
            self._waiting.popleft()
            if given_up is not None and topic != REJECTED.name:
                self.put(REJECTED.name, key=rejected_key(key), value=given_up)
            if not self._waiting:
                self._filled.clear()
                self._empty.set()


class Journal:
    """One writer's hash chain on `flatline.journal.v1`; every entry is also logged.

    Parameters
    ----------
    writer
        Names the chain: a role, its place and the run of the process.
    cell
        Record key of entries that name no cell.
    """

    def __init__(self, outbox: Outbox, *, clock: Clock, writer: str, cell: str) -> None:
        self._outbox = outbox
        self._clock = clock
        self._cell = cell
        self.head = Head(writer)

    def write(
        self,
        kind: EntryKind,
        sentence: str,
        *,
        incident: str | None = None,
        step: int | None = None,
        vm: str | None = None,
        cell: str | None = None,
        detail: Mapping[str, str] | None = None,
        page: bool = False,
    ) -> None:
        """Add one entry; `page` requests that a person be notified (`engine.roles.notify`).

        Parameters
        ----------
        incident, step, vm, cell
            What the entry is about: id of the alert, step of its escalation, UUID text of the VM,
            and name of the cell; None: the entry is not about one.
        detail
            Further texts by name, such as `rule`.
        """
        # A sentence may contain names of tenants, pools or VMs. Their owners choose these names, so
        # control characters are escaped.
        plain = {name: one_line(text) for name, text in (detail or {}).items()}
        sentence = one_line(sentence)
        self.head, entry = extend(
            self.head,
            time_ms=self._clock.now_ms(),
            kind=kind,
            sentence=sentence,
            incident=incident,
            step=step,
            vm=vm,
            cell=cell,
            detail={**plain, PAGE: "yes"} if page else plain,
        )
        key = (cell or self._cell).encode()
        self._outbox.put(JOURNAL.name, key=key, value=encode_entry(entry))
        bound = {"vm": vm, "cell": cell, "incident": incident, "step": step}
        known = {name: value for name, value in bound.items() if value is not None}
        (_log.error if page else _log.info)(sentence, kind=kind, **known)

    def reject(self, record: Record, *, reason: str, detail: str, page: bool = False) -> None:
        """Write a rejected record to the topic `rejected`, and journal the reason.

        `reason` is one of `REJECTION_REASONS`, `detail` a sentence without full stop, and `page` as
        in `write`.
        """
        value = encode_rejected(
            record.value,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            detail=detail,
        )
        self._outbox.put(REJECTED.name, key=rejected_key(record.key, cell=self._cell), value=value)
        instruments.RECORDS_REJECTED.labels(record.topic, reason).inc()
        self.write(
            "refusal",
            f"A record of {record.topic} was rejected: {detail}.",
            detail={"offset": str(record.offset), "reason": reason},
            page=page,
        )


async def follow(
    log: Log,
    topic: str,
    partition: int,
    *,
    offset: int,
    deliver: Callable[[Record], Awaitable[None]],
    health: Health,
) -> None:
    """Pass every record from `offset` on to `deliver`, each once, until cancelled.

    Raises
    ------
    LogError
        The log refused the read. While the log is unreachable, this function waits, and then it
        continues where it stopped.
    """
    what, backoff = f"{topic}/{partition}", Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
    while True:
        try:
            async with log.tail(topic, partition, offset=offset) as batches:
                async for records in batches:
                    if backoff.has_failed:
                        health.progress(what)
                        health.done(what)
                        backoff.worked()
                    for record in records:
                        await deliver(record)
                        offset = record.offset + 1
        except LogUnreachable as error:
            pause_s = backoff.failed()
            health.waiting(what, f"{error} Retrying in {pause_s:g} s.")
            await asyncio.sleep(pause_s)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the first error of a task group instead of the group: callers expect single errors."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group

"""The loop that notifies people: pages from the journal, and a heartbeat for the notifier.

A page that the receiver refuses for good is journaled with the reason and skipped. A page that
fails temporarily is sent again later, and the pages after it do not wait for it. The heartbeat
`FlatlineAlive` is sent only while the log can be read. Its absence is the last alarm (dead man's
switch).
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from flatline.engine import instruments
from flatline.engine.errors import NotifierRefused, NotifierUnreachable, RecordRejected
from flatline.engine.ports import Clock, Log, Notice, Notifier, Record
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import PAGE, Journal, Outbox
from flatline.engine.stream.backoff import Backoff
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.topics import JOURNAL

# All notifiers share this group, so that each entry is sent by one of them.
GROUP: Final = "flatline-notify"
ALIVE: Final = "FlatlineAlive"
# The receiver of the heartbeat raises an alarm after some minutes without one.
ALIVE_EVERY_MS: Final = 60_000
# Older pages are not sent, because they need no immediate action. A new group starts at the
# beginning of the journal, so it reads many of them.
MAX_AGE_MS: Final = 3_600_000

_MAX_RECORDS: Final = 500
_POLL_S: Final = 1.0
_FIRST_BACKOFF_S: Final = 1.0
_LAST_BACKOFF_S: Final = 30.0
# The most waiting pages: those of one hour in a storm. At this number, nothing more is read until
# some pages have been sent or have become too old.
_MOST_WAITING: Final = 1000
# The most failed requests in one pass. Each may take the whole time limit of a request, and during
# that time this role neither reads the log nor reports its health.
_FAILURES_A_PASS: Final = 3
# How long to wait for pending journal entries at the end of the process.
_LEAVE_S: Final = 2.0

SENTENCES: Final = {"page_refused": "{why} No person was notified: {sentence}"}

_log = structlog.get_logger()


@dataclass(slots=True)
class _Page:
    """A notice that the receiver has not accepted yet, and the record it came from."""

    notice: Notice
    partition: int
    offset: int
    backoff: Backoff
    due_ns: int = 0


class Notifying:
    """Reads the journal for its group and sends the pages to the receiver, until cancelled.

    Parameters
    ----------
    writer
        Names this role's own chain in the journal, for pages that could not be sent.
    """

    def __init__(
        self,
        *,
        log: Log,
        notifier: Notifier,
        site: str,
        clock: Clock,
        health: Health,
        writer: str = "notify",
    ) -> None:
        self._log = log
        self._notifier = notifier
        self._site = site
        self._clock = clock
        self._health = health
        self._outbox = Outbox(log, health=health)
        self._journal = Journal(self._outbox, clock=clock, writer=writer, cell=site)
        self._waiting: list[_Page] = []
        self._next: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._alive_ms: int | None = None
        # No request is sent before this time: the receiver did not answer, or asked for a pause.
        self._away_ns = 0
        self._backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)

    async def run(self) -> None:
        """Notify until cancelled.

        Raises
        ------
        LogError
            The log refused or was lost; the caller opens the role again.
        """
        saying = asyncio.create_task(self._write_for_ever())
        try:
            await self._notify_until_stopped()
        finally:
            await self._outbox.emptied(within_s=_LEAVE_S)
            saying.cancel()
            await asyncio.wait({saying})

    async def _write_for_ever(self) -> None:
        """Journal the refused pages; if that fails, pages are still sent."""
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        while True:
            try:
                await self._outbox.run()
            except Exception as error:  # noqa: BLE001 -- pages must be sent after any error
                _log.error(
                    ("A notification that was refused is not in the journal."), reason=str(error)
                )
            await asyncio.sleep(backoff.failed())

    async def _notify_until_stopped(self) -> None:
        generation = -1
        async with self._log.subscribe(JOURNAL.name, group=GROUP) as journal:
            while True:
                has_room = len(self._waiting) < _MOST_WAITING
                delivery = await journal.poll(
                    max_records=_MAX_RECORDS if has_room else 0, wait_s=_POLL_S
                )
                if delivery.generation != generation:
                    # Pages that were not committed are read again by the new owner of the
                    # partition.
                    generation = delivery.generation
                    self._waiting, self._next, self._committed = [], {}, {}
                for record in delivery.records:
                    self._take(record)
                await self._send_due()
                if done := self._done():
                    # Committed after sending: a page may be sent twice but is never lost.
                    await journal.commit(done)
                    self._committed |= done
                await self._say_alive()
                self._health.progress("notify")
                await asyncio.sleep(0)

    def _take(self, record: Record) -> None:
        """Keep the page of a record, if it has one."""
        self._next[record.partition] = record.offset + 1
        try:
            entry = decode_entry(record.value)
        except RecordRejected:
            return  # `audit verify` detects damage in the journal
        if entry.detail.get(PAGE) == "yes":
            notice = notice_of(entry, site=self._site)
            backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
            self._waiting.append(_Page(notice, record.partition, record.offset, backoff))

    def _done(self) -> dict[int, int]:
        """Return, by partition, the offset below which no page waits, unless it is committed."""
        first = dict(self._next)
        for page in self._waiting:
            first[page.partition] = min(first[page.partition], page.offset)
        return {number: at for number, at in first.items() if at != self._committed.get(number)}

    async def _send_due(self) -> None:
        """Try the pages that are due; a failed page does not delay the pages after it."""
        failures = 0
        # New pages come first, else many failing ones would delay them.
        for page in sorted(self._waiting, key=lambda page: page.due_ns):
            if failures >= _FAILURES_A_PASS or self._clock.mono_ns() < self._away_ns:
                break
            if page.due_ns > self._clock.mono_ns():
                continue
            if self._clock.now_ms() - page.notice.time_ms > MAX_AGE_MS:
                instruments.NOTICES.labels("too_old").inc()
                self._waiting.remove(page)
            elif (pause_ns := await self._send(page.notice, page.backoff)) is None:
                self._waiting.remove(page)
            else:
                failures += 1
                page.due_ns = self._clock.mono_ns() + pause_ns
        if not self._waiting and self._clock.mono_ns() >= self._away_ns:
            self._health.done("webhook")

    async def _say_alive(self) -> None:
        now_ms = self._clock.now_ms()
        if self._clock.mono_ns() < self._away_ns:
            return
        if self._alive_ms is not None and 0 <= now_ms - self._alive_ms < ALIVE_EVERY_MS:
            return
        sentence = (
            "Flatline reads its log and can send notifications. This alert fires all the time."
        )
        notice = Notice(ALIVE, "none", sentence, time_ms=now_ms, labels={"site": self._site})
        if (pause_ns := await self._send(notice, self._backoff)) is None:
            self._alive_ms = now_ms
        else:
            self._away_ns = max(self._away_ns, self._clock.mono_ns() + pause_ns)

    async def _send(self, notice: Notice, backoff: Backoff) -> int | None:
        """Send a notice; None if accepted or refused, else the pause before a retry in ns."""
        try:
            await self._notifier.send(notice)
        except NotifierRefused as error:
            instruments.NOTICES.labels("refused").inc()
            self._note_refusal(notice, str(error))
        except NotifierUnreachable as error:
            instruments.NOTICES.labels("failed").inc()
            pause_ns = round(backoff.failed(error.retry_after_s) * 1e9)
            if not error.has_answered or error.retry_after_s is not None:
                self._away_ns = self._clock.mono_ns() + pause_ns
            self._health.waiting("webhook", f"{error} Retrying.")
            return pause_ns
        else:
            instruments.NOTICES.labels("sent").inc()
        backoff.worked()
        self._away_ns = 0
        return None

    def _note_refusal(self, notice: Notice, why: str) -> None:
        """Journal that a page was refused, and why."""
        if notice.name == ALIVE:
            # Logged once a minute and not journaled: the receiver raises an alarm without it.
            _log.error("The webhook refuses the heartbeat.", reason=why)
            return
        about = notice.labels
        self._journal.write(
            "refusal",
            SENTENCES["page_refused"].format(why=why, sentence=notice.sentence),
            incident=about.get("incident"),
            vm=about.get("vm"),
            cell=about.get("cell"),
            detail={"rule": "notify.page_refused"},
        )


def notice_of(entry: JournalEntry, *, site: str) -> Notice:
    """Return the notice to a person for a journal entry."""
    about = {
        "site": site,
        "cell": entry.cell,
        "vm": entry.vm,
        "incident": entry.incident,
        "rule": entry.detail.get("rule"),
    }
    return Notice(
        name="FlatlineNeedsYou",
        severity="critical",
        sentence=entry.sentence,
        time_ms=entry.time_ms,
        labels={name: value for name, value in about.items() if value},
    )

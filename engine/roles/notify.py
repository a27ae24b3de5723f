"""The loop that tells people: what the journal marks for them, and that somebody would.

`FlatlineAlive` fires all the time, so that its absence is the alarm of last resort: it is
sent only while the log can be read.
"""

import asyncio
from typing import Final

from engine.errors import NotifierUnreachable, RecordRejected
from engine.ports import Clock, Log, Notice, Notifier
from engine.roles import instruments
from engine.roles.health import Health
from engine.roles.outbox import PAGE
from engine.wire.journal import JournalEntry, decode_entry
from engine.wire.topics import JOURNAL

# Planners share it, so that each entry is told by one of them.
GROUP: Final = "flatline-notify"
ALIVE: Final = "FlatlineAlive"
# Receivers of dead man's switches give up after some minutes.
ALIVE_EVERY_MS: Final = 60_000
# Nobody acts at once on what is older; a group that is new begins with all of the journal.
MAX_AGE_MS: Final = 3_600_000

_MAX_RECORDS: Final = 500
_POLL_S: Final = 1.0
_FIRST_BACKOFF_S: Final = 1.0
_LAST_BACKOFF_S: Final = 30.0


class Notifying:
    """Reads the journal for its group and sends what a person must hear, until cancelled."""

    def __init__(
        self, *, log: Log, notifier: Notifier, site: str, clock: Clock, health: Health
    ) -> None:
        self._log = log
        self._notifier = notifier
        self._site = site
        self._clock = clock
        self._health = health
        self._alive_ms: int | None = None

    async def run(self) -> None:
        """Tell until cancelled.

        Raises
        ------
        LogError
            The log refused or went away; whoever runs this opens it anew.
        """
        async with self._log.subscribe(JOURNAL.name, group=GROUP) as journal:
            while True:
                delivery = await journal.poll(max_records=_MAX_RECORDS, wait_s=_POLL_S)
                next_offsets: dict[int, int] = {}
                for record in delivery.records:
                    await self._told(record.value)
                    next_offsets[record.partition] = record.offset + 1
                if next_offsets:
                    # Only now: what was sent and not noted is sent again, never left out.
                    await journal.commit(next_offsets)
                await self._say_alive()
                self._health.progress("notify")
                await asyncio.sleep(0)

    async def _told(self, value: bytes) -> None:
        try:
            entry = decode_entry(value)
        except RecordRejected:
            return  # `audit verify` is who finds damage in the journal
        if entry.detail.get(PAGE) != "yes":
            return
        if self._clock.now_ms() - entry.time_ms > MAX_AGE_MS:
            instruments.NOTICES.labels("too_old").inc()
            return
        await self._send(notice_of(entry, site=self._site))

    async def _say_alive(self) -> None:
        now_ms = self._clock.now_ms()
        if self._alive_ms is not None and 0 <= now_ms - self._alive_ms < ALIVE_EVERY_MS:
            return
        self._alive_ms = now_ms
        sentence = "Flatline reads its log and would tell you. This fires all the time."
        await self._send(
            Notice(ALIVE, "none", sentence, time_ms=now_ms, labels={"site": self._site})
        )

    async def _send(self, notice: Notice) -> None:
        """Send until it is taken over: people hear late rather than never."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._notifier.send(notice)
            except NotifierUnreachable as error:
                instruments.NOTICES.labels("failed").inc()
                self._health.waiting("webhook", f"{error} Trying again in {backoff_s:g} s.")
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)
                continue
            instruments.NOTICES.labels("sent").inc()
            self._health.done("webhook")
            return


def notice_of(entry: JournalEntry, *, site: str) -> Notice:
    """Return what a person hears of a journal entry."""
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

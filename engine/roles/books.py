"""The ledger of a running agent: its intents, and how far it has read which log."""

from typing import Final

import msgspec

from flatline.engine.action.catalogue import Policy
from flatline.engine.action.ledger import (
    LogEntry,
    StepEntry,
    encode_ledger_entry,
    entered,
    is_behind,
    log_seen,
    read_ledger,
    watching,
)
from flatline.engine.action.request_context import DAY_MS
from flatline.engine.errors import StateUnwritable
from flatline.engine.ports import Clock, LedgerStore, Log
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import Journal
from flatline.engine.roles.reading import Reading, found_at
from flatline.engine.wire.topics import CONTROL, ORDERS

# How often the ledger notes the read position. Orders are frequent, and the last minute of them can
# be counted again after a restart. A control command makes the agent note the position immediately,
# so that it detects a log that was restored to a state without the command.
_NOTE_EVERY_MS: Final = 60_000


class Books:
    """Makes entries durable before they take effect, and compares the log with the ledger.

    Attributes
    ----------
    ledger
        The content of all entries so far.
    identity
        The identity of the log with which the agent started.
    strange_below
        Orders below this offset were given before the agent knew the log, so their results are
        unknown.
    """

    def __init__(
        self,
        store: LedgerStore,
        *,
        log: Log,
        reading: Reading,
        journal: Journal,
        node: str,
        policy: Policy,
        clock: Clock,
        health: Health,
    ) -> None:
        self._store = store
        self._log = log
        self._reading = reading
        self._journal = journal
        self._node = node
        self._policy = policy
        self._clock = clock
        self._health = health
        self.ledger = read_ledger(store.entries())
        self.identity = ""
        self.strange_below = 0

    @property
    def watches(self) -> bool:
        """Whether the agent only performs dry runs, since the log cannot be trusted yet."""
        log = self.ledger.log
        return log is None or self._clock.now_ms() < log.observe_until_ms

    async def recognise(self, now_ms: int) -> None:
        """Enter the identity of the log; on a new or changed log the agent only observes.

        Raises
        ------
        LogError
            The log cannot be read.
        StateUnwritable
            The entry is not durable.
        """
        ledger = self.ledger
        self.identity = await self._log.identity()
        bounds = await self._log.bounds(ORDERS.name, 0)
        control = await self._log.bounds(CONTROL.name, 0)
        found = (
            None if ledger.log_position is None else await found_at(self._log, ledger.log_position)
        )
        seen, sentence, alarm = log_seen(
            ledger,
            identity=self.identity,
            bounds=bounds,
            control=control,
            found=found,
            now_ms=now_ms,
            observe_s=self._policy.limits.new_log_observe_s,
        )
        if ledger.log is None or seen.observe_until_ms != ledger.log.observe_until_ms:
            self.strange_below = bounds.end
        self.enter(seen)
        self._journal.write(
            "start",
            f"The agent of {self._node} starts under policy {self._policy.name}. {sentence}",
            detail={"policy": self._policy.hash, "log": self.identity},
            page=alarm,
        )

    def compare(self, now_ms: int) -> None:
        """Enter the read position; if the ledger lacks claims, only observe for at least a day.

        Call it after `recognise`; an entry that is not durable raises `StateUnwritable`.
        """
        log = self.ledger.log
        assert log is not None, "the log must be identified before it is read"
        claims = [entry.claim for entry in self._reading.history if entry.claim is not None]
        mine = [(claim.incident, claim.step) for claim in claims if claim.node == self._node]
        until_ms = log.observe_until_ms
        if is_behind(self.ledger, mine):
            watch_s = max(self._policy.limits.new_log_observe_s, DAY_MS // 1000)
            until_ms = max(until_ms, now_ms + 1000 * watch_s)
            self.strange_below = self._reading.log_position.orders
            self._journal.write("start", watching("ledger_behind", watch_s=watch_s), page=True)
        self.enter(
            msgspec.structs.replace(
                log, observe_until_ms=until_ms, log_position=self._reading.log_position
            )
        )

    def note_position(self) -> None:
        """Note how far the log was read, if that is due."""
        log, position, now_ms = self.ledger.log, self._reading.log_position, self._clock.now_ms()
        noted = self.ledger.log_position
        if log is None or position == noted:
            return
        if noted and position.control == noted.control and now_ms - log.time_ms < _NOTE_EVERY_MS:
            return
        entry = msgspec.structs.replace(
            log, next_offset=position.orders, time_ms=now_ms, log_position=position
        )
        self.enter_if_writable(entry)

    def set_down(self) -> None:
        """Note for every ended step that its result is in the log.

        If the disk cannot be written, the other steps wait for the next call.
        """
        for entry in self.ledger.unmarked():
            marked = msgspec.structs.replace(entry, state="marked", time_ms=self._clock.now_ms())
            if self.enter_if_writable(marked) is not None:
                return

    def enter_if_writable(self, entry: StepEntry | LogEntry) -> StateUnwritable | None:
        """Enter an entry, or return the error of the disk; the next entry tries the disk again."""
        try:
            self.enter(entry)
        except StateUnwritable as error:
            self._health.waiting("ledger", str(error))
            return error
        return None

    def enter(self, entry: StepEntry | LogEntry) -> None:
        """Make one entry durable, then apply it.

        Raises
        ------
        StateUnwritable
            The entry is not durable, so the action that it announces must not be performed.
        """
        ledger = entered(self.ledger, entry)
        self._store.append(encode_ledger_entry(entry))
        self.ledger = ledger
        self._health.done("ledger")

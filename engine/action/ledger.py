"""The write-ahead log of an agent: each step that it accepted, and the known outcome.

Each entry is durable before the agent acts on it. After a restart the ledger tells the agent which
steps it has already begun, so that it does nothing twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

import msgspec

from flatline.engine.action.actions import DISRUPTIVE
from flatline.engine.action.request_context import DAY_MS
from flatline.engine.errors import StateError
from flatline.engine.ports import Bounds
from flatline.engine.wire.order import Action, Outcome

# "elsewhere": another agent claimed the step, and that agent reports its end.
LedgerState = Literal[
    "accepted", "sent", "returned", "unknown", "refused", "expired", "not_attempted", "marked",
    "elsewhere",
]  # fmt: skip
Key = tuple[str, int]

# All legal transitions; "marked" means that the log holds the outcome.
LEGAL: Final[Mapping[LedgerState | None, frozenset[LedgerState]]] = {
    None: frozenset({"accepted"}),
    "accepted": frozenset({"sent", "refused", "expired", "not_attempted", "elsewhere"}),
    "sent": frozenset({"returned", "unknown", "refused", "expired"}),
    "returned": frozenset({"marked"}),
    "unknown": frozenset({"marked"}),
    "refused": frozenset({"marked"}),
    "expired": frozenset({"marked"}),
    "not_attempted": frozenset({"marked"}),
    "marked": frozenset(),
    "elsewhere": frozenset(),
}
_HOUR_MS: Final = 3_600_000
_ENDED: Final = frozenset({"returned", "unknown", "refused", "expired", "not_attempted"})

SENTENCES: Final = {
    "not_attempted": "The agent stopped before the call: nothing was done.",
    "unknown": "The agent stopped during the call: the result is unknown and the call is not "
    "repeated. Inspect the VM.",
    "new_log": "The agent does not know this log{then}.",
    "log_gap": "The log lost orders of the last day, or orders that the agent has not read{then}.",
    "log_cut": "The log ends before the position up to which the agent has read{then}.",
    "log_other": "The log holds other records than those that the agent has read{then}.",
    "ledger_behind": "The log holds claims of this node that are not in the ledger{then}.",
    "known_log": "The log is the one that the agent knows.",
}


class IllegalStep(ValueError):
    """The entry is not legal after the last one of its step, as a second acceptance would be."""


class LogPosition(msgspec.Struct, frozen=True, kw_only=True):
    """How far orders and control were read, and the hash of the last record of each.

    A hash is empty if nothing was read.
    """

    orders: int
    orders_hash: str
    control: int
    control_hash: str


class StepEntry(
    msgspec.Struct, frozen=True, kw_only=True, tag="step", rename={"log_position": "mark"}
):
    """One change of state of one incident step.

    If the agent stops during the call, `target`, `disk`, `deadline_ms` and `instance` (the run of
    the VM in the order) serve to find out how the step ended. `log_position` is how far the log was
    read. `instance` and `log_position` are None in a ledger of an earlier release.
    """

    state: LedgerState
    incident: str
    step: int
    vm: str
    action: Action
    dry_run: bool
    time_ms: int
    sentence: str
    target: str | None = None
    disk: str | None = None
    deadline_ms: int = 0
    instance: int | None = None
    log_position: LogPosition | None = None

    @property
    def key(self) -> Key:
        """The identity of the step: incident and step number."""
        return self.incident, self.step


class LogEntry(
    msgspec.Struct, frozen=True, kw_only=True, tag="log", rename={"log_position": "mark"}
):
    """Which log the agent read, how far, and until when it only observes."""

    identity: str
    next_offset: int
    observe_until_ms: int
    time_ms: int
    log_position: LogPosition | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The entries of the ledger: `steps` holds the newest entry of each step.

    `outcomes` holds the entry that ended a step, even after "marked" replaced it in `steps`.
    `accepted_ms` is when each step was accepted. `positions` are the read positions of the last day
    and the newest one before it; `log_position` is the newest `LogPosition`.
    """

    steps: Mapping[Key, StepEntry] = field(default_factory=dict)
    outcomes: Mapping[Key, StepEntry] = field(default_factory=dict)
    positions: tuple[LogEntry, ...] = ()
    accepted_ms: Mapping[Key, int] = field(default_factory=dict)
    log_position: LogPosition | None = None

    @property
    def log(self) -> LogEntry | None:
        """The last read position, None if the agent never read a log."""
        return self.positions[-1] if self.positions else None

    def holds(self, key: Key) -> bool:
        """Return whether the step (incident, step number) was ever accepted."""
        return key in self.steps

    def unmarked(self) -> tuple[StepEntry, ...]:
        """Return the steps that ended but whose outcome may not be in the log yet."""
        return tuple(entry for entry in self.steps.values() if entry.state in _ENDED)


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[StepEntry | LogEntry] = msgspec.json.Decoder(StepEntry | LogEntry)


class Spent(NamedTuple):
    """An accepted step, when it was accepted, and the state in which it ended or is now."""

    entry: StepEntry
    accepted_ms: int
    state: LedgerState


def encode_ledger_entry(entry: StepEntry | LogEntry) -> bytes:
    """Return the entry as it is stored in the ledger."""
    return _encoder.encode(entry)


def entered(ledger: Ledger, entry: StepEntry | LogEntry) -> Ledger:
    """Return the ledger with one more entry.

    Raises
    ------
    IllegalStep
        The entry is not legal after the last one of its step: a step is accepted once, sent once
        and ended once.
    """
    position = entry.log_position or ledger.log_position
    if isinstance(entry, LogEntry):
        return replace(ledger, positions=_stood(ledger.positions, entry), log_position=position)
    before = ledger.steps.get(entry.key)
    state = None if before is None else before.state
    if entry.state not in LEGAL[state]:
        raise IllegalStep(
            f"step {entry.step} of incident {entry.incident} is {state or 'new'}; {entry.state} is "
            "not a legal next state"
        )
    outcomes = ledger.outcomes
    if entry.state in _ENDED:
        outcomes = {**outcomes, entry.key: entry}
    accepted_ms = ledger.accepted_ms
    if entry.state == "accepted":
        accepted_ms = {**accepted_ms, entry.key: entry.time_ms}
    steps = {**ledger.steps, entry.key: entry}
    return replace(
        ledger, steps=steps, outcomes=outcomes, accepted_ms=accepted_ms, log_position=position
    )


def _stood(positions: tuple[LogEntry, ...], entry: LogEntry) -> tuple[LogEntry, ...]:
    """Return the positions with one more; a new log or observation period discards the old ones."""
    last = positions[-1] if positions else entry
    if (last.identity, last.observe_until_ms) != (entry.identity, entry.observe_until_ms):
        return (entry,)
    # Retention is set in days, so one older position an hour is enough; the newest always stays.
    if len(positions) > 1 and entry.time_ms - positions[-2].time_ms < _HOUR_MS:
        positions = positions[:-1]
    day_ago_ms = entry.time_ms - DAY_MS
    newer = tuple(position for position in positions if position.time_ms > day_ago_ms)
    return (*positions[: len(positions) - len(newer)][-1:], *newer, entry)


def read_ledger(entries: Iterable[bytes]) -> Ledger:
    """Return the ledger built from these entries, oldest first.

    Raises
    ------
    StateError
        An entry cannot be decoded, or is not legal after the entries before it: the agent must not
        act on such a ledger.
    """
    ledger = Ledger()
    for number, value in enumerate(entries):
        try:
            ledger = entered(ledger, _decoder.decode(value))
        except (msgspec.DecodeError, IllegalStep) as error:
            raise StateError(
                f"entry {number} of the agent's ledger is damaged ({error}). Move the ledger away: "
                "the agent then creates a new one and only observes for a day"
            ) from error
    return ledger


def recovery(ledger: Ledger, *, now_ms: int) -> tuple[StepEntry, ...]:
    """Return the entries that end the steps which a stopped agent left open.

    The caller enters them one by one.
    """
    ends: list[StepEntry] = []
    for entry in ledger.steps.values():
        if entry.state in ("accepted", "sent"):
            state: Outcome = "not_attempted" if entry.state == "accepted" else "unknown"
            ends.append(
                msgspec.structs.replace(
                    entry, state=state, time_ms=now_ms, sentence=SENTENCES[state]
                )
            )
    return tuple(ends)


def log_seen(
    ledger: Ledger,
    *,
    identity: str,
    bounds: Bounds,
    control: Bounds,
    found: LogPosition | None,
    now_ms: int,
    observe_s: int,
) -> tuple[LogEntry, str, bool]:
    """Return the entry for the log just opened, a sentence about it, and whether to raise an alarm.

    A log cannot be trusted for budgets and control commands if it is new, if it lost orders of the
    last day or unread orders, or if it was truncated or replaced. The agent then only observes for
    `observe_s`. If the log was truncated or replaced, as by a restore from a backup, the agent
    observes for at least a day. The caller enters the entry.

    Parameters
    ----------
    identity
        The identity of the log, as returned by `Log.identity`.
    bounds, control
        The offsets that the topics of orders and of control hold.
    found
        What the log holds now at the offsets of `ledger.log_position`; None if the ledger has no
        such position.
    """
    name = _judged(
        ledger, identity=identity, bounds=bounds, control=control, found=found, now_ms=now_ms
    )
    known = ledger.log
    restored = name in ("log_cut", "log_other")
    watch_s = max(observe_s, DAY_MS // 1000) if restored else observe_s
    until_ms = now_ms + 1000 * watch_s
    if name == "known_log" and known is not None:
        until_ms = known.observe_until_ms
    entry = LogEntry(
        identity=identity, next_offset=bounds.end, observe_until_ms=until_ms, time_ms=now_ms
    )
    return entry, watching(name, watch_s=watch_s), restored


def _judged(
    ledger: Ledger,
    *,
    identity: str,
    bounds: Bounds,
    control: Bounds,
    found: LogPosition | None,
    now_ms: int,
) -> str:
    """Return the name of the sentence about a log that was just opened."""
    known, position = ledger.log, ledger.log_position
    if known is None or known.identity != identity:
        return "new_log"
    # The position of a day ago: orders lost since then would be missing from the limits.
    day_ago = [one for one in ledger.positions if one.time_ms <= now_ms - DAY_MS][-1:]
    needed = (*day_ago, *ledger.positions)[:1]
    if any(bounds.earliest > one.next_offset for one in needed):
        return "log_gap"
    if bounds.end < known.next_offset:
        return "log_cut"
    if position is None or found is None:
        return "known_log"
    if bounds.end < position.orders or control.end < position.control:
        return "log_cut"
    # An empty hash is no difference: the record was compacted, deleted by its age, or never read.
    pairs = ((found.orders_hash, position.orders_hash), (found.control_hash, position.control_hash))
    other = any(here and noted and here != noted for here, noted in pairs)
    return "log_other" if other else "known_log"


def watching(name: str, *, watch_s: int) -> str:
    """Return the sentence of that name, with the agent's reaction.

    `name` is a key of `SENTENCES` about a log. The agent only observes for `watch_s`; 0 is not at
    all.
    """
    then = (
        f": the agent only observes for {watch_s / 3600:g} h"
        if watch_s
        else (", but the policy trusts it")
    )
    return SENTENCES[name].format(then=then)


def is_behind(ledger: Ledger, claims: Iterable[Key]) -> bool:
    """Return whether the log holds claims of this node that are missing from the ledger.

    `claims` are pairs of incident and step number. An agent enters a step in its ledger before it
    claims the step in the log, so a missing step shows that the ledger is an old copy. A ledger
    without any step is a new one.
    """
    return bool(ledger.steps) and any(not ledger.holds(key) for key in claims)


def spent(ledger: Ledger, *, dry_run: bool) -> tuple[Spent, ...]:
    """Return the disruptive steps of this node that count against limits, oldest first.

    These are either the dry runs or the real steps. Steps that ended "elsewhere" do not count.
    """
    entries = (entry for entry in ledger.steps.values() if entry.state != "elsewhere")
    found = (
        Spent(entry, ledger.accepted_ms[entry.key], ledger.outcomes.get(entry.key, entry).state)
        for entry in entries
        if entry.action in DISRUPTIVE and entry.dry_run == dry_run
    )
    return tuple(sorted(found, key=lambda one: one.accepted_ms))

from itertools import product
from typing import Any

import msgspec
import pytest

from flatline.engine.action.ledger import (
    LEGAL,
    IllegalStep,
    Ledger,
    LedgerState,
    LogEntry,
    LogPosition,
    StepEntry,
    encode_ledger_entry,
    entered,
    is_behind,
    log_seen,
    read_ledger,
    recovery,
)
from flatline.engine.errors import StateError
from flatline.engine.ports import Bounds

WAYS: tuple[tuple[LedgerState, ...], ...] = (
    ("accepted", "sent", "returned", "marked"),
    ("accepted", "sent", "unknown", "marked"),
    ("accepted", "sent", "refused", "marked"),
    ("accepted", "refused", "marked"),
    ("accepted", "expired", "marked"),
    ("accepted", "not_attempted", "marked"),
)
ELSEWHERE: tuple[LedgerState, ...] = ("accepted", "elsewhere")


def entry(state: LedgerState, **changes: Any) -> StepEntry:
    values: dict[str, Any] = {
        "state": state,
        "incident": "a",
        "step": 0,
        "vm": "v",
        "action": "reset",
        "dry_run": False,
        "time_ms": 1,
        "sentence": "s",
    }
    return StepEntry(**(values | changes))


def after(*states: LedgerState) -> Ledger:
    return read_ledger([encode_ledger_entry(entry(state)) for state in states])


@pytest.mark.parametrize("way", WAYS)
def test_every_legal_way_ends_marked(way: tuple[LedgerState, ...]) -> None:
    ledger = after(*way)
    assert ledger.steps["a", 0].state == "marked"
    assert ledger.outcomes["a", 0].state == way[-2]


def test_a_second_acceptance_is_impossible_after_any_history() -> None:
    for way in WAYS:
        for length in range(1, len(way) + 1):
            with pytest.raises(IllegalStep):
                entered(after(*way[:length]), entry("accepted"))


def test_nothing_is_sent_twice_or_after_its_end() -> None:
    for way in WAYS:
        for length in range(2, len(way) + 1):
            with pytest.raises(IllegalStep):
                entered(after(*way[:length]), entry("sent"))


def test_every_pair_of_states_that_the_table_does_not_name_is_refused() -> None:
    states = [state for state in LEGAL if state is not None]
    ways = (*WAYS, ELSEWHERE)
    paths = {way[:length][-1]: way[:length] for way in ways for length in range(1, len(way) + 1)}
    for before, then in product(states, states):
        if then in LEGAL[before]:
            continue
        with pytest.raises(IllegalStep):
            entered(after(*paths[before]), entry(then))


def test_a_step_that_was_only_accepted_ends_not_attempted() -> None:
    (end,) = recovery(after("accepted"), now_ms=9)
    assert (end.state, end.time_ms) == ("not_attempted", 9)


def test_a_step_that_was_sent_ends_unknown() -> None:
    (end,) = recovery(after("accepted", "sent"), now_ms=9)
    assert end.state == "unknown"
    assert "the call is not repeated" in end.sentence


@pytest.mark.parametrize("way", WAYS)
def test_an_ended_step_is_reported_until_it_is_marked(way: tuple[LedgerState, ...]) -> None:
    assert not recovery(after(*way[:-1]), now_ms=9)
    assert [reported.state for reported in after(*way[:-1]).unmarked()] == [way[-2]]
    assert not after(*way).unmarked()


def test_a_step_that_another_agent_claimed_is_nothing_to_tell_and_nothing_to_take_up() -> None:
    ledger = after(*ELSEWHERE)
    assert not recovery(ledger, now_ms=9)
    assert not ledger.unmarked()
    assert ledger.holds(("a", 0))


def test_steps_of_different_incidents_do_not_touch() -> None:
    ledger = entered(after("accepted"), entry("accepted", step=1))
    ledger = entered(ledger, entry("accepted", incident="b"))
    assert len(recovery(ledger, now_ms=9)) == 3


def test_a_damaged_ledger_is_not_acted_on() -> None:
    good = encode_ledger_entry(entry("accepted"))
    for bad in (good[:-3], b"", good):
        with pytest.raises(StateError, match="entry 1 of the agent's ledger is damaged"):
            read_ledger([good, bad])


def log_entry(**changes: Any) -> LogEntry:
    known = LogEntry(identity="log", next_offset=50, observe_until_ms=0, time_ms=1)
    return msgspec.structs.replace(known, **changes)


def seen(
    known: LogEntry | None,
    *,
    identity: str = "log",
    bounds: tuple[int, int] = (10, 60),
    control: int = 9,
    found: LogPosition | None = None,
    observe_s: int = 86_400,
) -> LogEntry:
    ledger = Ledger() if known is None else entered(Ledger(), known)
    entry, _sentence, _alarm = log_seen(
        ledger,
        identity=identity,
        bounds=Bounds(*bounds),
        control=Bounds(0, control),
        found=found,
        now_ms=1_000,
        observe_s=observe_s,
    )
    return entry


def test_a_known_log_is_acted_on_at_once() -> None:
    assert seen(log_entry()).observe_until_ms == 0
    assert seen(log_entry()).next_offset == 60


@pytest.mark.parametrize(
    ("known", "identity", "bounds"),
    [
        (None, "log", (0, 0)),
        (log_entry(), "another", (10, 60)),
        (log_entry(), "log", (51, 60)),
        (log_entry(), "log", (10, 49)),
    ],
    ids=["new agent", "other log", "lost orders", "truncated"],
)
def test_a_log_that_is_not_known_is_only_watched_for_a_day(
    known: LogEntry | None, identity: str, bounds: tuple[int, int]
) -> None:
    assert seen(known, identity=identity, bounds=bounds).observe_until_ms == 1_000 + 86_400_000


def test_a_restart_does_not_shorten_the_time_of_watching() -> None:
    assert seen(log_entry(observe_until_ms=77_000)).observe_until_ms == 77_000


MARK = LogPosition(orders=50, orders_hash="aa", control=9, control_hash="cc")


@pytest.mark.parametrize(
    ("found", "bounds", "control", "known"),
    [
        ({}, (10, 60), 9, True),
        # Compacted, or deleted by its age.
        ({"control_hash": ""}, (10, 60), 12, True),
        ({"orders_hash": ""}, (50, 60), 9, True),
        ({"orders_hash": "bb"}, (10, 60), 9, False),
        ({"control_hash": "dd"}, (10, 60), 9, False),
        ({}, (10, 49), 9, False),
        ({}, (10, 60), 8, False),
    ],
)
def test_a_log_that_is_behind_or_other_than_it_was_is_watched_whatever_the_policy_trusts(
    found: dict[str, str], bounds: tuple[int, int], control: int, known: bool
) -> None:
    stands = msgspec.structs.replace(MARK, **found)
    entry = seen(
        log_entry(log_position=MARK), bounds=bounds, control=control, found=stands, observe_s=0
    )
    assert entry.observe_until_ms == (0 if known else 1_000 + 86_400_000)


def test_the_newest_note_is_the_one_that_counts() -> None:
    ledger = entered(Ledger(), log_entry(log_position=MARK))
    later = msgspec.structs.replace(MARK, orders=51)
    ledger = entered(ledger, entry("accepted"))
    assert ledger.log_position == MARK
    assert entered(ledger, entry("sent", log_position=later)).log_position == later


def test_a_ledger_without_a_step_that_this_node_claimed_is_behind() -> None:
    ledger = after("accepted")
    assert not is_behind(ledger, [("a", 0)])
    assert is_behind(ledger, [("a", 0), ("a", 1)])
    assert not is_behind(Ledger(), [("a", 0)])


def hourly(*offsets: int) -> Ledger:
    """Return the ledger of an agent that recorded its position each hour."""
    ledger = Ledger()
    for hour, offset in enumerate(offsets):
        noted = msgspec.structs.replace(
            log_entry(), next_offset=offset, time_ms=3_600_000 * hour, observe_until_ms=0
        )
        ledger = entered(ledger, noted)
    return ledger


def since(ledger: Ledger, *, earliest: int) -> LogEntry:
    assert ledger.log is not None
    return log_seen(
        ledger,
        identity="log",
        bounds=Bounds(earliest, 100),
        control=Bounds(0, 0),
        found=None,
        now_ms=ledger.log.time_ms + 1_000,
        observe_s=86_400,
    )[0]


def test_orders_of_the_last_day_that_the_log_lost_are_missed_though_they_were_read() -> None:
    """A restart counts limits from the log, so lost orders would be forgotten."""
    thirty_hours = hourly(*range(10, 40))
    # The records of five hours after the first note are a day old.
    assert since(thirty_hours, earliest=14).observe_until_ms == 0
    assert since(thirty_hours, earliest=16).observe_until_ms > 0


def test_an_agent_that_knows_the_log_for_an_hour_misses_what_it_lost_since() -> None:
    assert since(hourly(10, 20), earliest=10).observe_until_ms == 0
    assert since(hourly(10, 20), earliest=11).observe_until_ms > 0


def test_a_log_that_lost_orders_is_watched_for_one_day_and_not_for_ever() -> None:
    ledger = hourly(10, 20)
    lost = since(ledger, earliest=15)
    again = since(entered(ledger, lost), earliest=15)
    assert again.observe_until_ms == lost.observe_until_ms


def test_notes_within_an_hour_replace_each_other() -> None:
    ledger = Ledger()
    for second in range(7_300):
        ledger = entered(ledger, log_entry(next_offset=second, time_ms=1_000 * second))
    assert [position.next_offset for position in ledger.positions] == [0, 3_599, 7_198, 7_299]


def test_positions_are_kept_for_a_day_and_no_longer() -> None:
    assert len(hourly(*range(200)).positions) == 25

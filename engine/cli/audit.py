"""The journal in readable form."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from flatline.engine.action.chain import Head, heads_of
from flatline.engine.errors import RecordRejected, StateError, StateUnwritable
from flatline.engine.ports import Log
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.topics import JOURNAL
from flatline.engine.wiring import Process


class Unreadable(NamedTuple):
    """A record of the journal that is not an entry, and a sentence on its position and fault."""

    time_ms: int
    sentence: str


class Journal(NamedTuple):
    """The journal in the log: each writer's entries in the order of its chain."""

    entries: list[JournalEntry]
    unreadable: list[Unreadable]


async def read_journal(_: Process, log: Log) -> Journal:
    """Return every entry in the log, and the unreadable records among them.

    Each entry is in the partition of the cell that it concerns. So the entries of one writer are in
    several partitions, and are sorted by their sequence.
    """
    entries: list[JournalEntry] = []
    unreadable: list[Unreadable] = []
    for partition in range(log.partitions(JOURNAL.name)):
        for record in await log.read_to_end(JOURNAL.name, partition, offset=0):
            try:
                entries.append(decode_entry(record.value))
            except RecordRejected as error:
                where = f"Partition {partition}, offset {record.offset}"
                sentence = f"{where}: the entry cannot be decoded: {error}."
                unreadable.append(Unreadable(record.time_ms, sentence))
    entries.sort(key=lambda entry: (entry.writer, entry.sequence))
    return Journal(entries, unreadable)


async def cut_until_ms(log: Log) -> int | None:
    """Return the time until which the log has dropped journal entries, None if it dropped none.

    The time is in ms since the epoch.
    """
    cuts = [
        record.time_ms
        for partition in range(log.partitions(JOURNAL.name))
        if (earliest := (await log.bounds(JOURNAL.name, partition)).earliest) > 0
        for record in (await log.read_to_end(JOURNAL.name, partition, offset=earliest))[:1]
    ]
    return max(cuts, default=None)


async def journal_and_cut(process: Process, log: Log) -> tuple[Journal, int | None]:
    """Return the journal in the log, and the time until which older entries have been dropped.

    The time is as in `cut_until_ms`.
    """
    # The journal is read first. In the other order, entries that retention drops between the two
    # reads would be reported as missing.
    journal = await read_journal(process, log)
    return journal, await cut_until_ms(log)


# The checked ends of the chains are stored outside the log, because the records that remain in the
# log do not show that later ones were cut off.
HEADS_FILE: Final = "audit-heads.json"


def known_heads(file: Path) -> list[Head]:
    """Return the heads that an earlier check stored; none before the first check.

    Raises
    ------
    StateError
        The file cannot be read. It is not ignored, because a person who edited the journal may have
        edited the file too.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Head])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise StateError(
            f"{file} cannot be read ({error}), so it is unknown whether the journal was truncated. "
            "Move the file away to start from the present content of the journal"
        ) from error


def write_heads(file: Path, entries: Iterable[JournalEntry]) -> None:
    """Store the current head of every chain.

    Raises
    ------
    StateUnwritable
        The file cannot be written, so the next check could not detect a truncation.
    """
    heads = sorted(heads_of(entries), key=lambda head: head.writer)
    fresh = file.with_suffix(".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.encode(heads))
        fresh.replace(file)
    except OSError as error:
        raise StateUnwritable(
            f"{file} cannot be written: {error.strerror}. Allow this user to write to its folder."
        ) from error

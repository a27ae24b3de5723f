"""The hash chain of the journal: each entry contains the hash of the entry before it.

Edits, missing entries and truncation are detected unless all later entries are forged too, and also
the head that is stored outside the log. There is one chain per run of a writer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from flatline.engine.wire.journal import EntryKind, JournalEntry, encode_entry


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a writer's chain: next sequence number, and hash and time of the last entry."""

    writer: str
    sequence: int = 0
    link: str = ""
    time_ms: int = 0


def link_of(entry: JournalEntry) -> str:
    """Return the hash over all fields of `entry` except `link`: 64 hex digits."""
    return sha256(encode_entry(msgspec.structs.replace(entry, link=""))).hexdigest()


def extend(
    head: Head,
    *,
    time_ms: int,
    kind: EntryKind,
    sentence: str,
    incident: str | None = None,
    step: int | None = None,
    vm: str | None = None,
    cell: str | None = None,
    detail: Mapping[str, str] | None = None,
) -> tuple[Head, JournalEntry]:
    """Return the new head of the chain and the new entry, which is not written yet.

    `time_ms` is the wall clock of the writer.
    """
    entry = JournalEntry(
        writer=head.writer,
        sequence=head.sequence,
        time_ms=time_ms,
        kind=kind,
        sentence=sentence,
        previous=head.link,
        link="",
        incident=incident,
        step=step,
        vm=vm,
        cell=cell,
        # Sorted, so that equal details have equal hashes.
        detail=dict(sorted((detail or {}).items())),
    )
    entry = msgspec.structs.replace(entry, link=link_of(entry))
    return _after(entry), entry


def _after(entry: JournalEntry) -> Head:
    return Head(entry.writer, entry.sequence + 1, entry.link, entry.time_ms)


def verify(
    entries: Iterable[JournalEntry], *, heads: Iterable[Head] = (), cut_ms: int | None = None
) -> list[str]:
    """Return one sentence for each edit, gap or truncation; an empty list means none.

    Parameters
    ----------
    entries
        Entries from the log, those of each writer in their order. A repeated entry is not reported:
        delivery is at least once.
    heads
        Heads that were stored outside the log. If a chain ends before its head, it was truncated.
    cut_ms
        The time up to which retention has deleted the oldest records of the log; None if it has
        deleted none. The first entries of a chain may then be missing, but only up to its stored
        head. A chain whose head is not newer than this time may be missing entirely.
    """
    known = {head.writer: head for head in heads}
    begun: set[Head] = set()
    findings: list[str] = []
    reached: dict[str, Head] = {}
    links: dict[tuple[str, int], str] = {}
    for entry in entries:
        where = f"{entry.writer}, entry {entry.sequence}"
        if link_of(entry) != entry.link:
            findings.append(f"{where}: the content does not match its hash. The entry was edited.")
        if links.get((entry.writer, entry.sequence)) == entry.link:
            continue
        before = reached.get(entry.writer)
        if before is None:
            before = _first(entry, known.get(entry.writer), cut_ms)
            begun.add(before)
        if entry.sequence != before.sequence:
            findings.append(
                f"{where}: entry {before.sequence} was expected. Entries are missing or out of "
                "order."
            )
        elif entry.previous != before.link:
            findings.append(
                f"{where}: the entry does not continue the hash chain. An entry was replaced."
            )
        links[entry.writer, entry.sequence] = entry.link
        reached[entry.writer] = _after(entry)
    return findings + [
        f"{head.writer}: the chain does not contain entry {head.sequence - 1} as recorded. The "
        "chain was truncated or replaced."
        for head in known.values()
        if head.sequence and links.get((head.writer, head.sequence - 1)) != head.link
        # No truncation if retention deleted the entry: the chain ended before `cut_ms`, or what is
        # left of the chain begins directly after the head.
        if cut_ms is None
        or (head.time_ms > cut_ms if head.writer not in reached else head not in begun)
    ]


def _first(entry: JournalEntry, head: Head | None, cut_ms: int | None) -> Head:
    """Return the head that precedes `entry`, the first entry of a chain that the log still has."""
    if cut_ms is None or (head is not None and head.sequence < entry.sequence):
        return Head(entry.writer)
    if head is not None and head.sequence == entry.sequence:
        return head
    return Head(entry.writer, entry.sequence, entry.previous)


def heads_of(entries: Iterable[JournalEntry]) -> list[Head]:
    """Return the head of each writer's chain, to be stored outside the log."""
    last: dict[str, JournalEntry] = {}
    for entry in entries:
        known = last.get(entry.writer)
        if known is None or entry.sequence >= known.sequence:
            last[entry.writer] = entry
    return [_after(entry) for entry in last.values()]

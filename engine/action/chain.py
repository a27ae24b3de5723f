"""The journal's hash chain: each entry names the one before it by its hash.

Whoever edits, drops or cuts entries has to forge every later one, and the head that was
written down elsewhere. One chain per run of a writer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from engine.wire.journal import EntryKind, JournalEntry, encode_entry


@dataclass(frozen=True, slots=True)
class Head:
    """Where a writer's chain stands: the next sequence, and link and time of the last entry."""

    writer: str
    sequence: int = 0
    link: str = ""
    time_ms: int = 0


def link_of(entry: JournalEntry) -> str:
    """Return the hash over everything of `entry` but its own link: 64 hex digits."""
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
    """Return the new head and the entry that led to it."""
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
        # Sorted, so that the same words always hash the same.
        detail=dict(sorted((detail or {}).items())),
    )
    entry = msgspec.structs.replace(entry, link=link_of(entry))
    return _after(entry), entry


def _after(entry: JournalEntry) -> Head:
    return Head(entry.writer, entry.sequence + 1, entry.link, entry.time_ms)


def verify(
    entries: Iterable[JournalEntry], *, heads: Iterable[Head] = (), cut_ms: int | None = None
) -> list[str]:
    """Return one sentence for each edit, gap or truncation; none means all is as written.

    Parameters
    ----------
    entries
        Entries as the log holds them, each writer's in their order. The same entry twice
        is no finding: delivery is at least once.
    heads
        Heads written down elsewhere; a chain that ends before its head was cut.
    cut_ms
        Up to when the log has dropped its oldest records, as its retention says; None if it
        has dropped none. A chain may then begin later, though not after what its head says
        was checked, and one that ended before may be gone.
    """
    known = {head.writer: head for head in heads}
    begun: set[Head] = set()
    findings: list[str] = []
    reached: dict[str, Head] = {}
    links: dict[tuple[str, int], str] = {}
    for entry in entries:
        where = f"{entry.writer}, entry {entry.sequence}"
        if link_of(entry) != entry.link:
            findings.append(f"{where}: its content does not match its link; it was edited.")
        if links.get((entry.writer, entry.sequence)) == entry.link:
            continue
        before = reached.get(entry.writer)
        if before is None:
            before = _first(entry, known.get(entry.writer), cut_ms)
            begun.add(before)
        if entry.sequence != before.sequence:
            findings.append(
                f"{where}: entry {before.sequence} was expected; entries are missing or moved."
            )
        elif entry.previous != before.link:
            findings.append(f"{where}: it does not follow the entry before it; one was replaced.")
        links[entry.writer, entry.sequence] = entry.link
        reached[entry.writer] = _after(entry)
    return findings + [
        f"{head.writer}: the chain does not reach entry {head.sequence - 1} as written down; it"
        " was cut or replaced."
        for head in known.values()
        if head.sequence and links.get((head.writer, head.sequence - 1)) != head.link
        # Gone with the log's oldest records: the chain ended before, or goes on right after it.
        if cut_ms is None
        or (head.time_ms > cut_ms if head.writer not in reached else head not in begun)
    ]


def _first(entry: JournalEntry, head: Head | None, cut_ms: int | None) -> Head:
    """Return where a chain stood before the first entry of it that the log still holds."""
    if cut_ms is None or (head is not None and head.sequence < entry.sequence):
        return Head(entry.writer)
    if head is not None and head.sequence == entry.sequence:
        return head
    return Head(entry.writer, entry.sequence, entry.previous)


def heads_of(entries: Iterable[JournalEntry]) -> list[Head]:
    """Return where each writer's chain stands, to be kept outside the log."""
    last: dict[str, JournalEntry] = {}
    for entry in entries:
        known = last.get(entry.writer)
        if known is None or entry.sequence >= known.sequence:
            last[entry.writer] = entry
    return [_after(entry) for entry in last.values()]

"""The journal as people read it."""

from engine.ports import Log
from engine.wire.journal import JournalEntry, decode_entry
from engine.wire.topics import JOURNAL
from engine.wiring import Process


async def read_journal(_: Process, log: Log) -> list[JournalEntry]:
    """Return every entry that the log holds, each writer's in the order of its chain.

    A writer's entries stand in the partitions of the cells they are about, so only their
    sequence gives back the order in which they were written.
    """
    entries = [
        decode_entry(record.value)
        for partition in range(log.partitions(JOURNAL.name))
        for record in await log.read_to_end(JOURNAL.name, partition, offset=0)
    ]
    return sorted(entries, key=lambda entry: (entry.writer, entry.sequence))

"""One topic of the embedded log: partitions of records in a SQLite file, or in memory.

Each topic has its own file, so that a long write of frames never delays an order and each topic has
its own durability. No call here is asynchronous: each is short and runs in the event loop's thread,
so the whole pipeline can run on an event loop of virtual time.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from flatline.connectors.embedded.database import connect, failures_named, transaction
from flatline.engine.errors import RecordTooLarge, SettingsError
from flatline.engine.ports import Bounds, Headers, Record
from flatline.engine.wire.envelope import MAX_APPEND_BYTES
from flatline.engine.wire.topics import Topic

# A record's row id holds its partition and offset in one number: an append is one B-tree step and a
# partition is a range. At 1,000 records per second, 2^40 records per partition last 34 years.
_OFFSET_BITS: Final = 40

# Limit of the bytes of one poll, so that no reader blocks the event loop for long.
_BATCH_BYTES: Final = 4 << 20

# Records are checked for their age this many times per retention, measured in append times. So a
# record may stay 1 % longer than the retention; in return most appends are a single write.
_SWEEPS_PER_RETENTION: Final = 100

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record(
    position INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, size INTEGER NOT NULL,
    key BLOB NOT NULL, headers BLOB, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS partition(
    number INTEGER PRIMARY KEY, earliest INTEGER NOT NULL, next INTEGER NOT NULL,
    time_ms INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS progress(
    consumer TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (consumer, partition));
CREATE TABLE IF NOT EXISTS origin(id TEXT NOT NULL);
"""
_KEY_INDEX: Final = "CREATE INDEX IF NOT EXISTS record_key ON record(key, position)"

_pack_headers = msgspec.msgpack.Encoder().encode
_unpack_headers = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode


class TopicStore:
    """The records of one topic and the offsets of its consumer groups.

    Partitions are numbered from 0, and times are in ms since the epoch. Calls raise
    `LogUnreachable` if the file fails or is locked, and `StateUnwritable` if it may not be written.

    Parameters
    ----------
    path
        The topic's file; None keeps the topic in memory.
    partitions
        Number of partitions. It is fixed when the file is created, because the partition of a key
        depends on it.

    Raises
    ------
    SettingsError
        The file was made with another number of partitions.
    StateUnwritable
        The file cannot be opened.
    """

    def __init__(self, path: Path | None, topic: Topic, *, partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions
        self._path = path
        self._sweep_due_ms = dict.fromkeys(range(partitions), 0)
        self._connection = connect(path, durable=topic.durable)
        try:
            self.id = self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> str:
        """Create missing tables and return the random id drawn when the file was made."""
        execute = self._connection.execute
        with transaction(self._connection, self._path):
            for statement in _SCHEMA.split(";"):
                execute(statement)
            if self.topic.compacted:
                execute(_KEY_INDEX)
            (count,) = execute("SELECT count(*) FROM partition").fetchone()
            if count == 0:
                rows = [(number,) for number in range(self.partitions)]
                self._connection.executemany("INSERT INTO partition VALUES (?, 0, 0, 0, 0)", rows)
                execute("INSERT INTO origin VALUES (?)", (secrets.token_hex(16),))
            elif count != self.partitions:
                raise SettingsError(
                    f"{self._path} was created with {count} partitions, but the settings say "
                    f"{self.partitions}, which would move keys to other partitions. Set "
                    f"log.partitions to {count}, or use an empty folder"
                )
            (identity,) = execute("SELECT id FROM origin").fetchone()
        return str(identity)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def append(
        self,
        partition: int,
        *,
        key: bytes,
        value: bytes,
        headers: Headers,
        time_ms: int,
    ) -> int:
        """Store one record and return its offset.

        If `time_ms` is before the time of the last record, that time is stored instead.

        Raises
        ------
        RecordTooLarge
            The record exceeds the limit that all logs of Flatline share.
        LogUnreachable, StateUnwritable
            Nothing was written.
        """
        packed = _pack_headers(headers) if headers else None
        size = len(key) + len(value) + len(packed or b"")
        if size > MAX_APPEND_BYTES:
            raise RecordTooLarge(
                f"a record of {size} bytes for {self.topic.name} exceeds the limit of "
                f"{MAX_APPEND_BYTES} bytes"
            )
        execute = self._connection.execute
        with transaction(self._connection, self._path):
            earliest, offset, last_ms, held = execute(
                "SELECT earliest, next, time_ms, bytes FROM partition WHERE number = ?",
                (partition,),
            ).fetchone()
            time_ms = max(time_ms, last_ms)
            position = _position(partition, offset)
            if self.topic.compacted:
                # The size of a compacted topic is limited only by the number of its keys.
                execute(
                    "DELETE FROM record WHERE key = ? AND position >= ? AND position < ?",
                    (key, _position(partition, 0), position),
                )
            execute(
                "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)",
                (position, time_ms, size, key, packed, value),
            )
            held += size
            if not self.topic.compacted and self._is_trim_due(partition, time_ms, held):
                earliest, held = self._trim(partition, time_ms, earliest, held)
            execute(
                "UPDATE partition SET earliest = ?, next = ?, time_ms = ?, bytes = ? "
                "WHERE number = ?",
                (earliest, offset + 1, time_ms, held, partition),
            )
        return int(offset)

    def _is_trim_due(self, partition: int, time_ms: int, held: int) -> bool:
        if held > self.topic.retention_bytes:
            return True
        return self.topic.retention_s is not None and time_ms >= self._sweep_due_ms[partition]

    def _trim(self, partition: int, time_ms: int, earliest: int, held: int) -> tuple[int, int]:
        """Delete the oldest records until both limits are met; the newest one always stays.

        Age is measured from the newest record and not from the wall clock, so that a copy of an old
        log keeps the records of the original.
        """
        oldest_ms = 0
        if self.topic.retention_s is not None:
            oldest_ms = time_ms - self.topic.retention_s * 1000
            step_ms = self.topic.retention_s * 1000 // _SWEEPS_PER_RETENTION
            self._sweep_due_ms[partition] = time_ms + step_ms
        keep = _position(partition, earliest)
        rows = self._connection.execute(
            "SELECT position, time_ms, size FROM record WHERE position >= ? AND position < ? "
            "ORDER BY position",
            (keep, _position(partition + 1, 0)),
        )
        for position, record_ms, size in rows:
            keep = position
            if record_ms >= oldest_ms and held <= self.topic.retention_bytes:
                break
            held -= size
        else:
            held += size
        rows.close()
        self._connection.execute(
            "DELETE FROM record WHERE position >= ? AND position < ?",
            (_position(partition, 0), keep),
        )
        return _offset(keep), held

    def read(self, partition: int, *, offset: int, stop: int, max_records: int) -> list[Record]:
        """Return records from `offset` up to, and not including, offset `stop`.

        The list holds at most `max_records`, fewer if they are large. It is empty only if there is
        no such record.
        """
        records: list[Record] = []
        size = 0
        with failures_named(self._path):
            rows = self._connection.execute(
                "SELECT position, time_ms, size, key, headers, value FROM record "
                "WHERE position >= ? AND position < ? ORDER BY position LIMIT ?",
                (_position(partition, max(offset, 0)), _position(partition, stop), max_records),
            )
            for position, time_ms, length, key, packed, value in rows:
                headers = _unpack_headers(packed) if packed else ()
                records.append(
                    Record(
                        self.topic.name, partition, _offset(position), time_ms, key, value, headers
                    )
                )
                size += length
                if size >= _BATCH_BYTES:
                    break
            rows.close()
        return records

    def bounds(self, partition: int) -> Bounds:
        """Return the earliest and the next offset of a partition."""
        with failures_named(self._path):
            row = self._connection.execute(
                "SELECT earliest, next FROM partition WHERE number = ?", (partition,)
            ).fetchone()
        return Bounds(*row)

    def offset_at(self, partition: int, *, time_ms: int) -> int:
        """Return the first offset whose append time is ≥ `time_ms`, else the end.

        A binary search, as append times never decrease within a partition.
        """
        low, high = self.bounds(partition)
        found = high
        with failures_named(self._path):
            while low < high:
                middle = (low + high) // 2
                row = self._connection.execute(
                    "SELECT position, time_ms FROM record WHERE position >= ? AND position < ? "
                    "ORDER BY position LIMIT 1",
                    (_position(partition, middle), _position(partition, high)),
                ).fetchone()
                # Compaction leaves gaps, so the record found may be after the middle.
                if row is None:
                    high = middle
                elif row[1] >= time_ms:
                    found, high = _offset(row[0]), middle
                else:
                    low = _offset(row[0]) + 1
        return found

    def committed(self, group: str) -> dict[int, int]:
        """Return the next offset to read of each partition that `group` has committed.

        Partitions without a commit are absent.
        """
        with failures_named(self._path):
            rows = self._connection.execute(
                "SELECT partition, next FROM progress WHERE consumer = ?", (group,)
            ).fetchall()
        return dict(rows)

    def commit(self, group: str, next_offsets: Mapping[int, int]) -> None:
        """Store the offsets at which the next member of `group` starts to read."""
        with transaction(self._connection, self._path):
            self._connection.executemany(
                "INSERT OR REPLACE INTO progress VALUES (?, ?, ?)",
                [(group, partition, offset) for partition, offset in next_offsets.items()],
            )


def _position(partition: int, offset: int) -> int:
    return partition << _OFFSET_BITS | offset


def _offset(position: int) -> int:
    return position & ((1 << _OFFSET_BITS) - 1)

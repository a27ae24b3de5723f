"""Read the frames of a log folder as a recording. Nothing in the folder is changed."""

import heapq
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from flatline.engine.errors import RecordRejected, SettingsError
from flatline.engine.ports import RecordedFrame
from flatline.engine.wire.frame import Frame, decode_frame
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.table import Widen
from flatline.engine.wire.topics import FRAMES, REJECTED

FILE_NAME: Final = f"{FRAMES.name}.sqlite"
# A record's row id is its partition and offset: see `connectors.embedded.topic`.
_OFFSET_BITS: Final = 40


class FrameRecording:
    """`engine.ports.Recording` of the frames in an embedded log.

    Parameters
    ----------
    folder
        The log's folder, of a running process or a copy.
    widen
        See `engine.wire.frame.decode_frame`.

    Raises
    ------
    SettingsError
        The folder holds no frames.
    """

    def __init__(self, folder: Path, *, widen: Widen | None = None) -> None:
        self.name = folder.name
        self.names: Mapping[str, str] = {}
        self._path = folder / FILE_NAME
        self._widen = widen
        self._records = self._unreadable = self._unbelieved = 0
        self.interval_s = self._interval_s()

    def recorded_frames(self) -> Iterator[RecordedFrame]:
        """Yield the records in the order of each partition, merged by their append times.

        The frame of a record is None if it is unreadable, or if the engine rejected its MAC.

        Raises
        ------
        SettingsError
            A file is damaged or not a log.
        """
        self._records = self._unreadable = self._unbelieved = 0
        refused = self._refused()
        with closing(self._open()) as connection:
            parts = [self._partition(connection, number) for number in self._numbers(connection)]
            for time_ms, partition, position, value in heapq.merge(*parts):
                self._records += 1
                if position in refused:
                    # The engine rejected this record for a wrong MAC. A replay rejects it as well,
                    # and so does not need the key.
                    self._unbelieved += 1
                    yield RecordedFrame(time_ms, None, partition)
                    continue
                yield RecordedFrame(time_ms, self._decoded(value), partition, value)

    def figures(self) -> dict[str, int]:
        """Return the counts of the last reading by name.

        `records_read` is always present. `records_unreadable` (no valid frame) and
        `records_unbelieved` (wrong MAC) are present if they are not 0.
        """
        found = {"records_read": self._records}
        left_out = {"unreadable": self._unreadable, "unbelieved": self._unbelieved}
        return found | {f"records_{name}": count for name, count in left_out.items() if count}

    def _decoded(self, value: bytes) -> Frame | None:
        try:
            return decode_frame(value, self._widen)
        except RecordRejected:
            self._unreadable += 1
            return None

    def _refused(self) -> frozenset[int]:
        """Return the positions of frames whose MAC the engine rejected (topic `rejected`)."""
        path = self._path.with_name(f"{REJECTED.name}.sqlite")
        if not path.exists():
            return frozenset()
        found: set[int] = set()
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            try:
                values = [value for (value,) in connection.execute("SELECT value FROM record")]
            except sqlite3.DatabaseError as error:
                raise SettingsError(f"{path} cannot be read: {error}.") from error
        for value in values:
            try:
                record = decode_rejected(value)
            except RecordRejected:
                continue
            if record.topic == FRAMES.name and record.reason == "bad_mac":
                found.add(record.partition << _OFFSET_BITS | record.offset)
        return frozenset(found)

    def _interval_s(self) -> float:
        for recorded in self.recorded_frames():
            if recorded.frame is not None and recorded.frame.header.role == "collector":
                return recorded.frame.header.interval_ms / 1000
        raise SettingsError(f"{self._path} holds no frame of a collector.")

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise SettingsError(f"{self._path.parent} holds no recorded frames ({FILE_NAME}).")
        try:
            return sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)
        except sqlite3.DatabaseError as error:
            raise SettingsError(f"{self._path} cannot be opened: {error}.") from error

    def _numbers(self, connection: sqlite3.Connection) -> list[int]:
        try:
            rows = connection.execute("SELECT number FROM partition ORDER BY number").fetchall()
        except sqlite3.DatabaseError as error:
            raise SettingsError(
                f"{self._path} is not a recorded log of frames: {error}."
            ) from error
        return [number for (number,) in rows]

    def _partition(
        self, connection: sqlite3.Connection, number: int
    ) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            rows = connection.execute(
                "SELECT CAST(time_ms AS INTEGER), position, CAST(value AS BLOB) FROM record"
                " WHERE position >= ? AND position < ? ORDER BY position",
                (number << _OFFSET_BITS, (number + 1) << _OFFSET_BITS),
            )
            for time_ms, position, value in rows:
                yield time_ms, number, position, value
        except sqlite3.DatabaseError as error:
            raise SettingsError(
                f"{self._path} is damaged and cannot be read completely: {error}. Restore it from "
                "a copy."
            ) from error

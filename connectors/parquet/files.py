"""Where the rows of a measurement stand on disk, and how files come and go.

A measurement has a folder, in it one for each hour (raw rows) or day (all others), in it some
files. A file appears whole, by a rename, and is never changed. Where several files hold the
same row, the one whose name sorts last counts: that is the newest.
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from errno import EACCES
from itertools import count
from pathlib import Path
from typing import Final

from engine.errors import HistoryUnreachable
from engine.wire.measurement import DAY_S, MEASUREMENTS, Bucket

# Of raw rows an hour of 1,000 VMs at 10 s is 30 MB; of the others a day is a few.
_PARTITION_S: Final[dict[Bucket, int]] = {"raw": 3600, "minute": DAY_S, "long": DAY_S}
_ROWS: Final = ".parquet"
_numbers = count()


class Files:
    """The files below one folder.

    Raises
    ------
    HistoryUnreachable
        The folder cannot be made or written: what was to be stored is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def partition_s(self, measurement: str) -> int:
        """Return the length of the measurement's partitions in s."""
        return _PARTITION_S[MEASUREMENTS[measurement].bucket]

    def partition(self, measurement: str, number: int) -> Path:
        """Return the folder of a measurement's partition, `number` of them after the epoch."""
        begin = datetime.fromtimestamp(number * self.partition_s(measurement), UTC)
        return self.folder / measurement / begin.strftime("%Y%m%dT%H")

    def within(self, measurement: str, begin_ns: int, end_ns: int) -> Iterator[tuple[Path, ...]]:
        """Yield the files of each partition that overlaps a range of time, oldest first."""
        first = (begin_ns // 1_000_000_000) // self.partition_s(measurement)
        last = ((end_ns - 1) // 1_000_000_000) // self.partition_s(measurement)
        low, high = (self.partition(measurement, max(0, n)).name for n in (first, min(last, 10**6)))
        for folder in self.partitions(measurement):
            if low <= folder.name <= high and (files := self.listed(folder)):
                yield files

    def partitions(self, measurement: str) -> list[Path]:
        """Return the folders of a measurement, oldest first."""
        try:
            return sorted((self.folder / measurement).iterdir())
        except FileNotFoundError:
            return []

    def listed(self, partition: Path) -> tuple[Path, ...]:
        """Return the files of a partition, oldest first."""
        return tuple(sorted(path for path in partition.iterdir() if path.suffix == _ROWS))

    def new(self, partition: Path) -> Path:
        """Return a name for a file that is being written; no reader looks at it.

        A name sorts after every name that this folder holds, whatever the clock did meanwhile.
        """
        try:
            partition.mkdir(parents=True, exist_ok=True)
            names = self.listed(partition)
        except OSError as error:
            raise unwritable(partition, error) from error
        stamp = time.time_ns()
        if names:
            stamp = max(stamp, int(names[-1].name.split("-")[0]) + 1)
        return partition / f"{stamp:020d}-{os.getpid()}-{next(_numbers)}.new"

    def publish(self, written: Path) -> None:
        """Make a file durable and let readers see it."""
        try:
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.rename(written.with_suffix(_ROWS))
            folder = os.open(written.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise unwritable(written, error) from error

    def forget(self, measurement: str, *, before_s: float) -> None:
        """Delete the partitions that ended before a time."""
        length_s = self.partition_s(measurement)
        for folder in self.partitions(measurement):
            begin = datetime.strptime(folder.name, "%Y%m%dT%H").replace(tzinfo=UTC)
            if begin.timestamp() + length_s > before_s:
                break
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
            folder.rmdir()


def require_writable(folder: Path) -> None:
    """Make the history's folder, so that one of somebody else is told before the first row.

    Raises
    ------
    HistoryUnreachable
        It cannot be made, or belongs to another user.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> HistoryUnreachable:
    """Return what a failed write means."""
    return HistoryUnreachable(
        f"{path} cannot be written: {error.strerror}. Free some space, or give the folder to the"
        " user of this process."
    )

"""Layout and life cycle of the history's files.

Each measurement has a folder. It contains one folder per hour (raw rows) or per day (all others),
and in these are the files. A rename makes a file visible when it is complete; it never changes. If
several files hold the same row, the file whose name sorts last applies: it is the newest.

Only files with names of this format are read. An unreadable file is set aside: it stays under a
name that no reader opens, and its name is logged.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from errno import EACCES
from itertools import count
from pathlib import Path
from typing import Final

import structlog

from flatline.engine.errors import HistoryUnreachable
from flatline.engine.wire.limits import MAX_TIME_S
from flatline.engine.wire.measurement import DAY_S, MEASUREMENTS, Bucket

# An hour of raw rows of 1,000 VMs at 10 s takes 30 MB; a day of the other rows takes a few MB.
_PARTITION_S: Final[dict[Bucket, int]] = {"raw": 3600, "minute": DAY_S, "long": DAY_S}
_ROWS: Final = ".parquet"
_DAMAGED: Final = ".damaged"
_NEW: Final = ".new"
# The names that `new` makes: a time in ns, the process id, and a serial number.
_FILE: Final = re.compile(rf"(\d{{20}})-\d+-\d+{re.escape(_ROWS)}")
# The year 2200: a file with a later time in its name is foreign and would sort after all of ours.
_LATEST_NS: Final = MAX_TIME_S * 1_000_000_000
_PARTITION: Final = re.compile(r"\d{8}T\d{2}")
_numbers = count()
_log = structlog.get_logger()


class Files:
    """The files below one folder.

    Raises
    ------
    HistoryUnreachable
        From a method: the folder cannot be made, read or written. Rows to write were not stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._passed_over: set[Path] = set()

    def partition_s(self, measurement: str) -> int:
        """Return the length of the measurement's partitions in s."""
        return _PARTITION_S[MEASUREMENTS[measurement].bucket]

    def partition(self, measurement: str, number: int) -> Path:
        """Return the folder of a measurement's partition.

        `number` counts lengths of `partition_s` from the epoch, which is 0.
        """
        begin = datetime.fromtimestamp(number * self.partition_s(measurement), UTC)
        return self.folder / measurement / begin.strftime("%Y%m%dT%H")

    def within(self, measurement: str, begin_ns: int, end_ns: int) -> Iterator[tuple[Path, ...]]:
        """Yield the files of each partition that overlaps a range of time, oldest first.

        The range is from `begin_ns` up to, and not including, `end_ns`, in ns since the epoch.
        """
        first = (begin_ns // 1_000_000_000) // self.partition_s(measurement)
        last = ((end_ns - 1) // 1_000_000_000) // self.partition_s(measurement)
        low, high = (self.partition(measurement, max(0, n)).name for n in (first, min(last, 10**6)))
        for folder in self.partitions(measurement):
            if low <= folder.name <= high and (files := self.listed(folder)):
                yield files

    def partitions(self, measurement: str) -> list[Path]:
        """Return the folders of a measurement, oldest first."""
        found = self._entries(self.folder / measurement)
        return sorted(path for path in found if _PARTITION.fullmatch(path.name) and path.is_dir())

    def listed(self, partition: Path) -> tuple[Path, ...]:
        """Return the files of a partition, oldest first."""
        return tuple(sorted(path for path in self._entries(partition) if self._is_ours(path)))

    def _is_ours(self, path: Path) -> bool:
        if path.suffix != _ROWS:
            return False
        named = _FILE.fullmatch(path.name)
        if named and int(named[1]) <= _LATEST_NS and path.is_file():
            return True
        if path not in self._passed_over:
            self._passed_over.add(path)
            _log.warning("This is not a file of the history and is skipped.", file=str(path))
        return False

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []  # never made, or expired
        except OSError as error:
            raise HistoryUnreachable(
                f"{folder} cannot be read: {error.strerror}. Allow the user of this process to "
                "read it."
            ) from error

    def set_aside(self, path: Path, why: str) -> None:
        """Hide an unreadable file from readers, and log its name.

        Where this process may not rename it, the name is logged too, and the caller skips the file.
        """
        try:
            path.rename(path.with_suffix(_DAMAGED))
            done = "was set aside"
        except FileNotFoundError:
            return  # another process set it aside, or it was merged into a larger file
        except OSError as error:
            done = f"is skipped, and cannot be renamed ({error.strerror})"
        _log.error(
            f"A file of the history cannot be read and {done}, so its rows are missing. Restore "
            "it from a copy, or delete it.",
            file=str(path),
            reason=why.partition("\n")[0][:300],
        )

    def new(self, partition: Path) -> Path:
        """Return a name for a file to be written; no reader opens it before `publish`.

        A new name sorts after all names in the folder, even if the clock went back.
        """
        try:
            partition.mkdir(parents=True, exist_ok=True)
            names = self.listed(partition)
        except OSError as error:
            raise unwritable(partition, error) from error
        stamp = time.time_ns()
        if names:
            stamp = max(stamp, int(names[-1].name.split("-")[0]) + 1)
        return partition / f"{stamp:020d}-{os.getpid()}-{next(_numbers)}{_NEW}"

    def publish(self, written: Path) -> None:
        """Make a file durable and visible to readers; `written` is the name from `new`."""
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
        """Delete the partitions that ended before a time, in s since the epoch."""
        length_s = self.partition_s(measurement)
        for folder in self.partitions(measurement):
            try:
                begin = datetime.strptime(folder.name, "%Y%m%dT%H").replace(tzinfo=UTC)
            except ValueError:
                continue  # eight digits that are not a date
            if begin.timestamp() + length_s > before_s:
                break
            # A foreign file is kept, so its folder cannot be removed. That must not stop a write.
            with suppress(OSError):
                for path in self._entries(folder):
                    if path.suffix in (_ROWS, _DAMAGED, _NEW) and path.is_file():
                        path.unlink(missing_ok=True)
                folder.rmdir()


def require_writable(folder: Path) -> None:
    """Create the history's folder if absent, and check before the first row that it is writable.

    Raises
    ------
    HistoryUnreachable
        The folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> HistoryUnreachable:
    """Return the error for a failed write."""
    return HistoryUnreachable(
        f"{path} cannot be written: {error.strerror}. Free some space, or give the folder to the"
        " user of this process."
    )

"""The history in Parquet files, written and read by DuckDB in this process."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import duckdb
import numpy as np
import structlog

from flatline.connectors.parquet.files import Files
from flatline.connectors.parquet.sql import columns, misfits, source, to_sql
from flatline.engine.errors import HistoryUnreachable
from flatline.engine.ports import Answer, Clock, Query, RefusedRow
from flatline.engine.wire.measurement import MEASUREMENTS, RETENTION_S, Bucket
from flatline.engine.wire.points import MISSING, Points

# If a partition has more files than this, they are merged: each file costs a reader 0.2 ms.
_FILES_KEPT: Final = 24
# How many files are remembered as having a time column: enough for 24 files in each hour or day of
# several measurements.
_DATED_KEPT: Final = 100_000
# How often a query is tried: a file that it found may be merged into another before it is opened.
_TRIES: Final = 5
# Sorting an hour of raw rows needs less; without a limit DuckDB would use most of the memory.
_MEMORY: Final = "512MB"
# Temporary errors: a full or missing disk, memory, an interrupt. All others concern the rows.
_PASSING: Final = (duckdb.OperationalError, duckdb.InternalError, duckdb.FatalException)


_log = structlog.get_logger()


class ParquetHistory:
    """The history in one folder; one process writes, any number may read.

    Parameters
    ----------
    folder
        Created if absent.
    clock
        Determines which rows are older than the retention.
    retention_s
        Retention of the rows of each bucket.
    """

    def __init__(
        self, folder: Path, *, clock: Clock, retention_s: Mapping[Bucket, int] = RETENTION_S
    ) -> None:
        self._files = Files(folder)
        self._dated: set[Path] = set()
        self._clock = clock
        self._retention_s = retention_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        """See `engine.ports.HistorySink`.

        Rejected are rows older than the retention of their bucket, and rows that no file can hold.
        """
        return await asyncio.to_thread(self._write, batch)

    async def ask(self, query: Query) -> list[Answer]:
        """See `engine.ports.HistoryQuery`."""
        return await asyncio.to_thread(self._ask, query)

    def _write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        refused = [
            row for index, points in enumerate(batch) for row in self._too_old(index, points)
        ]
        ordered = sorted(batch, key=lambda points: points.measurement)
        indices = {id(points): index for index, points in enumerate(batch)}
        with _database() as database:
            for measurement, several in groupby(ordered, key=lambda points: points.measurement):
                chosen = list(several)
                table, known = _table(measurement, chosen)
                oldest_s = self._oldest_ns(measurement) / 1e9
                for number, rows in self._by_partition(measurement, table["time"]):
                    refused += [
                        _refused(chosen, indices, int(known[bad.place]), bad.why)
                        for bad in self._write_rows(database, measurement, number, table, rows)
                    ]
                self._files.forget(measurement, before_s=oldest_s)
        return tuple(refused)

    def _write_rows(
        self,
        database: duckdb.DuckDBPyConnection,
        measurement: str,
        number: int,
        table: dict[str, np.ndarray[Any, Any]],
        rows: np.ndarray[Any, Any],
    ) -> "list[_Bad]":
        """Write rows of one partition and return those that no file can hold."""
        try:
            self._write_file(database, measurement, number, table, rows)
        except _RowsRefused as error:
            if len(rows) == 1:
                return [_Bad(int(rows[0]), str(error))]
            middle = len(rows) // 2
            return [
                bad
                for half in (rows[:middle], rows[middle:])
                for bad in self._write_rows(database, measurement, number, table, half)
            ]
        return []

    def _too_old(self, index: int, points: Points) -> Iterator[RefusedRow]:
        oldest_ns = self._oldest_ns(points.measurement)
        for row in np.flatnonzero(points.time_ns < oldest_ns).tolist():
            days = self._retention_s[points.declared.bucket] / 86_400
            yield RefusedRow(index, row, _text(points, row), f"older than {days:g} days")

    def _oldest_ns(self, measurement: str) -> int:
        """Return the time from which rows of a measurement are kept."""
        kept_s = self._retention_s[MEASUREMENTS[measurement].bucket]
        return (self._clock.now_ms() - kept_s * 1000) * 1_000_000

    def _by_partition(
        self, measurement: str, times: np.ndarray[Any, Any]
    ) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        numbers = times // (self._files.partition_s(measurement) * 1_000_000_000)
        recent = times >= self._oldest_ns(measurement)
        for number in np.unique(numbers[recent]).tolist():
            yield number, np.flatnonzero((numbers == number) & recent)

    def _write_file(
        self,
        database: duckdb.DuckDBPyConnection,
        measurement: str,
        number: int,
        table: dict[str, np.ndarray[Any, Any]],
        rows: np.ndarray[Any, Any],
    ) -> None:
        partition = self._files.partition(measurement, number)
        chosen = {name: column[rows] for name, column in table.items()}
        query = f"SELECT {_selected(measurement, frozenset(chosen))} FROM chosen"
        try:
            database.register("chosen", chosen)
            _copy(database, query, self._files, partition)
        except duckdb.Error as error:
            raise _RowsRefused(str(error)) from error
        finally:
            database.unregister("chosen")
        if len(self._files.listed(partition)) > _FILES_KEPT:
            self._merge(database, measurement, partition)

    def _merge(
        self, database: duckdb.DuckDBPyConnection, measurement: str, partition: Path
    ) -> None:
        files = self._files.listed(partition)
        try:
            timeless = self._without_time(database, files)
            files = tuple(path for path in files if path not in timeless)
            _copy(database, f"SELECT * FROM {source(measurement, [files])}", self._files, partition)
        except (duckdb.Error, HistoryUnreachable) as error:
            # All rows are still in the files before the merge, so it can wait. But an unreadable
            # file must be set aside, or all later merges would fail too.
            if not self._without_damaged(measurement, files):
                _log.warning(
                    "Files of the history are not merged at present.", reason=str(error)[:300]
                )
            return
        for path in files:
            path.unlink(missing_ok=True)

    def _without_time(
        self, database: duckdb.DuckDBPyConnection, files: Sequence[Path]
    ) -> set[Path]:
        """Set aside the files without a time column, and return them.

        A query does not detect such a file: its rows have no time, so the query only omits them.
        Each file is checked once, since it never changes.
        """
        new = [path for path in files if path not in self._dated]
        if not new:
            return set()
        paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in new)
        query = f"SELECT DISTINCT file_name FROM parquet_schema([{paths}]) WHERE name = 'time'"
        dated = {Path(name) for (name,) in database.execute(query).fetchall()}
        self._dated = (self._dated | dated) if len(self._dated) < _DATED_KEPT else dated
        timeless = set(new) - dated
        for path in sorted(timeless):
            self._files.set_aside(path, "it has no column time")
        return timeless

    def _without_damaged(self, measurement: str, files: Iterable[Path]) -> set[Path]:
        """Set aside the files that cannot be read, each tested separately, and return them."""
        damaged: set[Path] = set()
        for path in files:
            if why := _damage(measurement, path):
                self._files.set_aside(path, why)
                damaged.add(path)
        return damaged

    def _ask(self, one_query: Query) -> list[Answer]:
        width = len(one_query.group_by)
        damaged: set[Path] = set()
        for attempt in range(1, _TRIES + 1):
            partitions = [
                tuple(path for path in files if path not in damaged)
                for files in self._files.within(
                    one_query.measurement, one_query.begin_ns, one_query.end_ns
                )
            ]
            try:
                with _database() as database:
                    timeless = self._without_time(
                        database, [path for files in partitions for path in files]
                    )
                    damaged |= timeless
                    ours = [[path for path in each if path not in timeless] for each in partitions]
                    query = to_sql(one_query, [files for files in ours if files])
                    rows = database.execute(query).fetchall()
            except duckdb.Error as error:
                files = [path for several in partitions for path in several]
                # If a file is missing, it was merged meanwhile; then no file is tested for damage.
                if all(path.exists() for path in files):
                    damaged |= self._without_damaged(one_query.measurement, files)
                if attempt == _TRIES:
                    raise HistoryUnreachable(f"The history cannot be read: {error}.") from error
                continue
            return [
                Answer(tuple(tag or "" for tag in row[:width]), row[width], row[width + 1 :])
                for row in rows
            ]
        raise AssertionError("the last attempt returns or raises")


class _RowsRefused(Exception):
    """DuckDB will never write these rows."""


class _Bad(NamedTuple):
    """A row of a table that cannot be written, and the reason."""

    place: int
    why: str


def _database() -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(config={"memory_limit": _MEMORY, "threads": "2"})
    except duckdb.Error as error:
        raise HistoryUnreachable(f"DuckDB cannot start: {error}.") from error


def _damage(measurement: str, path: Path) -> str:
    """Return why a file cannot be read, empty if it can; reads it completely."""
    if not os.access(path, os.R_OK):
        return ""  # merged, or another user's: that is no damage
    try:
        with _database() as database:
            name = str(path).replace("'", "''")
            described = database.execute(f"DESCRIBE SELECT * FROM read_parquet('{name}')")
            if wrong := misfits(measurement, {row[0]: row[1] for row in described.fetchall()}):
                return wrong
            database.execute(f"SELECT bit_xor(hash(row)) FROM {source(measurement, [(path,)])} row")
    except duckdb.OperationalError as error:
        # Merged meanwhile, or a shortage of the machine's resources: not damage of the file.
        return "" if not path.exists() or not isinstance(error, duckdb.IOException) else str(error)
    except duckdb.Error as error:
        return str(error)
    return ""


def _text(points: Points, row: int) -> bytes:
    """Return measurement, tags and time of a row, which identify it in the record of rejections."""
    tags = ",".join(f"{name}={texts[row]}" for name, texts in points.series.tags.items())
    return f"{points.measurement},{tags} {points.time_ns[row]}".encode(errors="replace")


def _refused(
    several: Sequence[Points], indices: Mapping[int, int], row: int, why: str
) -> RefusedRow:
    """Map a row of a table back to the row of its points."""
    for points in several:
        if row < len(points):
            return RefusedRow(indices[id(points)], row, _text(points, row), why)
        row -= len(points)
    raise AssertionError("each row of a table is one point of the measurement")


def _table(
    measurement: str, several: Sequence[Points]
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return all columns of a measurement over several points, and each row's original index.

    Unknown values are None or NaN; rows without any known value are left out.
    """
    declared = MEASUREMENTS[measurement]
    table: dict[str, np.ndarray[Any, Any]] = {
        "time": np.concatenate([points.time_ns for points in several])
    }
    for tag in declared.tags:
        texts = [points.series.tags.get(tag, ("",) * len(points)) for points in several]
        table[tag] = np.array([text for one in texts for text in one], object)
    for field in declared.fields:
        parts = [points.fields.get(field.name) for points in several]
        if all(part is None for part in parts):
            continue
        if field.kind == "text":
            texts_ = [
                part if part is not None else (None,) * len(points)
                for part, points in zip(parts, several, strict=True)
            ]
            table[field.name] = np.array([text for one in texts_ for text in one], object)
            continue
        unknown = np.nan if field.kind == "float" else MISSING
        dtype = np.float64 if field.kind == "float" else np.int64
        table[field.name] = np.concatenate(
            [
                np.asarray(part, dtype)
                if part is not None
                else np.full(len(points), unknown, dtype)
                for part, points in zip(parts, several, strict=True)
            ]
        )
    return _without_empty_rows(measurement, table)


def _without_empty_rows(
    measurement: str, table: dict[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Remove rows without any known value, which no store keeps; return the indices of the rest."""
    known = np.zeros(len(table["time"]), np.bool_)
    for field in MEASUREMENTS[measurement].fields:
        column = table.get(field.name)
        if column is None:
            continue
        if field.kind == "float":
            known |= np.isfinite(column)
        elif field.kind == "integer":
            known |= column != MISSING
        else:
            known |= np.array([text is not None for text in column], np.bool_)
    indices = np.flatnonzero(known)
    if known.all():
        return table, indices
    return {name: column[known] for name, column in table.items()}, indices


def _selected(measurement: str, given: frozenset[str]) -> str:
    declared = MEASUREMENTS[measurement]
    kinds = {field.name: field.kind for field in declared.fields}
    parts = []
    for name, kind in columns(declared).items():
        if name not in given:
            parts.append(f'NULL::{kind} AS "{name}"')
        elif kinds.get(name) == "float":
            parts.append(f'CASE WHEN isfinite("{name}") THEN "{name}" END::{kind} AS "{name}"')
        elif kinds.get(name) == "integer":
            parts.append(f'nullif("{name}", {MISSING})::{kind} AS "{name}"')
        else:
            parts.append(f'"{name}"::{kind} AS "{name}"')
    return ", ".join(parts)


def _copy(database: duckdb.DuckDBPyConnection, query: str, files: Files, partition: Path) -> None:
    written = files.new(partition)
    name = str(written).replace("'", "''")
    try:
        database.execute(
            f"COPY ({query} ORDER BY ALL) TO '{name}' (FORMAT parquet, COMPRESSION zstd)"
        )
    except duckdb.Error as error:
        written.unlink(missing_ok=True)
        if isinstance(error, _PASSING):
            raise HistoryUnreachable(f"{written} cannot be written: {error}.") from error
        raise
    files.publish(written)

"""The ledger (write-ahead log) of an agent: one SQLite file, synced to disk after each entry."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from flatline.connectors.embedded.database import connect, failures_named, transaction
from flatline.connectors.embedded.lock import FileLock, holder_of
from flatline.engine.errors import AlreadyRunning, LogUnreachable, StateUnwritable


class EmbeddedLedger:
    """`engine.ports.LedgerStore` on SQLite, held by one process at a time.

    Parameters
    ----------
    path
        The ledger's file; its folder is created if absent. None keeps the ledger in memory.

    Raises
    ------
    AlreadyRunning
        Another agent of this node holds the ledger.
    StateUnwritable
        The folder cannot be written, or the file is not a ledger.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = None if path is None else _take(path)
        try:
            self._connection = connect(path, durable=True)
            with _unwritable(path), transaction(self._connection, path):
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS entry(id INTEGER PRIMARY KEY, value BLOB NOT NULL)"
                )
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, entry: bytes) -> None:
        """See `engine.ports.LedgerStore`."""
        with _unwritable(self._path), transaction(self._connection, self._path):
            self._connection.execute("INSERT INTO entry(value) VALUES (?)", (entry,))

    def entries(self) -> Sequence[bytes]:
        """See `engine.ports.LedgerStore`."""
        with _unwritable(self._path), failures_named(self._path):
            rows = self._connection.execute("SELECT value FROM entry ORDER BY id").fetchall()
        return tuple(value for (value,) in rows)

    def close(self) -> None:
        """Release the ledger, so that the next agent may take it."""
        self._connection.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _take(path: Path) -> FileLock:
    guard = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = FileLock.take(guard)
    except OSError as error:
        raise StateUnwritable(
            f"the folder {path.parent} of the ledger cannot be used: {error.strerror or error}. "
            "Create it for the user of the agent"
        ) from error
    if lock is None:
        raise AlreadyRunning(
            f"{holder_of(guard)} has locked the ledger {path}: an agent already runs on this node. "
            "Stop that agent first"
        )
    return lock


@contextmanager
def _unwritable(path: Path | None) -> Iterator[None]:
    """Translate every failure into an error that stops the agent from acting."""
    try:
        yield
    except LogUnreachable as error:
        raise StateUnwritable(
            f"the ledger cannot be written durably, so no action is allowed: {error}"
        ) from error

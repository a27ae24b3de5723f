"""Open SQLite files of Flatline and translate SQLite errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flatline.engine.errors import LogUnreachable, StateUnwritable

# How long SQLite waits while another process holds a write transaction, usually for one fsync. The
# wait blocks the event loop, so it must be much shorter than the 5 s that an agent allows for its
# barrier (reading the log to its end).
_BUSY_WAIT_S: Final = 2.0

# A long read can make the WAL grow. The next checkpoint truncates the WAL to this size.
_WAL_LIMIT_BYTES: Final = 16 << 20


def connect(path: Path | None, *, durable: bool) -> sqlite3.Connection:
    """Return a connection in autocommit mode.

    Parameters
    ----------
    path
        The file; its folder must exist. None opens a database in memory.
    durable
        Whether a commit waits for the disk (`synchronous=FULL`). Without it a commit survives a
        crash of the process but not a power failure (sqlite.org/pragma.html#pragma_synchronous).

    Raises
    ------
    StateUnwritable
        The file cannot be opened, or is not a database.
    """
    try:
        if path is None:
            return sqlite3.connect(":memory:", isolation_level=None)
        connection = sqlite3.connect(path, timeout=_BUSY_WAIT_S, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}").close()
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT_BYTES}").close()
    except sqlite3.DatabaseError as error:
        raise StateUnwritable(
            f"{path} cannot be opened: {error}. Check its owner, its permissions and the free "
            "space. If it is damaged, move it away: a new one is created"
        ) from error
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, where: Path | None) -> Iterator[None]:
    """Commit the writes of the block, or roll all of them back.

    `where` is the file that the message names, None for a log in memory.

    Raises
    ------
    LogUnreachable
        Nothing was written: the disk is full or failing, or another process locks the file.
    StateUnwritable
        This user may not write the file.
    """
    with failures_named(where):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def failures_named(where: Path | None) -> Iterator[None]:
    """Translate SQLite errors into Flatline's, with the file and the remedy in the message.

    `where` is the file that the message names, None for a log in memory.

    Raises
    ------
    StateUnwritable
        This user may not open or write the file.
    LogUnreachable
        All other errors: the disk is full or failing, or another process locks the file.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = where or "the log in memory"
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            raise StateUnwritable(
                f"{name} is not writable: {error}. Give the folder to the user of this process"
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise LogUnreachable(
                f"{name} was not written: {error}. Free some space, then retry"
            ) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LogUnreachable(
                f"{name} was not written: another process held it for {_BUSY_WAIT_S} s. "
                "Find that process, or retry"
            ) from error
        raise LogUnreachable(f"{name} failed: {error}. Check the disk") from error

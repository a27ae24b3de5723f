"""Locks that at most one process holds and that the kernel releases when the holder dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Self

from flatline.engine.errors import AlreadyRunning, StateUnwritable


class FileLock:
    """An exclusive `flock` on a file, released by the kernel when the holder is killed.

    The lock belongs to the open file, so two holders in one process also exclude each other. The
    file stays after the release: if it were deleted, two processes could lock two files of the same
    name.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Return the lock, or None when another holder has it.

        Raises
        ------
        OSError
            The file cannot be created.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The pid names the holder in error messages (`holder_of`); no decision depends on it.
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(descriptor)

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder_of(path: Path) -> str:
    """Return `process N` for a message, or `another process` when the file does not name it."""
    try:
        pid = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return "another process"
    return f"process {pid}" if pid else "another process"


@contextmanager
def held_in(folder: Path, name: str, *, what: str) -> Iterator[None]:
    """Hold `name` in a state folder for the length of the block; create the folder if absent.

    Parameters
    ----------
    what
        The activity that two processes must not share, for the message: "runs all roles".

    Raises
    ------
    AlreadyRunning
        Another process holds the lock.
    StateUnwritable
        The folder cannot be made or written.
    """
    path = folder / f"{name}.lock"
    lock = _taken(path)
    if lock is None:
        raise AlreadyRunning(
            f"{holder_of(path)} already {what} on the state folder {folder}. Stop it, or set "
            "state.folder to another folder."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_on_this_machine(name: str, *, what: str, folder: Path) -> Iterator[None]:
    """Hold `name` on this machine for the length of the block, even against other state folders.

    Two locks are taken. The first is a name in the abstract socket namespace (unix(7)), which only
    one process can bind. It needs no folder, and the kernel releases it, but each network namespace
    has its own names. So a file in the state folder is locked as well. Against a process with
    another network namespace and another state folder, only the agent's lock in the log helps.

    Parameters
    ----------
    name
        Any text that identifies what is held.
    what
        The holder, for the message: "agent of qemu:///system".
    folder
        The state folder.

    Raises
    ------
    AlreadyRunning
        Another process holds one of the two locks.
    StateUnwritable
        The folder cannot be made or written.
    """
    digest = sha256(name.encode()).hexdigest()[:32]
    path = folder / f"only-{digest}.lock"
    twice = f"already is the {what}, and two would act twice. Stop one of them."
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        try:
            held.bind(f"\0flatline-{digest}")
        except OSError as error:
            raise AlreadyRunning(f"another process on this machine {twice}") from error
        lock = _taken(path)
        if lock is None:
            raise AlreadyRunning(f"{holder_of(path)} {twice}")
        try:
            yield
        finally:
            lock.release()


def _taken(path: Path) -> FileLock | None:
    """Lock the file `path`, and create its folder if absent; None if another process holds it."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return FileLock.take(path)
    except OSError as error:
        raise StateUnwritable(
            f"the state folder {path.parent} cannot be used: {error.strerror or error}. Create it "
            "for the user of this process, or set state.folder to another folder."
        ) from error

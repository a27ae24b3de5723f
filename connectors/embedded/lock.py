"""Locks that at most one process holds and that die with their holder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Self

from engine.errors import AlreadyRunning, StateUnwritable


class FileLock:
    """An exclusive `flock` on a file, given back by the kernel when the holder is killed.

    The lock belongs to the open file, so two holders in one process exclude each other too.
    The file stays when the lock goes: deleting it would let two processes lock two files of
    the same name.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Return the lock, or None when somebody else holds it.

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
        # For the person who asks who holds it; nothing reads it back as truth.
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(descriptor)

    def release(self) -> None:
        """Let the next one in; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder_of(path: Path) -> str:
    """Return `process N` for a message, or `another process` when the file does not tell."""
    try:
        pid = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return "another process"
    return f"process {pid}" if pid else "another process"


@contextmanager
def held_in(folder: Path, name: str, *, what: str) -> Iterator[None]:
    """Hold `name` in a state folder for the length of the block, making the folder.

    Parameters
    ----------
    what
        What two processes must not do there, for the message: "runs all roles".

    Raises
    ------
    AlreadyRunning
        Another process holds it.
    StateUnwritable
        The folder cannot be made or written.
    """
    path = folder / f"{name}.lock"
    lock = _taken(path)
    if lock is None:
        raise AlreadyRunning(
            f"{holder_of(path)} {what} on the state folder {folder} already. Stop it, or set"
            " state.folder to another one."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_on_this_machine(name: str, *, what: str, folder: Path) -> Iterator[None]:
    """Hold `name` on this machine for the length of the block, whatever folders are set.

    A name in the abstract socket namespace (unix(7)) is bound by one process at a time, needs
    no folder that two users could write, and is given back by the kernel; but each network
    namespace has names of its own. So a file in the state folder is locked besides, which
    processes of all namespaces share. Two that share neither are told apart by the log alone.

    Parameters
    ----------
    what
        What holds it, for the message: "agent of qemu:///system".
    folder
        The state folder.

    Raises
    ------
    AlreadyRunning
        Another process holds it.
    StateUnwritable
        The folder cannot be made or written.
    """
    digest = sha256(name.encode()).hexdigest()[:32]
    path = folder / f"only-{digest}.lock"
    twice = f"is the {what} already: two would act twice. Stop it, or leave it the work."
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        try:
            held.bind(f"\0flatline-{digest}")
        except OSError as error:
            raise AlreadyRunning(f"another process of this machine {twice}") from error
        lock = _taken(path)
        if lock is None:
            raise AlreadyRunning(f"{holder_of(path)} {twice}")
        try:
            yield
        finally:
            lock.release()


def _taken(path: Path) -> FileLock | None:
    """Return the lock of a state folder's file, made with the folder; None if it is held."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return FileLock.take(path)
    except OSError as error:
        raise StateUnwritable(
            f"the state folder {path.parent} cannot be used: {error.strerror or error}. Create it"
            " for the user of this process, or set state.folder to another one."
        ) from error

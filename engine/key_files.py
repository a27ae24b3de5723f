"""Key files: their permissions, the lines above their PEM block, and detection of changes.

A key file is PEM (RFC 7468). Lines above the PEM block are explanatory text in that standard, and
other programs skip them. Such a line may state the expiry: `Not-After: 2027-01-31T00:00:00Z`.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from flatline.engine.errors import FlatlineError, SettingsError, StateUnwritable

NOT_AFTER: Final = "Not-After"
# Permission bits of group and others. A user who can write these files decides which keys are
# trusted; one who can read a private key can sign.
_OTHERS_WRITE: Final = 0o022
_OTHERS_READ: Final = 0o077
# A key that is removed from a folder stays in force no longer than this; a check costs some 50 µs.
_CHECK_EVERY_NS: Final = 1_000_000_000

Content = TypeVar("Content")
_log = structlog.get_logger()


def require_unwritable_by_others(path: Path) -> None:
    """Refuse a folder or file with trusted keys if other users could have written it.

    Raises
    ------
    SettingsError
        Group or others may write it, or it belongs to neither this user nor root.
    OSError
        It does not exist or cannot be examined.
    """
    found = path.stat()
    kind = "folder" if stat.S_ISDIR(found.st_mode) else "file"
    if found.st_mode & _OTHERS_WRITE:
        raise SettingsError(
            f"The {kind} {path} decides which records are trusted, but other users may write it. "
            f"Check its content, then run: chmod go-w {path}"
        )
    if found.st_uid not in (0, os.geteuid()):
        raise SettingsError(
            f"The {kind} {path} decides which records are trusted, but it belongs to user "
            f"{found.st_uid}. Check its content, then chown it to root or to user {os.geteuid()}."
        )


def require_unreadable_by_others(path: Path) -> None:
    """Refuse a private key that others can read.

    Raises
    ------
    SettingsError
        Group or others can read it.
    OSError
        It does not exist or cannot be examined.
    """
    if path.stat().st_mode & _OTHERS_READ:
        raise SettingsError(f"{path} is readable by other users: chmod 600 {path}")


def labels_of(text: str) -> dict[str, str]:
    """Return the lines `Name: value` above the first PEM block."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("-----BEGIN "):
            break
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def until_ms_of(labels: dict[str, str], *, source: str) -> int | None:
    """Return the expiry of a key, in ms since the epoch, None if it has none.

    A date without a time zone is UTC. `source` names the file or key in the error message.

    Raises
    ------
    SettingsError
        The date cannot be parsed. It is not ignored, so that a typing error does not extend the
        life of a key.
    """
    text = labels.get(NOT_AFTER)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"{source}: {NOT_AFTER}: {text!r} is not a date. Use the form 2027-01-31T00:00:00Z."
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def date_of(time_ms: int) -> str:
    """Return a time in ms since the epoch in the format of key files."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_end(text: str, until_ms: int) -> str:
    """Return a key file's text with another `Not-After`."""
    lines = [line for line in text.splitlines() if not line.startswith(f"{NOT_AFTER}:")]
    return "\n".join([f"{NOT_AFTER}: {date_of(until_ms)}", *lines, ""])


def write_key_file(path: Path, text: str, *, mode: int) -> None:
    """Write a key file atomically and durably: a reader gets the old or the new one.

    Raises
    ------
    StateUnwritable
        It cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise StateUnwritable(
            f"The key file {path} cannot be written: {error.strerror}. Allow this user to write "
            f"{path.parent}, or use another place."
        ) from error


def write_new_key_file(path: Path, text: str) -> None:
    """Write a private key to a new file that only this user can read.

    Raises
    ------
    SettingsError
        The file already exists.
    StateUnwritable
        It cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except FileExistsError as error:
        raise SettingsError(
            f"{path} already exists and is not overwritten. Use the name of a new file."
        ) from error
    except OSError as error:
        raise StateUnwritable(
            f"The key file {path} cannot be written: {error.strerror}. Create {path.parent} for "
            "this user, or use another place."
        ) from error


# A function that is called with the error of each file that cannot be used. If it raises, reading
# ends; if it returns, the file is skipped.
Damaged = Callable[[Exception], None]


def refuse(error: Exception) -> None:
    """Raise the error: the `Damaged` for a start, where one damaged file prevents the start."""
    raise error


@contextmanager
def judged(damaged: Damaged) -> Iterator[None]:
    """Pass an error of the block to `damaged`, so that an unusable file is skipped.

    This applies to `FlatlineError`, `OSError` and `ValueError`; other exceptions are not caught.
    """
    try:
        yield
    except (FlatlineError, OSError, ValueError) as error:
        damaged(error)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """Return a value that changes whenever a file does, without reading it."""
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid


class KeyFolder(Generic[Content]):
    """The content of the files of a folder; each file is judged separately.

    A file that cannot be used is reported, and its earlier content is no longer valid. While others
    may write the folder, a file counts only if it has not changed since it was read.

    Parameters
    ----------
    pattern
        Glob pattern of the files.
    parse
        Returns the content of a file, or raises.
    """

    def __init__(self, folder: Path, pattern: str, parse: Callable[[Path], Content]) -> None:
        self._folder = folder
        self._pattern = pattern
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, ...], Content]] = {}

    def read(self, damaged: Damaged = refuse) -> tuple[dict[Path, Content], list[Content]]:
        """Return the content of the files by path, and the earlier content of damaged ones.

        A missing folder is empty.

        Raises
        ------
        SettingsError
            With the default `damaged`: others may write the folder. An error of `parse` is raised
            as well.
        """
        safe = False
        with judged(damaged):
            if self._folder.is_dir():
                require_unwritable_by_others(self._folder)
            safe = True
        earlier, self._known = self._known, {}
        good: dict[Path, Content] = {}
        lost: list[Content] = []
        for path in sorted(self._folder.glob(self._pattern)):
            with judged(damaged):
                stamp = _stamp(path.stat())
                if safe:
                    good[path] = self._parse(path)
                elif earlier.get(path, ((),))[0] == stamp:
                    good[path] = earlier[path][1]
                else:
                    raise SettingsError(
                        f"{path} appeared or changed while other users may write there."
                    )
                self._known[path] = stamp, good[path]
            if path not in good and path in earlier:
                self._known[path] = earlier[path]
                lost.append(earlier[path][1])
        return good, lost


def _seen(path: Path) -> tuple[object, ...]:
    """Return a value that changes whenever a folder or its files do, without reading them."""
    try:
        folder = path.stat()
        names = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
    except OSError as error:
        return (error.errno,)
    files: list[object] = []
    for name in names:
        try:
            files.append((name, _stamp((path / name).stat())))
        except OSError as error:
            files.append((name, error.errno))
    return folder.st_mode, folder.st_uid, tuple(files)


class WatchedFolder(Generic[Content]):
    """The content of a folder of keys, which is read again when it changes.

    An error at the first reading is raised. Later errors are only logged, so that a user who may
    write the folder cannot stop a running role. Such a user cannot add a key either.

    Parameters
    ----------
    folder, also
        The folders that are checked for changes.
    read
        Reads the folders and reports skipped files to a `Damaged`. If it raises later than at the
        start, the earlier content stays in force.
    mono_ns
        Monotonic clock in ns; the folder is checked once a second at most.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Damaged], Content],
        *,
        mono_ns: Callable[[], int],
        also: Path | None = None,
    ) -> None:
        self._folder = folder
        self._also = also
        self._read = read
        self._mono_ns = mono_ns
        self._looked_ns = mono_ns()
        # The check precedes the reading, so that a change during the reading is detected by the
        # next check.
        self._seen = self._check()
        self._content = read(refuse)

    def current(self) -> Content:
        """Return the content in force."""
        now_ns = self._mono_ns()
        if now_ns - self._looked_ns >= _CHECK_EVERY_NS:
            self._looked_ns = now_ns
            seen = self._check()
            if seen != self._seen:
                self._seen = seen
                self._read_again()
        return self._content

    def _check(self) -> tuple[object, ...]:
        return tuple(_seen(path) for path in (self._folder, self._also) if path is not None)

    def _read_again(self) -> None:
        try:
            self._content = self._read(self._named)
        except (FlatlineError, OSError, ValueError) as error:
            _log.error(
                f"The keys in {self._folder} changed and cannot be used. The keys that were read "
                f"before stay in force until this is corrected: {error}"
            )
        else:
            _log.info(f"The keys in {self._folder} changed and were loaded again.")

    def _named(self, error: Exception) -> None:
        _log.error(
            f"The keys in {self._folder} changed, and one file does not count until it is "
            f"corrected: {error}"
        )

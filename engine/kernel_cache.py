"""Compiled kernels on disk, so that a restart need not compile them again.

Roles keep them in their state folder, other commands in the user's cache. Compilation takes 20 s of
a core, during which a restarted engine would detect nothing.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Final

import structlog

from flatline.connectors.embedded.lock import FileLock

_log = structlog.get_logger()

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Folders that are kept, one for each version of the sources, so that two versions that share a
# cache do not delete each other's kernels. Each takes some megabytes.
_SOURCES_KEPT: Final = 4


def compile_kept(compile_kernels: Callable[[], None], folder: Path) -> None:
    """Compile kernels, or load those that an earlier start left in `folder`.

    If the folder cannot be created or written, or if other users could have written to it, it is
    not used: all kernels are compiled, and a warning states the reason.
    """
    try:
        with kept_kernels(folder):
            compile_kernels()
    except OSError as error:
        _log.warning(f"Compiled kernels cannot be cached in {folder}: {error}")
    compile_kernels()


@contextmanager
def kept_kernels(folder: Path) -> Iterator[None]:
    """Load kernels that are compiled in this block from `folder`, and store new ones there.

    Nothing is loaded or stored while another process does so.

    Raises
    ------
    OSError
        The folder cannot be read or written, or others than this user may write to it.
    """
    from flatline.models.kernels.kernel_files import kept_in

    lock = _taken(folder)
    if lock is None:
        yield
        return
    try:
        with kept_in(_of_today(folder)):
            yield
    finally:
        lock.release()


def users_folder() -> Path:
    """Return the kernel folder of commands without a state folder: in this user's XDG cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification requires that a relative path is ignored.
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            cache = Path("/nonexistent")  # for a user without a home; it cannot be created
    return cache / "flatline" / "kernels"


def _taken(folder: Path) -> FileLock | None:
    """Return the lock on the folder, None while another process compiles into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("users other than that of this process may write there")
    return FileLock.take(folder / "lock")


def _of_today(folder: Path) -> Path:
    """Return the kernel folder for these sources in this boot, and remove old folders.

    A power loss may leave incomplete files, so folders of earlier boots are removed. Of this boot,
    the `_SOURCES_KEPT` folders that were used last are kept.
    """
    from flatline.models.kernels.kernel_files import fingerprint

    boot = _BOOT_ID.read_text().strip()
    own = folder / f"{fingerprint()}-{boot}"
    own.mkdir(mode=0o700, exist_ok=True)
    os.utime(own)
    every = [found for found in folder.iterdir() if found.is_dir()]
    of_boot = [found for found in every if found.name.endswith(boot)]
    of_boot.sort(key=lambda found: found.stat().st_mtime_ns, reverse=True)
    for found in {*every} - {*of_boot[:_SOURCES_KEPT]}:
        rmtree(found, ignore_errors=True)
    return own

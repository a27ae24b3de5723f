"""Kernels stay compiled between two starts of a role, in its state folder.

To compile takes 20 s of a core, for which a restarted engine would see nothing.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Final

import structlog

from connectors.embedded.lock import FileLock

_log = structlog.get_logger()

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def compile_kept(compile_kernels: Callable[[], None], folder: Path) -> None:
    """Have kernels compiled, or loaded from what an earlier start left in `folder`.

    The folder only saves time: where it cannot be had, cannot be written or could have been
    written by others, everything is compiled, and a warning says why.
    """
    try:
        lock = _taken(folder)
        if lock is not None:
            try:
                _compile_in(_of_today(folder), compile_kernels)
            finally:
                lock.release()
    except OSError as error:
        _log.warning(f"Compiled kernels are not kept in {folder}: {error}")
    compile_kernels()


def _taken(folder: Path) -> FileLock | None:
    """Return the lock on the folder, None while another process compiles into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others than this process's user may write there")
    return FileLock.take(folder / "lock")


def _of_today(folder: Path) -> Path:
    """Return the folder of these sources and this boot, and remove those of others.

    A machine that lost its power may have kept half a file, so nothing outlives a boot.
    """
    from models.kernels.kept import fingerprint

    name = f"{fingerprint()}-{_BOOT_ID.read_text().strip()}"
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            rmtree(other, ignore_errors=True)
    return folder / name


def _compile_in(folder: Path, compile_kernels: Callable[[], None]) -> None:
    from models.kernels.kept import kept_in

    with kept_in(folder):
        compile_kernels()

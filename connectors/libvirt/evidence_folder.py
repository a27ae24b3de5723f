"""The folder of evidence: one folder per bundle, limited in bytes and days, readable by one user.

A console or a screen may show secrets of the VM's owner. So only the user of the agent may read the
evidence, and it is deleted after a week, the time in which an operator may need it.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.engine.errors import StateUnwritable

KEEP_S: Final = 7 * 86_400
# Enough for a screenshot, the end of a console and samples; the rest is truncated.
BUNDLE_MAX_BYTES: Final = 12 * 2**20
# A node takes at most 2 actions in 10 minutes, which is 2,016 in a week. Of these, the newest 85
# bundles are kept if all have the maximum size, and more if they are smaller.
FOLDER_MAX_BYTES: Final = 2**30
_ABOUT: Final = "about.json"


class EvidenceFolder:
    """The folder of bundles; created with the first bundle."""

    def __init__(self, folder: Path, *, max_bytes: int = FOLDER_MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    async def write(
        self,
        name: str,
        parts: Mapping[str, bytes],
        about: Mapping[str, object],
        *,
        within_s: float,
    ) -> tuple[Path, tuple[str, ...]]:
        """Write a bundle and return its folder and the names of its files.

        Parameters
        ----------
        name
            Part of the folder's name, after the time; unusual characters become hyphens.
        parts
            Contents by file name; what exceeds `BUNDLE_MAX_BYTES` in total is cut off.
        about
            Content of `about.json`, which is not among the returned names.

        Raises
        ------
        StateUnwritable
            The disk reported an error, or did not answer within `within_s`; the write is abandoned.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._folder / f"{stamp}-{re.sub(r'[^A-Za-z0-9-]', '-', name)}"
        call = Call(lambda: self._write(path, parts, about), name="evidence-write")
        if await first_returned([call], patience_s=within_s) is None:
            raise StateUnwritable(f"{path}: the disk did not answer within {within_s:.1f} s")
        try:
            return path, call.result()
        except OSError as error:
            raise StateUnwritable(f"{path}: {error.strerror or error}") from error

    async def tidy(self) -> None:
        """Delete expired bundles, and the oldest ones beyond the size limit."""
        call = Call(self._tidy, name="evidence-tidy")
        await call.returned

    def _write(
        self, path: Path, parts: Mapping[str, bytes], about: Mapping[str, object]
    ) -> tuple[str, ...]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tidy()
        # Each step of an incident is taken once, so an existing bundle of this name is from an
        # earlier attempt to save the same evidence.
        path.mkdir(mode=0o700, exist_ok=True)
        left_bytes, cut = BUNDLE_MAX_BYTES, []
        for name, content in parts.items():
            kept = content[:left_bytes]
            if len(kept) < len(content):
                cut.append(name)
            _write_privately(path / name, kept)
            left_bytes -= len(kept)
        text = json.dumps({**about, "cut": cut, "time_s": time.time()}, indent=1)
        _write_privately(path / _ABOUT, text.encode())
        return tuple(parts)

    def _tidy(self) -> None:
        if not self._folder.is_dir():
            return
        # Names begin with their time, so this puts the newest first.
        bundles = sorted((p for p in self._folder.iterdir() if p.is_dir()), reverse=True)
        oldest_s, total_bytes = time.time() - KEEP_S, 0
        for bundle in bundles:
            total_bytes += sum(file.stat().st_size for file in bundle.iterdir())
            if bundle.stat().st_mtime < oldest_s or total_bytes > self._max_bytes:
                shutil.rmtree(bundle, ignore_errors=True)


def _write_privately(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

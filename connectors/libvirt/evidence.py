"""Record the state of a VM before an action, as far as possible within seconds.

Each part is collected separately and kept as soon as it is read, the cheapest first. So the console
is saved even if qemu's monitor hangs. A missing part is listed with the reason.
"""

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID
from xml.etree import ElementTree

from flatline.connectors.libvirt.binding import (
    ERR_NO_DOMAIN,
    Connection,
    Domain,
    Library,
    error_code,
    load,
)
from flatline.connectors.libvirt.calls import first_returned
from flatline.connectors.libvirt.evidence_folder import EvidenceFolder
from flatline.connectors.libvirt.inventory import agreed, read_marks
from flatline.connectors.libvirt.link import Link
from flatline.connectors.libvirt.node import NodeReader
from flatline.connectors.libvirt.polling import NOWAIT, STATS
from flatline.engine.errors import EvidenceUnsaved, HypervisorUnreachable, StateUnwritable

# A dead VM waits for its reset while evidence is saved; more evidence is not worth more delay.
SAVE_DEADLINE_S: Final = 5.0
# Limit for collecting. The rest of the 5 s is for writing a few MiB to disk, which takes far less
# than a second.
_GATHER_S: Final = 4.0
# Several samples within one boot show which counters change.
_SAMPLES: Final = 3
_SAMPLE_GAP_S: Final = 1.0
_TIDY_EVERY_S: Final = 3600.0

# The last screens before a panic take a few KiB; a console that repeats messages needs more.
CONSOLE_TAIL_BYTES: Final = 256 * 1024
# An uncompressed picture of 1920 × 1080 takes 6 MiB.
SCREENSHOT_MAX_BYTES: Final = 8 * 2**20
_CHUNK_BYTES: Final = 2**18

_SUFFIXES: Final = {"image/png": "png", "image/x-portable-pixmap": "ppm"}


class LibvirtEvidence:
    """The `Evidence` of one node: files in `folder`, readable only by its own user.

    Raises
    ------
    SettingsError
        libvirt-python is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        library: Library | None = None,
        node: NodeReader | None = None,
    ) -> None:
        self._library = library if library is not None else load()
        self._folder = EvidenceFolder(folder)
        self._uri = uri
        boot_id = (node if node is not None else NodeReader()).boot_id()
        # Not read-only: libvirt allows a screenshot only with the right to change a VM.
        self._link = Link(self._library, uri, read_only=False, boot_id=boot_id)
        self._tidying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to delete expired evidence regularly; the first `save` connects to libvirtd."""
        self._tidying = asyncio.get_running_loop().create_task(self._tidy(), name="evidence: tidy")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect from libvirtd."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait({self._tidying})
        await self._link.close()

    async def _tidy(self) -> None:
        while True:
            await self._folder.tidy()
            await asyncio.sleep(_TIDY_EVERY_S)

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Save the available evidence of the VM within 5 s, and return its location as a phrase.

        Raises
        ------
        EvidenceUnsaved
            Nothing could be saved; the message has the reason.
        """
        began_s = time.monotonic()
        gathering = Gathering()
        why = await self._gather(vm, gathering)
        parts, missing = gathering.taken()
        if not parts:
            raise EvidenceUnsaved(f"no evidence of VM {UUID(bytes=vm)} is available: {why}")
        about = {"vm": str(UUID(bytes=vm)), "incident": incident, "step": step, "missing": missing}
        left_s = SAVE_DEADLINE_S - (time.monotonic() - began_s)
        try:
            path, kept = await self._folder.write(
                f"{UUID(bytes=vm)}-{incident[:16]}-{step}", parts, about, within_s=left_s
            )
        except StateUnwritable as error:
            raise EvidenceUnsaved(f"evidence cannot be written: {error}") from error
        lacking = f"; missing: {', '.join(missing)}" if missing else ""
        return f"{', '.join(kept)} in {path}{lacking}"

    async def _gather(self, vm: bytes, gathering: "Gathering") -> str:
        """Fill `gathering` and return the reason why it stopped, empty if it is complete."""
        try:
            session = await self._link.session()
        except HypervisorUnreachable as error:
            return str(error)

        def work(connection: Connection) -> None:
            gathering.gather(connection, connection.lookupByUUID(vm), self._library)

        call = session.start(work, name="libvirt-evidence")
        if await first_returned([call], patience_s=_GATHER_S) is None:
            return f"no answer from {self._uri} within {_GATHER_S:.0f} s"
        try:
            call.result()
        except self._library.libvirtError as error:
            if error_code(error) == ERR_NO_DOMAIN:
                return "libvirtd does not know this VM"
            return str(error)
        return ""


class Gathering:
    """Evidence while it is collected; any thread may call `taken` at any time."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}
        self._missing: dict[str, str] = {}

    def gather(self, connection: Connection, domain: Domain, library: Library) -> None:
        """Collect every available part; those that do not need qemu's monitor come first.

        Errors of a part are kept as the reason why it is missing.

        Raises
        ------
        libvirtError
            The VM's definition cannot be read, so nothing was collected.
        """
        xml = domain.XMLDesc()
        self._parts["domain.xml"] = xml.encode()
        steps: tuple[tuple[str, Callable[[], tuple[str, bytes]]], ...] = (
            ("console", lambda: ("console.txt", console_tail(xml))),
            ("screen", lambda: _screenshot(connection, domain, xml)),
            ("samples", lambda: ("samples.json", _samples(connection, domain))),
        )
        self._missing.update((what, "it was not available in time") for what, _step in steps)
        for what, step in steps:
            try:
                name, content = step()
            except (OSError, ValueError, library.libvirtError) as error:
                self._missing[what] = str(error)
                continue
            self._parts[name] = content
            del self._missing[what]

    def taken(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return the collected parts by file name, and the reasons of the missing ones by name."""
        return dict(self._parts), dict(self._missing)


def console_tail(xml: str, *, most_bytes: int = CONSOLE_TAIL_BYTES) -> bytes:
    """Return the end of the output on the VM's first serial port.

    `xml` is the VM's live definition.

    Raises
    ------
    ValueError
        The console cannot be read without taking it away from another reader.
    OSError
        The file cannot be read.
    """
    path = _console_file(xml)
    if path is None:
        raise ValueError("the serial port of the VM has no log file (<serial> has no <log>)")
    # The path may hold a pipe or a device, which must not block, or a link, which is not followed.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a regular file")
        file.seek(max(0, found.st_size - most_bytes))
        return file.read(most_bytes)


def _console_file(xml: str) -> Path | None:
    for kind in ("serial", "console"):
        for port in ElementTree.fromstring(xml).findall(f"devices/{kind}"):
            log, source = port.find("log"), port.find("source")
            if log is not None and log.get("file"):
                return Path(log.get("file", ""))
            if port.get("type") == "file" and source is not None and source.get("path"):
                return Path(source.get("path", ""))
    return None


def _samples(connection: Connection, domain: Domain) -> bytes:
    """Return several consecutive samples of libvirt's counters of the VM."""
    taken = []
    for number in range(_SAMPLES):
        if number:
            time.sleep(_SAMPLE_GAP_S)
        records = connection.domainListGetStats([domain], STATS, NOWAIT)
        taken.append({"time_s": time.time(), "statistics": dict(records[0][1]) if records else {}})
    return json.dumps(taken, indent=1, sort_keys=True).encode()


def _screenshot(connection: Connection, domain: Domain, xml: str) -> tuple[str, bytes]:
    if not agreed(read_marks(ElementTree.fromstring(xml)), "screenshots"):
        raise ValueError("the owner of the VM has not allowed screenshots")
    stream = connection.newStream(0)
    kind = domain.screenshot(stream, 0, 0)
    content = bytearray()
    while len(content) <= SCREENSHOT_MAX_BYTES:
        chunk = stream.recv(_CHUNK_BYTES)
        if not isinstance(chunk, bytes) or not chunk:
            stream.finish()
            return f"screen.{_SUFFIXES.get(kind, 'bin')}", bytes(content)
        content += chunk
    stream.abort()
    raise ValueError(f"the screenshot has more than {SCREENSHOT_MAX_BYTES} bytes")

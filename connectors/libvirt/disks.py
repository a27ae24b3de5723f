"""Move one disk of a running VM to another pool: a copy that mirrors writes, then a pivot.

The VM never stops. Until the pivot it runs on its old disk, and a copy that fails or takes too long
is cancelled without any effect on the VM; afterwards it runs on the copy. The old image is kept: no
action deletes it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from xml.etree import ElementTree

from flatline.connectors.libvirt.binding import (
    ABORT_PIVOT,
    COPY_TRANSIENT,
    Connection,
    Domain,
    Library,
)
from flatline.connectors.libvirt.inventory import read_pool
from flatline.engine.errors import ActionRefused, HypervisorUnreachable

# Pools whose volumes are files of a folder; other kinds name and create volumes differently.
_FOLDER_KINDS: Final = frozenset({"dir", "fs", "netfs"})
_POLL_S: Final = 0.25
# Share of the target file system that must stay free: a full one stops every VM that uses it.
_SPARE_RATIO: Final = 0.05


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk in the definition of its VM; `copying` is the target of a running copy."""

    device: str
    path: str
    format: str
    copying: str | None
    ready: bool


def disk_of(xml: str, device: str) -> Disk:
    """Return a disk of a running VM by its target device.

    `xml` is the VM's live definition; a target device is a name such as `vda`.

    Raises
    ------
    ActionRefused
        The VM has no such disk, or a disk of this kind cannot be moved.
    """
    for disk in ElementTree.fromstring(xml).findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or target.get("dev") != device:
            continue
        path = source.get("file") if source is not None else None
        if disk.get("device", "disk") != "disk" or disk.find("readonly") is not None:
            raise ActionRefused(f"the VM does not write to disk {device}")
        if disk.find("shareable") is not None:
            raise ActionRefused(f"disk {device} is shared with other VMs, which would not be moved")
        if path is None:
            raise ActionRefused(
                f"disk {device} is not a file (type {disk.get('type')}) and cannot be moved"
            )
        driver, mirror = disk.find("driver"), disk.find("mirror")
        return Disk(
            device=device,
            path=path,
            format=driver.get("type", "raw") if driver is not None else "raw",
            copying=_file_of(mirror) if mirror is not None else None,
            ready=mirror is not None and mirror.get("ready") == "yes",
        )
    raise ActionRefused(f"the VM has no disk {device}")


def _file_of(mirror: ElementTree.Element) -> str:
    source = mirror.find("source")
    inner = source.get("file") if source is not None else None
    return mirror.get("file") or inner or ""


class DiskMove:
    """One move, in a separate thread; every step but the pivot can be reverted.

    Parameters
    ----------
    device
        The disk's target device.
    pool
        Target pool of the disk.
    within_s
        Time after which an incomplete copy is cancelled.
    """

    def __init__(self, library: Library, *, device: str, pool: str, within_s: float) -> None:
        self._library = library
        self._device = device
        self._pool = pool
        self._within_s = within_s

    def __call__(self, connection: Connection, domain: Domain, send: Callable[[], bool]) -> None:
        """Copy and pivot; `send` returns whether the copy may begin.

        Raises
        ------
        ActionRefused
            The VM runs on its old disk, and no copy is running.
        HypervisorUnreachable
            It is unknown which of the two disks the VM runs on.
        """
        deadline = time.monotonic() + self._within_s
        disk = self._checked(domain)
        folder = _folder(connection, self._pool, self._library)
        goal = str(PurePosixPath(folder) / PurePosixPath(disk.path).name)
        if goal == disk.path:
            raise ActionRefused(f"disk {disk.device} already is in pool {self._pool}")
        self._check_room(domain, disk, folder, goal)
        if not send():
            return
        domain.blockCopy(disk.device, _destination(goal, disk.format), {}, COPY_TRANSIENT)
        try:
            self._follow(domain, disk, goal, deadline=deadline)
        except self._library.libvirtError as error:
            # The error came after the copy was started, so the outcome is unknown.
            raise HypervisorUnreachable(
                f"the copy of disk {disk.device} to {goal} was started, but its result is unknown: "
                f"{error}"
            ) from error

    def _checked(self, domain: Domain) -> Disk:
        disk = disk_of(domain.XMLDesc(), self._device)
        if disk.copying is not None:
            raise ActionRefused(f"disk {disk.device} is already being copied to {disk.copying}")
        return disk

    def _check_room(self, domain: Domain, disk: Disk, folder: str, goal: str) -> None:
        try:
            found = os.statvfs(folder)
        except OSError as error:
            raise ActionRefused(f"pool {self._pool} cannot be read: {error}") from error
        if os.path.lexists(goal):
            raise ActionRefused(f"{goal} already exists: find out what it is first")
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        need = domain.blockInfo(disk.device)[0]
        if free - need < total * _SPARE_RATIO:
            raise ActionRefused(
                f"pool {self._pool} has {free / 2**30:.1f} GiB free. The disk may grow to "
                f"{need / 2**30:.1f} GiB, and {_SPARE_RATIO:.0%} must stay free"
            )

    def _follow(self, domain: Domain, disk: Disk, goal: str, *, deadline: float) -> None:
        while True:
            now = disk_of(domain.XMLDesc(), disk.device)
            if now.copying is None:
                raise ActionRefused(
                    f"the copy of disk {disk.device} failed. The VM still uses its old disk. The "
                    f"incomplete copy is {goal}"
                )
            # Check the deadline first. After a long silence of libvirtd the caller has reported the
            # result as unknown, and then no pivot may follow.
            if time.monotonic() > deadline:
                self._give_up(domain, disk, goal)
            if now.ready:
                break
            time.sleep(_POLL_S)
        domain.blockJobAbort(disk.device, ABORT_PIVOT)
        if disk_of(domain.XMLDesc(), disk.device).path != goal:
            raise HypervisorUnreachable(f"disk {disk.device} is not reported at {goal}")

    def _give_up(self, domain: Domain, disk: Disk, goal: str) -> None:
        info = domain.blockJobInfo(disk.device)
        done = f"{info.get('cur', 0) / 2**20:.0f} of {info.get('end', 0) / 2**20:.0f} MiB"
        domain.blockJobAbort(disk.device, 0)
        raise ActionRefused(
            f"the copy of disk {disk.device} was not complete after {self._within_s:.0f} s "
            f"({done}) and was aborted. The VM still uses its old disk. The incomplete copy is "
            f"{goal}"
        )


def end_left_copy(
    connection: Connection,
    domain: Domain,
    *,
    device: str,
    pool: str,
    library: Library,
) -> None:
    """Cancel a disk copy that an earlier run of the agent began; return if the VM already uses it.

    Parameters
    ----------
    device
        The disk's target device.
    pool
        Target pool of the copy.

    Raises
    ------
    ActionRefused
        The VM runs on its old disk, and no copy to `pool` is running, or the VM has no such disk.
    HypervisorUnreachable
        The pool is unknown here, so a copy may still be running.
    """
    try:
        folder = PurePosixPath(_folder(connection, pool, library))
    except ActionRefused as error:
        raise HypervisorUnreachable(
            f"it is unknown whether the copy of disk {device} is still running: {error}"
        ) from error
    disk = disk_of(domain.XMLDesc(), device)
    if disk.copying is not None and folder in PurePosixPath(disk.copying).parents:
        domain.blockJobAbort(device, 0)
        raise ActionRefused(
            f"the copy of disk {device} that the agent had started was aborted. The VM still uses "
            "its old disk"
        )
    if folder not in PurePosixPath(disk.path).parents:
        raise ActionRefused(f"disk {device} was not moved. The VM still uses its old disk")


def _folder(connection: Connection, name: str, library: Library) -> str:
    """Return the folder of a pool's volume files."""
    try:
        pool = read_pool(connection.storagePoolLookupByName(name).XMLDesc())
    except library.libvirtError as error:
        raise ActionRefused(f"pool {name} is unknown here: {error}") from error
    if pool.kind not in _FOLDER_KINDS or pool.folder is None:
        raise ActionRefused(f"pool {name} is of kind {pool.kind}, and its volumes are not files")
    return pool.folder


def _destination(path: str, form: str) -> str:
    disk = ElementTree.Element("disk", type="file")
    ElementTree.SubElement(disk, "source", file=path)
    ElementTree.SubElement(disk, "driver", name="qemu", type=form)
    return ElementTree.tostring(disk, encoding="unicode")

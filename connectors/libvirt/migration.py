"""Watch a live migration: abort it if it stalls or takes too long; find it after a restart.

libvirtd runs the migration, which continues when the requesting process dies. So the process that
follows reads the result from both nodes.
"""

import asyncio
import time
from typing import Final, Literal

from flatline.connectors.libvirt.binding import (
    ERR_NO_DOMAIN,
    JOB_IDLE,
    JOB_MIGRATION_OUT,
    STATE_RUNNING,
    STATE_SHUT_OFF,
    Connection,
    Library,
    Stats,
    error_code,
)
from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.connectors.libvirt.link import OPEN_DEADLINE_S, Link, Session
from flatline.connectors.libvirt.progress import Progress
from flatline.engine.errors import ActionRefused, HypervisorUnreachable

# Interval of the checks; libvirt's statistics change with each pass.
EVERY_S: Final = 1.0
_ASK_S: Final = 3.0
# An abort takes effect within a second. If the target hangs, it takes effect when the keepalive to
# the target fails.
_ABORT_S: Final = 35.0


class MigrationProgress:
    """Waits for one migration of one VM, and decides when to abort it.

    Attributes
    ----------
    gave_up
        Why the migration was aborted, None if it was not.
    """

    def __init__(self, library: Library, vm: bytes, *, within_s: float) -> None:
        self._library = library
        self._vm = vm
        self._within_s = within_s
        self._began_s = time.monotonic()
        self._progress = Progress()
        self._aborted_s: float | None = None
        self.gave_up: str | None = None

    async def until_returned(self, session: Session, call: Call[None]) -> bool:
        """Return whether the migrating call returned; False if libvirtd does not answer."""
        while await first_returned([call], patience_s=EVERY_S) is None:
            stats = await self.ask(session)
            if not await self.goes_on(session, stats):
                return False
        return True

    async def goes_on(self, session: Session, stats: Stats | None) -> bool:
        """Abort the migration if that is due; return whether its result can still be awaited."""
        if self._aborted_s is not None:
            return time.monotonic() - self._aborted_s < _ABORT_S
        self._progress = self._progress.seen(stats or {})
        if self._progress.stalled:
            self.gave_up = self._progress.sentence
        elif time.monotonic() - self._began_s > self._within_s:
            self.gave_up = f"the migration was not complete after {self._within_s:.0f} s"
        if self.gave_up is not None:
            self._aborted_s = time.monotonic()
            abort = session.start(self._abort, name="libvirt-abort")
            await first_returned([abort], patience_s=_ASK_S)
        return True

    async def ask(self, session: Session) -> Stats | None:
        """Return libvirt's statistics of the job, None where it returns none."""
        call = session.start(
            lambda connection: connection.lookupByUUID(self._vm).jobStats(0), name="libvirt-job"
        )
        if await first_returned([call], patience_s=_ASK_S) is None:
            return None
        try:
            return call.result()
        except self._library.libvirtError:
            return None  # the job is over or the VM is gone: the migrating call has the result

    def _abort(self, connection: Connection) -> None:
        connection.lookupByUUID(self._vm).abortJob()


Place = Literal["migrates", "here", "gone", "unseen"]


async def found_again(
    link: Link, library: Library, vm: bytes, *, target_uri: str, within_s: float
) -> None:
    """Wait for a migration that an earlier run of this process requested.

    Returns when the VM runs on the target.

    Raises
    ------
    ActionRefused
        The VM runs here, and no migration is running.
    HypervisorUnreachable
        It cannot be determined where the VM runs.
    """
    watch = MigrationProgress(library, vm, within_s=within_s)
    deadline_s = time.monotonic() + within_s + _ABORT_S
    while (place := await _place(link, library, vm, watch)) in ("migrates", "unseen"):
        if time.monotonic() > deadline_s:
            raise HypervisorUnreachable(f"the result of the migration of VM {vm.hex()} is unknown")
        await asyncio.sleep(EVERY_S)
    if place == "here":
        why = f": {watch.gave_up}" if watch.gave_up else ""
        raise ActionRefused(f"the migration ended and the VM still runs here{why}")
    check = Call(lambda: _runs_at(library, target_uri, vm), name="libvirt-target")
    if await first_returned([check], patience_s=OPEN_DEADLINE_S) is None:
        raise HypervisorUnreachable(
            f"the VM has left, and {target_uri} does not report its arrival"
        )
    try:
        runs = check.result()
    except library.libvirtError as error:
        raise HypervisorUnreachable(
            f"the VM has left, and {target_uri} does not answer: {error}"
        ) from error
    if not runs:
        raise HypervisorUnreachable(f"the VM has left, and does not run at {target_uri}")


async def _place(link: Link, library: Library, vm: bytes, watch: MigrationProgress) -> Place:
    """Return where this node sees the VM; let `watch` abort a running migration if that is due."""
    try:
        session = await link.session()
    except HypervisorUnreachable:
        return "unseen"
    call = session.start(lambda connection: _state(connection, vm), name="libvirt-place")
    if await first_returned([call], patience_s=_ASK_S) is None:
        return "unseen"
    try:
        state, stats = call.result()
    except library.libvirtError as error:
        return "gone" if error_code(error) == ERR_NO_DOMAIN else "unseen"
    if stats.get("operation") == JOB_MIGRATION_OUT and stats.get("type") not in JOB_IDLE:
        await watch.goes_on(session, stats)
        return "migrates"
    # At the end of a migration the VM is paused here until the target reports that it runs.
    return "here" if state == STATE_RUNNING else "gone" if state == STATE_SHUT_OFF else "unseen"


def _state(connection: Connection, vm: bytes) -> tuple[int, Stats]:
    domain = connection.lookupByUUID(vm)
    return domain.state()[0], domain.jobStats(0)


def _runs_at(library: Library, uri: str, vm: bytes) -> bool:
    connection = library.openReadOnly(uri)
    try:
        return connection.lookupByUUID(vm).state()[0] == STATE_RUNNING
    finally:
        connection.close()

"""The agent's actuator, over a separate connection that may change VMs.

No action ends, removes, redefines or starts a VM, and none may be added here: a test searches this
package's syntax tree for the names of such calls.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

from flatline.connectors.libvirt import resets
from flatline.connectors.libvirt.binding import (
    ERR_NO_DOMAIN,
    JOB_IDLE,
    STATE_RUNNING,
    Connection,
    Domain,
    Library,
    error_code,
    load,
)
from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.connectors.libvirt.disks import DiskMove, end_left_copy
from flatline.connectors.libvirt.events import register
from flatline.connectors.libvirt.heard import Heard
from flatline.connectors.libvirt.link import Link, Session
from flatline.connectors.libvirt.migration import MigrationProgress, found_again
from flatline.connectors.libvirt.node import NodeReader
from flatline.connectors.libvirt.request import Request
from flatline.connectors.libvirt.sight import instance, see
from flatline.engine.errors import ActionRefused, ActionUnsent, HypervisorUnreachable, VmNotFound
from flatline.engine.preflight_data import LAST_SAMPLE_S, Permit, PreflightSample
from flatline.engine.wire.frame import UUID_BYTES

T = TypeVar("T")

DEFAULT_URI: Final = "qemu:///system"
# A sample takes 10 ms. The agent takes two samples, at least 4 s apart, within the 10 s before its
# call, so a slower sample would not show the current state.
SAMPLE_DEADLINE_S: Final = 3.0
# If another job of the VM lasts, libvirt stops waiting for it after 30 s and returns an error: the
# action was not done. With a shorter deadline the outcome would be unknown.
ACTION_DEADLINE_S: Final = 35.0
# Time added to the limit of a disk move: to abort the copy, and to determine its result.
_LAST_STEPS_S: Final = 70.0

# virDomainMigrateFlags: live, peer to peer (the source's libvirtd continues if the agent dies),
# aborted on a disk error. A VM that is defined on the source is afterwards defined on the target
# alone: two definitions could both be started.
_MIGRATE_FLAGS: Final = 1 | 2 | 4096
_MIGRATE_DEFINITION: Final = 8 | 16
_MIGRATE_UNSAFE: Final = 512
_MIGRATE_PARAM_URI: Final = "migrate_uri"
_MIGRATE_PARAM_BANDWIDTH: Final = "bandwidth"

# Errors that libvirt raises before it has changed the VM: not supported, invalid argument, denied,
# authentication, invalid in this state, job lock not acquired in time, invalid or unsupported
# configuration, unsafe migration, unsupported operation, busy, access denied. Any other error may
# occur midway, so its outcome is unknown.
_NOTHING_DONE: Final = frozenset({3, 8, 29, 45, 55, 67, 68, 74, 79, 81, 84, 87, 88, 94})

# An action on a domain. Immediately before it changes the VM, it calls its last argument, which
# returns whether it may.
Work = Callable[[Connection, Domain, Callable[[], bool]], None]
Wait = Callable[[Session, Call[None]], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class MigrationTarget:
    """Addresses of another node for a migration.

    Parameters
    ----------
    uri
        The target's libvirtd as this node's libvirtd connects to it, for instance
        ``qemu+tls://node7/system``.
    data_uri
        Destination of the memory, for instance ``tcp://10.0.7.1``; None lets libvirt choose.
    unsafe
        Whether to migrate although libvirt cannot verify that both nodes share the disks.
    bandwidth_mib_s
        Limit of the network bandwidth; None is unlimited.
    """

    uri: str
    data_uri: str | None = None
    unsafe: bool = False
    bandwidth_mib_s: int | None = None


class LibvirtActuator:
    """The `Actuator` of one node.

    Parameters
    ----------
    targets
        The nodes to which a VM may be moved, by name.
    heard
        Where this connection stores its events, for other readers; None creates a private store.
    """

    def __init__(
        self,
        *,
        uri: str = DEFAULT_URI,
        targets: Mapping[str, MigrationTarget] | None = None,
        library: Library | None = None,
        node: NodeReader | None = None,
        heard: Heard | None = None,
    ) -> None:
        self._library = library if library is not None else load()
        self._targets = dict(targets or {})
        self._uri = uri
        boot_id = (node if node is not None else NodeReader()).boot_id()
        self._heard = heard if heard is not None else Heard()
        self._link = Link(
            self._library, uri, read_only=False, boot_id=boot_id, register=self._listen
        )
        self._migrating: set[bytes] = set()

    async def __aenter__(self) -> Self:
        """Return immediately: the first caller connects."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect from libvirtd; a migration continues without this process."""
        await self._link.close()

    async def reach(self) -> None:
        """See `engine.ports.Actuator`."""
        await self._link.session()

    def _listen(self, connection: Connection) -> list[int]:
        self._heard.begin()
        return register(connection, self._heard)

    async def sample(self, vm: bytes) -> PreflightSample:
        """Return the current state of the VM.

        Raises
        ------
        VmNotFound
            libvirtd knows no such VM.
        HypervisorUnreachable
            No answer within 3 s.
        """
        return await self._ask(vm, self._sample, what="look", patience_s=SAMPLE_DEADLINE_S)

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Reset the VM; if its own crash had paused it, resume it after the reset."""
        await self._do(
            vm,
            lambda domain: resets.reset(domain, library=self._library),
            what="reset",
            deadline_s=ACTION_DEADLINE_S,
            permit=permit,
        )

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        """Resume a VM that a reset by an earlier run of this agent has left paused."""
        await self._do(
            vm,
            lambda domain: resets.finish(domain, library=self._library),
            what="resume after the reset",
            deadline_s=ACTION_DEADLINE_S,
            permit=permit,
        )

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Request a reboot from the guest: by its agent if it has one, else by the power button."""
        await self._do(
            vm,
            lambda domain: domain.reboot(0),
            what="reboot",
            deadline_s=ACTION_DEADLINE_S,
            permit=permit,
        )

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        """Migrate the VM live to `target`, peer to peer; return when it runs there.

        A migration that stalls, or is not complete after `within_s`, is aborted: the VM stays here.
        """
        goal = self._target(target)
        watch = MigrationProgress(self._library, vm, within_s=within_s)
        self._migrating.add(vm)
        try:
            await self._do(
                vm,
                lambda domain: self._migrate(domain, goal),
                what=f"migrate to {target}",
                deadline_s=within_s,
                wait=watch.until_returned,
                permit=permit,
            )
        except ActionRefused as error:
            if watch.gave_up is None:
                raise
            raise ActionRefused(
                f"{watch.gave_up}. It was aborted, and the VM still runs here"
            ) from error
        finally:
            self._migrating.discard(vm)

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Wait for a migration that an earlier run of this agent requested."""
        if target not in self._targets:
            raise HypervisorUnreachable(f"node {target} is not a migration target any more")
        uri = self._targets[target].uri
        self._migrating.add(vm)
        try:
            await found_again(self._link, self._library, vm, target_uri=uri, within_s=within_s)
        finally:
            self._migrating.discard(vm)

    async def move_disk(
        self,
        vm: bytes,
        *,
        disk: str,
        target: str,
        within_s: float,
        permit: Permit | None = None,
    ) -> None:
        """Copy a disk to pool `target` while the VM writes, and switch the VM to the copy."""
        move = DiskMove(self._library, device=disk, pool=target, within_s=within_s)
        await self._do_all(
            vm,
            move,
            what=f"move of disk {disk} to {target}",
            deadline_s=within_s + _LAST_STEPS_S,
            permit=permit,
        )

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        """Cancel a copy that an earlier run of this agent began; return if the VM runs on it."""

        def end(connection: Connection, domain: Domain, _host_mark: int) -> None:
            end_left_copy(connection, domain, device=disk, pool=target, library=self._library)

        try:
            await self._ask(
                vm, end, what=f"end of the copy of {disk}", patience_s=ACTION_DEADLINE_S
            )
        except VmNotFound as error:
            raise HypervisorUnreachable(f"the VM and its job have disappeared: {error}") from error

    async def abort_job(self, vm: bytes) -> None:
        """Abort the migration that `migrate` is waiting for."""
        if vm not in self._migrating:
            # The agent must not end a backup or migration of another client.
            raise ActionRefused(f"VM {vm.hex()} has no job that this agent started")
        await self._do(
            vm, lambda domain: domain.abortJob(), what="abort job", deadline_s=ACTION_DEADLINE_S
        )

    def _target(self, name: str) -> MigrationTarget:
        if name not in self._targets:
            known = ", ".join(sorted(self._targets)) or "none"
            raise ActionRefused(
                f"node {name!r} is not a migration target of {self._uri} (known: {known})"
            )
        return self._targets[name]

    async def _ask(
        self,
        vm: bytes,
        one_query: Callable[[Connection, Domain, int], T],
        *,
        what: str,
        patience_s: float,
    ) -> T:
        """Run a query about a VM and return its result; a running action does not delay it."""
        session = await self._link.session()
        what = f"{what} at VM {vm.hex()}"
        call = session.start(
            lambda connection: one_query(
                connection, connection.lookupByUUID(_checked(vm)), session.host_mark
            ),
            name="libvirt-look",
        )
        if await first_returned([call], patience_s=patience_s) is None:
            raise HypervisorUnreachable(
                f"{what}: no answer from {self._uri} within {patience_s:.0f} s"
            )
        try:
            return call.result()
        except self._library.libvirtError as error:
            if error_code(error) == ERR_NO_DOMAIN:
                raise VmNotFound(f"{what}: libvirtd does not know this VM") from error
            raise HypervisorUnreachable(f"{what}: {error}") from error

    async def _do(
        self,
        vm: bytes,
        action: Callable[[Domain], object],
        *,
        what: str,
        deadline_s: float,
        wait: Wait | None = None,
        permit: Permit | None = None,
    ) -> None:
        """Execute an action that is one call to libvirt."""

        def work(_connection: Connection, domain: Domain, send: Callable[[], bool]) -> None:
            if send():
                action(domain)

        await self._do_all(vm, work, what=what, deadline_s=deadline_s, wait=wait, permit=permit)

    async def _do_all(
        self,
        vm: bytes,
        action: Work,
        *,
        what: str,
        deadline_s: float,
        wait: Wait | None = None,
        permit: Permit | None = None,
    ) -> None:
        """Execute an action; it calls `send` immediately before it changes the VM."""
        what = f"{what} of VM {vm.hex()}"
        request = Request(within_s=None if permit is None else permit.within_s)
        try:
            session = await self._link.session()
        except HypervisorUnreachable as error:
            # No request was sent, so nothing was done.
            raise ActionUnsent(f"{what} was not requested: {error}") from error

        def work(connection: Connection) -> None:
            domain = connection.lookupByUUID(_checked(vm))
            if (
                permit is not None
                and instance(domain, host_mark=session.host_mark) != permit.instance
            ):
                raise ActionRefused(f"{what} was not sent: the VM was restarted after the verdict")

            def send() -> bool:
                why = permit and self._forbids(
                    permit, connection, domain, session.host_mark, request
                )
                if why:
                    raise ActionRefused(f"{what} was not sent: {why}")
                return request.send()

            action(connection, domain, send)
            if request.late:
                raise ActionUnsent(
                    f"{what} was not sent: when {self._uri} answered, the preflight check was too "
                    "old or the order had expired"
                )

        call = session.start(work, name="libvirt-action")
        try:
            if wait is not None:
                returned = await wait(session, call)
            else:
                returned = await first_returned([call], patience_s=deadline_s) is not None
        finally:
            # If the caller was cancelled, withdraw an unsent action: its result would be lost.
            unsent = request.withdraw()
        if not returned:
            if unsent:
                raise ActionUnsent(f"{what} was not requested: {self._uri} does not answer")
            raise HypervisorUnreachable(
                f"{what}: no answer from {self._uri} within {deadline_s:.0f} s; it may still happen"
            )
        self._end_of(call, what=what, unsent=unsent)

    def _end_of(self, call: Call[None], *, what: str, unsent: bool) -> None:
        """Raise the error for a call that returned; return if the action was done."""
        try:
            call.result()
        except self._library.libvirtError as error:
            code = error_code(error)
            # A VM that is missing after the action was sent may be missing because of it.
            if unsent and code == ERR_NO_DOMAIN:
                raise VmNotFound(f"{what}: libvirtd does not know this VM") from error
            if unsent or code in _NOTHING_DONE:
                raise ActionRefused(f"{what} was refused: {error}") from error
            raise HypervisorUnreachable(f"{what}: outcome unknown: {error}") from error

    def _forbids(
        self,
        permit: Permit,
        connection: Connection,
        domain: Domain,
        host_mark: int,
        request: Request,
    ) -> str | None:
        """Return why the current state of the VM forbids the call, None if it does not.

        The check runs in the calling thread, directly before the call. On a busy node its sample
        can be too old when it ends; then the check is repeated until the request is late.
        """
        while not request.over:
            sample = self._sample(connection, domain, host_mark)
            why = permit.last_check(sample)
            if why is not None or time.monotonic_ns() - sample.mono_ns <= LAST_SAMPLE_S * 1e9:
                return why
        return None

    def _sample(self, connection: Connection, domain: Domain, host_mark: int) -> PreflightSample:
        return see(connection, domain, host_mark=host_mark, heard=self._heard, uri=self._uri)

    def _migrate(self, domain: Domain, target: MigrationTarget) -> None:
        flags = _MIGRATE_FLAGS
        if domain.isPersistent():
            flags |= _MIGRATE_DEFINITION
        if target.unsafe:
            flags |= _MIGRATE_UNSAFE
        parameters: dict[str, str | int] = {}
        if target.data_uri is not None:
            parameters[_MIGRATE_PARAM_URI] = target.data_uri
        if target.bandwidth_mib_s is not None:
            parameters[_MIGRATE_PARAM_BANDWIDTH] = target.bandwidth_mib_s
        try:
            domain.migrateToURI3(target.uri, parameters, flags)
        except self._library.libvirtError as error:
            # The error may come from either node and any phase, so the VM's state decides: if it
            # runs here without a job, it was not migrated.
            if self._stayed(domain):
                raise ActionRefused(
                    f"the migration failed, and the VM still runs here: {error}"
                ) from error
            raise HypervisorUnreachable(
                f"the migration failed, and the VM is not reported to run here: {error}"
            ) from error

    def _stayed(self, domain: Domain) -> bool:
        """Return whether the VM runs here without a job."""
        try:
            return domain.state()[0] == STATE_RUNNING and domain.jobInfo()[0] in JOB_IDLE
        except self._library.libvirtError:
            return False


def _checked(vm: bytes) -> bytes:
    if len(vm) != UUID_BYTES:
        raise VmNotFound(f"{vm!r} is not the UUID of a VM of {UUID_BYTES} bytes")
    return vm

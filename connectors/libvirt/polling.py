"""Poll all VMs in one bulk call; if one VM blocks it, poll the other VMs in a second call.

Behaviour of libvirt 9.0 when a qemu does not answer its monitor (measured, SIGSTOP): the first bulk
call takes that VM's job and waits while qemu is silent, with or without NOWAIT. A second call with
NOWAIT skips the VM, because its job is taken, and returns immediately, with libvirt's own values of
that VM. So a late call is left waiting and a second call is started in parallel. Each hung VM
blocks one thread, and not more.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from flatline.connectors.libvirt.binding import JOB_IDLE, Connection, Domain, Library, Stats
from flatline.connectors.libvirt.calls import Call, first_returned
from flatline.connectors.libvirt.decoding import Reading, instance_of, monitor_answered
from flatline.connectors.libvirt.link import Session
from flatline.engine.errors import HypervisorError, HypervisorStuck, HypervisorUnreachable

# virDomainStatsTypes: state, cpu, balloon, vcpu, interface, block, dirty rate. The others cost a
# query to every qemu and return nothing that a row holds.
STATS: Final = 1 | 2 | 4 | 8 | 16 | 32 | 512
# Only VMs that run here: a definition left behind by a migration would contradict the row that the
# target reports.
ACTIVE: Final = 1
NOWAIT: Final = 1 << 29


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits of a poll."""

    # A bulk call takes 20 to 50 ms, so a call that takes ten times as long is late. A second call
    # in parallel keeps the interval of the other VMs within a second. The wait before each further
    # call doubles, so that a node that is only busy is not polled ten times.
    second_call_s: float = 0.5
    # At the end of a migration libvirt was measured to hold the VM's lock for 1.64 s. A limit below
    # 2 s would give false alarms; 4 s leave a margin for a busy node.
    answer_s: float = 4.0
    # A monitor that is silent for longer than the end of a migration is reported as hung.
    hung_s: float = 2.0
    # The keepalive fails after 20 s. If libvirtd answers only keepalives for longer, all of its
    # workers are stuck.
    silence_s: float = 30.0


# Each stuck call blocks one of libvirtd's 20 workers (max_workers). Other programs that manage VMs
# on the node need these workers as well.
MAX_STUCK: Final = 4


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of one bulk call, by ascending UUID."""

    mono_ns: int
    wall_ns: int
    readings: tuple[Reading, ...]


class Poller:
    """Polls the session that each call passes; remembers calls that libvirtd never answered."""

    def __init__(self, library: Library, *, patience: Patience) -> None:
        self._library = library
        self._patience = patience
        self._session: Session | None = None
        self._last: Poll | None = None
        self._waiting: list[Call[Poll]] = []
        self._unanswered: list[Call[Poll]] = []
        self._silent_since_ns = 0

    async def poll(self, session: Session) -> Poll:
        """Return the current state of all VMs.

        Raises
        ------
        HypervisorUnreachable
            No call returned in time.
        HypervisorStuck
            More calls are stuck than this process may cause, or libvirtd has been silent for too
            long; only a new process helps.
        """
        if session is not self._session:
            # The calls of the previous session ended with it.
            self._session, self._last = session, None
            self._waiting, self._unanswered = [], []
        earlier = [call for call in self._still_waiting() if call not in self._unanswered]
        # Calls of the last poll may still return, with values of that moment.
        calls = [call for call in self._unanswered if call.waits]
        if not calls:
            self._silent_since_ns = time.monotonic_ns()
        first, late_s = True, self._patience.second_call_s
        begun_ns = time.monotonic_ns()
        while True:
            if len(self._still_waiting()) <= MAX_STUCK:
                calls.append(self._start(session, first=first))
                first = False
            left_s = self._patience.answer_s - (time.monotonic_ns() - begun_ns) / 1e9
            returned = await first_returned(calls, patience_s=min(left_s, late_s))
            if returned is not None:
                self._unanswered = [call for call in calls if call.waits]
                # A call that fails because its connection was closed is not an answer.
                self._last = self._result(returned)
                self._unanswered = []
                return self._last
            if left_s <= late_s or not calls:
                self._unanswered = calls
                raise self._no_answer(earlier)
            late_s *= 2

    def _no_answer(self, earlier: Sequence[Call[Poll]]) -> HypervisorError:
        """Return the error for a silent libvirtd, or for too many VMs that block calls.

        Parameters
        ----------
        earlier
            Calls that were already stuck while libvirtd answered other calls.
        """
        stuck = len(self._still_waiting())
        silent_s = (time.monotonic_ns() - self._silent_since_ns) / 1e9
        if stuck > MAX_STUCK and any(call.waits for call in earlier):
            return HypervisorStuck(
                f"{stuck} calls wait for VMs whose QEMU monitor does not answer, and more would "
                "block libvirtd. A new process marks those VMs as blocked from the start"
            )
        if silent_s >= self._patience.silence_s:
            return HypervisorStuck(f"libvirtd has answered only keepalives for {silent_s:.0f} s")
        return HypervisorUnreachable(
            f"libvirtd has answered none of {len(self._unanswered)} calls for {silent_s:.0f} s"
        )

    def _still_waiting(self) -> list[Call[Poll]]:
        self._waiting = [call for call in self._waiting if call.waits]
        return self._waiting

    def _start(self, session: Session, *, first: bool) -> Call[Poll]:
        """Start a call; those after the first skip VMs that may have blocked the first."""
        busy = self._with_job() if not first else frozenset()
        last = self._last

        def work(connection: Connection) -> Poll:
            if first or not busy or last is None:
                return self._poll_all(connection, session.host_mark, ask_jobs=first)
            return self._poll_others(connection, session.host_mark, last, busy)

        call = session.start(work, name="libvirt-poll")
        self._waiting.append(call)
        return call

    def _with_job(self) -> frozenset[bytes]:
        """Return the VMs with a job.

        At the end of a migration libvirt locks the VM, and even a call with NOWAIT waits for it.
        """
        readings = self._last.readings if self._last is not None else ()
        return frozenset(reading.vm for reading in readings if reading.job_active)

    def _poll_all(self, connection: Connection, host_mark: int, *, ask_jobs: bool) -> Poll:
        records = connection.getAllDomainStats(STATS, NOWAIT | ACTIVE)
        mono_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        readings = [_reading(domain, stats, host_mark) for domain, stats in records]
        if ask_jobs:
            readings = [
                replace(reading, job_active=self._job_active(domain, reading))
                for reading, (domain, _) in zip(readings, records, strict=True)
            ]
        return _ordered(mono_ns, wall_ns, readings)

    def _poll_others(
        self, connection: Connection, host_mark: int, last: Poll, busy: frozenset[bytes]
    ) -> Poll:
        """Poll the VMs of the last poll except the busy ones; all values of these are unknown."""
        others = []
        for reading in last.readings:
            if reading.vm not in busy:
                with contextlib.suppress(self._library.libvirtError):
                    others.append(connection.lookupByUUID(reading.vm))
        records = connection.domainListGetStats(others, STATS, NOWAIT) if others else ()
        mono_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        readings = [_reading(domain, stats, host_mark) for domain, stats in records]
        readings += [replace(old, stats={}) for old in last.readings if old.vm in busy]
        return _ordered(mono_ns, wall_ns, readings)

    def _job_active(self, domain: Domain, reading: Reading) -> bool | None:
        # Bulk statistics do not contain the job, so this takes one query per VM, of 0.1 ms. The
        # query waits while another call holds the VM, so it runs only if the monitor has answered.
        if not monitor_answered(reading.stats):
            return None
        try:
            return domain.jobInfo()[0] not in JOB_IDLE
        except self._library.libvirtError:
            return None  # gone since the bulk call

    def _result(self, call: Call[Poll]) -> Poll:
        try:
            return call.result()
        except self._library.libvirtError as error:
            raise HypervisorUnreachable(f"libvirtd did not return statistics: {error}") from error


def _reading(domain: Domain, stats: Stats, host_mark: int) -> Reading:
    instance = instance_of(host_mark=host_mark, domain_id=domain.ID())
    return Reading(vm=domain.UUID(), instance=instance, stats=stats)


def _ordered(mono_ns: int, wall_ns: int, readings: Sequence[Reading]) -> Poll:
    # libvirt's order is that of a hash table; a stable one makes VM lists comparable.
    by_vm = sorted(readings, key=lambda reading: reading.vm)
    return Poll(mono_ns=mono_ns, wall_ns=wall_ns, readings=tuple(by_vm))

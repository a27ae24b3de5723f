"""Convert libvirt's callbacks into events, and queue them for the collector.

The numbers are libvirt's ABI (libvirt-domain.h). Events can be lost: libvirt does not repeat those
that occurred while there was no connection. So the rows of VMs carry the state as well.
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from flatline.connectors.libvirt.binding import Connection, Domain
from flatline.engine.wire.frame import Event

# Enough for every VM of a full node to crash, restart and report five times between two samples.
# If more events arrive, the oldest are dropped, since the latest describe the current state.
QUEUE_EVENTS: Final = 2048

# virDomainEventID
_LIFECYCLE: Final = 0
_REBOOT: Final = 1
_WATCHDOG: Final = 3
_IO_ERROR_REASON: Final = 6
_AGENT_LIFECYCLE: Final = 18
_JOB_COMPLETED: Final = 21

# By virDomainEventType: the kind, and the meanings of the detail by its number. Types 0 and 1 (a VM
# was defined or undefined) are absent, since they have no effect on the VM.
_LIFECYCLE_KINDS: Final[Mapping[int, tuple[str, tuple[str, ...]]]] = {
    2: ("started", ("booted", "migrated", "restored", "from_snapshot", "wakeup")),
    3: (
        "paused",
        (
            "paused",
            "migrated",
            "io_error",
            "watchdog",
            "restored",
            "from_snapshot",
            "api_error",
            "postcopy",
            "postcopy_failed",
        ),
    ),
    4: ("resumed", ("unpaused", "migrated", "from_snapshot", "postcopy", "postcopy_failed")),
    5: (
        "stopped",
        (
            "shutdown",
            "destroyed",
            "crashed",
            "migrated",
            "saved",
            "failed",
            "from_snapshot",
            "recreated",
        ),
    ),
    6: ("shutdown", ("finished", "guest", "host")),
    7: ("paused", ("suspended_to_memory", "suspended_to_disk")),
    8: ("crashed", ("panicked", "crash_dump")),
}
# Events whose detail is more specific than their type.
_DETAILED_KINDS: Final = {
    ("started", "migrated"): "migrated_in",
    ("stopped", "migrated"): "migrated_out",
    ("stopped", "crashed"): "crashed",
    ("crashed", "panicked"): "panicked",
    ("crashed", "crash_dump"): "crash_dump",
}
_WATCHDOG_ACTIONS: Final = (
    "none",
    "pause",
    "reset",
    "power_off",
    "shutdown",
    "debug",
    "inject_nmi",
)
_IO_ERROR_ACTIONS: Final = ("none", "pause", "report")
_AGENT_STATES: Final = {1: "agent_connected", 2: "agent_lost"}
_JOB_OPERATIONS: Final = (
    "unknown",
    "start",
    "save",
    "restore",
    "migration_in",
    "migration_out",
    "snapshot",
    "snapshot_revert",
    "dump",
    "backup",
    "snapshot_delete",
)


def lifecycle_kind(event: int, detail: int) -> tuple[str, str] | None:
    """Return the kind and the meaning of the detail; None for an event without effect on the VM.

    `event` is a virDomainEventType, and `detail` libvirt's number of its cause. A number that is
    newer than the tables here is returned as text.
    """
    if event not in _LIFECYCLE_KINDS:
        return None
    kind, details = _LIFECYCLE_KINDS[event]
    meaning = _name(details, detail)
    return _DETAILED_KINDS.get((kind, meaning), kind), meaning


class Hearer(Protocol):
    """Receiver of events, called in libvirt's own thread."""

    def add(
        self, kind: str, *, vm: bytes | None = None, detail: Mapping[str, str] | None = None
    ) -> None:
        """Receive one event.

        Parameters
        ----------
        kind
            One of `engine.wire.metrics.EVENT_KINDS`.
        vm
            UUID of the VM; None for an event of the node.
        detail
            Texts by name, such as the reason.
        """
        ...


class EventQueue:
    """Queues events between two samples; any thread may add to it.

    Attributes
    ----------
    dropped_total
        Events dropped because the queue was full; the next `drain` reports the loss as well.
    """

    def __init__(self, *, room: int = QUEUE_EVENTS) -> None:
        # Part of every event id: a counter alone would repeat after a restart of the collector.
        self._run = uuid.uuid4().hex[:12]
        self._numbers = 0
        self._room = room
        self._events: deque[Event] = deque()
        self._guard = threading.Lock()
        self._unsaid_drops = 0
        self.dropped_total = 0

    def add(
        self, kind: str, *, vm: bytes | None = None, detail: Mapping[str, str] | None = None
    ) -> None:
        """Append one event with the current time; drop the oldest if the queue is full.

        See `Hearer.add` for the parameters.
        """
        with self._guard:
            if len(self._events) >= self._room:
                self._events.popleft()
                self._unsaid_drops += 1
                self.dropped_total += 1
            self._events.append(self._event(kind, vm=vm, detail=detail))

    def drain(self) -> tuple[Event, ...]:
        """Return and remove the queued events, oldest first.

        If events were dropped since the last call, the last one is `events_dropped` with their
        count.
        """
        with self._guard:
            if self._unsaid_drops:
                lost = {"count": str(self._unsaid_drops)}
                self._events.append(self._event("events_dropped", vm=None, detail=lost))
                self._unsaid_drops = 0
            events = tuple(self._events)
            self._events.clear()
        return events

    def _event(self, kind: str, *, vm: bytes | None, detail: Mapping[str, str] | None) -> Event:
        self._numbers += 1
        return Event(
            id=f"{self._run}-{self._numbers}",
            kind=kind,
            time_ns=time.time_ns(),
            vm=vm,
            detail=dict(detail or {}),
        )


def register(connection: Connection, queue: Hearer) -> list[int]:
    """Register the queue for libvirt's events; return the numbers of the callbacks.

    The callbacks run in libvirt's event loop, so they only add an event to the queue.
    """
    callbacks: dict[int, Callable[..., None]] = {
        _LIFECYCLE: lambda _c, domain, event, detail, _o: _on_lifecycle(
            queue, domain, event=event, detail=detail
        ),
        _REBOOT: lambda _c, domain, _o: queue.add("rebooted", vm=domain.UUID()),
        _WATCHDOG: lambda _c, domain, action, _o: queue.add(
            "watchdog", vm=domain.UUID(), detail={"action": _name(_WATCHDOG_ACTIONS, action)}
        ),
        _IO_ERROR_REASON: lambda _c, domain, _path, device, action, reason, _o: queue.add(
            "io_error",
            vm=domain.UUID(),
            detail={
                "device": str(device),
                "action": _name(_IO_ERROR_ACTIONS, action),
                "reason": str(reason),
            },
        ),
        _AGENT_LIFECYCLE: lambda _c, domain, state, _reason, _o: _on_agent(queue, domain, state),
        _JOB_COMPLETED: lambda _c, domain, stats, _o: queue.add(
            "job_ended", vm=domain.UUID(), detail=_job_detail(stats)
        ),
    }
    return [
        connection.domainEventRegisterAny(None, number, callback, None)
        for number, callback in callbacks.items()
    ]


def _on_lifecycle(queue: Hearer, domain: Domain, *, event: int, detail: int) -> None:
    reported = lifecycle_kind(event, detail)
    if reported is not None:
        queue.add(reported[0], vm=domain.UUID(), detail={"reason": reported[1]})


def _on_agent(queue: Hearer, domain: Domain, state: int) -> None:
    if state in _AGENT_STATES:
        queue.add(_AGENT_STATES[state], vm=domain.UUID())


def _job_detail(stats: Mapping[str, object]) -> dict[str, str]:
    operation = stats.get("operation")
    detail = {
        "operation": _name(_JOB_OPERATIONS, operation if isinstance(operation, int) else 0),
        # Absent means success: libvirt older than 6.0 does not report it.
        "success": "no" if stats.get("success") is False else "yes",
    }
    return detail | {
        name: str(stats[name]) for name in ("time_elapsed", "downtime") if name in stats
    }


def _name(names: tuple[str, ...], number: int) -> str:
    """Return the name of a number, or the number itself if libvirt is newer than this table."""
    return names[number] if 0 <= number < len(names) else str(number)

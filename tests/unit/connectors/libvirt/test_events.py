"""Each of libvirt's callbacks becomes one event; a loss is counted and reported."""

from typing import cast

import pytest

from flatline.connectors.libvirt.binding import Connection
from flatline.connectors.libvirt.events import EventQueue, lifecycle_kind, register
from flatline.engine.wire.frame import Event
from flatline.engine.wire.metrics import EVENT_KINDS
from tests.unit.connectors.libvirt.scripted import (
    ScriptedConnection,
    ScriptedDomain,
    ScriptedLibrary,
)

LIFECYCLE, REBOOT, WATCHDOG, IO_ERROR_REASON, AGENT_LIFECYCLE, JOB_COMPLETED = 0, 1, 3, 6, 18, 21


@pytest.fixture
def wired() -> tuple[ScriptedConnection, EventQueue, ScriptedDomain]:
    library = ScriptedLibrary(vms=1)
    connection = ScriptedConnection(library)
    queue = EventQueue()
    register(cast(Connection, connection), queue)
    return connection, queue, ScriptedDomain(library.vms[0])


Wired = tuple[ScriptedConnection, EventQueue, ScriptedDomain]


def fired(wired: Wired, event: int, *arguments: object) -> Event:
    connection, queue, domain = wired
    connection.callbacks[event](connection, domain, *arguments, None)
    [reported] = queue.drain()
    assert reported.vm == domain.UUID()
    assert reported.kind in EVENT_KINDS
    return reported


@pytest.mark.parametrize(
    ("event", "detail", "kind", "reason"),
    [
        (2, 0, "started", "booted"),
        (2, 1, "migrated_in", "migrated"),
        (3, 0, "paused", "paused"),
        (3, 2, "paused", "io_error"),
        (4, 0, "resumed", "unpaused"),
        (5, 0, "stopped", "shutdown"),
        (5, 2, "crashed", "crashed"),
        (5, 3, "migrated_out", "migrated"),
        (6, 1, "shutdown", "guest"),
        (7, 0, "paused", "suspended_to_memory"),
        (8, 0, "panicked", "panicked"),
        (8, 1, "crash_dump", "crash_dump"),
        (2, 99, "started", "99"),
    ],
)
def test_a_lifecycle_event_is_named_by_type_and_detail(
    wired: Wired, event: int, detail: int, kind: str, reason: str
) -> None:
    reported = fired(wired, LIFECYCLE, event, detail)
    assert (reported.kind, reported.detail) == (kind, {"reason": reason})


@pytest.mark.parametrize("event", [0, 1, 9], ids=["defined", "undefined", "newer"])
def test_what_a_vm_does_not_notice_is_no_event(wired: Wired, event: int) -> None:
    connection, queue, domain = wired
    connection.callbacks[LIFECYCLE](connection, domain, event, 0, None)
    assert queue.drain() == ()
    assert lifecycle_kind(event, 0) is None


def test_a_reboot_is_reported(wired: Wired) -> None:
    assert fired(wired, REBOOT).kind == "rebooted"


def test_a_watchdog_is_reported_with_what_libvirt_does_about_it(wired: Wired) -> None:
    reported = fired(wired, WATCHDOG, 2)
    assert (reported.kind, reported.detail) == ("watchdog", {"action": "reset"})


def test_an_io_error_is_reported_with_its_device_and_reason(wired: Wired) -> None:
    reported = fired(wired, IO_ERROR_REASON, "/srv/a.raw", "virtio-disk0", 1, "enospc")
    assert reported.kind == "io_error"
    assert reported.detail == {"device": "virtio-disk0", "action": "pause", "reason": "enospc"}


@pytest.mark.parametrize(("state", "kind"), [(1, "agent_connected"), (2, "agent_lost")])
def test_a_guest_agent_comes_and_goes(wired: Wired, state: int, kind: str) -> None:
    assert fired(wired, AGENT_LIFECYCLE, state, 1).kind == kind


def test_a_job_that_ended_is_reported_with_its_outcome(wired: Wired) -> None:
    reported = fired(wired, JOB_COMPLETED, {"operation": 5, "downtime": 179, "success": False})
    assert reported.kind == "job_ended"
    assert reported.detail == {"operation": "migration_out", "success": "no", "downtime": "179"}


def test_events_come_once_in_order_with_ids_of_their_own() -> None:
    queue, other = EventQueue(), EventQueue()
    for kind in ("started", "rebooted", "stopped"):
        queue.add(kind)
        other.add(kind)
    first = queue.drain()
    queue.add("started")
    second = queue.drain()
    assert [event.kind for event in first] == ["started", "rebooted", "stopped"]
    assert queue.drain() == ()
    ids = [event.id for event in first + second + other.drain()]
    assert len(set(ids)) == len(ids)


def test_a_full_queue_drops_the_oldest_and_says_how_many() -> None:
    queue = EventQueue(room=2)
    for number in range(5):
        queue.add("rebooted", vm=bytes([number]))
    *kept, loss = queue.drain()
    assert [event.vm for event in kept] == [b"\x03", b"\x04"]
    assert (loss.kind, loss.detail) == ("events_dropped", {"count": "3"})
    assert loss.kind in EVENT_KINDS
    assert queue.dropped_total == 3


def test_a_loss_is_reported_once_and_counted_for_ever() -> None:
    queue = EventQueue(room=1)
    queue.add("rebooted")
    queue.add("rebooted")
    queue.drain()
    queue.add("rebooted")
    assert [event.kind for event in queue.drain()] == ["rebooted"]
    assert queue.dropped_total == 1

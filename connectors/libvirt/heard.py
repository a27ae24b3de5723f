"""Events of each VM since its last boot on this connection: resets, panics, watchdogs."""

import threading
import time
from collections.abc import Mapping
from typing import Final

from flatline.engine.preflight_data import GuestReport

_BOOTS: Final = frozenset({"rebooted", "started", "resumed"})
_GONE: Final = frozenset({"stopped", "migrated_out"})
_REPORTS: Final[Mapping[str, GuestReport]] = {"panicked": "panicked", "watchdog": "watchdog"}


class Heard:
    """Stores events by VM; filled from libvirt's event loop, readable from any thread.

    libvirt does not repeat events that occurred while there was no connection. So a new connection
    clears all events and counts as a boot of every VM.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._number = 0
        self._since = 0
        self._boots: dict[bytes, int] = {}
        self._reports: dict[bytes, tuple[GuestReport, int]] = {}

    def begin(self) -> None:
        """Clear all events at the start of a new connection."""
        with self._guard:
            self._number += 1
            self._since = self._number
            self._boots.clear()
            self._reports.clear()

    def add(
        self, kind: str, *, vm: bytes | None = None, detail: Mapping[str, str] | None = None
    ) -> None:
        """Store a boot, panic or watchdog event; the end of a VM's run clears its events.

        Parameters
        ----------
        kind
            One of `engine.wire.metrics.EVENT_KINDS`; most of them are ignored.
        vm
            UUID of the VM; an event without one is ignored.
        detail
            Ignored; the protocol `connectors.libvirt.events.Hearer` has this parameter.
        """
        if vm is None:
            return
        with self._guard:
            if kind in _REPORTS:
                self._reports[vm] = _REPORTS[kind], time.monotonic_ns()
            elif kind in _BOOTS:
                self._number += 1
                self._boots[vm] = self._number
                self._reports.pop(vm, None)
            elif kind in _GONE:
                self._boots.pop(vm, None)
                self._reports.pop(vm, None)

    def boots(self, vm: bytes) -> int:
        """Return a number that changes with each boot of the VM, and with each connection."""
        with self._guard:
            return self._boots.get(vm, self._since)

    def report(self, vm: bytes) -> tuple[GuestReport, int] | tuple[None, None]:
        """Return the guest's panic or watchdog report since its last boot, and its monotonic ns.

        Both are None if there was none.
        """
        with self._guard:
            return self._reports.get(vm, (None, None))

"""The collector's view of a host in memory, and the evidence kept there."""

from types import TracebackType
from typing import Final, Self

import numpy as np
from flatline.connectors.memory.host import VCPUS, Guest, Host

from flatline.engine.errors import EvidenceUnsaved, VmNotFound
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Event, InventoryItem, VmRows
from flatline.engine.wire.metrics import GAUGE_ROW, GAUGES, INTEGER_ROW, INTEGERS, VM_STATES
from flatline.engine.wire.vcpus import VcpuRows

_BUSY_RATIO: Final = 0.5


class MemoryHypervisor:
    """The `Hypervisor` of one host in memory."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._read = len(host.events)
        self._before: dict[tuple[bytes, int], int] = {}
        self._before_ns = 0

    async def __aenter__(self) -> Self:
        """Return immediately: there is no connection."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the host unchanged."""

    async def sample(self) -> NodeSample:
        """Return all VMs, by ascending UUID."""
        now_ns = self._host.clock.mono_ns()
        guests = [self._host.guests[vm] for vm in sorted(self._host.guests)]
        integers = np.zeros((len(INTEGERS), len(guests)), np.uint64)
        missing = np.ones(integers.shape, np.bool_)
        gauges = np.full((len(GAUGES), len(guests)), np.nan, np.float32)
        before, elapsed_ns = self._before, now_ns - self._before_ns
        self._before, self._before_ns = {}, now_ns
        times_ns: list[int] = []
        for column, guest in enumerate(guests):
            values, ran = self._values(guest), self._host.vcpu_times_ns(guest)
            key = guest.vm, guest.instance
            if key in before and elapsed_ns > 0:
                ratio = (ran[0] - before[key]) / elapsed_ns
                gauges[GAUGE_ROW["vcpu_busiest_ratio"], column] = ratio
                values["vcpus_busy"] = VCPUS if ratio >= _BUSY_RATIO else 0
            self._before[key] = ran[0]
            times_ns += ran
            for name, value in values.items():
                integers[INTEGER_ROW[name], column] = value
                missing[INTEGER_ROW[name], column] = False
        rows = VmRows(
            uuids=b"".join(guest.vm for guest in guests),
            integers=integers,
            missing=missing,
            gauges=gauges,
            vcpus=VcpuRows(
                counts=np.full(len(guests), VCPUS, np.uint16),
                times_ns=np.array(times_ns, np.uint64),
                missing=None,
            ),
        )
        return NodeSample(
            event_time_ns=self._host.clock.now_ms() * 1_000_000,
            mono_ns=now_ns,
            rows=rows,
            node={"hypervisor_reachable": 1.0, "cpu_cores": float(VCPUS * len(guests) or 1)},
        )

    def _values(self, guest: Guest) -> dict[str, int]:
        return {
            **self._host.counters(guest),
            "balloon_last_update_s": self._host.balloon_s(),
            "instance": guest.instance,
            "state": VM_STATES.index("running"),
            "vcpus": VCPUS,
            "job_active": 0,
        }

    def drain_events(self) -> tuple[Event, ...]:
        """Return the events since the last call, oldest first, each once."""
        read, self._read = self._read, len(self._host.events)
        return tuple(self._host.events[read:])

    async def inventory(self) -> tuple[InventoryItem, ...]:
        """Return the definition of each VM."""
        return tuple(
            InventoryItem(
                vm=guest.vm,
                name=guest.name,
                tenant=guest.tenant,
                group=guest.group,
                actionable=guest.actionable,
                vcpus=VCPUS,
                disks={"vda": guest.pool},
            )
            for guest in self._host.guests.values()
        )


class MemoryEvidence:
    """The `Evidence` of one host in memory."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __aenter__(self) -> Self:
        """Return immediately: there is no connection."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the host unchanged."""

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Return where the evidence is.

        Raises
        ------
        EvidenceUnsaved
            No such VM runs here.
        """
        try:
            guest = self._host.find(vm)
        except VmNotFound as error:
            raise EvidenceUnsaved(str(error)) from error
        return f"console.txt of {guest.name} in memory of {self._host.name}"

"""Frames of the hosts of a site with faults, and their append times."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from flatline.engine.ports import Record
from flatline.engine.wire.frame import (
    Frame,
    Header,
    InventoryItem,
    PoolSample,
    Role,
    VmRows,
    encode_frame,
)
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, Guest, Place, item


@dataclass
class Host(Place):
    """A node, its clocks, and the disturbances of its frames."""

    cell: str = "cell-0"
    up: bool = True
    cuts: bool = False
    wall_shift_ms: int = 0
    reported: int = 0
    held: list[bytes] = field(default_factory=list)
    swaps: int = 0
    doubles: float = 0.0
    loses: float = 0.0
    hypervisor: bool = True


@dataclass(frozen=True)
class Later:
    """Something scheduled for a time of the play."""

    at_s: float
    act: Callable[[], None]


class Telling:
    """The records of a site: its hosts' frames with the log's append times."""

    def __init__(self, chance: random.Random, *, interval_s: float) -> None:
        self.chance = chance
        self.interval_s = interval_s
        self.now_s = 0.0
        self.log_shift_ms = 0
        self.made_ticks = 0
        self.records: list[Record] = []

    def _tell(self, host: Host, kind: str, guest: Guest) -> None:
        host.tell(kind, guest)

    def _ms(self) -> int:
        return EPOCH_MS + round(self.now_s * 1000)

    def _header(self, host: Host, *, role: Role, run: str, sequence: int) -> Header:
        return Header(
            site="site",
            zone="zone",
            cell=host.cell,
            node=f"owner-{host.name}" if role == "owner" else host.name,
            role=role,
            run=run,
            sequence=sequence,
            event_time_ns=max(0, (self._ms() + host.wall_shift_ms) * 1_000_000),
            mono_ns=host.mono_ns,
            interval_ms=round(self.interval_s * 1000),
        )

    def _encoded(self, host: Host, *, run: str, sequence: int) -> list[bytes]:
        """Return a sample as one frame, or as two where the host's samples are split."""
        rows = host.rows() if host.hypervisor else VmRows.empty()
        half = len(rows) // 2
        cut = host.cuts and half > 0
        parts = [rows.select(slice(0, half)), rows.select(slice(half, None))] if cut else [rows]
        inventory: tuple[InventoryItem, ...] = ()
        if sequence % 20 == 0 and host.hypervisor:
            inventory = tuple(item(guest) for guest in host.guests)
        frames = [
            Frame(
                header=self._header(host, role="collector", run=run, sequence=sequence + index),
                rows=part,
                events=tuple(host.events) if index == 0 else (),
                inventory=inventory if index == 0 else (),
                node={
                    "cpu_busy_ratio": host.busy,
                    "hypervisor_reachable": float(host.hypervisor),
                    **host.gauges,
                }
                if index == 0
                else {},
                pools=(PoolSample(name="pool-0", capacity_bytes=10**12, available_bytes=10**11),)
                if index == 0
                else (),
            )
            for index, part in enumerate(parts)
        ]
        host.events.clear()
        return [encode_frame(frame) for frame in frames]

    def _sample(self, host: Host) -> None:
        if not host.up:
            return
        for guest in host.guests:
            guest.passes(self.interval_s, self.now_s)
        host.mono_ns += round(self.interval_s * 1e9)
        values = self._encoded(host, run=host.run, sequence=host.sequence)
        host.sequence += len(values)
        for value in values:
            self._send(host, value)

    def _send(self, host: Host, value: bytes) -> None:
        if host.swaps:
            host.held.append(value)
            if len(host.held) > host.swaps:
                held, host.held, host.swaps = host.held, [], 0
                self.chance.shuffle(held)
                for one in [value, *held[:-1]] if held[-1] is value else held:
                    self._append(host, one)
            return
        if self.chance.random() < host.loses:
            return
        self._append(host, value)
        if self.chance.random() < host.doubles:
            self._append(host, value)

    def _tick(self) -> None:
        header = Header(
            site="site",
            zone="-",
            cell="-",
            node="shell",
            role="shell",
            run="shell",
            sequence=self.made_ticks,
            event_time_ns=self._ms() * 1_000_000,
            mono_ns=self._ms() * 1_000_000,
            interval_ms=1000,
        )
        self.made_ticks += 1
        self._append(None, encode_frame(Frame(header=header, rows=VmRows.empty())))

    def _append(self, host: Host | None, value: bytes) -> None:
        self.records.append(
            Record(
                topic="flatline.frames.v1",
                partition=0,
                offset=len(self.records),
                time_ms=self._ms() + self.log_shift_ms,
                key=b"tick" if host is None else host.cell.encode(),
                value=value,
            )
        )

"""A usage snapshot from frames: the use of each VM and node over the whole recording."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from flatline.engine.capacity.usage_snapshot import NodeUse, PoolUse, UsageSnapshot, VmUse
from flatline.engine.forecasting.demand import Demand
from flatline.engine.ports import RecordedFrame
from flatline.engine.stream.counters import Counters, known
from flatline.engine.wire.forecast import METRICS
from flatline.engine.wire.frame import Frame, InventoryItem, VmRows, uuids_of

F64 = NDArray[np.float64]

# Percentiles are taken over means of this many seconds, because a peak of one second does not
# require more hardware.
STEP_S: Final = 300
_DAY_STEPS: Final = 86_400 // STEP_S
_CPU, _MEMORY = METRICS.index("cpu_cores"), METRICS.index("memory_used_bytes")
_IO: Final = np.array([row for row, name in enumerate(METRICS) if name.endswith("bytes_per_s")])


@dataclass(slots=True)
class _Vm:
    """Accumulated data of one VM."""

    node: str
    vcpus: float = np.nan
    item: InventoryItem | None = None
    means: list[F64] = field(default_factory=list)
    used_ns: float = 0.0
    waited_ns: float = 0.0


@dataclass(slots=True)
class _Node:
    """Accumulated data of one node; `wanted` counts the CPU time that VMs used and waited for."""

    cell: str
    zone: str
    demand: Demand = field(default_factory=Demand)
    gauges: dict[str, float] = field(default_factory=dict)
    means: dict[int, F64] = field(default_factory=dict)
    wanted: Counters = field(default_factory=lambda: Counters(("cpu_time_ns", "vcpu_delay_ns")))


class UsageCollector:
    """Accumulates frames in time order, and returns a usage snapshot over all of them."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._vms: dict[bytes, _Vm] = {}
        self._items: dict[bytes, InventoryItem] = {}
        self._pools: dict[tuple[str, str], dict[int, float]] = {}
        self._capacity: dict[tuple[str, str], float] = {}
        self._step = 0
        self._first_ms = self._last_ms = 0

    def take(self, recorded_frames: Iterable[RecordedFrame]) -> "UsageCollector":
        """Process all frames of a recording, and return this collector.

        Frames that cannot be read or that are not of a collector are left out.
        """
        for recorded in recorded_frames:
            frame = recorded.frame
            if frame is None or frame.header.role != "collector":
                continue
            self._pass_time(recorded.time_ms)
            for item in frame.inventory:
                self._items[item.vm] = item
            if len(frame.rows) or frame.node:
                self._take(frame)
        self._close()
        return self

    def usage(self) -> UsageSnapshot:
        """Return the usage snapshot of all frames so far; it has no node if there was no frame."""
        nodes = [self._node_use(name) for name in sorted(self._nodes)]
        vms = [self._vm_use(vm) for vm in sorted(self._vms)]
        pools = [self._pool_use(key) for key in sorted(self._pools) if key in self._capacity]
        days = (self._last_ms - self._first_ms) / 86_400_000
        return UsageSnapshot(nodes=nodes, vms=vms, pools=pools, days=days)

    def _pass_time(self, time_ms: int) -> None:
        self._first_ms = self._first_ms or time_ms
        self._last_ms = max(self._last_ms, time_ms)
        step = self._last_ms // (STEP_S * 1000)
        if step != self._step:
            self._close()
            self._step = step

    def _take(self, frame: Frame) -> None:
        header = frame.header
        node = self._nodes.setdefault(header.node, _Node(header.cell, header.zone))
        if node.demand.is_repeat(frame):
            return
        node.gauges.update(frame.node)
        if frame.rows.uuids != node.demand.roster:
            node.demand, indices = node.demand.followed(frame.rows.uuids)
            node.wanted = node.wanted.moved(indices)
        same_run = node.demand.run == header.run
        node.demand.take(frame)
        wanted_ns = node.wanted.take(frame.rows, _wanted(frame.rows))
        unknown = np.isnan(wanted_ns.sum(axis=0))
        for place, vm in enumerate(uuids_of(frame.rows.uuids)):
            seen = self._vms.get(vm)
            if seen is None:
                seen = self._vms[vm] = _Vm(header.node)
            seen.node = header.node
            if not np.isnan(node.demand.vcpus[place]):
                seen.vcpus = float(node.demand.vcpus[place])
            if same_run and not unknown[place]:
                seen.used_ns += wanted_ns[0, place]
                seen.waited_ns += wanted_ns[1, place]
        for pool in frame.pools:
            if pool.capacity_bytes is None or pool.available_bytes is None:
                continue
            key, day = (header.cell, pool.name), self._step // _DAY_STEPS
            used = float(pool.capacity_bytes - pool.available_bytes)
            self._capacity[key] = float(pool.capacity_bytes)
            days = self._pools.setdefault(key, {})
            days[day] = max(days.get(day, 0.0), used)

    def _close(self) -> None:
        for node in self._nodes.values():
            means = node.demand.close()
            for vm, row in zip(uuids_of(node.demand.roster), means[:-1], strict=True):
                if not np.isnan(row).all():
                    self._vms[vm].means.append(row)
            if not np.isnan(means[-1]).all():
                node.means[self._step] = means[-1]

    def _node_use(self, name: str) -> NodeUse:
        node = self._nodes[name]
        means = np.stack(list(node.means.values())) if node.means else np.empty((0, len(METRICS)))
        return NodeUse(
            node=name,
            cell=node.cell,
            zone=node.zone,
            cores=node.gauges.get("cpu_cores"),
            memory_bytes=node.gauges.get("memory_total_bytes"),
            cpu_p95_cores=_rank(means[:, _CPU], 0.95),
            memory_p99_bytes=_rank(means[:, _MEMORY], 0.99),
            daily_cores=_daily(node.means, _CPU, 0.95),
            daily_memory_bytes=_daily(node.means, _MEMORY, 1.0),
        )

    def _vm_use(self, vm: bytes) -> VmUse:
        seen, item = self._vms[vm], self._items.get(vm)
        means = np.stack(seen.means) if seen.means else np.empty((0, len(METRICS)))
        io = means[:, _IO]
        wanted_ns = seen.used_ns + seen.waited_ns
        vcpus: float | None = seen.vcpus
        if np.isnan(seen.vcpus):
            vcpus = item.vcpus if item else None
        return VmUse(
            vm=str(UUID(bytes=vm)),
            node=seen.node,
            name=item.name if item else "",
            flavor=item.flavor if item else None,
            vcpus=vcpus,
            memory_bytes=float(item.memory_bytes) if item and item.memory_bytes else None,
            cpu_p95_cores=_rank(means[:, _CPU], 0.95),
            memory_p99_bytes=_rank(means[:, _MEMORY], 0.99),
            waiting_ratio=seen.waited_ns / wanted_ns if wanted_ns > 0 else None,
            io_bytes_per_s=(
                None if np.isnan(io).all() else float(np.nansum(np.nanmean(io, axis=0)))
            ),
        )

    def _pool_use(self, key: tuple[str, str]) -> PoolUse:
        days = self._pools[key]
        first, last = min(days), max(days)
        daily = np.array([days.get(day, np.nan) for day in range(first, last + 1)])
        return PoolUse(
            pool=key[1],
            cell=key[0],
            capacity_bytes=self._capacity[key],
            used_bytes=float(days[last]),
            daily_used_bytes=daily,
        )


def _wanted(rows: VmRows) -> F64:
    """Return the CPU time that VMs used and waited for, shape (2, n), NaN where not measured."""
    used, delay, wait = known(rows, ("cpu_time_ns", "vcpu_delay_ns", "vcpu_wait_ns"))
    return np.stack([used, np.where(np.isnan(delay), wait, delay)])


def _rank(values: F64, share: float) -> float | None:
    """Return the percentile by nearest rank, None for no values."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return None
    return float(known[max(int(np.ceil(share * len(known))) - 1, 0)])


def _daily(means: dict[int, F64], row: int, share: float) -> F64:
    """Return one value a day, oldest first; NaN for a day without data."""
    days: dict[int, list[float]] = {}
    for step, values in means.items():
        if not np.isnan(values[row]):
            days.setdefault(step // _DAY_STEPS, []).append(float(values[row]))
    if not days:
        return np.empty(0)
    found = [_rank(np.array(days.get(day, [])), share) for day in range(min(days), max(days) + 1)]
    return np.array([np.nan if value is None else value for value in found])

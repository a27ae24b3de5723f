"""The capacity report: use, free room, time until full, and VMs that could be smaller."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from flatline.engine.capacity.growth import days_to_full
from flatline.engine.capacity.usage_snapshot import (
    F64,
    NodeUse,
    Size,
    UsageSnapshot,
    VmUse,
    free,
    how_many,
    total,
    usual_size,
)

# A smaller size that is proposed for a VM leaves room above the measured use: run queues grow fast
# beyond 70 % of a core.
_CPU_TARGET: Final = 0.7
_MEMORY_ROOM: Final = 1.25
# A VM counts as oversized if half of its present size or less suffices: only such a difference is
# worth a maintenance window.
_OVERSIZED_SHARE: Final = 0.5
# A VM that never needs more than this share of its vCPUs, and has almost no I/O, is idle.
_IDLE_SHARE: Final = 0.02
_IDLE_BYTES_PER_S: Final = 2_048.0
# A node counts as contended if its VMs wait for more than 5 % of the CPU time that they request:
# guests notice such a delay.
_CONTENDED_RATIO: Final = 0.05
_MIB: Final = 1 << 20


class ScopeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One resource of one pool, node, cell or zone; None is unknown.

    Attributes
    ----------
    resource
        cpu (cores), memory (bytes) or disk (bytes).
    usable
        Usable capacity. In each cell the capacity of the largest node is not counted, so that one
        node may fail (N+1).
    used
        CPU: 95th percentile. Memory: 99th percentile. Disk: present use.
    remaining_ratio
        Free share of the usable capacity; negative if the use exceeds it.
    days_to_full, days_to_full_low, days_to_full_high
        Expected, conservative and aggressive estimate. None means not within two years if
        `days_known` is true, else unknown.
    vms_that_fit
        Number of further VMs of the usual size; None for a pool.
    oversubscription_ratio
        Capacity allocated to VMs, divided by the whole capacity.
    stranded
        Free capacity on nodes whose other resource does not suffice for one more VM of the usual
        size.
    """

    scope: str
    subject: str
    resource: str
    usable: float | None
    used: float | None
    remaining_ratio: float | None
    days_to_full: float | None
    days_to_full_low: float | None
    days_to_full_high: float | None
    days_known: bool
    vms_that_fit: int | None
    oversubscription_ratio: float | None
    stranded: float | None


class CellRow(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity of a cell; None where the size of a node is unknown.

    Attributes
    ----------
    survives_node_loss
        Whether the other nodes can hold all VMs if the largest node is lost (N+1).
    short_cores, short_memory_bytes
        The capacity that is missing to survive that loss.
    largest_vm_cores, largest_vm_memory_bytes
        The largest VM that fits on one node: the free cores and memory of the node with the most
        free memory.
    contended_nodes
        Nodes whose VMs wait for more than 5 % of the CPU time they request.
    """

    cell: str
    nodes: int
    vms: int
    survives_node_loss: bool | None
    short_cores: float | None
    short_memory_bytes: float | None
    largest_vm_cores: float | None
    largest_vm_memory_bytes: float | None
    contended_nodes: tuple[str, ...]


class VmRow(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that could be smaller; `finding` is idle or oversized."""

    vm: str
    name: str
    node: str
    finding: str
    vcpus: float | None
    proposed_vcpus: int | None
    cpu_p95_cores: float | None
    memory_bytes: float | None
    proposed_memory_bytes: int | None
    memory_p99_bytes: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report; `usual_*` is the size of the VMs that `vms_that_fit` counts."""

    days: float
    usual_cores: float | None
    usual_memory_bytes: float | None
    scopes: tuple[ScopeRow, ...]
    cells: tuple[CellRow, ...]
    vms: tuple[VmRow, ...]


def report(usage: UsageSnapshot) -> Report:
    """Return the report of a usage snapshot."""
    usual = usual_size(usage.vms)
    rows: list[ScopeRow] = []
    for scope, subject, nodes in usage.scopes():
        rows += _scope_rows(usage, scope, subject, nodes, usual)
    rows += _pool_rows(usage)
    cells = sorted({node.cell for node in usage.nodes})
    smaller = [row for row in map(_vm_row, usage.vms) if row is not None]
    return Report(
        days=usage.days,
        usual_cores=None if usual is None else usual.cores,
        usual_memory_bytes=None if usual is None else usual.memory_bytes,
        scopes=tuple(rows),
        cells=tuple(cell_row(usage, cell) for cell in cells),
        vms=tuple(sorted(smaller, key=lambda row: (row.name, row.vm))),
    )


def _scope_rows(
    usage: UsageSnapshot, scope: str, subject: str, nodes: list[NodeUse], usual: Size | None
) -> list[ScopeRow]:
    vms = usage.on(nodes)
    usable = _usable(scope, nodes)
    if usual is not None and not all(map(_is_known, nodes)):
        usual = None
    fit = None if usual is None else _fit(usage, scope, nodes, usual)
    rows = []
    for resource in ("cpu", "memory"):
        is_cpu = resource == "cpu"
        has = sum((node.cores if is_cpu else node.memory_bytes) or 0.0 for node in nodes)
        known = [node.cpu_p95_cores if is_cpu else node.memory_p99_bytes for node in nodes]
        used = None if None in known else float(sum(one or 0.0 for one in known))
        limit = usable.cores if is_cpu else usable.memory_bytes
        promised = sum((vm.vcpus if is_cpu else vm.memory_bytes) or 0.0 for vm in vms)
        daily = _summed([node.daily_cores if is_cpu else node.daily_memory_bytes for node in nodes])
        rows.append(
            _row(
                scope,
                subject,
                resource,
                limit if has else None,
                used if has else None,
                daily,
                vms_that_fit=fit,
                oversubscription_ratio=promised / has if has else None,
                stranded=None if usual is None else _stranded(usage, nodes, usual, resource),
            )
        )
    return rows


def _pool_rows(usage: UsageSnapshot) -> list[ScopeRow]:
    return [
        _row(
            "pool",
            f"{pool.cell}/{pool.pool}",
            "disk",
            pool.capacity_bytes,
            pool.used_bytes,
            pool.daily_used_bytes,
            vms_that_fit=None,
            oversubscription_ratio=None,
            stranded=None,
        )
        for pool in usage.pools
    ]


def _row(
    scope: str,
    subject: str,
    resource: str,
    usable: float | None,
    used: float | None,
    daily: F64,
    *,
    vms_that_fit: int | None,
    oversubscription_ratio: float | None,
    stranded: float | None,
) -> ScopeRow:
    left = None
    if usable is not None and used is not None:
        left = 1.0 - used / usable if usable > 0 else -1.0
    until_full = days_to_full(daily, usable) if usable is not None and len(daily) else None
    days = [None, None, None] if until_full is None else [_finite(day) for day in until_full]
    return ScopeRow(
        scope=scope,
        subject=subject,
        resource=resource,
        usable=usable,
        used=used,
        remaining_ratio=left,
        days_to_full=days[0],
        days_to_full_low=days[1],
        days_to_full_high=days[2],
        days_known=until_full is not None,
        vms_that_fit=vms_that_fit,
        oversubscription_ratio=oversubscription_ratio,
        stranded=stranded,
    )


def _is_known(node: NodeUse) -> bool:
    return node.cores is not None and node.memory_bytes is not None


def _finite(day: float) -> float | None:
    return round(day, 2) if math.isfinite(day) else None


def _usable(scope: str, nodes: Sequence[NodeUse]) -> Size:
    """Return the usable capacity: all of a single node, else each cell without its largest node."""
    if scope == "node":
        return total(nodes[0])
    usable = Size(0.0, 0.0)
    for cell in sorted({node.cell for node in nodes}):
        sizes = [total(node) for node in nodes if node.cell == cell]
        usable = usable.plus(
            Size(
                sum(size.cores for size in sizes) - max(size.cores for size in sizes),
                sum(size.memory_bytes for size in sizes) - max(s.memory_bytes for s in sizes),
            )
        )
    return usable


def _fit(usage: UsageSnapshot, scope: str, nodes: Sequence[NodeUse], usual: Size) -> int:
    """Return how many VMs of the usual size fit on the nodes.

    VMs are counted node by node, but in each cell not beyond its usable capacity.
    """
    if scope == "node":
        return how_many(usual, free(nodes[0], usage.on(nodes)))
    fit = 0
    for cell in sorted({node.cell for node in nodes}):
        mine = [node for node in nodes if node.cell == cell]
        rooms = [free(node, usage.on([node])) for node in mine]
        usable = _usable("cell", mine)
        taken = Size(0.0, 0.0)
        for node, room in zip(mine, rooms, strict=True):
            taken = taken.plus(total(node)).plus(room, -1.0)
        spare = usable.plus(taken, -1.0)
        within = how_many(usual, Size(max(spare.cores, 0.0), max(spare.memory_bytes, 0.0)))
        fit += min(sum(how_many(usual, room) for room in rooms), within)
    return fit


def _stranded(usage: UsageSnapshot, nodes: Sequence[NodeUse], usual: Size, resource: str) -> float:
    """Return how much of `resource` is free on nodes where the other one prevents one more VM."""
    stranded = 0.0
    for node in nodes:
        room = free(node, usage.on([node]))
        if resource == "cpu" and room.memory_bytes < usual.memory_bytes:
            stranded += room.cores
        if resource == "memory" and room.cores < usual.cores:
            stranded += room.memory_bytes
    return stranded


def cell_row(usage: UsageSnapshot, cell: str) -> CellRow:
    """Return the capacity of a cell.

    Raises
    ------
    ValueError
        The snapshot has no node of this cell.
    """
    nodes = [node for node in usage.nodes if node.cell == cell]
    usable = _usable("cell", nodes)
    taken = Size(0.0, 0.0)
    rooms = []
    for node in nodes:
        room = free(node, usage.on([node]))
        rooms.append(room)
        taken = taken.plus(total(node)).plus(room, -1.0)
    known = all(map(_is_known, nodes))
    largest = max(rooms, key=lambda room: (room.memory_bytes, room.cores))
    contended = []
    for node in nodes:
        waits = [vm.waiting_ratio for vm in usage.on([node]) if vm.waiting_ratio is not None]
        if waits and float(np.mean(waits)) > _CONTENDED_RATIO:
            contended.append(node.node)
    return CellRow(
        cell=cell,
        nodes=len(nodes),
        vms=len(usage.on(nodes)),
        survives_node_loss=taken.fits(usable) if known else None,
        short_cores=max(taken.cores - usable.cores, 0.0) if known else None,
        short_memory_bytes=max(taken.memory_bytes - usable.memory_bytes, 0.0) if known else None,
        largest_vm_cores=largest.cores if known else None,
        largest_vm_memory_bytes=largest.memory_bytes if known else None,
        contended_nodes=tuple(sorted(contended)),
    )


def _vm_row(vm: VmUse) -> VmRow | None:
    """Return a proposal for a VM that is idle or oversized; None for any other VM."""
    vcpus = memory = None
    if vm.vcpus is not None and vm.cpu_p95_cores is not None:
        vcpus = max(1, math.ceil(vm.cpu_p95_cores / _CPU_TARGET))
    if vm.memory_bytes is not None and vm.memory_p99_bytes is not None:
        wanted = math.ceil(vm.memory_p99_bytes * _MEMORY_ROOM / (256 * _MIB))
        memory = max(1, wanted) * 256 * _MIB
    idle = (
        vm.vcpus is not None
        and vm.cpu_p95_cores is not None
        and vm.cpu_p95_cores <= _IDLE_SHARE * vm.vcpus
        and (vm.io_bytes_per_s is None or vm.io_bytes_per_s < _IDLE_BYTES_PER_S)
    )
    oversized = (
        vcpus is not None and vm.vcpus is not None and vcpus <= _OVERSIZED_SHARE * vm.vcpus
    ) or (
        memory is not None
        and vm.memory_bytes is not None
        and memory <= _OVERSIZED_SHARE * vm.memory_bytes
    )
    if not (idle or oversized):
        return None
    return VmRow(
        vm=vm.vm,
        name=vm.name,
        node=vm.node,
        finding="idle" if idle else "oversized",
        vcpus=vm.vcpus,
        proposed_vcpus=None if vcpus is None or vm.vcpus is None else min(vcpus, int(vm.vcpus)),
        cpu_p95_cores=vm.cpu_p95_cores,
        memory_bytes=vm.memory_bytes,
        proposed_memory_bytes=(
            None if memory is None or vm.memory_bytes is None else min(memory, int(vm.memory_bytes))
        ),
        memory_p99_bytes=vm.memory_p99_bytes,
    )


def _summed(daily: Sequence[F64]) -> F64:
    """Return the daily sums over nodes, newest last; NaN for a day that any node lacks.

    The result is empty if a node has no days at all.
    """
    if not daily or any(not len(one) for one in daily):
        return np.empty(0)
    length = max(map(len, daily))
    padded = [np.concatenate([np.full(length - len(one), np.nan), one]) for one in daily]
    return np.asarray(np.sum(padded, axis=0), np.float64)

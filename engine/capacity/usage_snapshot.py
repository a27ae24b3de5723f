"""A usage snapshot for capacity planning: nodes, VMs and pools, as values from any source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_NO_DAYS: Final = np.empty(0)


class Size(NamedTuple):
    """Cores and bytes of memory, required or available."""

    cores: float
    memory_bytes: float

    def fits(self, free: "Size") -> bool:
        """Return whether this size fits into the size `free`."""
        return self.cores <= free.cores and self.memory_bytes <= free.memory_bytes

    def plus(self, other: "Size", times: float = 1.0) -> "Size":
        """Return this size plus `times` the other."""
        return Size(
            self.cores + times * other.cores, self.memory_bytes + times * other.memory_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VmUse:
    """Use of one VM over the window; None is unknown.

    Attributes
    ----------
    vcpus, memory_bytes
        Allocated by its definition.
    cpu_p95_cores, memory_p99_bytes
        Measured use.
    waiting_ratio
        Waiting time divided by the CPU time that the VM requested (used plus waited for).
    io_bytes_per_s
        Mean rate of the VM's whole disk and network traffic.
    """

    vm: str
    node: str
    name: str = ""
    flavor: str | None = None
    vcpus: float | None = None
    memory_bytes: float | None = None
    cpu_p95_cores: float | None = None
    memory_p99_bytes: float | None = None
    waiting_ratio: float | None = None
    io_bytes_per_s: float | None = None

    @property
    def needs(self) -> Size:
        """Capacity that a node needs for the VM: its CPU use and its allocated memory.

        CPU time is shared; memory that a guest once touched is not returned. If the CPU use is
        unknown, all vCPUs count; if the allocated memory is unknown, the measured use. 0 if both
        are unknown.
        """
        cores = self.cpu_p95_cores if self.cpu_p95_cores is not None else self.vcpus
        memory = self.memory_bytes if self.memory_bytes is not None else self.memory_p99_bytes
        return Size(cores or 0.0, memory or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeUse:
    """One node; `daily_*` have one value for each day, oldest first, NaN for an unknown day.

    The values are the peak of memory and a 95th percentile of cores.
    """

    node: str
    cell: str
    zone: str = ""
    cores: float | None = None
    memory_bytes: float | None = None
    cpu_p95_cores: float | None = None
    memory_p99_bytes: float | None = None
    daily_cores: F64 = field(default_factory=lambda: _NO_DAYS)
    daily_memory_bytes: F64 = field(default_factory=lambda: _NO_DAYS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolUse:
    """One storage pool of one cell."""

    pool: str
    cell: str
    capacity_bytes: float
    used_bytes: float
    daily_used_bytes: F64 = field(default_factory=lambda: _NO_DAYS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UsageSnapshot:
    """The input of a report.

    Attributes
    ----------
    days
        Length of the window in days, shown in the report.
    """

    nodes: Sequence[NodeUse]
    vms: Sequence[VmUse]
    pools: Sequence[PoolUse] = ()
    days: float = 0.0

    def on(self, nodes: Sequence[NodeUse]) -> list[VmUse]:
        """Return the VMs of some nodes."""
        names = {node.node for node in nodes}
        return [vm for vm in self.vms if vm.node in names]

    def scopes(self) -> list[tuple[str, str, list[NodeUse]]]:
        """Return every node, cell and zone with its nodes: nodes first, then cells, then zones.

        A tuple has the kind of the scope (`node`, `cell` or `zone`), its name, and its nodes. Nodes
        keep the order of the snapshot; cells and zones are sorted by name. An empty zone is left
        out.
        """
        cells = sorted({node.cell for node in self.nodes})
        zones = sorted({node.zone for node in self.nodes if node.zone})
        return [
            *(("node", node.node, [node]) for node in self.nodes),
            *(("cell", name, [n for n in self.nodes if n.cell == name]) for name in cells),
            *(("zone", name, [n for n in self.nodes if n.zone == name]) for name in zones),
        ]


def total(node: NodeUse) -> Size:
    """Return the size of a node; zero where it is unknown."""
    return Size(node.cores or 0.0, node.memory_bytes or 0.0)


def free(node: NodeUse, vms: Sequence[VmUse]) -> Size:
    """Return the free size of a node; 0 for a resource whose size is unknown.

    `vms` are the VMs on the node. For each resource, the larger of the node's measured use and its
    VMs' needs is subtracted; the result is not negative.
    """
    needs = Size(0.0, 0.0)
    for vm in vms:
        needs = needs.plus(vm.needs)
    has = total(node)
    return Size(
        max(has.cores - max(needs.cores, node.cpu_p95_cores or 0.0), 0.0),
        max(has.memory_bytes - max(needs.memory_bytes, node.memory_p99_bytes or 0.0), 0.0),
    )


def usual_size(vms: Sequence[VmUse]) -> Size | None:
    """Return the median needs of the VMs of the most common flavor.

    If no flavor is known, this is the median over all VMs. VMs of unknown memory are left out;
    None if no VM remains.
    """
    flavors = [vm.flavor for vm in vms if vm.flavor]
    if flavors:
        common = max(sorted(set(flavors)), key=flavors.count)
        vms = [vm for vm in vms if vm.flavor == common]
    return _middle(vms)


def flavor_size(vms: Sequence[VmUse], flavor: str) -> Size | None:
    """Return the median needs of the existing VMs of a flavor; None if there is no such VM.

    VMs of unknown memory are left out.
    """
    return _middle([vm for vm in vms if vm.flavor == flavor])


def _middle(vms: Sequence[VmUse]) -> Size | None:
    sizes = [vm.needs for vm in vms if vm.needs.memory_bytes > 0]
    if not sizes:
        return None
    return Size(
        float(np.median([size.cores for size in sizes])),
        float(np.median([size.memory_bytes for size in sizes])),
    )


def how_many(size: Size, room: Size) -> int:
    """Return how many VMs of a size fit into a free size.

    The memory of `size` must be above zero; its cores may be zero, and memory alone then limits.
    """
    by_memory = int(room.memory_bytes // size.memory_bytes)
    # A VM that uses almost no CPU is limited by memory alone.
    return min(by_memory, int(room.cores // size.cores)) if size.cores > 1e-6 else by_memory

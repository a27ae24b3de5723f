"""Names, sizes and locations of the site, drawn once from the seed."""

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.plan import (
    WORKLOADS,
    WorldPlan,
    cell_name,
    network_name,
    node_name,
    pool_name,
)
from flatline.engine.wire.frame import InventoryItem

KIB_PER_GIB: Final = 1024 * 1024
_VCPUS: Final = np.array([1, 2, 2, 2, 4, 4, 8])
_GIB_PER_VCPU: Final = np.array([2, 4])
# Cores of a node for each vCPU allocated on it, as is usual in company data centres.
_CORES_PER_VCPU: Final = 1 / 3


class Topology:
    """The site's constant properties, as arrays over VMs (N), nodes, pools and networks.

    Attributes
    ----------
    uuids
        One 16-byte UUID (version 4 layout) for each VM.
    workload
        Shape (N,), index into `WORKLOADS`.
    home
        Shape (N,), the node each VM starts on.
    balloon, tickless
        Shape (N,), whether the guest reports its memory, and whether its idle vCPUs sleep long.
    pool, network
        Shape (N,), the pool of the VM's disk and the network of its card; network -1 is no card.
    """

    def __init__(self, plan: WorldPlan, rng: np.random.Generator) -> None:
        size = plan.vms
        self.plan = plan
        self.cells = [cell_name(cell) for cell in range(plan.cells)]
        self.nodes = [
            node_name(cell=cell, node=node)
            for cell in range(plan.cells)
            for node in range(plan.nodes_per_cell)
        ]
        self.node_index = {name: index for index, name in enumerate(self.nodes)}
        self.node_cell = np.repeat(np.arange(plan.cells), plan.nodes_per_cell)
        self.home = np.repeat(np.arange(len(self.nodes)), plan.vms_per_node)
        self.cell = self.node_cell[self.home]
        # Ascending, so that the plan's order is also the order in which a node lists its VMs.
        self.uuids = sorted(_uuid(plan.seed, index) for index in range(size))
        self.index_of = {uuid: index for index, uuid in enumerate(self.uuids)}
        self.workload = self._draw_workloads(rng)
        self.vcpus = rng.choice(_VCPUS, size)
        self.memory_kib = self.vcpus * rng.choice(_GIB_PER_VCPU, size) * KIB_PER_GIB
        self.panic_device = rng.random(size) < plan.panic_device_ratio
        self.pools, self.cell_pools, self.pool = self._deal(
            plan.pools_per_cell,
            [pool_name(cell=None, pool=pool) for pool in range(plan.site_pools)],
            lambda cell, index: pool_name(cell=cell, pool=index),
        )
        self.networks, _, network = self._deal(
            plan.networks_per_cell,
            [network_name(cell=None, network=index) for index in range(plan.site_networks)],
            lambda cell, index: network_name(cell=cell, network=index),
        )
        self.network = np.where(rng.random(size) < plan.nicless_ratio, -1, network)
        # Drawn last, so that the values drawn before stay the same for a seed.
        self.balloon = rng.random(size) >= plan.balloonless_ratio
        self.tickless = rng.random(size) < plan.tickless_ratio
        self.names = [
            f"{self.nodes[self.home[index]]}-{WORKLOADS[self.workload[index]]}{index:04d}"
            for index in range(size)
        ]
        promised = np.bincount(self.home, weights=self.vcpus, minlength=len(self.nodes))
        self.node_cores = (
            np.maximum(4, np.ceil(promised * _CORES_PER_VCPU)).astype(np.int64)
            if plan.node_cores is None
            else np.full(len(self.nodes), plan.node_cores, np.int64)
        )
        # Memory is a quarter more than allocated: the reserve for the failure of another node.
        self.node_memory_kib = np.bincount(
            self.home, weights=self.memory_kib * 1.25, minlength=len(self.nodes)
        )

    def zone(self, node: int) -> str:
        """Return the name of the zone of a node, which is given by its index in `nodes`."""
        return f"z{self.node_cell[node] % self.plan.zones}"

    def pools_seen_by(self, node: int) -> list[int]:
        """Return the pools that a node can open: those of its cell and the shared ones.

        The node is given by its index in `nodes`; the pools are indices into `pools`.
        """
        return self.cell_pools[self.node_cell[node]]

    def item(self, index: int) -> InventoryItem:
        """Return the content of the definition of the VM with this index in the plan."""
        workload = WORKLOADS[self.workload[index]]
        network = self.network[index]
        return InventoryItem(
            vm=self.uuids[index],
            name=self.names[index],
            tenant=f"tenant{index % self.plan.tenants}",
            group=f"{workload}-{self.cells[self.cell[index]]}",
            flavor=f"v{self.vcpus[index]}",
            actionable=True,
            vcpus=int(self.vcpus[index]),
            memory_bytes=int(self.memory_kib[index]) * 1024,
            disks={"vda": self.pools[self.pool[index]]},
            nics={} if network < 0 else {"vnet0": self.networks[network]},
            panic_device=bool(self.panic_device[index]),
            balloon_period_s=self.plan.balloon_period_s if self.balloon[index] else 0,
        )

    def _draw_workloads(self, rng: np.random.Generator) -> NDArray[np.int64]:
        weights = np.array([self.plan.workloads.get(name, 0.0) for name in WORKLOADS])
        drawn = rng.choice(len(WORKLOADS), self.plan.vms, p=weights / weights.sum())
        for index, name in self.plan.pinned.items():
            drawn[index] = WORKLOADS.index(name)
        return drawn

    def _deal(
        self, per_cell: int, shared: list[str], name: Callable[[int, int], str]
    ) -> tuple[list[str], list[list[int]], NDArray[np.int64]]:
        """Distribute pools or networks: `per_cell` in each cell, and `shared` ones in all cells.

        Return the names of all, the indices that each cell can use, and the index for each VM.
        """
        names = list(shared)
        choices = []
        for cell in range(self.plan.cells):
            own = range(len(names), len(names) + per_cell)
            names += [name(cell, index) for index in range(per_cell)]
            choices.append([*own, *range(len(shared))])
        vms_per_cell = self.plan.nodes_per_cell * self.plan.vms_per_node
        turn = np.arange(self.plan.vms) % vms_per_cell % (per_cell + len(shared))
        return names, choices, np.array(choices)[self.cell, turn]


def _uuid(seed: int, index: int) -> bytes:
    """Return a UUID that depends only on the seed and the VM."""
    raw = bytearray(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=16).digest())
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)

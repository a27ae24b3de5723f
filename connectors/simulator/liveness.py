"""The `Liveness` of a simulated node: it reports vCPU times, and no guest answers a probe."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.node_access import NodeAccess
from flatline.connectors.simulator.world import NS_PER_S
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.preflight_data import ObservedGuest, Sign
from flatline.engine.wire.metrics import COUNTERS

_MOVED: Final = [
    row
    for row, metric in enumerate(COUNTERS)
    if metric.name in {"block_rd_reqs", "block_wr_reqs", "net_tx_pkts"}
]


class SimulatedLiveness(NodeAccess):
    """See `engine.liveness_ports.Liveness`; simulated guests have no address, agent or console."""

    async def roster(self) -> tuple[ObservedGuest, ...]:
        """See `engine.liveness_ports.Liveness`."""
        world = self._world
        world.sync()
        if world.unreachable[self._node]:
            raise HypervisorUnreachable(f"node {self._name} does not answer")
        indices = np.flatnonzero(world.guests.node == self._node)
        counters, vcpus = world.meters.read(indices, world.now_ns)
        found = []
        for column, index in enumerate(indices.tolist()):
            item = world.topology.item(index)
            if not item.actionable or not lifecycle.runs(world, index):
                continue
            answers = world.now_ns / NS_PER_S < world.guests.silent_since_s[index]
            ran = vcpus[: world.topology.vcpus[index], column]
            found.append(
                ObservedGuest(
                    vm=world.topology.uuids[index],
                    instance=int(world.guests.instance[index]),
                    boots_seen=int(world.guests.boot[index]),
                    mono_ns=world.mono_ns(self._node),
                    vcpu_wanted_ns=tuple(int(ns) for ns in ran),
                    moved=int(counters[_MOVED, column].sum()) if answers else None,
                    balloon_period_s=item.balloon_period_s,
                )
            )
        return tuple(found)

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        """See `engine.liveness_ports.Liveness`."""
        return {}

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        """See `engine.liveness_ports.Liveness`."""
        return "unknown"

    async def console(self, vm: bytes) -> str:
        """See `engine.liveness_ports.Liveness`."""
        return ""

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None:
        """See `engine.liveness_ports.Liveness`; has no effect on a simulated balloon."""

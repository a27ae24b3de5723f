"""The collector's view of a simulated node: the values that libvirt would return, and no more."""

import asyncio
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.guests import Condition
from flatline.connectors.simulator.meters import VCPUS
from flatline.connectors.simulator.node_access import NodeAccess
from flatline.connectors.simulator.panel import REPORTED, Panel
from flatline.connectors.simulator.world import NS_PER_S, SIGHT, Roster, World
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Event, InventoryItem, PoolSample, VmRows
from flatline.engine.wire.metrics import COUNTERS, GAUGE_ROW, GAUGES, INTEGER_ROW
from flatline.engine.wire.vcpus import QUANTUM_NS, VcpuRows

# A vCPU counts as busy from half a core on, as in `connectors.libvirt.decoding`.
BUSY_RATIO: Final = 0.5
# A monitor that is silent for longer than the end of a migration takes is reported as hung.
_HUNG_AFTER_S: Final = 2.0

_ROW = INTEGER_ROW
# Values that libvirt cannot report for a VM whose monitor is silent.
_ASKED: Final = np.array(
    [
        *(row for name, row in _ROW.items() if name.startswith("block_")),
        *REPORTED,
        _ROW["balloon_rss_kib"],
        _ROW["job_active"],
    ]
)


class SimulatedHypervisor(NodeAccess):
    """A `Hypervisor` of one node of a simulated world.

    Each VM that runs on the node has a row, by ascending UUID. A VM whose monitor is silent keeps
    its row, with the values that libvirt has without the monitor.
    """

    def __init__(self, world: World, node: str) -> None:
        super().__init__(world, node)
        self._heard = len(world.events[self._node])
        self._sight = world.stream(SIGHT, self._node)
        self._vcpus = _VcpuShape()
        self._shown = world.roster(self._node)

    async def sample(self) -> NodeSample:
        """Return all running VMs in their state at the moment when the bulk call returns.

        Raises
        ------
        HypervisorUnreachable
            The node is unreachable, or this call was lost.
        """
        sight = self._world.plan.telemetry
        call_s = sight.call_s
        if sight.call_jitter_s:
            call_s += sight.call_jitter_s * float(self._sight.random())
        if call_s:
            await asyncio.sleep(call_s)
        self._world.sync()
        return self.observe()

    def observe(self) -> NodeSample:
        """Return the sample of the current world time, without waiting.

        Raises
        ------
        HypervisorUnreachable
            The node is unreachable, or this call was lost.
        """
        world, node = self._world, self._node
        name = world.topology.nodes[node]
        if world.unreachable[node]:
            raise HypervisorUnreachable(f"node {name} does not answer")
        sight = world.plan.telemetry
        if sight.sample_loss_ratio and self._sight.random() < sight.sample_loss_ratio:
            raise HypervisorUnreachable(f"the bulk call to node {name} did not return in time")
        panel, roster = world.panel(), world.roster(node)
        if panel.any_hidden:
            roster = self._as_before(world.without(roster, panel.hidden[roster.vms]))
        silent: NDArray[np.bool_] | None = None
        hung: tuple[bytes, ...] = ()
        if panel.any_silent:
            silent_s = world.now_ns / NS_PER_S - world.guests.silent_since_s[roster.vms]
            silent = silent_s >= 0
            uuids = world.topology.uuids
            hung = tuple(uuids[index] for index in roster.indices[silent_s >= _HUNG_AFTER_S])
        if sight.row_loss_ratio:
            lost = self._sight.random(roster.indices.size) < sight.row_loss_ratio
            silent = lost if silent is None else silent | lost
        if silent is not None and not silent.any():
            silent = None
        return NodeSample(
            event_time_ns=world.wall_ns(node),
            mono_ns=world.mono_ns(node),
            rows=self._rows(panel, roster, silent),
            node=self._node_gauges(panel),
            pools=self._pools(),
            hung=hung,
        )

    def drain_events(self) -> tuple[Event, ...]:
        """Return the events since the last call, oldest first, each once."""
        self._world.sync()
        events = self._world.events[self._node]
        heard, self._heard = self._heard, len(events)
        return tuple(events[heard:])

    async def inventory(self) -> tuple[InventoryItem, ...]:
        """Return the properties of each running VM, from its definition.

        Raises
        ------
        HypervisorUnreachable
            The node is unreachable.
        """
        self._world.sync()
        if self._world.unreachable[self._node]:
            name = self._world.topology.nodes[self._node]
            raise HypervisorUnreachable(f"node {name} does not answer")
        here = self._world.roster(self._node).indices
        running = here[self._world.guests.condition[here] != Condition.OFF]
        return tuple(self._world.topology.item(int(index)) for index in running)

    def _as_before(self, roster: Roster) -> Roster:
        """Return the last roster object if no VM came or went; `_VcpuShape` tests for identity."""
        if roster.uuids != self._shown.uuids:
            self._shown = roster
        return self._shown

    def _rows(self, panel: Panel, roster: Roster, silent: NDArray[np.bool_] | None) -> VmRows:
        world, indices, size = self._world, roster.vms, roster.indices.size
        integers = panel.shown[:, indices].copy()
        counters, times_ns = world.meters.read(indices, world.now_ns)
        integers[: len(COUNTERS)] += counters
        missing = panel.missing[:, indices].copy()
        ratios = self._vcpus.ratios(
            roster.indices,
            instances=world.guests.instance[indices],
            times_ns=times_ns,
            now_ns=world.now_ns,
        )
        gauges = np.full((len(GAUGES), size), np.nan, np.float32)
        if ratios is None:
            missing[_ROW["vcpus_busy"]] = True
        else:
            busiest = np.maximum.reduce(ratios)
            gauges[GAUGE_ROW["vcpu_busiest_ratio"]] = busiest
            missing[_ROW["vcpus_busy"]] = np.isnan(busiest)
            integers[_ROW["vcpus_busy"]] = np.add.reduce(ratios >= BUSY_RATIO, dtype=np.intp)
        if world.plan.telemetry.dirty_rate_known:
            cores = world.meters.pace.gains[VCPUS:, indices].sum(axis=0)
            gauges[GAUGE_ROW["dirty_bytes_per_s"]] = _DIRTIED_BYTES_PER_CORE * cores
        if silent is not None:
            missing[_ASKED[:, None], np.flatnonzero(silent)] = True
        integers[missing] = 0
        return VmRows(
            uuids=roster.uuids,
            integers=integers,
            missing=missing,
            gauges=gauges,
            vcpus=_vcpu_rows(
                world.topology.vcpus[indices], world.topology.tickless[indices], times_ns
            ),
        )

    def _node_gauges(self, panel: Panel) -> Mapping[str, float]:
        world, node = self._world, self._node
        rates, topology = world.rates, world.topology
        squeeze, busy = rates.squeeze.item(node), rates.node_busy.item(node)
        given = rates.node_share.item(node) * (1.0 - squeeze)
        waiting = panel.stuck_share.item(node)
        return {
            "cpu_cores": float(topology.node_cores.item(node)),
            "cpu_busy_ratio": min(1.0, busy + squeeze),
            "memory_total_bytes": topology.node_memory_kib.item(node) * 1024,
            "memory_available_bytes": panel.memory_available.item(node),
            "psi_cpu_some_ratio": min(1.0, 1.0 - given + 0.02 * busy),
            "psi_io_some_ratio": waiting,
            "psi_io_full_ratio": waiting if waiting == 1.0 else 0.0,
            "psi_memory_some_ratio": 0.0,
            "psi_memory_full_ratio": 0.0,
            "hypervisor_reachable": 1.0,
        }

    def _pools(self) -> tuple[PoolSample, ...]:
        """Return the node's pools; a stalled one has no latency, since nothing completes."""
        rates, topology = self._world.rates, self._world.topology
        return tuple(
            PoolSample(
                name=topology.pools[pool],
                capacity_bytes=_POOL_BYTES,
                available_bytes=_POOL_BYTES // 2,
                latency_s=None if rates.pool_stalled[pool] else rates.pool_latency_s.item(pool),
            )
            for pool in topology.pools_seen_by(self._node)
        )


# A busy core writes some tens of MB of memory per second; pre-copy must transfer more than that.
_DIRTIED_BYTES_PER_CORE: Final = 40e6
# CPU time of one wake-up of an idle vCPU in a tickless guest.
_WAKE_NS: Final = 20_000_000
# Pools do not fill up in a simulated world; half of 100 TB is free.
_POOL_BYTES: Final = 100 * 10**12


def _vcpu_rows(
    counts: NDArray[np.int64], tickless: NDArray[np.bool_], times_ns: NDArray[np.float64]
) -> VcpuRows:
    """Return each VM's vCPU times, shape (V, n), as a collector reports them.

    Nearly every wake-up waits a little for its core, so a vCPU's time grows with each wake-up.
    vCPUs of tickless guests wake up rarely and then work for longer.
    """
    has = np.arange(len(times_ns)) < counts[:, None]
    quanta = np.where(tickless, _WAKE_NS, QUANTUM_NS)
    shown = (times_ns // quanta * quanta).T[has].astype(np.uint64)
    return VcpuRows(counts=counts.astype(np.uint16), times_ns=shown, missing=None)


class _VcpuShape:
    """Remembers each vCPU's time at the last sample."""

    def __init__(self) -> None:
        self._indices = np.zeros(0, np.intp)
        self._instances = np.zeros(0, np.int64)
        self._times_ns = np.zeros((0, 0))
        self._at_ns = 0

    def ratios(
        self,
        indices: NDArray[np.intp],
        *,
        instances: NDArray[np.int64],
        times_ns: NDArray[np.float64],
        now_ns: int,
    ) -> NDArray[np.float64] | None:
        """Return shape (V, n): share of a core since the last sample.

        NaN if the last sample lacks the VM or its current run; None if this holds for all VMs.
        """
        before = self._before(indices, instances, times_ns)
        elapsed_ns = now_ns - self._at_ns
        self._indices, self._instances = indices, instances.copy()
        self._times_ns, self._at_ns = times_ns, now_ns
        if before is None or elapsed_ns <= 0:
            return None
        ratios: NDArray[np.float64] = (times_ns - before) / elapsed_ns
        if np.minimum.reduce(ratios, axis=None, initial=0.0) < 0:
            # A VM with a vCPU time that decreased has no shares either.
            ratios[:, (ratios < 0).any(axis=0)] = np.nan
        return ratios

    def _before(
        self,
        indices: NDArray[np.intp],
        instances: NDArray[np.int64],
        times_ns: NDArray[np.float64],
    ) -> NDArray[np.float64] | None:
        """Return the last times in the order of `indices`; NaN for another run of the VM."""
        if indices is self._indices and (self._instances == instances).all():
            return self._times_ns
        _, new, old = np.intersect1d(indices, self._indices, return_indices=True)
        same = self._instances[old] == instances[new]
        if not same.any():
            return None
        before = np.full(times_ns.shape, np.nan)
        before[:, new[same]] = self._times_ns[:, old[same]]
        return before

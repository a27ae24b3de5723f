"""From what guests want to what they get: one step's pace of every counter.

Wants follow from habit and condition. A node whose VMs want more cores than it has, or
that is sick or squeezed by an aggressor, gives everybody less, and the rest is counted as
run-queue wait and delay. A pool that stalls completes nothing; a slow one completes less.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.simulator import guests as g
from connectors.simulator.guests import Condition, Guests
from connectors.simulator.meters import (
    CPU,
    DELAY,
    FLUSH,
    READ,
    RECEIVE,
    SEND,
    SYSTEM,
    USER,
    WAIT,
    WRITE,
    Lanes,
    Meters,
)
from connectors.simulator.topology import Topology
from connectors.simulator.workloads import Activity, Habits

Floats = NDArray[np.float64]

_BASE_LATENCY_NS = 800_000.0
# One probe of each guest's card every 5 s: neighbours' ARP requests and the platform's ping.
_PROBES_PER_S = 0.2
_PROBE_BYTES = 64.0
# Broadcast and multicast chatter that every card of a network receives.
_CHATTER_PER_S = 1.5
# qemu's own threads, and what they cost per request.
_OVERHEAD_CORES = 0.002
_OVERHEAD_NS = 15_000.0
# A guest whose disk does not answer keeps a little of its CPU: what never touches the disk.
_STUCK_CPU_SHARE = 0.04
_UNANSWERED_SEND_SHARE = 0.05
_SECTOR = 512.0


class Draws(NamedTuple):
    """The chance of one step.

    It is drawn for all VMs whatever their state, so that what is done to one VM changes no
    other one's noise.
    """

    normal: Floats  # (N,)
    chance: NDArray[np.float32]  # (N,)
    rounding: NDArray[np.float32]  # (5, N): which side a fraction of a request falls to
    size: NDArray[np.float32]  # (N,)
    chatter: Floats  # (networks,): broadcasts of this step

    @classmethod
    def draw(cls, rng: np.random.Generator, *, size: int, networks: int, step_s: float) -> "Draws":
        """Return the draws of the next step."""
        return cls(
            normal=rng.standard_normal(size, np.float32).astype(np.float64),
            chance=rng.random(size, np.float32),
            rounding=rng.random((5, size), np.float32),
            size=rng.random(size, np.float32),
            chatter=np.append(rng.poisson(_CHATTER_PER_S * step_s, networks), 0).astype(np.float64),
        )


class Rates:
    """Sets the pace of `Meters` for one step, for all VMs or for those that changed in it.

    Attributes
    ----------
    squeeze
        Shape (nodes,), in [0, 1): share of its cores that a node withholds.
    pool_stalled, network_stalled
        Shape (pools,) and (networks + 1,); the last network is "no card".
    pool_slowness
        Shape (pools,), ≥ 1.
    node_share, node_busy
        Shape (nodes,): what share of wanted CPU a node gave, and of its cores that ran.
    pool_latency_s
        Shape (pools,), of this step.
    """

    def __init__(
        self, topology: Topology, habits: Habits, guests: Guests, meters: Meters, *, step_s: float
    ) -> None:
        self._topology = topology
        self._habits = habits
        self._guests = guests
        self._meters = meters
        self._step_s = step_s
        nodes, pools = len(topology.nodes), len(topology.pools)
        self.squeeze = np.zeros(nodes)
        self.pool_stalled = np.zeros(pools, np.bool_)
        self.pool_slowness = np.ones(pools)
        self.network_stalled = np.zeros(len(topology.networks) + 1, np.bool_)
        self.network_stalled[-1] = True
        self.node_share = np.ones(nodes)
        self.node_busy = np.zeros(nodes)
        self.pool_latency_s = np.full(pools, _BASE_LATENCY_NS / 1e9)
        ranks = np.arange(meters.vcpu_speeds.shape[0])[:, None]
        self._ranks = ranks
        self._has = ranks < topology.vcpus
        self._skew = _skew(topology.uuids, topology.vcpus, ranks.size)
        self._activity: Activity
        self._draws: Draws

    def begin(self, activity: Activity, draws: Draws) -> None:
        """Start a step: settle who gets how much of nodes and pools, then pace all VMs."""
        self._activity = activity
        self._draws = draws
        everyone = slice(None)
        stuck = self.stuck(everyone)
        spread, pinned = self._wants(everyone, stuck)
        nodes = self.squeeze.size
        node = self._guests.node
        wanted = np.bincount(node, weights=spread + pinned, minlength=nodes)
        cores = self._topology.node_cores
        self.node_share = np.minimum(1.0, cores / np.maximum(wanted, 1e-9))
        self.node_busy = np.minimum(1.0, wanted * self.node_share / cores)
        self._pace(everyone, stuck, spread, pinned)
        load = np.bincount(
            self._topology.pool,
            weights=self._meters.events[READ] + self._meters.events[WRITE],
            minlength=self.pool_stalled.size,
        )
        # Latency doubles at twenty thousand requests per second: a mid-range array.
        queue = 1.0 + load / self._step_s / 20_000.0
        self.pool_latency_s = _BASE_LATENCY_NS / 1e9 * queue * self.pool_slowness

    def pace(self, lanes: Lanes) -> None:
        """Set the pace of `lanes` for the rest of the step, from what they are now."""
        stuck = self.stuck(lanes)
        self._pace(lanes, stuck, *self._wants(lanes, stuck))

    def _pace(self, lanes: Lanes, stuck: NDArray[np.bool_], spread: Floats, pinned: Floats) -> None:
        share = self._share(lanes)
        self._pace_disk(lanes, stuck, share)
        self._pace_network(lanes, stuck, share)
        self._pace_cpu(lanes, spread, pinned, share)

    def stuck(self, lanes: Lanes) -> NDArray[np.bool_]:
        """Return shape (n,): whose disk completes nothing now."""
        guests = self._guests
        stuck: NDArray[np.bool_] = (
            self.pool_stalled[self._topology.pool[lanes]]
            | guests.io_stuck[lanes]
            | (guests.condition[lanes] == Condition.HUNG_IO)
        )
        return stuck

    def _wants(self, lanes: Lanes, stuck: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Return the cores wanted: spread over all vCPUs, and pinned to the first ones."""
        guests, vcpus = self._guests, self._topology.vcpus[lanes]
        condition = guests.condition[lanes]
        works = g.WORKS[condition]
        share = np.where(stuck, _STUCK_CPU_SHARE, 1.0)
        # Without a network there are no requests to serve; half of the load is such.
        cut_off = self.network_stalled[:-1][self._topology.network[lanes]]
        share = share * np.where(cut_off & (self._topology.network[lanes] >= 0), 0.5, 1.0)
        idle = self._habits.idle_cores[lanes] * (0.7 + 0.6 * self._draws.chance[lanes])
        spread = works * (idle + self._activity.cpu_share[lanes] * vcpus * share)
        own = g.CORES[condition] * np.where(stuck, _STUCK_CPU_SHARE, 1.0)
        pinned = own + guests.spin_cores[lanes] + works * guests.extra_cores[lanes]
        pinned = np.minimum(pinned, vcpus)
        return np.minimum(spread, vcpus - pinned), pinned

    def _share(self, lanes: Lanes) -> Floats:
        """Return what share of its wish each VM gets from its node."""
        node = self._guests.node[lanes]
        squeezed = np.where(self._guests.takes_all[lanes], 0.0, self.squeeze[node])
        share: Floats = self.node_share[node] * (1.0 - squeezed)
        return share

    def _pace_cpu(self, lanes: Lanes, spread: Floats, pinned: Floats, share: Floats) -> None:
        meters, vcpus = self._meters, self._topology.vcpus[lanes]
        even = spread / vcpus
        # The busier the guest, the less room there is for its vCPUs to differ.
        own = even + self._skew[:, lanes] * (even * (1.0 - even))
        own += np.clip(pinned - self._ranks, 0.0, 1.0)
        np.minimum(own, 1.0, out=own)
        own *= self._has[:, lanes]
        wanted = own.sum(axis=0)
        own *= share
        meters.vcpu_speeds[:, lanes] = own
        got = own.sum(axis=0)
        requests = meters.events[:3, lanes].sum(axis=0) / self._step_s
        alive = self._guests.condition[lanes] < Condition.PAUSED
        total = got * (1.002 + 0.012 * self._draws.chance[lanes]) + alive * (
            _OVERHEAD_CORES + requests * (_OVERHEAD_NS / 1e9)
        )
        user = self._habits.user_share[lanes]
        meters.speeds[CPU, lanes] = total
        meters.speeds[USER, lanes] = total * user
        meters.speeds[SYSTEM, lanes] = total * (1.0 - user)
        lost = wanted - got
        meters.speeds[DELAY, lanes] = lost
        meters.speeds[WAIT, lanes] = lost + got * 0.004 * self._draws.chance[lanes]

    def _pace_disk(self, lanes: Lanes, stuck: NDArray[np.bool_], share: Floats) -> None:
        habits, guests, step_s = self._habits, self._guests, self._step_s
        condition = guests.condition[lanes]
        works = g.WORKS[condition]
        work, floor = self._activity.work[lanes], self._activity.floor[lanes]
        # A disk three times as slow serves about half: queues are only partly full.
        let = ~stuck * share * guests.io_share[lanes]
        slowness = guests.slowness[lanes] * self.pool_slowness[self._topology.pool[lanes]]
        let = let / slowness**0.7 * step_s
        swaps = works * guests.thrashes()[lanes] * 150.0
        reads = works * habits.reads[lanes] * work + swaps
        writes = works * habits.writes[lanes] * np.maximum(work, floor)
        writes = writes * self._activity.flush[lanes] + swaps
        flushes = works * habits.flushes[lanes] * np.maximum(work, floor)
        bulk_reads = g.READS[condition] + works * guests.extra_reads[lanes]
        bulk_writes = g.WRITES[condition] + works * guests.extra_writes[lanes]
        rounding = self._draws.rounding
        events, phase = self._meters.events, self._meters.phase
        events[READ, lanes] = np.floor((reads + bulk_reads) * let + rounding[READ, lanes])
        events[WRITE, lanes] = np.floor((writes + bulk_writes) * let + rounding[WRITE, lanes])
        events[FLUSH, lanes] = np.floor(flushes * let + rounding[FLUSH, lanes])
        # The same draw says when in the step the first one completes: a fraction that was
        # rounded up is then late in it.
        phase[:, lanes] = 0.5 * rounding[:, lanes]
        spread = 0.7 + 0.6 * self._draws.size[lanes]
        sizes = self._meters.sizes
        sizes[0, lanes] = _mean_size(reads, habits.read_bytes[lanes] * spread, bulk_reads)
        sizes[1, lanes] = _mean_size(writes, habits.write_bytes[lanes] * spread, bulk_writes)
        latency = self.pool_latency_s[self._topology.pool[lanes]] * 1e9
        cost = np.floor(latency * guests.slowness[lanes] * spread)
        self._meters.costs[0, lanes] = cost
        self._meters.costs[1, lanes] = np.floor(cost * 1.3)
        self._meters.costs[2, lanes] = np.floor(cost * 2.0)

    def _pace_network(self, lanes: Lanes, stuck: NDArray[np.bool_], share: Floats) -> None:
        habits, guests, step_s = self._habits, self._guests, self._step_s
        condition = guests.condition[lanes]
        network = self._topology.network[lanes]
        open_ = ~self.network_stalled[network]
        work, floor = self._activity.work[lanes], self._activity.floor[lanes]
        served = g.WORKS[condition] * share * np.where(stuck, _UNANSWERED_SEND_SHARE, 1.0)
        sends = served * habits.sends[lanes] * np.maximum(work, floor)
        receives = served * habits.receives[lanes] * np.maximum(work, floor)
        # A probe is answered by the kernel alone; nobody has to be at home behind it.
        probes = np.floor(_PROBES_PER_S * step_s + self._draws.chance[lanes])
        answers = probes * g.KERNEL[condition]
        rounding = self._draws.rounding
        events, sizes = self._meters.events, self._meters.sizes
        gate = open_ * guests.send_share[lanes]
        events[SEND, lanes] = gate * (np.floor(sends * step_s + rounding[SEND, lanes]) + answers)
        heard = probes + self._draws.chatter[network]
        asked = np.floor(receives * step_s + rounding[RECEIVE, lanes])
        events[RECEIVE, lanes] = open_ * (heard + asked) * (condition != Condition.OFF)
        spread = 0.7 + 0.6 * self._draws.size[lanes]
        per_send = habits.send_bytes[lanes] * spread
        total = np.maximum(sends * step_s + answers, 1e-9)
        sizes[2, lanes] = np.floor((sends * step_s * per_send + answers * _PROBE_BYTES) / total)
        total = np.maximum(receives * step_s + heard, 1e-9)
        sizes[3, lanes] = np.floor((receives * step_s * per_send + heard * _PROBE_BYTES) / total)


def _mean_size(small: Floats, small_bytes: Floats, bulk: Floats) -> Floats:
    """Return the mean size of a mix of small and bulk requests, in whole sectors."""
    total = np.maximum(small + bulk, 1e-9)
    mean = (small * small_bytes + bulk * g.BULK_BYTES) / total
    sectors: Floats = np.maximum(np.floor(mean / _SECTOR), 1.0) * _SECTOR
    return sectors


def _skew(uuids: list[bytes], vcpus: NDArray[np.int64], width: int) -> Floats:
    """Return shape (width, N): how each vCPU differs from the mean, in [-1, 1], summing to 0."""
    raw = np.frombuffer(b"".join(uuids), np.uint8).reshape(len(uuids), -1)[:, :width].T / 255.0
    used = np.arange(width)[:, None] < vcpus
    centred = (raw - (raw * used).sum(axis=0) / vcpus) * used
    skew: Floats = centred / np.maximum(np.abs(centred).max(axis=0), 1e-9)
    return skew

"""Compute which resources guests want and which they get, and from these the growth of counters.

What a guest wants follows from its habit and condition. A node whose VMs want more cores than it
has, or that is sick or has a noisy VM, gives each VM less; the rest counts as run-queue wait and
delay. A stalled pool completes no requests, and a slow pool fewer.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator import guests as g
from flatline.connectors.simulator.guests import Condition, Guests
from flatline.connectors.simulator.meters import (
    FLUSH,
    READ,
    RECEIVE,
    ROW,
    SEND,
    VCPUS,
    WRITE,
    Indices,
    Meters,
    Paces,
)
from flatline.connectors.simulator.topology import Topology
from flatline.connectors.simulator.workloads import Activity, Habits

Floats = NDArray[np.float64]

_BASE_LATENCY_NS = 800_000.0
# One probe of each guest's card every 5 s: neighbours' ARP requests and the platform's ping.
_PROBES_PER_S = 0.2
# Activity of an idle vCPU in a tickless guest relative to one with ticks: at most one wake-up per
# second, so that the vCPU's time does not change for tens of seconds.
_TICKLESS_SHARE = 0.03
_PROBE_BYTES = 64.0
# Broadcasts and multicasts that every card of a network receives.
_CHATTER_PER_S = 1.5
# CPU use of qemu's own threads: a constant number of cores, and the time per request.
_OVERHEAD_CORES = 0.002
_OVERHEAD_NS = 15_000.0
# A guest whose disk does not answer keeps a little of its CPU use: work without disk access.
_STUCK_CPU_SHARE = 0.04
_UNANSWERED_SEND_SHARE = 0.05
_SECTOR = 512.0
# Comparing an array with an int is much faster than with an enum member.
_HUNG_IO, _PAUSED, _OFF = map(int, (Condition.HUNG_IO, Condition.PAUSED, Condition.OFF))


class Draws(NamedTuple):
    """Random numbers of several steps; for a single step the arrays lack the first axis.

    They are drawn for all VMs, whatever their state, so that a change to one VM does not change the
    noise of another.
    """

    normal: Floats  # (steps, N)
    chance: NDArray[np.float32]  # (steps, N)
    rounding: NDArray[np.float32]  # (steps, 5, N): rounding of a fraction of a request
    size: NDArray[np.float32]  # (steps, N)
    chatter: Floats  # (steps, networks + 1): broadcasts of each step

    @classmethod
    def draw(
        cls, rng: np.random.Generator, *, steps: int, size: int, networks: int, step_s: float
    ) -> "Draws":
        """Return the draws of the next steps; they do not depend on how many are drawn together.

        `size` and `networks` are the numbers of VMs and of networks.
        """
        normal = np.empty((steps, size), np.float32)
        even = np.empty((steps, 7, size), np.float32)
        chatter = np.zeros((steps, networks + 1))
        for step in range(steps):
            rng.standard_normal(dtype=np.float32, out=normal[step])
            rng.random(dtype=np.float32, out=even[step])
            chatter[step, :-1] = rng.poisson(_CHATTER_PER_S * step_s, networks)
        return cls(normal.astype(np.float64), even[:, 0], even[:, 1:6], even[:, 6], chatter)


class Strain(NamedTuple):
    """Slowdowns of guests in several steps; for a single step the arrays lack the first axis."""

    slowness: Floats  # (steps, N)
    thrashes: NDArray[np.bool_]  # (steps, N)
    squeeze: Floats  # (steps, nodes)


class Given(NamedTuple):
    """Inputs and results of several predicted steps; the first axis of each array is the step."""

    activity: Activity
    draws: Draws
    paces: Paces
    node_share: Floats  # (steps, nodes)
    node_busy: Floats  # (steps, nodes)
    pool_latency_s: Floats  # (steps, pools)


class Rates:
    """Computes how fast counters grow.

    `foresee` does so for all VMs and several steps ahead; `pace` does so for the VMs whose state
    has just changed, for the rest of the current step.

    Attributes
    ----------
    squeeze
        Shape (nodes,), in [0, 1): share of its cores that a node withholds.
    pool_stalled, network_stalled
        Shape (pools,) and (networks + 1,); the last network stands for VMs without a network card.
    pool_slowness
        Shape (pools,), ≥ 1.
    node_share, node_busy
        Shape (nodes,): granted share of the wanted CPU, and busy share of the node's cores.
    pool_latency_s
        Shape (pools,): latency of requests in the current step.
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
        ranks = np.arange(len(meters.pace.gains) - VCPUS)[:, None]
        self._ranks = ranks
        self._has = ranks < topology.vcpus
        self._skew = _skew(topology.uuids, topology.vcpus, ranks.size)
        # Share of a guest's timers that each vCPU serves: each vCPU serves its own. In a tickless
        # guest, the first vCPU serves nearly all.
        own = np.where(topology.tickless, _TICKLESS_SHARE, 1.0) * self._has / topology.vcpus
        own[0] += 1.0 - own.sum(axis=0)
        self._timer_share = own
        self._activity: Activity
        self._draws: Draws

    def foresee(self, activity: Activity, draws: Draws, strain: Strain) -> Given:
        """Predict the growth of all counters in the next steps, provided that nothing changes."""
        everyone = slice(None)
        stuck = self.stuck(everyone)
        timers, spread, pinned = self._wants(everyone, stuck, activity, draws)
        cores = self._topology.node_cores
        wanted = _sums(self._guests.node, timers + spread + pinned, cores.size)
        node_share = np.minimum(1.0, cores / np.maximum(wanted, 1e-9))
        node_busy = np.minimum(1.0, wanted * node_share / cores)
        share = self._share(everyone, node_share, strain.squeeze)
        paces = Paces.of(*draws.chance.shape, vcpus=self._ranks.size)
        self._pace_disk(everyone, stuck, share, activity, draws, strain, paces)
        requests = paces.events[:, READ] + paces.events[:, WRITE]
        load = _sums(self._topology.pool, requests, self.pool_stalled.size)
        # Latency doubles at twenty thousand requests per second: a mid-range array.
        queue = 1.0 + load / self._step_s / 20_000.0
        latency_s = _BASE_LATENCY_NS / 1e9 * queue * self.pool_slowness
        # The duration of requests follows from the load of the previous step.
        before_s = np.concatenate([self.pool_latency_s[None], latency_s[:-1]])
        self._pace_requests(everyone, before_s, draws, strain, paces)
        self._pace_network(everyone, stuck, share, activity, draws, paces)
        self._pace_cpu(everyone, timers, spread, pinned, share, draws, paces)
        return Given(activity, draws, paces, node_share, node_busy, latency_s)

    def begin(self, given: Given, step: int) -> None:
        """Start one of the predicted steps; `step` is its index in `given`, from 0."""
        self._activity = Activity._make(part[step] for part in given.activity)
        self._draws = Draws._make(part[step] for part in given.draws)
        self._meters.pace = Paces._make(part[step] for part in given.paces)
        self.node_share = given.node_share[step]
        self.node_busy = given.node_busy[step]
        self.pool_latency_s = given.pool_latency_s[step]

    def pace(self, vms: Indices) -> None:
        """Set the pace of `vms` for the rest of the step, from their current state."""
        guests, activity, draws = self._guests, self._activity, self._draws
        stuck = self.stuck(vms)
        timers, spread, pinned = self._wants(vms, stuck, activity, draws)
        share = self._share(vms, self.node_share, self.squeeze)
        strain = Strain(guests.slowness, guests.thrashes(), self.squeeze)
        paces = self._meters.pace
        self._pace_disk(vms, stuck, share, activity, draws, strain, paces)
        self._pace_requests(vms, self.pool_latency_s, draws, strain, paces)
        self._pace_network(vms, stuck, share, activity, draws, paces)
        self._pace_cpu(vms, timers, spread, pinned, share, draws, paces)

    @property
    def cpu_share(self) -> Floats:
        """Shape (N,): share of its cores that each guest would use in this step."""
        return self._activity.cpu_share

    def stuck(self, vms: Indices) -> NDArray[np.bool_]:
        """Return shape (n,): whether the disk completes no request now."""
        guests = self._guests
        stuck: NDArray[np.bool_] = (
            self.pool_stalled[self._topology.pool[vms]]
            | guests.io_stuck[vms]
            | (guests.condition[vms] == _HUNG_IO)
        )
        return stuck

    # In the methods below, the last axis of an array is `vms`. An axis before it is the steps.

    def _wants(
        self, vms: Indices, stuck: NDArray[np.bool_], activity: Activity, draws: Draws
    ) -> tuple[Floats, Floats, Floats]:
        """Return the cores wanted: by timers, spread over all vCPUs, and pinned to the first."""
        guests, vcpus = self._guests, self._topology.vcpus[vms]
        condition = guests.condition[vms]
        works = g.WORKS[condition]
        share = np.where(stuck, _STUCK_CPU_SHARE, 1.0)
        # Requests from the network cause half of the load. Without a network none arrive.
        cut_off = self.network_stalled[:-1][self._topology.network[vms]]
        share = share * np.where(cut_off & (self._topology.network[vms] >= 0), 0.5, 1.0)
        idle = self._habits.idle_cores[vms] * (0.7 + 0.6 * draws.chance[..., vms])
        timers = works * idle
        spread = works * (activity.cpu_share[..., vms] * vcpus * share)
        own = g.CORES[condition] * np.where(stuck, _STUCK_CPU_SHARE, 1.0)
        pinned = own + guests.spin_cores[vms] + works * guests.extra_cores[vms]
        pinned = np.minimum(pinned, vcpus)
        timers = np.minimum(timers, vcpus - pinned)
        return timers, np.minimum(spread, vcpus - pinned - timers), pinned

    def _share(self, vms: Indices, node_share: Floats, squeeze: Floats) -> Floats:
        """Return the share of its wanted CPU that each VM gets from its node."""
        node = self._guests.node[vms]
        squeezed = np.where(self._guests.takes_all[vms], 0.0, squeeze[..., node])
        share: Floats = node_share[..., node] * (1.0 - squeezed)
        return share

    def _pace_cpu(
        self,
        vms: Indices,
        timers: Floats,
        spread: Floats,
        pinned: Floats,
        share: Floats,
        draws: Draws,
        paces: Paces,
    ) -> None:
        vcpus, chance = self._topology.vcpus[vms], draws.chance[..., vms]
        even = spread / vcpus
        # The busier the guest, the less its vCPUs can differ.
        own = even[..., None, :] + self._skew[:, vms] * (even * (1.0 - even))[..., None, :]
        own += timers[..., None, :] * self._timer_share[:, vms]
        own += np.clip(pinned - self._ranks, 0.0, 1.0)
        np.minimum(own, 1.0, out=own)
        own *= self._has[:, vms]
        wanted = own.sum(axis=-2)
        own *= share[..., None, :]
        paces.gains[..., VCPUS:, vms] = own
        got = own.sum(axis=-2)
        requests = paces.events[..., :3, vms].sum(axis=-2) / self._step_s
        alive = self._guests.condition[vms] < _PAUSED
        total = got * (1.002 + 0.012 * chance) + alive * (
            _OVERHEAD_CORES + requests * (_OVERHEAD_NS / 1e9)
        )
        user = self._habits.user_share[vms]
        gains = paces.gains
        gains[..., ROW["cpu_time_ns"], vms] = total
        gains[..., ROW["cpu_user_ns"], vms] = total * user
        gains[..., ROW["cpu_system_ns"], vms] = total * (1.0 - user)
        lost = wanted - got
        gains[..., ROW["vcpu_delay_ns"], vms] = lost
        gains[..., ROW["vcpu_wait_ns"], vms] = lost + got * 0.004 * chance

    def _pace_disk(
        self,
        vms: Indices,
        stuck: NDArray[np.bool_],
        share: Floats,
        activity: Activity,
        draws: Draws,
        strain: Strain,
        paces: Paces,
    ) -> None:
        habits, guests, step_s = self._habits, self._guests, self._step_s
        condition = guests.condition[vms]
        works = g.WORKS[condition]
        work, floor = activity.work[..., vms], activity.floor[..., vms]
        # A disk three times as slow serves about half: queues are only partly full.
        let = ~stuck * share * guests.io_share[vms]
        slowness = strain.slowness[..., vms] * self.pool_slowness[self._topology.pool[vms]]
        let = let / slowness**0.7 * step_s
        swaps = works * strain.thrashes[..., vms] * 150.0
        reads = works * habits.reads[vms] * work + swaps
        kept = np.maximum(work, floor)
        writes = works * habits.writes[vms] * kept
        writes = writes * activity.flush[..., vms] + swaps
        flushes = works * habits.flushes[vms] * kept
        bulk_reads = g.READS[condition] + works * guests.extra_reads[vms]
        bulk_writes = g.WRITES[condition] + works * guests.extra_writes[vms]
        rounding = draws.rounding[..., vms]
        events = paces.events
        events[..., READ, vms] = np.floor((reads + bulk_reads) * let + rounding[..., READ, :])
        events[..., WRITE, vms] = np.floor((writes + bulk_writes) * let + rounding[..., WRITE, :])
        events[..., FLUSH, vms] = np.floor(flushes * let + rounding[..., FLUSH, :])
        # The same draw sets when in the step the first request completes: later if the fraction was
        # rounded down.
        paces.phase[..., vms] = 0.5 * rounding
        spread = 0.7 + 0.6 * draws.size[..., vms]
        read_bytes, write_bytes = habits.read_bytes[vms], habits.write_bytes[vms]
        gains = paces.gains
        gains[..., ROW["block_rd_bytes"], vms] = _mean_size(reads, read_bytes * spread, bulk_reads)
        gains[..., ROW["block_wr_bytes"], vms] = _mean_size(
            writes, write_bytes * spread, bulk_writes
        )

    def _pace_requests(
        self, vms: Indices, latency_s: Floats, draws: Draws, strain: Strain, paces: Paces
    ) -> None:
        latency = latency_s[..., self._topology.pool[vms]] * 1e9
        spread = 0.7 + 0.6 * draws.size[..., vms]
        cost = np.floor(latency * strain.slowness[..., vms] * spread)
        paces.gains[..., ROW["block_rd_ns"], vms] = cost
        paces.gains[..., ROW["block_wr_ns"], vms] = np.floor(cost * 1.3)
        paces.gains[..., ROW["block_fl_ns"], vms] = np.floor(cost * 2.0)

    def _pace_network(
        self,
        vms: Indices,
        stuck: NDArray[np.bool_],
        share: Floats,
        activity: Activity,
        draws: Draws,
        paces: Paces,
    ) -> None:
        habits, guests, step_s = self._habits, self._guests, self._step_s
        condition = guests.condition[vms]
        network = self._topology.network[vms]
        open_ = ~self.network_stalled[network]
        kept = np.maximum(activity.work[..., vms], activity.floor[..., vms])
        served = g.WORKS[condition] * share * np.where(stuck, _UNANSWERED_SEND_SHARE, 1.0)
        sends = served * habits.sends[vms] * kept * step_s
        receives = served * habits.receives[vms] * kept * step_s
        # The kernel alone answers a probe; no process is needed.
        probes = np.floor(_PROBES_PER_S * step_s + draws.chance[..., vms])
        answers = probes * g.KERNEL[condition]
        rounding = draws.rounding
        events, gains = paces.events, paces.gains
        gate = open_ * guests.send_share[vms]
        events[..., SEND, vms] = gate * (np.floor(sends + rounding[..., SEND, vms]) + answers)
        heard = probes + draws.chatter[..., network]
        asked = np.floor(receives + rounding[..., RECEIVE, vms])
        events[..., RECEIVE, vms] = open_ * (heard + asked) * (condition != _OFF)
        spread = 0.7 + 0.6 * draws.size[..., vms]
        per_send = habits.send_bytes[vms] * spread
        total = np.maximum(sends + answers, 1e-9)
        sent = np.floor((sends * per_send + answers * _PROBE_BYTES) / total)
        gains[..., ROW["net_tx_bytes"], vms] = sent
        total = np.maximum(receives + heard, 1e-9)
        received = np.floor((receives * per_send + heard * _PROBE_BYTES) / total)
        gains[..., ROW["net_rx_bytes"], vms] = received


def _sums(index: NDArray[np.int64], values: Floats, indices: int) -> Floats:
    """Return shape (steps, indices): the sum of the values with each index, in each step."""
    found = [np.bincount(index, weights=of_step, minlength=indices) for of_step in values]
    return np.array(found)


def _mean_size(small: Floats, small_bytes: Floats, bulk: Floats) -> Floats:
    """Return the mean size of a mix of small and bulk requests, in whole sectors."""
    total = np.maximum(small + bulk, 1e-9)
    mean = (small * small_bytes + bulk * g.BULK_BYTES) / total
    sectors: Floats = np.maximum(np.floor(mean / _SECTOR), 1.0) * _SECTOR
    return sectors


def _skew(uuids: list[bytes], vcpus: NDArray[np.int64], width: int) -> Floats:
    """Return shape (width, N): each vCPU's deviation from the mean, in [-1, 1], summing to 0."""
    raw = np.frombuffer(b"".join(uuids), np.uint8).reshape(len(uuids), -1)[:, :width].T / 255.0
    used = np.arange(width)[:, None] < vcpus
    centred = (raw - (raw * used).sum(axis=0) / vcpus) * used
    skew: Floats = centred / np.maximum(np.abs(centred).max(axis=0), 1e-9)
    return skew

"""A day of past activity of real guests, as frames in a log.

No action is permitted before a VM has been known for a day, and a benchmark cannot wait for that.
So samples of some seconds of the guests are extended: each counter grows as it grew in them, and
the frames form another run of the VMs, which have been restarted since. Once in fifty minutes a
guest that was seen to rest does so for a step, without any I/O, and its vCPUs grow as they did at
rest: only then idle vCPUs show how seldom timers alone wake them.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.lab.libvirt_lab import Lab
from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Frame, Header, InventoryItem, VmRows, encode_frame
from flatline.engine.wire.metrics import COUNTERS, INTEGER_ROW
from flatline.engine.wire.vcpus import VcpuRows

# An hour more than the day that a policy for production requires.
PAST_S: Final = 25 * 3600
# A third of the 9,000 samples that a collector takes in that time is enough.
STEP_S: Final = 30
# One in this many steps is at rest: so rarely that silence stays significant.
REST_STEPS: Final = 100
# A guest writes once a second, or once in five: this span represents its whole activity.
SEEN_S: Final = 10
# It rests if it does no I/O for at least a collector's interval of 2 s.
REST_LEAST_S: Final = 2.0
_SAMPLE_TIMEOUT_S: Final = 0.25
# The last frame of the past is older than the first of the present, by a restart of the VMs.
GAP_S: Final = 60
_IO: Final = [
    row for row, metric in enumerate(COUNTERS) if metric.name.startswith(("block_", "net_"))
]
# I/O of the guest's own: packets also arrive at a resting one.
_OWN_IO: Final = [
    row for row, metric in enumerate(COUNTERS) if metric.name.startswith(("block_", "net_tx_"))
]


class Seen(NamedTuple):
    """Some seconds of a node's guests.

    Attributes
    ----------
    samples
        Oldest first, with the same VMs and vCPUs.
    rested
        Shape (VMs,): whether it did no I/O for `REST_LEAST_S`.
    rest_ratio
        Shape (vCPUs,): CPU time per ns of its VM's longest rest; 0 without one.
    """

    samples: list[NodeSample]
    inventory: tuple[InventoryItem, ...]
    rested: NDArray[np.bool_]
    rest_ratio: NDArray[np.float64]


async def past_of(lab: Lab, node: str, cell: str) -> list[tuple[int, bytes]]:
    """Return append times in ms and frames of a day of the guests that run on a node now.

    They must be up and active: their activity within `SEEN_S` is repeated for the whole day.
    """
    return list(_drawn_out(await _seen(lab, node), node=node, cell=cell))


async def _seen(lab: Lab, node: str) -> Seen:
    samples: list[NodeSample] = []
    async with LibvirtHypervisor(uri=lab.ro_uri(node)) as hypervisor:
        end_ns = time.monotonic_ns() + SEEN_S * 10**9
        while not samples or samples[-1].mono_ns < end_ns:
            samples.append(await hypervisor.sample())
            await asyncio.sleep(_SAMPLE_TIMEOUT_S)
        assert len({one.rows.uuids for one in samples}) == 1
        return Seen(samples, await hypervisor.inventory(), *_rests(samples))


def _rests(samples: Sequence[NodeSample]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which VMs rested, and their vCPUs' CPU time meanwhile: see `Seen`."""
    vcpus = [one.rows.vcpus for one in samples if one.rows.vcpus is not None]
    assert len(vcpus) == len(samples)
    counts, times_ns = vcpus[0].counts, np.stack([rows.times_ns for rows in vcpus])
    worked = np.stack([one.rows.integers[_OWN_IO].sum(axis=0) for one in samples])
    at_ns = np.array([one.mono_ns for one in samples])
    rested, ratio = np.zeros(len(counts), bool), np.zeros(times_ns.shape[1])
    ends = np.cumsum(counts, dtype=np.int64)
    for vm, end in enumerate(ends):
        begins = np.flatnonzero(np.r_[True, worked[1:, vm] != worked[:-1, vm]])
        last = np.r_[begins[1:] - 1, len(samples) - 1]
        best = int(np.argmax(at_ns[last] - at_ns[begins]))
        long_ns = int(at_ns[last[best]] - at_ns[begins[best]])
        if long_ns >= REST_LEAST_S * 1e9:
            rested[vm], mine = True, slice(int(end) - int(counts[vm]), int(end))
            ratio[mine] = (times_ns[last[best], mine] - times_ns[begins[best], mine]) / long_ns
    return rested, ratio


def _drawn_out(seen: Seen, *, node: str, cell: str) -> Iterator[tuple[int, bytes]]:
    now_ms = int(time.time() * 1000) - 1000 * GAP_S
    steps = PAST_S // STEP_S
    for step in range(steps):
        time_ms = now_ms - 1000 * STEP_S * (steps - 1 - step)
        header = Header(
            site="lab", zone="lab", cell=cell, node=node, role="collector", run="past",
            sequence=step, event_time_ns=time_ms * 1_000_000, mono_ns=step * STEP_S * 10**9,
            interval_ms=1000 * STEP_S,
        )  # fmt: skip
        frame = Frame(
            header=header,
            rows=_grown(seen, step),
            inventory=seen.inventory if step % 20 == 0 else (),
            node=dict(seen.samples[-1].node),
        )
        yield time_ms, encode_frame(frame)


def _grown(seen: Seen, steps: int) -> VmRows:
    """Return the rows of a run before this one, after `steps` steps of it."""
    first, last = seen.samples[0].rows, seen.samples[-1].rows
    rests = np.where(seen.rested, steps // REST_STEPS, 0)
    integers = last.integers.copy()
    counters = slice(0, len(COUNTERS))
    gain = last.integers[counters] - first.integers[counters]
    passed = np.full(gain.shape, steps * STEP_S // SEEN_S, np.uint64)
    passed[_IO] -= (rests * STEP_S // SEEN_S).astype(np.uint64)
    integers[counters] = last.integers[counters] + gain * passed
    # A balloon that reports does so all day; the time of its last report is the guest's own.
    integers[INTEGER_ROW["balloon_last_update_s"]] = 0
    integers[INTEGER_ROW["instance"]] -= np.uint64(1)
    missing = ~last.present()
    missing[INTEGER_ROW["balloon_last_update_s"]] = True
    return VmRows(
        uuids=last.uuids,
        integers=integers,
        missing=missing,
        gauges=last.gauges,
        vcpus=_vcpus_grown(seen, rests, steps),
    )


def _vcpus_grown(seen: Seen, rests: NDArray[np.int64], steps: int) -> VcpuRows:
    first, last = seen.samples[0].rows.vcpus, seen.samples[-1].rows.vcpus
    assert first is not None
    assert last is not None
    of_vcpu = np.repeat(rests, last.counts)
    worked = (last.times_ns - first.times_ns) * ((steps - of_vcpu) * STEP_S // SEEN_S).astype(
        np.uint64
    )
    rested = (seen.rest_ratio * of_vcpu * STEP_S * 1e9).astype(np.uint64)
    return VcpuRows(
        counts=last.counts, times_ns=last.times_ns + worked + rested, missing=last.missing
    )

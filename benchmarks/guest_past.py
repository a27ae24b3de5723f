"""A day in which real guests did what they do now, as frames in a log.

No machine is touched before its VM has been known for a day, and nobody waits here for one. So
two samples of the guests are drawn out: each counter grows as it grew between the two, and the
frames end as another run of the VMs, which was started again since. Once in fifty minutes they rest
for a step, without any I/O: only then idle vCPUs tell how seldom timers alone move them.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from connectors.libvirt.hypervisor import LibvirtHypervisor
from deploy.lab.libvirt_lab import Lab
from engine.ports import NodeSample
from engine.wire.frame import Frame, Header, InventoryItem, VmRows, encode_frame
from engine.wire.metrics import COUNTERS, INTEGER_ROW
from engine.wire.vcpus import VcpuRows

# An hour more than the day that a policy for production asks for.
PAST_S: Final = 25 * 3600
# Of the 9,000 samples that a collector takes in that time a third is enough to know a guest by.
STEP_S: Final = 30
# Of so many steps one is at rest: seldom enough that silence stays a surprise.
REST_STEPS: Final = 100
# A guest writes once a second: what it does in this time it does always.
SEEN_S: Final = 5
# The last frame of the past is older than the first of the present, by a restart of the VMs.
GAP_S: Final = 60
_IO: Final = [
    row for row, metric in enumerate(COUNTERS) if metric.name.startswith(("block_", "net_"))
]


async def past_of(lab: Lab, node: str, cell: str) -> list[tuple[int, bytes]]:
    """Return append times in ms and frames of a day of the guests that run on a node now.

    They must be up and at work: what they do within `SEEN_S` is what they did all day.
    """
    return list(_drawn_out(*await _two_samples(lab, node), node=node, cell=cell))


def _drawn_out(
    first: NodeSample,
    last: NodeSample,
    inventory: tuple[InventoryItem, ...],
    *,
    node: str,
    cell: str,
) -> Iterator[tuple[int, bytes]]:
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
            rows=_grown(first.rows, last.rows, step),
            inventory=inventory if step % 20 == 0 else (),
            node=dict(last.node),
        )
        yield time_ms, encode_frame(frame)


async def _two_samples(
    lab: Lab, node: str
) -> tuple[NodeSample, NodeSample, tuple[InventoryItem, ...]]:
    async with LibvirtHypervisor(uri=lab.ro_uri(node)) as hypervisor:
        first = await hypervisor.sample()
        await asyncio.sleep(SEEN_S)
        last = await hypervisor.sample()
        assert first.rows.uuids == last.rows.uuids
        return first, last, await hypervisor.inventory()


def _grown(first: VmRows, last: VmRows, steps: int) -> VmRows:
    """Return the rows of a run before this one, after so many steps of it."""
    integers = last.integers.copy()
    counters = slice(0, len(COUNTERS))
    gain = last.integers[counters] - first.integers[counters]
    passed = np.full((len(COUNTERS), 1), steps * STEP_S // SEEN_S, np.uint64)
    passed[_IO] -= np.uint64(steps // REST_STEPS * STEP_S // SEEN_S)
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
        vcpus=_vcpus_grown(first.vcpus, last.vcpus, steps),
    )


def _vcpus_grown(first: VcpuRows | None, last: VcpuRows | None, steps: int) -> VcpuRows | None:
    if first is None or last is None:
        return last
    gain = last.times_ns - first.times_ns
    return VcpuRows(
        counts=last.counts,
        times_ns=last.times_ns + gain * np.uint64(steps * STEP_S // SEEN_S),
        missing=last.missing,
    )

"""A lab's nodes through the adapter, and helpers to query their samples."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from deploy.lab.kafka_jars import PATIENCE
from deploy.lab.libvirt_lab import Lab
from flatline.connectors.libvirt.actuator import LibvirtActuator, MigrationTarget
from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor
from flatline.engine.ports import NodeSample
from flatline.engine.wire.frame import Event, VmRows
from flatline.engine.wire.metrics import INTEGER_ROW

# A migration may start before the kernel has released the port of the previous one.
_ports = itertools.count(49_600)


def hypervisor_of(lab: Lab, node: str) -> LibvirtHypervisor:
    """Return the collector's view of a node, on its read-only socket."""
    return LibvirtHypervisor(uri=lab.ro_uri(node))


def actuator_of(lab: Lab, node: str) -> LibvirtActuator:
    """Return the agent's actuator on a node, with the other node as migration target."""
    other = "b" if node == "a" else "a"
    # unsafe: libvirt cannot see that both daemons of one machine share a directory.
    target = MigrationTarget(
        lab.uri(other), data_uri=f"tcp://127.0.0.1:{next(_ports)}", unsafe=True
    )
    return LibvirtActuator(uri=lab.uri(node), targets={other: target})


def vm_of(lab: Lab, name: str, node: str) -> bytes:
    """Return a guest's UUID."""
    import libvirt

    connection = libvirt.openReadOnly(lab.ro_uri(node))
    try:
        return bytes(connection.lookupByName(name).UUID())
    finally:
        connection.close()


def known(rows: VmRows, vm: bytes, name: str) -> int | None:
    """Return a VM's value, None where it is missing or the VM is not in the rows."""
    for place in range(len(rows)):
        if rows.vm(place) == vm:
            row = INTEGER_ROW[name]
            return int(rows.integers[row, place]) if rows.present()[row, place] else None
    return None


async def until(
    holds: Callable[[], Awaitable[bool]], *, within_s: float, what: str, every_s: float = 0.5
) -> None:
    """Return as soon as the condition holds; the time limit is extended by the lab's patience."""
    within_s *= PATIENCE
    deadline = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < deadline, f"not complete within {within_s:g} s: {what}"
        await asyncio.sleep(every_s)


async def writes(hypervisor: LibvirtHypervisor, vm: bytes, *, within_s: float = 60.0) -> None:
    """Wait until the guest writes and its balloon is fresh: it is up."""
    seen: list[int] = []

    async def moves() -> bool:
        sample = await hypervisor.sample()
        requests = known(sample.rows, vm, "block_wr_reqs")
        stamp_s = known(sample.rows, vm, "balloon_last_update_s")
        if requests is not None:
            seen.append(requests)
        fresh = stamp_s is not None and sample.event_time_ns / 1e9 - stamp_s < 5
        return fresh and len(seen) >= 2 and seen[-1] > seen[-2]

    await until(moves, within_s=within_s, what="disk writes and a fresh balloon")


async def hears(
    hypervisor: LibvirtHypervisor, kind: str, vm: bytes | None, *, within_s: float = 30.0
) -> list[Event]:
    """Return all events up to and including the awaited one."""
    events: list[Event] = []

    async def heard() -> bool:
        events.extend(hypervisor.drain_events())
        return any((event.kind, event.vm) == (kind, vm) for event in events)

    await until(heard, within_s=within_s, what=f"event {kind}", every_s=0.1)
    return events


@dataclass(frozen=True)
class Taken:
    """One iteration of a collector's loop; `sample` None is a node that did not answer."""

    at_s: float
    sample: NodeSample | None


def gaps_s(turns: list[Taken]) -> list[float]:
    """Return the time from each answered sample to the next, on the samples' own clock."""
    stamps = [turn.sample.mono_ns for turn in turns if turn.sample is not None]
    return [float(gap) / 1e9 for gap in np.diff(stamps)]

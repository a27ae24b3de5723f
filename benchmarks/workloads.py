"""Seeded inputs of all benchmarks: no network, no clock, no external data."""

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire import metrics
from flatline.engine.wire.frame import Frame, Header, VmRows
from flatline.engine.wire.vcpus import QUANTUM_NS, VcpuRows

_DAY_S = 86_400


def fleet_rows(size: int, *, seed: int = 20261123) -> VmRows:
    """Return the full metric set of `size` VMs that have been up for up to 60 days.

    Per VM: 1 to 8 vCPUs, 2.65 on average, that share the load unevenly; 0.02 to 1.5 cores, 0.1 to
    50 disk requests a second of 8 KiB at 0.1 ms, 0.3 to 150 packets a second of 500 bytes. Errors
    and drops stay 0, the dirty rate and KVM's counters are not measured; everything else is.
    """
    rng = np.random.default_rng(seed)
    up_s = rng.uniform(600, 60 * _DAY_S, size)
    cpu_ns_per_s = rng.uniform(0.02, 1.5, size) * 1e9
    requests_per_s = rng.uniform(0.1, 50, size)
    rates = {
        "cpu_time_ns": cpu_ns_per_s,
        "cpu_user_ns": 0.7 * cpu_ns_per_s,
        "cpu_system_ns": 0.2 * cpu_ns_per_s,
        "vcpu_wait_ns": 0.01 * cpu_ns_per_s,
        "vcpu_delay_ns": 0.01 * cpu_ns_per_s,
        "balloon_major_faults": np.full(size, 0.1),
    }
    for kind in ("rd", "wr", "fl"):
        rates[f"block_{kind}_reqs"] = requests_per_s
        rates[f"block_{kind}_ns"] = requests_per_s * 1e5
    for kind in ("rd", "wr"):
        rates[f"block_{kind}_bytes"] = requests_per_s * 8192
    for kind in ("rx", "tx"):
        rates[f"net_{kind}_pkts"] = requests_per_s * 3
        rates[f"net_{kind}_bytes"] = requests_per_s * 1500
    integers = np.zeros((len(metrics.INTEGERS), size), np.uint64)
    for row, metric in enumerate(metrics.COUNTERS):
        if metric.name in rates:
            quanta = np.floor(up_s * rates[metric.name] / metric.quantum).astype(np.uint64)
            integers[row] = quanta * np.uint64(metric.quantum)
    levels = {
        "balloon_current_kib": np.full(size, 4 << 20),
        "balloon_rss_kib": rng.integers(25_000, 1_000_000, size) * 4,
        "balloon_usable_kib": rng.integers(25_000, 1_000_000, size) * 4,
        "balloon_last_update_s": 1_790_000_000 + rng.integers(0, 5, size),
        "instance": rng.integers(1, 400, size),
        "state": np.ones(size),
        "vcpus": rng.choice([1, 2, 4, 8], size, p=[0.35, 0.35, 0.2, 0.1]),
        "vcpus_busy": rng.integers(0, 3, size),
    }
    for name, values in levels.items():
        integers[metrics.INTEGER_ROW[name]] = values.astype(np.uint64)
    gauges = np.full((len(metrics.GAUGES), size), np.nan, np.float32)
    gauges[metrics.GAUGE_ROW["vcpu_busiest_ratio"]] = rng.random(size)
    # KVM's own counters are missing, as few hypervisors report them.
    missing = np.zeros(integers.shape, np.bool_)
    untold = metrics.KVM_COUNTERS + metrics.DEVICE_SETS
    missing[[metrics.INTEGER_ROW[metric.name] for metric in untold]] = True
    return VmRows(
        uuids=rng.bytes(16 * size),
        integers=integers,
        missing=missing,
        gauges=gauges,
        vcpus=_vcpu_rows(rng, integers),
    )


def _vcpu_rows(rng: np.random.Generator, integers: NDArray[np.uint64]) -> VcpuRows:
    """Return each VM's CPU time, distributed over its vCPUs."""
    counts = integers[metrics.INTEGER_ROW["vcpus"]].astype(np.uint16)
    shares = [rng.dirichlet(np.full(count, 4.0)) for count in counts]
    used_ns = np.repeat(integers[metrics.INTEGER_ROW["cpu_time_ns"]], counts)
    quanta = (np.concatenate(shares) * used_ns / QUANTUM_NS).astype(np.uint64)
    return VcpuRows(counts=counts, times_ns=quanta * np.uint64(QUANTUM_NS), missing=None)


def fleet_frame(
    size: int, *, sequence: int = 0, node: str = "node-1", cell: str = "cell-1"
) -> Frame:
    """Return one frame of such a fleet, with the node's own gauges."""
    return Frame(
        header=Header(
            site="bench",
            zone="z1",
            cell=cell,
            node=node,
            role="collector",
            run="00" * 8,
            sequence=sequence,
            event_time_ns=1_790_000_000_000_000_000 + sequence * 2_000_000_000,
            mono_ns=sequence * 2_000_000_000,
            interval_ms=2000,
        ),
        rows=fleet_rows(size),
        node=dict.fromkeys(metrics.NODE_METRICS, 0.5),
    )

"""Forty days of a small cell as hourly rows of a history."""

import time

import numpy as np

from flatline.engine.wire.points import Points, Series

GIB = 1 << 30
NOW_S = int(time.time())
HOURS = 24 * 40
VMS = ("vm-a", "vm-b")


def hours() -> np.ndarray:
    last = NOW_S // 3600 * 3600 - 3600
    return (last - 3600 * np.arange(HOURS)[::-1]) * 1_000_000_000


def rows() -> list[Points]:
    times = hours()
    days = np.arange(HOURS) / 24
    ones = np.ones(HOURS)

    def points(measurement: str, tags: dict[str, str], fields: dict[str, np.ndarray]) -> Points:
        series = Series({name: [value] * HOURS for name, value in tags.items()})
        return Points.of(measurement, series, times, fields)

    found = [
        points(
            "flatline_vm_1h",
            {"cell": "cell", "node": f"n{k}", "vm": vm},
            {
                "cpu_cores_count": (ones * 60).astype(np.int64),
                "cpu_cores_p95": ones * (1.5 - 1.49 * k),
                "cpu_cores_mean": ones * 0.5,
                "cpu_delay_cores_mean": ones * 0.1,
                "memory_rss_bytes_p99": ones * GIB,
                "net_tx_bytes_per_s_mean": ones * 100.0,
            },
        )
        for k, vm in enumerate(VMS)
    ]
    found += [
        points(
            "flatline_node_1h",
            {"cell": "cell", "node": f"n{k}"},
            {
                "vms_count": (ones * 60).astype(np.int64),
                "cpu_cores_last": ones * 8.0,
                "memory_total_bytes_last": ones * 32.0 * GIB,
                "cpu_busy_ratio_p95": 0.1 + 0.005 * days,
                "memory_available_bytes_min": ones * 24.0 * GIB,
            },
        )
        for k in range(2)
    ]
    found.append(
        points(
            "flatline_pool_1h",
            {"cell": "cell", "node": "n0", "pool": "fast"},
            {
                "capacity_bytes_last": ones * 1000.0 * GIB,
                "available_bytes_last": (800.0 - 10.0 * days) * GIB,
            },
        )
    )
    info = Series({"cell": ["cell"] * 2, "node": ["n0", "n1"], "vm": list(VMS)})
    found.append(
        Points.of(
            "flatline_vm_info",
            info,
            [int(times[-1])] * 2,
            {
                "name": ["web", "spare"],
                "flavor": ["m1", "m1"],
                "vcpus": np.array([2, 2]),
                "memory_bytes": np.array([4 * GIB, 4 * GIB]),
            },
        )
    )
    return found

"""A node's counters as rates for its whole roster: the metrics of a VM for planners.

A missing value is unknown. A smaller counter or another instance starts a new epoch and never gives
a rate. So does the first frame of a collector's run, because it has another clock.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.wire.frame import VmRows
from engine.wire.measurement import VM_METRICS
from engine.wire.metrics import GAUGE_ROW, INTEGER_ROW
from engine.wire.points import kept

Floats = NDArray[np.float64]

# The counter of each rate, and the factor that converts it.
_RATES: Final = {
    "cpu_cores": ("cpu_time_ns", 1e-9),
    "cpu_delay_cores": ("vcpu_delay_ns", 1e-9),
    "disk_rd_bytes_per_s": ("block_rd_bytes", 1.0),
    "disk_wr_bytes_per_s": ("block_wr_bytes", 1.0),
    "disk_rd_reqs_per_s": ("block_rd_reqs", 1.0),
    "disk_wr_reqs_per_s": ("block_wr_reqs", 1.0),
    "net_rx_bytes_per_s": ("net_rx_bytes", 1.0),
    "net_tx_bytes_per_s": ("net_tx_bytes", 1.0),
}
COUNTER_ROWS: Final = np.array([INTEGER_ROW[name] for name, _ in _RATES.values()])
_SCALES: Final = np.array([[scale] for _, scale in _RATES.values()])
_ROW: Final = {field.name: row for row, field in enumerate(VM_METRICS)}
_RATE_ROWS: Final = np.array([_ROW[name] for name in _RATES])
_KIB: Final = 1024.0


def counters_of(rows: VmRows) -> Floats:
    """Return the counters that become rates, shape (counters, n), NaN where not measured.

    Exact up to 2^53, which is 104 days of CPU time in ns; beyond it a difference is off by one or
    two ns.
    """
    values: Floats = rows.integers[COUNTER_ROWS].astype(np.float64)
    if rows.missing is not None:
        values[rows.missing[COUNTER_ROWS]] = np.nan
    return values


# The rates that are sums over devices.
DEVICE_RATES: Final = np.array([name.startswith(("disk", "net")) for name in _RATES])


def device_sets_of(rows: VmRows) -> Floats:
    """Return the device set of each VM's sums, shape (n,), NaN where unknown."""
    return _level(rows, "device_set")


def instances_of(rows: VmRows) -> Floats:
    """Return the run of each VM, shape (n,), NaN where unknown."""
    return _level(rows, "instance")


def vm_metrics(rows: VmRows, *, before: Floats | None, dt_s: float | None) -> Floats:
    """Return the `VM_METRICS` in their order, shape (len(VM_METRICS), n), as stores keep them.

    Parameters
    ----------
    before
        `counters_of` of the previous sample, in the order of `rows`, NaN where there is none or it
        belongs to another epoch; None where no VM has one.
    dt_s
        Time since then; None where it is unknown.
    """
    values = np.full((len(VM_METRICS), len(rows)), np.nan)
    if before is not None and dt_s is not None and dt_s > 0.0:
        grown = counters_of(rows) - before
        # One counter that decreased starts a new epoch for all of them.
        grown[:, (grown < 0.0).any(axis=0)] = np.nan
        values[_RATE_ROWS] = grown * _SCALES / dt_s
    vcpus = _level(rows, "vcpus")
    vcpus[vcpus == 0.0] = np.nan
    values[_ROW["cpu_ratio"]] = values[_ROW["cpu_cores"]] / vcpus
    values[_ROW["vcpu_busiest_ratio"]] = rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]]
    used = _level(rows, "balloon_current_kib") - _level(rows, "balloon_usable_kib")
    values[_ROW["memory_used_bytes"]] = np.maximum(used, 0.0) * _KIB
    values[_ROW["memory_rss_bytes"]] = _level(rows, "balloon_rss_kib") * _KIB
    return kept(values)


def _level(rows: VmRows, name: str) -> Floats:
    row = INTEGER_ROW[name]
    values: Floats = rows.integers[row].astype(np.float64)
    if rows.missing is not None:
        values[rows.missing[row]] = np.nan
    return values

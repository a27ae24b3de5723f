"""Computes the metrics of all VMs of a node for the history: rates of counters, and levels.

The first frame of a collector's run gives no rates, because the monotonic times of two runs cannot
be compared.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.stream.counters import known
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.measurement import VM_METRICS
from flatline.engine.wire.metrics import GAUGE_ROW
from flatline.engine.wire.points import kept

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
COUNTERS: Final = tuple(name for name, _ in _RATES.values())
_SCALES: Final = np.array([[scale] for _, scale in _RATES.values()])
_ROW: Final = {field.name: row for row, field in enumerate(VM_METRICS)}
_RATE_ROWS: Final = np.array([_ROW[name] for name in _RATES])
_LEVELS: Final = ("vcpus", "balloon_current_kib", "balloon_usable_kib", "balloon_rss_kib")
_KIB: Final = 1024.0


def vm_metrics(rows: VmRows, *, grown: Floats, dt_s: float | None) -> Floats:
    """Return the `VM_METRICS` in their order, shape (len(VM_METRICS), n), rounded as in stores.

    A metric that is not known is NaN.

    Parameters
    ----------
    grown
        How much `COUNTERS` grew since the previous sample, shape (len(COUNTERS), n), VMs in the
        order of `rows`; NaN where unknown (`engine.stream.counters`).
    dt_s
        Time since then; None where it is unknown, and then all rates are NaN.
    """
    values = np.full((len(VM_METRICS), len(rows)), np.nan)
    if dt_s is not None and dt_s > 0.0:
        values[_RATE_ROWS] = grown * _SCALES / dt_s
    vcpus, current, usable, resident = known(rows, _LEVELS)
    vcpus[vcpus == 0.0] = np.nan
    values[_ROW["cpu_ratio"]] = values[_ROW["cpu_cores"]] / vcpus
    values[_ROW["vcpu_busiest_ratio"]] = rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]]
    values[_ROW["memory_used_bytes"]] = np.maximum(current - usable, 0.0) * _KIB
    values[_ROW["memory_rss_bytes"]] = resident * _KIB
    return kept(values)

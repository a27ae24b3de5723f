"""The selection of surprising samples in whole-array steps: the twin of `models.kernels.forest`."""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels import baseline

_Z = ("z_cpu_cores", "z_disk_rd_bytes_per_s", "z_net_tx_bytes_per_s", "z_disk_wr_bytes_per_s")


def take_gated(
    counted: NDArray[np.float32],
    state: NDArray[np.float32],
    cpu: NDArray[np.float64],
    contention: NDArray[np.float64],
    vcpus: NDArray[np.int64],
    life_nats: NDArray[np.float32],
    disk_nats: NDArray[np.float32],
    edges: NDArray[np.float64],
    size: int,
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.int64]]:
    """Return the selected rows, their samples and their classes."""
    gated = np.flatnonzero(counted[baseline.OUT["gate"], :size] > 0)
    cores = np.maximum(vcpus[gated], 1)
    shares = np.array([cpu[gated] / cores, contention[gated], disk_nats[gated] / 8.0])
    shares = np.clip(np.vstack([shares, life_nats[gated] / 8.0]), 0.0, 1.0)
    z = counted[[baseline.OUT[name] for name in _Z]][:, gated].astype(np.float64)
    samples = np.vstack([shares, 0.5 + 0.5 * z / (np.abs(z) + 6.0)]).T
    mean = state[:, baseline.MEAN].reshape(-1)[gated]
    return gated, samples, (mean / cores >= edges[:, None]).sum(axis=0)

"""Score and train half-space trees as arrays, in one pass over many models.

Algorithm: Tan, Ting and Liu, "Fast Anomaly Detection for Streaming Data", IJCAI 2011,
sections 3 and 4. Scores equal those of River (`river.anomaly.HalfSpaceTrees`) bit for bit. The
features and thresholds of a tree do not depend on data, so models with the same seed share them
and differ only in masses (numbers of samples that reached a node). A score is a sum of integers,
exact in float64, so the order of summation does not matter.

Only samples for which `models.kernels.baseline` sets a bit in `gate` are scored (a large z score or
residual, or a drift). Their features are limited to [0, 1].
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels import baseline
from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.blocks import BLOCK_ROWS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Columns of a sample: the features in the order of their names, as River sorts them.
CPU_SHARE, DELAY_SHARE, DISK_SILENCE, SILENCE, Z_CPU, Z_READ, Z_SEND, Z_WRITE = range(8)
FEATURES: Final = 8
# `_NATS_CAP`: a silence of this many nats, or more, gives the feature 1. `_Z_HALF`: a z score of
# this size gives a feature half way between the middle, 0.5, and its limit, 0 or 1.
_NATS_CAP: Final = np.float32(8)
_Z_HALF: Final = 6.0
_GATE: Final = baseline.OUT["gate"]
_Z_ROWS: Final = np.array(
    [
        baseline.OUT[f"z_{name}"]
        for name in (
            "cpu_cores",
            "disk_rd_bytes_per_s",
            "net_tx_bytes_per_s",
            "disk_wr_bytes_per_s",
        )
    ]
)


@inlined
def _bounded(value: float) -> float:
    """Return a share limited to [0, 1]; NaN stays."""
    return 0.0 if value < 0.0 else (1.0 if value > 1.0 else value)


@kernel
def take_gated(
    counted: F32,
    state: F32,
    cpu: F64,
    contention: F64,
    vcpus: I64,
    life_nats: F32,
    disk_nats: F32,
    edges: F64,
    size: int,
    gated: I64,
    samples: F64,
    models: I64,
) -> int:
    """Collect the features of the samples with a gate bit, and the workload classes of their VMs.

    Parameters
    ----------
    counted, state
        Results of `baseline.fold_counters` for the sample, and the state that it updated.
    cpu, contention, vcpus, life_nats, disk_nats
        Shape (rows,): cores used; share of the wanted CPU time that the VM waited for; number of
        vCPUs; how surprising the silence of all signals is, and that of the disks, in nats. NaN is
        unknown.
    edges
        Shape (classes - 1,), ascending: share of all vCPUs from which the next class begins. The
        mean CPU use of a VM determines its class.
    size
        Number of rows in use.
    gated, samples, models
        Shape (≥ size,), (≥ size, FEATURES) and (≥ size,), overwritten from the front: the
        rows taken, their samples in [0, 1] with NaN for unknown, and their classes.

    Returns
    -------
    int
        Number of rows taken.
    """
    count = 0
    for index in range(size):
        if not counted[_GATE, index] > 0:
            continue
        cores = np.float64(max(vcpus[index], 1))
        sample = samples[count]
        sample[CPU_SHARE] = _bounded(cpu[index] / cores)
        sample[DELAY_SHARE] = _bounded(contention[index])
        sample[DISK_SILENCE] = _bounded(np.float64(disk_nats[index] / _NATS_CAP))
        sample[SILENCE] = _bounded(np.float64(life_nats[index] / _NATS_CAP))
        for k in range(4):
            # Maps z to (0, 1), and 0 to 0.5. The map is strictly monotonic, so that large scores
            # still differ.
            z = np.float64(counted[_Z_ROWS[k], index])
            sample[Z_CPU + k] = 0.5 + 0.5 * z / (abs(z) + _Z_HALF)
        mean = np.float64(state[index // BLOCK_ROWS, baseline.MEAN, index % BLOCK_ROWS])
        model = 0
        for edge in range(edges.shape[0]):
            model += 1 if mean / cores >= edges[edge] else 0
        models[count] = model
        gated[count] = index
        count += 1
    return count


@kernel
def score_then_learn(
    samples: NDArray[np.float64],
    models: NDArray[np.int64],
    features: NDArray[np.int32],
    thresholds: NDArray[np.float64],
    learned: NDArray[np.uint16],
    reference: NDArray[np.uint16],
    counts: NDArray[np.int32],
    first_window: NDArray[np.bool_],
    height: int,
    window: int,
    scores: NDArray[np.float64],
) -> None:
    """Score each sample with its model, then let the model learn it, in place.

    Parameters
    ----------
    samples
        Shape (m, n_features), values in [0, 1]. At a missing value (NaN) the sample follows the
        child with the larger mass, as in River.
    models
        Shape (m,): model of each sample; one model may appear repeatedly.
    features, thresholds
        Shape (n_trees, n_nodes): the shared trees as heaps, children of i at 2i+1, 2i+2.
    learned, reference
        Shape (n_models, n_trees, n_nodes): masses of the window being learned and of the
        one before it.
    counts, first_window
        Shape (n_models,): samples in the current window; whether no window is complete yet.
    height, window
        Depth of the leaves, and samples per window.
    scores
        Shape (m,), overwritten: 0 is normal, towards 1 is anomalous; 0 in the first window.
    """
    trees = features.shape[0]
    size_limit = 0.1 * window
    max_score = float(trees * window * (2 ** (height + 1) - 1))
    for j in range(samples.shape[0]):
        model = models[j]
        total = 0.0
        for tree in range(trees):
            node = np.uint64(0)
            weight = 1
            counting = True
            mass = 0
            for _ in range(height):
                learned[model, tree, node] += np.uint16(1)
                here = int(reference[model, tree, node])
                mass += here * weight if counting else 0
                counting = counting and here >= size_limit
                value = samples[j, features[tree, node]]
                left = node + node + np.uint64(1)
                right = left + np.uint64(1)
                if value != value:
                    lighter = learned[model, tree, left] < learned[model, tree, right]
                    node = right if lighter else left
                else:
                    node = left if value < thresholds[tree, node] else right
                weight += weight
            learned[model, tree, node] += np.uint16(1)
            mass += int(reference[model, tree, node]) * weight if counting else 0
            total += mass
        scores[j] = 0.0 if first_window[model] else 1 - total / max_score
        counts[model] += 1
        if counts[model] == window:
            reference[model] = learned[model]
            learned[model] = np.uint16(0)
            first_window[model] = False
            counts[model] = 0

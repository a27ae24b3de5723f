"""Half-space trees as arrays: score, then learn, in one walk over many models.

Algorithm: Tan, Ting and Liu, "Fast Anomaly Detection for Streaming Data", IJCAI 2011,
sections 3 and 4, as River implements it (`river.anomaly.HalfSpaceTrees`), bit for bit: a
tree's shape depends only on the seed, so models of one seed share features and
thresholds and differ in masses alone; a score is a sum of integers, exact in float64, so
the order of summation does not matter.
"""

import numpy as np
from numpy.typing import NDArray

from models.kernels._jit import kernel


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
        Shape (m, n_features), values in [0, 1]; NaN is missing and follows the heavier
        child, as in River.
    models
        Shape (m,): which model each sample belongs to; one model may appear repeatedly.
    features, thresholds
        Shape (n_trees, n_nodes): the shared trees as heaps, children of i at 2i+1, 2i+2.
    learned, reference
        Shape (n_models, n_trees, n_nodes): masses of the window being learned and of the
        one before it.
    counts, first_window
        Shape (n_models,): samples in the window, and whether none was completed yet.
    height, window
        Depth of the leaves, and samples to a window.
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

"""Half-space trees for many VMs or workload classes; scores equal River's bit for bit.

River builds the trees, so a seed gives the same trees here as in River. Scoring and learning use
arrays, at a hundredth of River's cost, and a snapshot holds these arrays exactly. Features must be
bounded: the trees divide [0, 1], and a value outside falls into the outermost leaf.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from river.anomaly import HalfSpaceTrees

from flatline.models.kernels.forest import score_then_learn
from flatline.models.protocol import Arrays, fill

# The mass of a node is the number of samples of a window that reached it. It has 16 bits, so a
# larger window would overflow.
MAX_WINDOW = int(np.iinfo(np.uint16).max)


class HalfSpaceForest:
    """`model_count` models that share the same half-space trees and differ in their masses.

    Parameters
    ----------
    features
        Names of the features in any order. The attribute holds them sorted, as River sorts them.
    model_count
        Number of models: one per VM, or one per workload class.
    tree_count, height, window, seed
        As in `river.anomaly.HalfSpaceTrees`.
    """

    def __init__(
        self,
        *,
        features: Sequence[str],
        model_count: int,
        tree_count: int = 10,
        height: int = 8,
        window: int = 250,
        seed: int = 42,
    ) -> None:
        if window > MAX_WINDOW:
            raise ValueError(
                f"window is {window}, must be at most {MAX_WINDOW}: masses have 16 bits"
            )
        self.features = tuple(sorted(features))
        self.height = height
        self.window = window
        self.seed = seed
        shapes, thresholds = _grow(self.features, tree_count, height, window, seed)
        self._shapes = shapes
        self._thresholds = thresholds
        nodes = shapes.shape[1]
        self._learned = np.zeros((model_count, tree_count, nodes), np.uint16)
        self._reference = np.zeros((model_count, tree_count, nodes), np.uint16)
        self._counts = np.zeros(model_count, np.int32)
        self._first_window = np.ones(model_count, np.bool_)

    def score_then_learn(
        self, samples: NDArray[np.float64], models: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Score each sample with its model, then let the model learn it; return the scores.

        `samples` has shape (m, len(features)), columns in the order of `features`; NaN is unknown.
        `models` has shape (m,): the model of each sample. A score is 0 for a normal sample and
        approaches 1 for an anomalous one. It is 0 until the model has completed its first window.
        """
        scores = np.empty(len(samples), np.float64)
        score_then_learn(
            samples,
            models,
            self._shapes,
            self._thresholds,
            self._learned,
            self._reference,
            self._counts,
            self._first_window,
            self.height,
            self.window,
            scores,
        )
        return scores

    def to_arrays(self) -> Arrays:
        """Return the masses and counts, and the settings that determine the trees.

        The masses and counts are not copies.
        """
        return {
            "settings": np.array(
                [self._shapes.shape[0], self.height, self.window, self.seed], np.int64
            ),
            "features": np.array(self.features),
            "learned": self._learned,
            "reference": self._reference,
            "counts": self._counts,
            "first_window": self._first_window,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Restore models from the result of `to_arrays`; the arrays are copied.

        Raises
        ------
        KeyError, ValueError
            An array is missing or does not fit these models.
        """
        tree_count, height, window, seed = (int(value) for value in arrays["settings"])
        forest = cls(
            features=[str(name) for name in arrays["features"]],
            model_count=len(arrays["counts"]),
            tree_count=tree_count,
            height=height,
            window=window,
            seed=seed,
        )
        own = forest.to_arrays()
        for name in ("learned", "reference", "counts", "first_window"):
            fill(own[name], arrays[name], name=name)
        return forest


@lru_cache(maxsize=8)
def _grow(
    features: tuple[str, ...], tree_count: int, height: int, window: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the feature and the threshold of each node of River's trees for these settings.

    Both have shape (tree_count, nodes). Each tree is a heap: the children of node i are 2i + 1 and
    2i + 2. The arrays are read-only, because all forests with the same settings share them.
    """
    # River needs 50 ms to build trees. Without the cache, each cell of a site would cost that time.
    river = HalfSpaceTrees(n_trees=tree_count, height=height, window_size=window, seed=seed)
    # River builds its trees at the first sample, from the names in it; the values do not matter.
    river.learn_one(dict.fromkeys(features, 0.5))  # type: ignore[no-untyped-call]
    nodes = 2 ** (height + 1) - 1
    shapes = np.zeros((tree_count, nodes), np.int32)
    thresholds = np.zeros((tree_count, nodes))
    index = {name: position for position, name in enumerate(features)}
    for tree, root in enumerate(river.trees):
        waiting = [(root, 0)]
        while waiting:
            node, at_index = waiting.pop()
            if hasattr(node, "threshold"):
                shapes[tree, at_index] = index[node.feature]
                thresholds[tree, at_index] = node.threshold
                left, right = node.children
                waiting += [(left, 2 * at_index + 1), (right, 2 * at_index + 2)]
    shapes.flags.writeable = thresholds.flags.writeable = False
    return shapes, thresholds

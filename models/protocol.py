"""What every online model can do, whoever wrote it.

The first two methods are River's (`river.base.AnomalyDetector`), so that River's own
checks run on our models and River's models stand in for ours; the other two are what a
snapshot needs.
"""

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


class Detector(Protocol):
    """A model that scores a sample before it learns it.

    Scores are ordered (higher is stranger) and never saturate below their maximum, so that
    two strange samples can still be told apart.
    """

    def score_one(self, x: Mapping[str, float]) -> float:
        """Return how strange `x` is; a feature that is absent is unknown."""
        ...

    def learn_one(self, x: Mapping[str, float]) -> None:
        """Take `x` as a sample of what is normal."""
        ...


class ArrayDetector(Protocol):
    """Many models of one shape, kept as arrays and worked on together."""

    def score_then_learn(
        self, samples: NDArray[np.float64], models: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return one score a sample, then learn them in order.

        `samples` has shape (m, n_features), NaN is unknown; `models` says whose each is.
        """
        ...

    def to_arrays(self) -> Arrays:
        """Return the whole state by name; the arrays are the live ones, not copies."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Return the models that `to_arrays` came from, able to go on bit for bit."""
        ...

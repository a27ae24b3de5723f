"""What a model hands to a snapshot and starts from again."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# The whole state by name; the arrays are the live ones, not copies.
Arrays = Mapping[str, NDArray[np.generic]]


def fill(own: NDArray[np.generic], kept: NDArray[np.generic], *, name: str) -> None:
    """Let an array of a state hold what was kept of it: a value a place, and none converted.

    Raises
    ------
    ValueError
        Shape or type is another one.
    """
    if (own.shape, own.dtype) != (kept.shape, kept.dtype):
        raise ValueError(
            f"{name} is {kept.dtype} of shape {kept.shape}, not {own.dtype} of shape {own.shape}"
        )
    own[...] = kept

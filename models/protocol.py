"""Represent the state of a model in a snapshot: named arrays, restored without conversion."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# All state of a model: each array by its name. A model returns its own arrays, not copies.
Arrays = Mapping[str, NDArray[np.generic]]


def fill(own: NDArray[np.generic], kept: NDArray[np.generic], *, name: str) -> None:
    """Copy `kept`, an array of a snapshot, into `own`, an array of a state, without conversion.

    `name` is the name of the array in the error message.

    Raises
    ------
    ValueError
        Shape or type differs.
    """
    if (own.shape, own.dtype) != (kept.shape, kept.dtype):
        raise ValueError(
            f"{name} is {kept.dtype} of shape {kept.shape}, not {own.dtype} of shape {own.shape}"
        )
    own[...] = kept

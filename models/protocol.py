"""Convert the state of a model to a snapshot and back."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# The whole state by name; the arrays are not copies.
Arrays = Mapping[str, NDArray[np.generic]]


def fill(own: NDArray[np.generic], kept: NDArray[np.generic], *, name: str) -> None:
    """Copy a stored array into an array of a state without conversion.

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

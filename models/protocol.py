"""What a model hands to a snapshot and starts from again."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# The whole state by name; the arrays are the live ones, not copies.
Arrays = Mapping[str, NDArray[np.generic]]

"""Arrays of a state as values for msgpack, and the errors of restoring a state."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import SnapshotDamaged, SnapshotTooNew


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A numpy array: little-endian dtype, shape, bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def stored(array: NDArray[np.generic]) -> Array:
    """Return an array in its stored form."""
    return Array(array.dtype.newbyteorder("<").str, array.shape, array.tobytes())


def array_of(value: Array) -> NDArray[np.generic]:
    """Return the array of a stored value; it is read-only.

    Raises
    ------
    ValueError, TypeError
        Dtype, shape and data do not fit; `restoring` turns this into `SnapshotDamaged`.
    """
    return np.frombuffer(value.data, value.dtype).reshape(value.shape)


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turn every error inside the context into one that reports a damaged state.

    `what` names the state and begins the message.

    Raises
    ------
    SnapshotDamaged
        A value is missing, of another type or shape, or out of range: an older state is used.
    SnapshotTooNew
        A later release wrote it.
    """
    try:
        yield
    except (SnapshotDamaged, SnapshotTooNew):
        raise
    except Exception as error:
        raise SnapshotDamaged(
            f"{what} cannot be restored ({type(error).__name__}: {error}); an older one is used "
            "instead."
        ) from error

"""Widen packed columns to 64-bit words in one pass; widening is the largest cost of decoding.

`engine.wire.table` defines the layout and passes it in as numbers, so that a node, which has no
Numba, can decode the same bytes with NumPy.
"""

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined, kernel

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_WORD_BYTES = 8


@inlined
def _put(part: NDArray[np.unsignedinteger], words: U64) -> None:
    for i_ in range(words.shape[0]):
        i = np.uint64(i_)
        words[i] = np.uint64(part[i])


@inlined
def _put_above(part: NDArray[np.unsignedinteger], shift: np.uint64, words: U64) -> None:
    for i_ in range(words.shape[0]):
        i = np.uint64(i_)
        words[i] |= np.uint64(part[i]) << shift


@inlined
def _multiply(words: U64, factor: np.uint64) -> None:
    for i_ in range(words.shape[0]):
        i = np.uint64(i_)
        words[i] *= factor


@kernel
def widen(data: U8, indices: I64, quanta: U64, order: I64, values: U64) -> None:
    """Write the values of packed columns to the rows of `values`.

    Parameters
    ----------
    data
        The constants, one of 8 bytes for each column of width 0, then the parts of the others. The
        address of the first byte is a multiple of 8.
    indices
        Shape (columns, 5): width of a value in bytes, which is the sum of its parts; then, for the
        parts of 8, 4, 2 and 1 bytes, the number of bytes per VM that precede the column's part.
        Columns of width 0 come first.
    quanta
        Factor by which the stored values of each column are multiplied.
    order
        For each row of `values`, the index of its column; `len(indices)` means a row of zeros.
    values
        Shape (len(order), n), overwritten.
    """
    size = values.shape[1]
    stored = indices.shape[0]
    constants = 0
    for column in range(stored):
        constants += 1 if indices[column, 0] == 0 else 0
    first = _WORD_BYTES * constants
    for row in range(values.shape[0]):
        words = values[row]
        column = order[row]
        if column == stored:
            words[:] = np.uint64(0)
            continue
        width = indices[column, 0]
        if width == 0:
            at = _WORD_BYTES * column
            words[:] = data[at : at + _WORD_BYTES].view(np.uint64)[0] * quanta[column]
            continue
        shift = np.uint64(0)
        if width & 8:
            at = first + size * indices[column, 1]
            _put(data[at : at + 8 * size].view(np.uint64), words)
        if width & 4:
            at = first + size * indices[column, 2]
            _put(data[at : at + 4 * size].view(np.uint32), words)
            shift = np.uint64(32)
        if width & 2:
            at = first + size * indices[column, 3]
            part = data[at : at + 2 * size].view(np.uint16)
            if shift == 0:
                _put(part, words)
            else:
                _put_above(part, shift, words)
            shift += np.uint64(16)
        if width & 1:
            at = first + size * indices[column, 4]
            if shift == 0:
                _put(data[at : at + size], words)
            else:
                _put_above(data[at : at + size], shift, words)
        if quanta[column] != 1:
            _multiply(words, quanta[column])

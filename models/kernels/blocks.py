"""Define the layout of per-VM state: blocks of 64 VMs, each field contiguous within a block.

An array of state has shape (blocks, fields, `BLOCK_ROWS`), C-contiguous; each VM is a row of a
block. The 64 values of a field are adjacent, so that loops over a block have no aliasing and no
branches and LLVM vectorises them. Blocks share no data, so a node's block can be moved or saved
separately.
"""

from typing import Final

# VMs in a block. 64 float32 values fill four AVX-512 or eight AVX2 registers. Blocks of 16 take
# twice as long. Blocks of 256 gain a fifth while the state is in cache, and lose it when the state
# is read from memory (measured on an EPYC, Zen 4).
BLOCK_ROWS: Final = 64


def blocks_for(count: int) -> int:
    """Return the number of blocks for `count` rows."""
    return -(-count // BLOCK_ROWS)

"""How per-VM state is laid out: blocks of lanes, one lane a VM, one row a field.

An array of state has shape (blocks, fields, `LANES`), C-contiguous. Within a block each
field is one run of 64 values, so that every loop over a block is free of aliases and
branches and LLVM turns it into vector instructions; across blocks nothing is shared, so a
node's block can be moved or saved by itself.
"""

from typing import Final

# 64 float32 lanes are four AVX-512 or eight AVX2 registers; 16 lanes cost twice as much,
# 256 gain a fifth in cache and lose it from memory (measured on an EPYC, Zen 4).
LANES: Final = 64


def blocks_for(count: int) -> int:
    """Return how many blocks hold `count` lanes."""
    return -(-count // LANES)

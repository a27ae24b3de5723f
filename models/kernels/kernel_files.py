"""Cache compiled kernels in a folder, so that the next start need not compile them.

The cached machine code is loaded without verification, so the folder must belong to the service
alone. Numba checks only whether the file of a kernel has changed, not the files of the functions it
calls. `fingerprint` covers all files, so the folder must be named by it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np

from flatline.models.kernels._jit import KERNELS

_SOURCES = Path(__file__).parents[1]


def fingerprint(sources: Path = _SOURCES) -> str:
    """Return 32 hex digits that change when kernels may compile to other code.

    They cover every source file of the models, the versions of Numba and NumPy, and the environment
    variables that set up Numba. Numba itself distinguishes CPUs and signatures.
    """
    digest = blake2b(digest_size=16)
    versions = [numba.__version__, np.__version__]
    switches = [f"{name}={text}" for name, text in os.environ.items() if name.startswith("NUMBA_")]
    digest.update("\n".join([*versions, *sorted(switches)]).encode())
    for path in sorted(sources.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"\n{path.relative_to(sources)} {len(text)}\n".encode() + text)
    return digest.hexdigest()


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Load kernels compiled in this block from a folder, and store new ones there.

    Only one process may use the folder at a time: two that store different signatures of one kernel
    could mix them up. After the block, kernels are neither loaded nor stored.

    Raises
    ------
    OSError
        The folder cannot be read or written. Kernels compiled until then stay compiled.
    """
    # Numba creates the names of its settings at import, so the type checker does not know them.
    cast(Any, numba.config).CACHE_DIR = str(folder)
    # Numba has no public API for the location of a cached kernel, nor to switch caching off.
    try:
        for compiled in KERNELS:
            compiled.enable_caching()
            if not Path(compiled._cache.cache_path).is_relative_to(folder):  # noqa: SLF001
                raise OSError(f"{folder} cannot be written")  # Numba would use another folder
        yield
    finally:
        for compiled in KERNELS:
            compiled._cache.disable()  # noqa: SLF001

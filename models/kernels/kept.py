"""Compiled kernels that are kept in a folder, so that the next start need not compile them.

What is kept is machine code that is loaded without a question, so the folder must belong to the
service alone. Numba looks only at the file of a kernel, not at the files of what it calls;
`fingerprint` covers all of them, and whoever keeps kernels names the folder by it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np

from models.kernels._jit import KERNELS

_SOURCES = Path(__file__).parents[1]


def fingerprint(sources: Path = _SOURCES) -> str:
    """Return what differs where kernels may compile to other code: 32 hex digits.

    Covers every source file of the models, the versions of what compiles them, and Numba's
    settings. Numba itself tells CPUs and signatures apart.
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
    """Load from a folder what is compiled in the block, and keep there what was not in it.

    One process at a time: two that keep different signatures of a kernel could mistake one for
    the other. After the block nothing more is loaded or kept.

    Raises
    ------
    OSError
        The folder cannot be read or written. What was compiled until then is compiled.
    """
    # Numba makes its settings' names when it is imported.
    cast(Any, numba.config).CACHE_DIR = str(folder)
    # Numba has no public word for where a kernel is kept, nor a way back.
    try:
        for compiled in KERNELS:
            compiled.enable_caching()
            if not Path(compiled._cache.cache_path).is_relative_to(folder):  # noqa: SLF001
                raise OSError(f"{folder} cannot be written")  # Numba would take the next best
        yield
    finally:
        for compiled in KERNELS:
            compiled._cache.disable()  # noqa: SLF001

"""A pytest plugin for many runs over one tree: `-p tests.kept` caches the compiled kernels.

The environment names the folder, `TEST_KERNELS_FOLDER`, which must be the user's own.
"""

import os
from pathlib import Path

from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.kernel_cache import compile_kept


def pytest_sessionstart() -> None:
    """Compile the engine's kernels, or load those cached by an earlier run of the same sources."""
    compile_kept(compile_kernels, Path(os.environ["TEST_KERNELS_FOLDER"]))

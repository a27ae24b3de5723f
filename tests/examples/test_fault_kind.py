"""The worked example of a fault kind works as `CONTRIBUTING.md` tells it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.examples.edit import apply
from tests.examples.swap_storm import EDITS
from tests.slices import ROOT

_MOST_FILES: Final = 9
_SUITES: Final = (
    "tests/simulation/test_swap_storm.py",
    "tests/unit/deploy/test_default_policy.py",
)


@pytest.mark.slow
def test_a_new_kind_is_detected_resolved_and_evaluated_with_at_most_nine_files(
    tmp_path: Path,
) -> None:
    touched = apply(EDITS, tmp_path)
    assert len(touched) <= _MOST_FILES, sorted(touched)
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-n", "0"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *_SUITES],
        cwd=tmp_path,
        # A small site is played sooner than the changed kernels are compiled.
        env=os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_the_contributing_guide_names_every_file_of_the_example() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide.split("## How to add a fault kind")[1].split("\n## ")[0]
    files = {edit.file.replace("swap_storm", "NAME") for edit in EDITS}
    missing = [file for file in sorted(files) if f"`{file}`" not in section]
    assert not missing

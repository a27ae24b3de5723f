"""Puts an example into a copy of the project, and runs tests there.

An example is a folder: `change.patch` changes files of the project, and every other file is copied
to the same path below the project's root.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tidy.tree import ROOT, files, link_packages

PATCH = "change.patch"
_COPIED = (
    *("flatline", "engine", "connectors", "models", "tests", "benchmarks", "deploy"),
    *("pyproject.toml", "CHANGELOG.md"),
)


def touched(example: Path) -> set[str]:
    """Return the paths of the project that the example adds or changes."""
    changed = re.findall(r"^\+\+\+ b/(\S+)$", (example / PATCH).read_text(), re.MULTILINE)
    return {*changed, *(path.relative_to(example).as_posix() for path in _added(example))}


def plant(example: Path, project: Path) -> None:
    """Copy the project to `project`, with the example in it."""
    for source in files():
        path = source.relative_to(ROOT)
        if path.parts[0] in _COPIED and path.parts[:2] != ("tests", "examples"):
            _copy(source, project / path)
    link_packages(project)
    for source in _added(example):
        _copy(source, project / source.relative_to(example))
    run(["git", "apply", str(example / PATCH)], project)


def check(project: Path, *names: str) -> None:
    """Run tests of the planted project; they fail like assertions."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run([sys.executable, "-m", "pytest", *options, *names], project)


def run(command: list[str], project: Path) -> None:
    """Run a command in the planted project."""
    done = subprocess.run(
        command, cwd=project, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _added(example: Path) -> list[Path]:
    return [path for path in files() if path.is_relative_to(example) and path.name != PATCH]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)

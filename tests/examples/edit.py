"""A worked example: the files that a contribution touches, and what it writes into each."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tests.slices import ROOT

_COPIED: Final = ("engine", "connectors", "models", "benchmarks", "tests", "deploy")


class Edit(NamedTuple):
    """`old`, which occurs once in `file`, becomes `new`; an empty `old` makes the file."""

    file: str
    old: str
    new: str


def apply(edits: Iterable[Edit], folder: Path) -> set[str]:
    """Copy the tree to `folder`, make the edits there, and return the files that they touch."""
    for name in _COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    touched = set()
    for edit in edits:
        file = folder / edit.file
        text = file.read_text() if edit.old else ""
        if edit.old and text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} has {text.count(edit.old)} times {edit.old!r}")
        file.write_text(text.replace(edit.old, edit.new) if edit.old else edit.new)
        touched.add(edit.file)
    return touched

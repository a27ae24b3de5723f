"""Remove each guard in turn and check that a test fails: `make mutants`, to `reports/mutants.json`.

Mutants that an earlier slice (`SLICE=n`) has tried over the same code are not repeated.

A mutant is one change of the shipped source in a copy of the tree. The replaced text must occur
there exactly once, so that a rewritten guard needs an updated mutant.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.guards import MUTANTS, check
from tests.mutant import Mutant
from tests.slices import ROOT, earlier, keep

REPORT: Final = ROOT / "reports" / "mutants.json"
# On a busy machine the longest suites take minutes, and all of them together an hour.
_WITHIN_S: Final = 600.0
_ALL_WITHIN_S: Final = 3600.0


def tree(folder: Path) -> Path:
    """Return a copy of the tree in `folder`, whose source may be changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("flatline", "engine", "connectors", "models", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def killer(mutant: Mutant, copy: Path) -> str | None:
    """Return the test that fails with the mutant in place, None if none does.

    Raises
    ------
    RuntimeError
        The tests could not be run, so the mutant is not killed.
    """
    file = copy / mutant.file
    source = file.read_text()
    file.write_text(source.replace(mutant.old, mutant.new))
    try:
        return _failing(mutant.suites, copy)
    finally:
        file.write_text(source)


def _failing(suites: Sequence[str], copy: Path, within_s: float = _WITHIN_S) -> str | None:
    """Return the first test of `suites` that fails in `copy`, None if all pass."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *suites],
            cwd=copy,
            env=os.environ
            | {"PYTHONPATH": str(copy), "TEST_KERNELS_FOLDER": str(copy / "kernels")},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"none of {', '.join(suites)} came to an end within {within_s:.0f} s"
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return None
    if failed is None:
        raise RuntimeError(f"{suites} could not be run: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return failed[1]


def killers_of(chosen: Sequence[Mutant], *, workers: int) -> Iterator[tuple[Mutant, str | None]]:
    """Yield each mutant with the test that kills it, as soon as it is known.

    Raises
    ------
    RuntimeError
        A test fails without a mutant, so it cannot show anything.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            trees.put(tree(Path(folder) / str(number)))

        def attempt(mutant: Mutant) -> tuple[Mutant, str | None]:
            mine = trees.get()
            try:
                return mutant, killer(mutant, mine)
            finally:
                trees.put(mine)

        whole = trees.get()
        broken = _failing(
            tuple(dict.fromkeys(suite for one in chosen for suite in one.suites)),
            whole,
            _ALL_WITHIN_S,
        )
        trees.put(whole)
        if broken is not None:
            raise RuntimeError(f"{broken} fails as it is, so no mutant can be told by it.")
        for done in as_completed([pool.submit(attempt, mutant) for mutant in chosen]):
            yield done.result()


def main() -> int:
    """Try the remaining mutants; exit code 1 where one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slice", type=int, default=len(MUTANTS), help="at most so many")
    given = parser.parse_args()
    began_s, stale, console = time.monotonic(), check(), Console()
    for sentence in stale:
        console.print(sentence)
    before = earlier(REPORT)
    killed_by: dict[str, str | None] = before.get("killed_by", {})
    chosen = [one for one in MUTANTS if killed_by.get(one.name) is None][: given.slice]
    for mutant, test in killers_of(chosen, workers=given.workers) if chosen else ():
        killed_by[mutant.name] = test
        # Written immediately, so that an interrupted run loses nothing.
        report = {
            "mutants": len(MUTANTS),
            "tried": len(killed_by),
            "survivors": [name for name, by in killed_by.items() if by is None],
            "wall_s": round(before.get("wall_s", 0.0) + time.monotonic() - began_s, 1),
            "killed_by": killed_by,
        }
        keep(REPORT, report)
    table = Table("mutant", "killed by")
    for name, test in killed_by.items():
        table.add_row(name, test or "[bold red]nothing[/]")
    console.print(table)
    survivors = [name for name, by in killed_by.items() if by is None]
    killed = len(killed_by) - len(survivors)
    console.print(f"{killed} of {len(killed_by)} mutants are killed, of {len(MUTANTS)} in all.")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    sys.exit(main())

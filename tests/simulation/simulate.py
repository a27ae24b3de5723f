"""Plays many seeds on all cores: `make simulate SEEDS=N [FIRST=n]`, to `reports/simulation.json`.

A failing seed prints one line that plays it again.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from tests.simulation.hostile import aim, attack, tamper
from tests.simulation.invariants import Family, Result, invariant_of
from tests.simulation.seeded_run import FAMILIES, play

_CHUNK = 25
# A blackout is about nothing happening at all: a tenth of the runs say as much.
_SHARE = {"mixed": 1.0, "storm": 1.0, "blackout": 0.1, "race": 1.0}
REPORT = Path("reports") / "simulation.json"


@dataclass
class Sum:
    """What many seeds of one family came to; `clean_*` are the same seeds without the faults."""

    seeds: int = 0
    breaches: Counter[str] = field(default_factory=Counter)
    actions: int = 0
    orders: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    adversities: Counter[str] = field(default_factory=Counter)
    repairable: int = 0
    repaired: int = 0
    clean_repairable: int = 0
    clean_repaired: int = 0
    clean_breaches: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    failing: list[str] = field(default_factory=list)

    def take(self, result: Result, clean: Result | None) -> None:
        """Add one seed."""
        self.seeds += 1
        self.actions += result.effects
        self.orders += result.orders
        self.outcomes += result.outcomes
        self.crashes += result.points
        self.rules += result.rules
        self.adversities.update(result.adversities)
        self.repairable += result.repairable
        self.repaired += result.repaired
        found = result.breaches
        if clean is not None:
            self.clean_repairable += clean.repairable
            self.clean_repaired += clean.repaired
            self.clean_breaches += len(clean.breaches)
            found = found + clean.breaches
        self.breaches.update(invariant_of(breach) for breach in result.breaches)
        if found:
            again = f"make simulate SEEDS=1 FIRST={result.seed} FAMILY={result.family}"
            self.failing.append(f"{found[0]}  # again: {again}")

    def repair_ratio(self) -> float:
        """Return the share of the repairable that is repaired where nothing else is wrong."""
        return self.clean_repaired / self.clean_repairable if self.clean_repairable else 1.0


def quiet() -> None:
    """Write no log: the journal of a run says the same, and nobody reads ten thousand."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), processors=[_drop])


def _drop(_: Any, __: str, ___: Any) -> Any:
    raise structlog.DropEvent


def _chunk(family: Family, seeds: range) -> list[tuple[Result, Result]]:
    quiet()
    return [(play(seed, family), play(seed, family, clean=True)) for seed in seeds]


def simulate(family: Family, *, first: int, seeds: int, workers: int) -> Sum:
    """Play `seeds` seeds of a family and their clean twins."""
    began_s, used_s, total = time.monotonic(), _used_by_workers_s(), Sum()
    parts = [range(n, min(n + _CHUNK, first + seeds)) for n in range(first, first + seeds, _CHUNK)]
    # Started anew and not forked: a test process may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for results in pool.map(_chunk, [family] * len(parts), parts):
            for result, clean in results:
                total.take(result, clean)
    total.wall_s = round(time.monotonic() - began_s, 1)
    total.cpu_s = round(_used_by_workers_s() - used_s, 1)
    return total


def _used_by_workers_s() -> float:
    """Return what ended workers used of the cores: on a machine with other work wall time lies."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rows(sums: dict[str, Sum]) -> Iterator[tuple[str, ...]]:
    for family, one in sums.items():
        yield (
            family,
            f"{one.seeds}",
            f"{sum(one.breaches.values()) + one.clean_breaches}",
            f"{one.actions}",
            f"{one.repaired}/{one.repairable}",
            f"{one.repair_ratio():.2%} of {one.clean_repairable}",
            f"{one.wall_s:.0f} s ({one.cpu_s:.0f} s)",
        )


def _hostile(count: int) -> dict[str, int]:
    """Attack orders, journal and targets in proportion to the seeds."""
    executed, told = attack(count)
    edits, targets = max(1, count // 10), 100 * count
    return {
        "orders": count, "orders executed": executed, "orders told of": told,
        "edits": edits, "edits found": tamper(edits),
        "targets": targets, "targets hit": aim(targets),
    }  # fmt: skip


def main() -> int:
    """Play what the command line asks for; exit code 1 where anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default=None, help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    families = (given.family,) if given.family else FAMILIES
    sums = {}
    for family in families:
        count = given.seeds if given.family else max(1, round(given.seeds * _SHARE[family]))
        sums[family] = simulate(family, first=given.first, seeds=count, workers=given.workers)
        for line in sums[family].failing[:20]:
            sys.stderr.write(f"{line}\n")
    table = Table(
        "family", "seeds", "breaches", "actions", "repaired, with faults", "without", "wall (CPU)"
    )
    for row in _rows(sums):
        table.add_row(*row)
    Console().print(table)
    REPORT.parent.mkdir(exist_ok=True)
    report: dict[str, Any] = {
        family: vars(one) | {"clean_repair_ratio": one.repair_ratio(), "first": given.first}
        for family, one in sums.items()
    }
    hostile = {} if given.family else _hostile(given.seeds)
    report["hostile"] = hostile
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    for what, count in hostile.items():
        Console().print(f"{what}: {count}")
    ill = any(one.failing or one.repair_ratio() < 0.95 for one in sums.values())
    breached = bool(hostile) and (
        hostile["orders executed"]
        or hostile["targets hit"]
        or hostile["edits found"] < hostile["edits"]
        or hostile["orders told of"] < hostile["orders"]
    )
    return 1 if ill or breached else 0


if __name__ == "__main__":
    sys.exit(main())

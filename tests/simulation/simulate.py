"""Play many seeds on all cores: `make simulate SEEDS=N [FIRST=n]`, to `reports/simulation.json`.

A failing seed prints one line that replays it. Consecutive slices over the same code (`FIRST=` at
the end of the previous one) are summed in the report.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from typing import Any, Self

import structlog
from rich.console import Console
from rich.table import Table

from tests.simulation.hostile import aim, attack, tamper
from tests.simulation.invariants import Family, Result, invariant_of
from tests.simulation.seeded_run import FAMILIES, play
from tests.slices import ROOT, earlier, keep

_CHUNK = 25
# In a blackout nothing may happen: a tenth of the runs suffices to show it.
_SHARE = {"mixed": 1.0, "storm": 1.0, "blackout": 0.1, "race": 1.0}
REPORT = ROOT / "reports" / "simulation.json"


@dataclass
class Sum:
    """The sum of the seeds of one family from `first` on.

    `clean_*` are the same seeds without the faults.
    """

    first: int = 0
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
    clean_cpu_s: float = 0.0
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
        """Return the repaired share of the repairable guests in runs without faults."""
        return self.clean_repaired / self.clean_repairable if self.clean_repairable else 1.0

    def reported(self) -> dict[str, Any]:
        """Return the sum for the report."""
        return vars(self) | {"clean_repair_ratio": self.repair_ratio()}

    @classmethod
    def going_on(cls, reported: dict[str, Any], *, first: int) -> Self:
        """Return the sum at the end of the previous slice, empty if none ended at `first`."""
        if not reported or reported["first"] + reported["seeds"] != first:
            return cls(first=first)
        values = {one.name: reported[one.name] for one in fields(cls)}
        counted = {name: Counter(v) for name, v in values.items() if isinstance(v, dict)}
        return cls(**(values | counted))


def quiet() -> None:
    """Disable logging: the journal of a run has the same content."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), processors=[_drop])


def _drop(_: Any, __: str, ___: Any) -> Any:
    raise structlog.DropEvent


def _chunk(family: Family, seeds: range) -> tuple[list[Result], list[Result], float, float]:
    """Play seeds and their twins, and return the CPU time of each, as the machine is shared."""
    quiet()
    began_s = time.process_time()
    results = [play(seed, family) for seed in seeds]
    half_s = time.process_time()
    clean = [play(seed, family, clean=True) for seed in seeds]
    return results, clean, half_s - began_s, time.process_time() - half_s


def simulate(family: Family, *, first: int, seeds: int, workers: int, total: Sum) -> Sum:
    """Play `seeds` seeds of a family and their clean twins, and add them to `total`."""
    began_s = time.monotonic()
    parts = [range(n, min(n + _CHUNK, first + seeds)) for n in range(first, first + seeds, _CHUNK)]
    # Spawned and not forked: a test process may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for results, twins, cpu_s, clean_cpu_s in pool.map(_chunk, [family] * len(parts), parts):
            total.cpu_s = round(total.cpu_s + cpu_s, 1)
            total.clean_cpu_s = round(total.clean_cpu_s + clean_cpu_s, 1)
            for result, clean in zip(results, twins, strict=True):
                total.take(result, clean)
    total.wall_s = round(total.wall_s + time.monotonic() - began_s, 1)
    return total


def _rows(sums: dict[str, Sum]) -> Iterator[tuple[str, ...]]:
    for family, one in sums.items():
        yield (
            family,
            f"{one.seeds}",
            f"{sum(one.breaches.values()) + one.clean_breaches}",
            f"{one.actions}",
            f"{one.repaired}/{one.repairable}",
            f"{one.repair_ratio():.2%} of {one.clean_repairable}",
            f"{one.wall_s:.0f} s ({one.cpu_s + one.clean_cpu_s:.0f} s, {one.clean_cpu_s:.0f} s)",
        )


def _hostile(count: int) -> dict[str, int]:
    """Attack orders, journal and targets in proportion to the seeds."""
    executed, reported = attack(count)
    edits, targets = max(1, count // 10), 100 * count
    return {
        "orders": count, "orders executed": executed, "orders told of": reported,
        "edits": edits, "edits found": tamper(edits),
        "targets": targets, "targets hit": aim(targets),
    }  # fmt: skip


def main() -> int:
    """Play the seeds of the command line; exit code 1 where an invariant was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--family", choices=(*FAMILIES, "hostile"), help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    report = earlier(REPORT)
    sums: dict[str, Sum] = {}
    quiet()
    for family in FAMILIES if given.family is None else set(FAMILIES) & {given.family}:
        count = given.seeds if given.family else max(1, round(given.seeds * _SHARE[family]))
        total = Sum.going_on(report.get(family, {}), first=given.first)
        sums[family] = simulate(
            family, first=given.first, seeds=count, workers=given.workers, total=total
        )
        report[family] = total.reported()
        for line in total.failing[:20]:
            sys.stderr.write(f"{line}\n")
    table = Table(
        "family", "seeds", "breaches", "actions", "repaired, with faults", "without",
        "wall (CPU, of it without)",
    )  # fmt: skip
    for row in _rows(sums):
        table.add_row(*row)
    Console().print(table)
    hostile = {} if given.family in FAMILIES else _hostile(given.seeds)
    if hostile:
        report["hostile"] = hostile
    keep(REPORT, report)
    for what, number in hostile.items():
        Console().print(f"{what}: {number}")
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

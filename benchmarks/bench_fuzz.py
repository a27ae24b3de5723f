"""Hostile records by the million: 0 deaths of any role, and 0 good records lost.

`python -m benchmarks.bench_fuzz` takes 1,000,000 frames, 1,000,000 records of planner and agent,
and 200,000 records in raw batches of Kafka. `--scale 0.01` takes a hundredth of each; `--part
frames` one of them alone. The same seed gives the same records for any `--processes`.
"""

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Final

from benchmarks.fuzz_frames import Tally, fuzz_frames
from benchmarks.fuzz_kafka import fuzz_kafka
from benchmarks.fuzz_planner import fuzz_planner
from benchmarks.report import Figure, report
from flatline.engine.cli.logs import set_up_logs
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.forecasting import partition_forecasts
from flatline.engine.kernel_cache import compile_kept, users_folder

PARTS: Final[dict[str, tuple[int, Callable[..., Tally]]]] = {
    "frames": (1_000_000, fuzz_frames),
    "planner": (1_000_000, fuzz_planner),
    "kafka": (200_000, fuzz_kafka),
}
# Records of one task, so that several processes share a part evenly.
_PIECE: Final = 10_000


def _prepare() -> None:
    set_up_logs(level=logging.CRITICAL)
    compile_kept(_compile, users_folder())


def _compile() -> None:
    compile_kernels()
    partition_forecasts.compile_kernels()


def _piece(part: str, count: int, seed: int) -> Tally:
    return PARTS[part][1](count, seed=seed)


def fuzzed(part: str, *, scale: float, seed: int, processes: int = 1) -> Tally:
    """Return the outcome of the records of one part."""
    count, tally = round(PARTS[part][0] * scale), Tally()
    pieces = [min(_PIECE, count - first) for first in range(0, count, _PIECE)]
    run = partial(_piece, part)
    seeds = range(seed, seed + len(pieces))
    if processes > 1:
        with ProcessPoolExecutor(processes, initializer=_prepare) as pool:
            for done in pool.map(run, pieces, seeds):
                tally.add(done)
    else:
        for done in map(run, pieces, seeds):
            tally.add(done)
    return tally


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=20_261_123)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", choices=sorted(PARTS), action="append")
    given = parser.parse_args(arguments)
    _prepare()
    rows: list[dict[str, Figure]] = []
    goals_met = True
    for part in given.part or PARTS:
        began_s = time.perf_counter()
        tally = fuzzed(part, scale=given.scale, seed=given.seed, processes=given.processes)
        goals_met = goals_met and tally.deaths == 0 and tally.good_lost == 0
        seconds = round(time.perf_counter() - began_s, 1)
        rows.append({"part": part, **vars(tally), "seconds": seconds})
    claim = "hostile records beside good ones: 0 deaths of any role, 0 good records lost"
    report("fuzz", claim=claim, rows=rows, goals_met=goals_met)


if __name__ == "__main__":
    main()

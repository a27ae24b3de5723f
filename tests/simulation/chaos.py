"""Play seeded sites with ordinary faults through engine, forecaster and historian.

No fault may end a role, and a state restored from a snapshot midway must continue bit for bit. Run
`python -m tests.simulation.chaos --sites 500`; replay a failing seed with `--first SEED --sites 1`.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.errors import RecordRejected
from flatline.engine.forecasting import forecast_state, partition_forecasts
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.history import history_state as history_state
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.kernel_cache import compile_kept, users_folder
from flatline.engine.ports import Record
from flatline.engine.wire.frame import decode_frame
from tests.simulation.chaos_sites import Site

# A default of a quarter of an hour becomes minutes here, so that a short play reaches the end.
_SHORT: Final = Configuration(
    resolved_kept_s=120.0,
    source_kept_s=60.0,
    host_member_s=300.0,
    totals_shared_open_s=300.0,
)


def configuration_of(seed: int) -> Configuration:
    """Return the constants of a seed: three of four sites use shorter times."""
    return Configuration() if seed % 4 == 0 else _SHORT


def engine_failures(records: list[Record], seed: int, *, stop_at: int) -> Iterator[str]:
    """Yield the engine's failures on these records, restored from a snapshot at `stop_at`."""
    configuration = configuration_of(seed)
    partition = Partition(configuration)
    restored: Partition | None = None
    for record in records:
        if record.offset == stop_at:
            chunks, manifest = take_snapshot(partition)
            restored = restore(chunks, manifest, configuration)
        outputs = partition.fold(record)
        if restored is not None:
            again = restored.fold(record)
            if [one.value for one in again] != [one.value for one in outputs]:
                yield f"offset {record.offset}: a restored engine says something else"
                return
    if restored is not None and digest(restored) != digest(partition):
        yield "the digest of a restored engine is another one"
    if not partition.counters.balanced(partition.waiting()):
        yield f"records are not accounted for: {msgspec.to_builtins(partition.counters)}"


def forecaster_failures(records: list[Record], *, stop_at: int) -> Iterator[str]:
    """Yield the forecaster's failures on these records, restored midway."""
    state, restored = PartitionForecasts(), None
    for record in records:
        if record.offset == stop_at:
            restored = forecast_state.restore_state(*forecast_state.take_state(state))
        state.fold(record)
        if restored is not None:
            restored.fold(record)
    if restored is not None and forecast_state.digest(restored) != forecast_state.digest(state):
        yield "the digest of a restored forecaster is another one"


def historian_failures(records: list[Record], *, stop_at: int) -> Iterator[str]:
    """Yield the failures of the historian's fold on these records, restored midway."""
    fold, restored = FrameFold(), None
    for record in records:
        if record.offset == stop_at:
            restored = history_state.restore(*history_state.take_state(fold))
        try:
            frame = decode_frame(record.value)
        except RecordRejected:
            continue
        fold.fold(frame, time_ms=record.time_ms)
        if restored is not None:
            restored.fold(frame, time_ms=record.time_ms)
    if restored is not None:
        ends = [history_state.take_state(one).chunks for one in (fold, restored)]
        if ends[0] != ends[1]:
            yield "the state of a restored historian is another one"


def failures(seed: int, *, seconds: float = 1_800.0) -> list[str]:
    """Play a seed's site; return the failures, empty if there are none."""
    records = Site(seed).play(seconds)
    stop_at = random.Random(seed + 1).randrange(len(records))
    plays: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
        ("engine", lambda: engine_failures(records, seed, stop_at=stop_at)),
        ("forecaster", lambda: forecaster_failures(records, stop_at=stop_at)),
        ("historian", lambda: historian_failures(records, stop_at=stop_at)),
    )
    found: list[str] = []
    for role, play in plays:
        try:
            found += [f"{role}: {text}" for text in play()]
        except Exception as error:  # noqa: BLE001 - any escape at all is a death
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            found.append(f"{role} died: {type(error).__name__}: {error} at {where}")
    return found


def _compile() -> None:
    compile_kernels()
    partition_forecasts.compile_kernels()


def main() -> None:
    """Play the requested number of sites; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1_800.0)
    asked = parser.parse_args()
    compile_kept(_compile, users_folder())
    began_s, bad = time.perf_counter(), 0
    for seed in range(asked.first, asked.first + asked.sites):
        found = failures(seed, seconds=asked.seconds)
        bad += bool(found)
        for text in found:
            sys.stdout.write(f"seed {seed}: {text}\n")
    took_s = time.perf_counter() - began_s
    sys.stdout.write(f"{asked.sites} sites, {bad} failed, {took_s:.0f} s\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

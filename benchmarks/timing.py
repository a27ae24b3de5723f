"""Compare timings in one run: on a shared machine only ratios within a run are meaningful."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = 9, round_s: float = 0.05
) -> dict[str, float]:
    """Return each variant's seconds of CPU a call: the median of alternating rounds.

    Each is called once before, so that no compilation or first caching is measured. A round repeats
    a call until it lasts `round_s`.
    """
    calls = {name: _calls_in(call, round_s) for name, call in contestants.items()}
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            started = time.thread_time_ns()
            for _ in range(calls[name]):
                call()
            took[name].append((time.thread_time_ns() - started) / 1e9 / calls[name])
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def _calls_in(call: Callable[[], object], round_s: float) -> int:
    call()
    started = time.perf_counter()
    call()
    return max(1, round(round_s / max(time.perf_counter() - started, 1e-7)))

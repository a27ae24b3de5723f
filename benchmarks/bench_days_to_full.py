"""Accuracy of days to full on simulated growth, compared with the last growth and a regression.

An interval is correct when it contains the day on which the use first reached the limit. The error
of an estimate is |log(estimate / truth)|: twice as late counts as half as late.
"""

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.growing import KINDS, Growing, grown
from benchmarks.report import Figure, report
from flatline.engine.capacity.growth import HORIZON_DAYS, days_to_full, first_passages

F64 = NDArray[np.float64]

EACH = 200
# Other seeds than those on which the method's prior was chosen.
FIRST_SEED = 10_000


class Told(NamedTuple):
    """An estimate and its 90 % interval, in days."""

    expected: float
    low: float
    high: float


def flatline(used: F64) -> Told:
    """Return Flatline's estimate."""
    found = days_to_full(used, 1.0)
    assert found is not None
    return Told(*found)


def last_value(used: F64) -> Told:
    """Return the estimate by the growth of the last week."""
    growth = (used[-1] - used[-8]) / 7
    days = (1.0 - used[-1]) / growth if growth > 0 else np.inf
    return Told(days, days, days)


def regression(used: F64) -> Told:
    """Return where a least-squares line, and its 90 % prediction band, reach the limit."""
    size = len(used)
    days = np.arange(size)
    slope, base = np.polyfit(days, used, 1)
    rest = used - (base + slope * days)
    sigma = np.sqrt((rest**2).sum() / (size - 2))
    ahead = np.arange(size - 1, size + HORIZON_DAYS)
    line = base + slope * ahead
    width = 1 + 1 / size + (ahead - days.mean()) ** 2 / ((days - days.mean()) ** 2).sum()
    band = 1.67 * sigma * np.sqrt(width)

    def reached(path: F64) -> float:
        return 0.0 if path[0] >= 1.0 else float(first_passages(path[None], 1.0)[0])

    return Told(reached(line), reached(line + band), reached(line - band))


METHODS = {"flatline": flatline, "last week's growth": last_value, "regression": regression}


def error(reported: float, truth: float) -> float:
    """Return the error of an estimate; never counts as two years."""
    bounded = np.clip([reported, truth], 1.0, HORIZON_DAYS)
    return float(abs(np.log(bounded[0] / bounded[1])))


def figures(kind: str, cases: list[Growing]) -> list[dict[str, Figure]]:
    """Return one row for each method."""
    rows: list[dict[str, Figure]] = []
    for name, method in METHODS.items():
        began = time.thread_time()
        reported = [method(case.used) for case in cases]
        spent = time.thread_time() - began
        inside = [t.low <= case.truth <= t.high for t, case in zip(reported, cases, strict=True)]
        errors = [error(t.expected, case.truth) for t, case in zip(reported, cases, strict=True)]
        rows.append(
            {
                "growth": kind,
                "method": name,
                "in_90": float(np.mean(inside)),
                "error_median": float(np.median(errors)),
                "error_mean": float(np.mean(errors)),
                "ms": spent * 1000 / len(cases),
            }
        )
    return rows


def main() -> None:
    """Measure and report."""
    flatline(np.linspace(0.1, 0.5, 30))
    rows: list[dict[str, Figure]] = []
    everything: list[Growing] = []
    for kind in KINDS:
        cases = [grown(kind, seed=FIRST_SEED + number) for number in range(EACH)]
        everything += cases
        rows += figures(kind, cases)
    rows += figures("all", everything)
    own, last, line = rows[-3:]
    covered = [float(row["in_90"] or 0) for row in rows if row["method"] == "flatline"]
    better = all(
        float(own["error_mean"] or 9) < float(row["error_mean"] or 0) for row in (last, line)
    )
    report(
        "days_to_full",
        claim=f"Days to full, {EACH} cases a kind: the 90 % interval holds the truth in 85-95 %;"
        " error |log(told / truth)| below both others",
        rows=rows,
        goals_met=all(0.85 <= share <= 0.95 for share in covered) and better,
    )


if __name__ == "__main__":
    main()

"""Speed from counters to baselines: the fused kernel compared with NumPy and plain Python.

All three do the same work, which the same run checks. The samples repeat in a ring: one in four
finds smaller counters than the last, so each variant also pays for a reset; the kernel has no
branch, so its time does not depend on it.

In the same run, an in-place addition processes as many bytes as the kernel must read and write:
`share_of_memory` is the part of the kernel's time that moving these bytes alone would take.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import report
from benchmarks.timing import alternate
from flatline.models.kernels import baseline
from flatline.models.kernels.blocks import BLOCK_ROWS, blocks_for
from tests.reference.baseline_twin import BaselineTwin

F32 = NDArray[np.float32]

SIZES = (200, 1_000, 10_000, 100_000, 1_000_000)
# Plain Python is measured on as many VMs as it folds in a tenth of a second.
TWIN_VMS = 1_000
DT_S = 2.0
# Few, so that counters come from the cache, like those of a frame just decoded.
RING = 4
# The promised speed-up over NumPy.
GOAL = 15.0
# Minimum that one sample of a VM reads and writes: state and counters of the last sample both ways,
# new counters and flags in, results out.
MOVED_BYTES = 2 * 4 * baseline.FIELD_COUNT + 2 * 32 + 32 + 1 + 4 * baseline.OUT_ROWS
# float32 sums in another order: the difference after a few dozen samples.
TOLERANCE = 1e-3
SAMPLES_CHECKED = 40


class NumpyBaseline:
    """The kernel's work as whole-array NumPy, all four signals together, in float32."""

    floors = np.array(baseline.FLOORS, np.float32)[:, None]
    units = np.array(baseline.UNITS, np.float32)[:, None]
    bits = np.array([[1], [2], [4], [8]], np.uint8)

    def __init__(self, size: int) -> None:
        self.previous = np.full((4, size), baseline.NO_PREVIOUS, np.uint64)
        self.mean, self.variance, self.count = np.zeros((3, 4, size), np.float32)
        self.level, self.trend, self.error = np.zeros((3, 2, size), np.float32)
        self.up, self.down = np.zeros((2, 2, size), np.float32)
        self.out = np.empty((baseline.OUT_ROWS, size), np.float32)

    def fold(self, counters: NDArray[np.uint64], flags: NDArray[np.uint8], weights: F32) -> int:
        """Fold one sample as `baseline.fold_counters` does."""
        rates = self._rates(counters, flags, weights[0])
        z = self._scores(rates, weights[1])
        worst = np.fmax.reduce(np.abs(z), axis=0, initial=np.float32(0))
        self.out[0:4], self.out[4:8] = rates, z
        sources = np.stack((rates[0], rates[1] + rates[2]))
        surprise = np.abs(self._expect(sources, weights))
        worst = np.fmax(worst, np.fmax(surprise[0], surprise[1]))
        heights = self._drift(z[[0, 2]])
        gate = (worst > 6) * np.uint8(1) + (heights.max(axis=0) > 8) * np.uint8(2)
        self.out[baseline.OUT["worst_z"]], self.out[baseline.OUT["gate"]] = worst, gate
        return int(np.count_nonzero(gate))

    def _rates(
        self, counters: NDArray[np.uint64], flags: NDArray[np.uint8], per_s: np.float32
    ) -> F32:
        measured = (flags & self.bits) != 0
        same_epoch = (flags & np.uint8(baseline.FLAG_SAME_EPOCH)) != 0
        usable = measured & same_epoch & (self.previous <= counters)
        usable &= self.previous != baseline.NO_PREVIOUS
        rates: F32 = (counters - self.previous).astype(np.float32)
        rates *= per_s * self.units
        rates[~usable] = np.nan
        self.previous = np.where(measured, counters, baseline.NO_PREVIOUS)
        return rates

    def _scores(self, rates: F32, weight: np.float32) -> F32:
        known = ~np.isnan(rates)
        warm = self.count >= 10
        spread = np.sqrt(self.variance) + self.floors
        off = rates - self.mean
        limit = np.float32(4) * spread
        step = np.where(warm, np.clip(off, -limit, limit), off)
        share = np.maximum(weight, np.float32(1) / (self.count + np.float32(1)))
        moved = share * step
        variance = (np.float32(1) - share) * (self.variance + moved * step)
        np.add(self.mean, moved, out=self.mean, where=known)
        np.copyto(self.variance, variance, where=known)
        np.add(self.count, np.float32(1), out=self.count, where=known & (self.count < 1e6))
        z: F32 = np.where(warm, off / spread, np.float32(0))
        z[~known] = np.nan
        return z

    def _expect(self, sources: F32, weights: F32) -> F32:
        known = ~np.isnan(sources)
        counted = self.count[[0, 2]]
        begun = counted > 1
        expected = np.where(begun, self.level + self.trend, sources)
        miss = sources - expected
        residual: F32 = np.where(
            counted > 10, miss / (self.error + self.floors[[0, 2]]), np.float32(0)
        )
        residual[~known] = np.nan
        self.out[8] = np.where(begun, expected, np.float32(np.nan))[0]
        self.out[9] = np.where(begun, self.error, np.float32(np.nan))[0]
        np.copyto(self.level, expected + weights[2] * miss, where=known)
        np.add(self.trend, weights[2] * weights[3] * miss, out=self.trend, where=known)
        np.add(self.error, weights[4] * (np.abs(miss) - self.error), out=self.error, where=known)
        return residual

    def _drift(self, z: F32) -> F32:
        known = ~np.isnan(z)
        step = np.where(known, z, np.float32(0))
        slack = known * np.float32(0.5)
        up = np.maximum(self.up + step - slack, np.float32(0))
        down = np.maximum(self.down - step - slack, np.float32(0))
        heights: F32 = np.maximum(up, down)
        hit = heights > 8
        up[hit] = 0
        down[hit] = 0
        self.up, self.down = up, down
        return heights


def samples(size: int) -> list[NDArray[np.uint64]]:
    """Return a ring of samples whose counters grow at a separate rate for each VM."""
    rng = np.random.default_rng(20261123)
    rate = rng.uniform(0.1, 1, (4, size)) * np.array([[1e9], [1e6], [1e6], [1e5]])
    total = np.zeros((4, size))
    ring = []
    for _ in range(RING):
        total += rate * rng.uniform(0.5, 1.5, (4, size))
        ring.append(total.astype(np.uint64))
    return ring


def kernel_fold(size: int) -> tuple[Callable[[NDArray[np.uint64]], int], F32]:
    """Return a fold of one sample by the kernel, and its result array."""
    state = baseline.new_state(size // BLOCK_ROWS)
    previous = baseline.new_previous(size // BLOCK_ROWS)
    out = np.empty((baseline.OUT_ROWS, size), np.float32)
    flags, weights = np.full(size, 0x8F, np.uint8), baseline.constants(DT_S)

    def fold(counters: NDArray[np.uint64]) -> int:
        return baseline.fold_counters(state, previous, counters, flags, weights, out)

    return fold, out


def numpy_fold(size: int) -> tuple[Callable[[NDArray[np.uint64]], int], F32]:
    """Return the same for NumPy."""
    state = NumpyBaseline(size)
    flags, weights = np.full(size, 0x8F, np.uint8), baseline.constants(DT_S)

    def fold(counters: NDArray[np.uint64]) -> int:
        # A reset wraps, in NumPy as in the kernel; both discard the result.
        with np.errstate(all="ignore"):
            return state.fold(counters, flags, weights)

    return fold, state.out


def pass_over(size: int) -> Callable[[], object]:
    """Return an in-place addition that moves as many bytes as the kernel for all rows."""
    values = np.zeros(size * MOVED_BYTES // 8, np.float32)
    return lambda: np.add(values, np.float32(1), out=values)


def same_work(ring: list[NDArray[np.uint64]], size: int) -> bool:
    """Return whether kernel and NumPy give the same results, resets included."""
    (kernel, results), (whole, expected) = kernel_fold(size), numpy_fold(size)
    for counters in itertools.islice(itertools.cycle(ring), SAMPLES_CHECKED):
        kernel(counters)
        whole(counters)
        # The gate is a comparison: a value right at its limit may differ.
        if not np.allclose(results[:18], expected[:18], TOLERANCE, TOLERANCE, equal_nan=True):
            return False
    return True


def twin_ns(ring: list[NDArray[np.uint64]]) -> float:
    """Return ns of plain Python for a VM-sample."""
    twins = [BaselineTwin() for _ in range(TWIN_VMS)]
    rows = [sample[:, :TWIN_VMS].T.tolist() for sample in ring]
    turns = itertools.cycle(rows)

    def fold() -> None:
        for twin, counters in zip(twins, next(turns), strict=True):
            twin.learn_one(counters, same_epoch=True, dt_s=DT_S)

    return alternate({"twin": fold}, rounds=5)["twin"] / TWIN_VMS * 1e9


def measure() -> Iterator[dict[str, str | int | float | bool | None]]:
    """Yield a row for each fleet size."""
    python_ns = twin_ns(samples(blocks_for(TWIN_VMS) * BLOCK_ROWS))
    for size in SIZES:
        table = blocks_for(size) * BLOCK_ROWS
        ring = samples(table)
        kernel, whole = kernel_fold(table)[0], numpy_fold(table)[0]
        turns = {"kernel": itertools.cycle(ring), "numpy": itertools.cycle(ring)}
        took = alternate(
            {
                "kernel": lambda turns=turns, fold=kernel: fold(next(turns["kernel"])),  # type: ignore[misc]
                "numpy": lambda turns=turns, fold=whole: fold(next(turns["numpy"])),  # type: ignore[misc]
                "memory": pass_over(table),
            }
        )
        yield {
            "vms": size,
            "kernel_ns": took["kernel"] / table * 1e9,
            "numpy_ns": took["numpy"] / table * 1e9,
            "python_ns": python_ns,
            "kernel_million_per_s": table / took["kernel"] / 1e6,
            "times_numpy": took["numpy"] / took["kernel"],
            "memory_gb_per_s": MOVED_BYTES * table / took["memory"] / 1e9,
            "share_of_memory": took["memory"] / took["kernel"],
            "times_python": python_ns / (took["kernel"] / table * 1e9),
            "same_results": same_work(ring, table),
        }


def main() -> None:
    """Measure and report."""
    rows = list(measure())
    report(
        "kernels",
        claim=f"Fused kernel, ns a VM-sample ({MOVED_BYTES} bytes) on one core: at least"
        f" {GOAL:g} times NumPy",
        rows=rows,
        goals_met=all(
            row["same_results"] is True and float(row["times_numpy"] or 0) >= GOAL for row in rows
        ),
    )


if __name__ == "__main__":
    main()

"""The results of `models.kernels.baseline`, one VM at a time, in plain Python.

Slow and obvious on purpose; float32 is imitated by rounding after each step, so that the comparison
needs only a small tolerance.
"""

import math

from flatline.models.kernels import baseline


class BaselineTwin:
    """One VM; `learn_one` returns the kernel's `out` values by name."""

    def __init__(self) -> None:
        self.previous: list[int | None] = [None] * 4
        self.mean = [0.0] * 4
        self.variance = [0.0] * 4
        self.count = [0] * 4
        self.level = [0.0, 0.0]
        self.trend = [0.0, 0.0]
        self.error = [0.0, 0.0]
        self.up = [0.0, 0.0]
        self.down = [0.0, 0.0]

    def learn_one(
        self, counters: list[int | None], *, same_epoch: bool, dt_s: float
    ) -> dict[str, float]:
        inverse, mean_w, level_w, trend_w, error_w = (
            float(weight) for weight in baseline.constants(dt_s)
        )
        rates = [
            self._rate(k, counters[k], same_epoch=same_epoch, per_s=inverse * baseline.UNITS[k])
            for k in range(4)
        ]
        out = dict(zip(baseline.SIGNALS, rates, strict=True))
        scores = [self._score(k, rates[k], mean_w) for k in range(4)]
        out |= {f"z_{name}": z for name, z in zip(baseline.SIGNALS, scores, strict=True)}
        worst = max([0.0] + [abs(z) for z in scores if not math.isnan(z)])
        sources = (rates[0], rates[1] + rates[2])
        for k, counted in enumerate((0, 2)):
            x = sources[k]
            begun = self.count[counted] > 1
            expected = self.level[k] + self.trend[k] if begun else x
            if k == 0:
                out["cpu_cores_expected"] = expected if begun else math.nan
                out["cpu_cores_error"] = self.error[k] if begun else math.nan
            floor = baseline.FLOORS[0] if k == 0 else baseline.FLOORS[2]
            miss = x - expected
            residual = miss / (self.error[k] + floor) if self.count[counted] > 10 else 0.0
            if not math.isnan(x):
                self.level[k] = expected + level_w * miss
                self.trend[k] += level_w * trend_w * miss
                self.error[k] += error_w * (abs(miss) - self.error[k])
                worst = max(worst, abs(residual))
        heights = [self._drift(k, scores[0 if k == 0 else 2]) for k in range(2)]
        out["worst_z"] = worst
        out["gate"] = (baseline.GATE_SURPRISE if worst > 6 else 0) + (
            baseline.GATE_DRIFT if max(heights) > 8 else 0
        )
        return out

    def _rate(self, k: int, value: int | None, *, same_epoch: bool, per_s: float) -> float:
        before, self.previous[k] = self.previous[k], value
        if value is None or before is None or not same_epoch or value < before:
            return math.nan
        return (value - before) * per_s

    def _score(self, k: int, x: float, weight: float) -> float:
        if math.isnan(x):
            return math.nan
        warm = self.count[k] >= 10
        spread = math.sqrt(self.variance[k]) + baseline.FLOORS[k]
        off = x - self.mean[k]
        step = max(-4 * spread, min(4 * spread, off)) if warm else off
        share = max(weight, 1 / (self.count[k] + 1))
        self.mean[k] += share * step
        self.variance[k] = (1 - share) * (self.variance[k] + share * step * step)
        self.count[k] += 1
        return off / spread if warm else 0.0

    def _drift(self, k: int, z: float) -> float:
        slack = 0.0 if math.isnan(z) else 0.5
        z = 0.0 if math.isnan(z) else z
        self.up[k] = max(0.0, self.up[k] + z - slack)
        self.down[k] = max(0.0, self.down[k] - z - slack)
        height = max(self.up[k], self.down[k])
        if height > 8:
            self.up[k] = self.down[k] = 0.0
        return height

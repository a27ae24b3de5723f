"""The forecast of one series in plain Python: lists of everything, medians by sorting."""

from statistics import median

import numpy as np

DAY, HOUR = 288, 12
NEAR, FAR = 16, 6


def single(x):
    """Return `x` with the precision of the state: rounding decides ties, and so the results."""
    return float(np.float32(x))


class Horizon:
    """Weights, quantiles and error sizes of one horizon, and the forecasts without outcome yet."""

    def __init__(self, *, ahead, width, states, length):
        self.ahead, self.width, self.states, self.length = ahead, width, states, length
        self.waiting = {}
        self.regret = [[0.0] * width for _ in range(states + 1)]
        self.square = [[0.0] * width for _ in range(states + 1)]
        self.voice_regret, self.voice_square = [0.0] * 3, [0.0] * 3
        self.quantiles = [-2.3, 2.3, -0.69, 0.69]
        self.size, self.count = [0.0] * (states + 1), [0.0] * (states + 1)
        middles = [-5.0, -2.5, -1.0, -0.3, 0.0, 0.3, 1.0, 2.5, 5.0]
        self.cells = [[middle] * 5 for middle in middles]
        self.cell_count = [[0.0] * 5 for _ in range(9)]

    def learn(self, number, x, *, forget, resolution):
        past = self.waiting.pop(number - self.ahead, None)
        if past is None:
            return
        says, voices, final, scale, state, cell = past
        for chosen, said in ((state, voices[0]), (self.states, voices[1])):
            side = (said > x) - (said < x)
            for k in range(self.width):
                gain = side * (said - says[k])
                self.regret[chosen][k] = forget * self.regret[chosen][k] + gain
                self.square[chosen][k] = forget * self.square[chosen][k] + gain**2
        side = (final > x) - (final < x)
        for voice, said in enumerate((says[0], *voices)):
            gain = side * (final - said)
            self.voice_regret[voice] = forget * self.voice_regret[voice] + gain
            self.voice_square[voice] = forget * self.voice_square[voice] + gain**2
        self._learn_errors(x - final, scale, state, resolution)
        if cell is not None:
            (i, j), base, unit = cell
            off = (x - base) / unit - self.cells[i][j]
            self.cells[i][j] += max(0.02, 1 / (self.cell_count[i][j] + 4)) * min(max(off, -1), 1)
            self.cell_count[i][j] += 1

    def _learn_errors(self, error, scale, state, resolution):
        z = error / scale
        near = self.states > 1
        for side, level in enumerate((0.05, 0.95, 0.25, 0.75)):
            q = self.quantiles[side]
            pace = min(0.03, 0.18 / self.length) * max(abs(q), 0.3)
            if not near:
                pace = 0.007 if side < 2 else 0.002
            below = z < q if side % 2 == 0 else z <= q
            self.quantiles[side] += pace * (level - below)
        for chosen in (state, self.states):
            count, usual = self.count[chosen], self.size[chosen]
            weight = max(0.01 if near else 0.002, 1 / (count + 1))
            size = abs(error)
            if count > 10 and near:
                size = min(size, 10 * usual + 30 * resolution)
            self.size[chosen] += weight * (size - usual)
            self.count[chosen] += 1

    def forecast(self, number, says, state, cell=None, *, level):
        says = [single(say) for say in says]
        last = says[0]
        voices = []
        for sets in ((state, self.states), (self.states,)):
            voices.append(last)
            for chosen in sets:
                pairs = zip(self.regret[chosen], self.square[chosen], strict=True)
                weights = [max(r, 0.0) / (s + 1e-12) for r, s in pairs]
                if sum(weights) > 0:
                    parts = zip(weights, says, strict=True)
                    voices[-1] = last + sum(w * (e - last) for w, e in parts) / sum(weights)
                    voices[-1] = single(voices[-1])
                    break
        most = max(self.voice_square)
        pairs = zip(self.voice_regret, self.voice_square, strict=True)
        weights = [max(r / (s + 0.01 * most + 1e-12) ** 0.5 + 1.0, 0.0) ** 2 for r, s in pairs]
        final = last
        if sum(weights) > 0:
            parts = zip(weights, (last, *voices), strict=True)
            final = last + sum(w * (v - last) for w, v in parts) / sum(weights)
        final = single(max(final, 0.0))
        known = self.count[state]
        scale = (known * self.size[state] + 10 * self.size[self.states]) / (known + 10)
        scale = max(scale, 1e-6)
        self.waiting[number] = (says, voices, final, scale, state, cell)
        self.final = final
        size, outcomes = self.size[self.states], self.count[self.states]
        if outcomes < 2 or (size == 0 and outcomes < 6):
            scale = max(scale, level)
            if scale <= 1e-6:
                return None
        low, high, inner_low, inner_high = (max(final + q * scale, 0.0) for q in self.quantiles)
        inner = (final, inner_low, inner_high)
        every = (*inner, low, high)
        return [final, min(every), max(every), min(inner), max(inner)]


class ForecastTwin:
    """One series on steps of `step_s`; `learn_one` returns the bands of each horizon or None."""

    def __init__(self, *, step_s=300):
        share = step_s / 300
        self.step_s = step_s
        self.per_slot = 300 // step_s
        self.forget = 0.998**share
        self.slow, self.long = 1 - 0.94**share, 1 - 0.988**share
        self.horizons = [
            Horizon(ahead=n * self.per_slot, width=NEAR, states=9, length=n * self.per_slot)
            for n in (1, 6)
        ]
        self.far = Horizon(ahead=DAY, width=FAR, states=1, length=DAY)
        self.begun = False

    def _begin(self, x):
        self.begun = True
        x = single(x)
        self.last = self.previous = self.fast = self.medium = self.slow_mean = self.long_mean = x
        self.level, self.trend = x, 0.0
        self.move = self.away = max(0.05 * abs(x), 1e-6)
        self.resolution = 0.0
        self.latest = [x] * 5
        self.first, self.slots = x, {}
        self.by_slot = [x] * DAY
        self.in_slot = []

    def slot(self, number):
        return self.slots.get(number, self.first)

    def around(self, number):
        return median(self.slot(number + near) for near in (-1, 0, 1))

    def learn_one(self, x, number):
        slot = -(-number // self.per_slot)
        closes = number % self.per_slot == 0
        if not self.begun:
            if x is None:
                return None
            self._begin(x)
        if x is not None:
            for horizon in self.horizons:
                horizon.learn(number, x, forget=self.forget, resolution=self.resolution)
            self._follow(x)
            self.in_slot.append(x)
        mean = None
        if closes:
            if self.in_slot:
                mean = sum(self.in_slot) / len(self.in_slot)
            self.slots[slot] = single(self.last if mean is None else mean)
            self.in_slot = []
        newest = slot if closes else slot - 1
        middle = median(self.slot(newest - k) for k in range(25))
        found = [None, None, None]
        if x is not None:
            found[:2] = self._near(number, slot, middle)
        if mean is not None:
            self.far.learn(slot, mean, forget=self.forget, resolution=self.resolution)
            index = slot % DAY
            self.by_slot[index] += 0.15 * (mean - self.by_slot[index])
            same_time = median(
                [
                    0.5 * (self.slot(slot) + self.slot(slot - 1)),
                    self.around(slot - DAY),
                    self.around(slot - 2 * DAY),
                ]
            )
            says = [
                self.last, middle, self.slow_mean, same_time, self.by_slot[index], self.long_mean
            ]  # fmt: skip
            found[2] = self.far.forecast(slot, says, 0, level=self.long_mean)
        return found

    def _follow(self, x):
        self.previous, self.last = self.last, single(x)
        self.latest = [*self.latest[1:], single(x)]
        self.fast = single(0.5 * x + 0.5 * self.fast)
        self.medium = single(0.2 * x + 0.8 * self.medium)
        self.slow_mean = single(self.slow * x + (1 - self.slow) * self.slow_mean)
        self.long_mean = single(self.long * x + (1 - self.long) * self.long_mean)
        level = 0.3 * x + 0.7 * (self.level + self.trend)
        self.trend = single(0.1 * (level - self.level) + 0.9 * self.trend)
        self.level = single(level)
        step = abs(x - self.previous)
        if step > 0 and (self.resolution == 0 or step < self.resolution):
            self.resolution = step
        least = max(0.5 * self.resolution, 1e-6)
        self.move = max(self.move + 0.01 * (min(step, 10 * self.move) - self.move), least)

    def _near(self, number, slot, middle):
        x = self.last
        off, jump = x - middle, abs(x - self.previous) / self.move
        far = abs(off) / self.move
        state = (0 if jump < 0.5 else 1 if jump < 2.5 else 2) * 3
        state += 0 if far < 1 else 1 if far < 5 else 2
        cell = (
            band(off / self.away, (0.1, 0.5, 1.5, 4.0)),
            band((self.previous - middle) / self.away, (0.1, 1.0)),
        )
        near = abs(off) < 2 * self.away
        next_step, found = x, []
        for horizon in self.horizons:
            ahead = horizon.ahead // self.per_slot
            then = slot + ahead
            changes = [self.slot(then - DAY * d) - self.slot(slot - DAY * d) for d in (1, 2, 3)]
            says = [
                x,
                self.previous,
                self.fast,
                self.slow_mean,
                self.level + horizon.ahead * self.trend,
                median(self.latest),
                middle,
                median(self.slot(then - HOUR * k) for k in (1, 2, 3, 4, 5)),
                median(self.around(then - DAY * d) for d in (1, 2, 3)),
                x + median(changes),
                middle + self.away * horizon.cells[cell[0]][cell[1]],
                x if near else middle,
                next_step,
                self.medium,
                self.by_slot[then % DAY],
                middle if near else x,
            ]
            found.append(
                horizon.forecast(
                    number, says, state, (cell, middle, self.away), level=self.long_mean
                )
            )
            next_step = horizon.final
        least = max(0.5 * self.resolution, 1e-6)
        self.away = max(self.away + 0.01 * (min(abs(off), 10 * self.away) - self.away), least)
        return found


def band(x, edges):
    """Return the signed band of `x`; the middle one is 0 at its centre."""
    steps = sum(abs(x) > edge for edge in edges)
    return len(edges) + (steps if x > 0 else -steps)

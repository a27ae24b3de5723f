"""The results of `models.kernels.aggregates` on silence and memory, one VM at a time.

Computed from the VM's whole past. Halvings are left out, so tests stay below them.
"""

import math
from itertools import pairwise
from typing import NamedTuple

STEPS = 6
WINDOW = 24
PRIOR = (1.5, 5.0, 1.5, 2.0)
FROZEN = (0.97, 0.01, 0.01, 0.01)
DECAY = (0.03, 0.05, 0.90, 0.02)
NOISE = (0.02, 0.15, 0.38, 0.45)
BUSY = (0.10, 0.84, 0.03, 0.03)
DYING = (0.10, 0.20, 0.35, 0.35)


class Said(NamedTuple):
    """Length, surprise and memory evidence of the current silence."""

    run: int
    silence_nats: float
    memory_nats: float


class AggregatesTwin:
    """One VM; a sample is (moved anything, memory figure)."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.runs: list[int] = []
        self.pairs: list[int] = []
        self.history: list[tuple[bool, bool, float]] = []  # alive, begun, memory
        self.mean = self.variance = 0.0
        self.run: list[float] = []
        self.before: list[tuple[bool, bool, float]] = []

    def learn_one(self, *, moved: bool, memory: float, slow: float) -> Said:
        last = self.history[-1][2] if self.history else None
        said = Said(0, 0.0, 0.0)
        if moved:
            self.runs.append(len(self.run))
            self.run = []
            if last is not None:
                self.pairs.append(kind_of(last, memory))
            weight = max(slow, 1.0 / (len(self.pairs) + 1.0))
            off = math.log(memory + 1.0) - self.mean
            self.mean += weight * off
            self.variance = (1 - weight) * (self.variance + weight * off * off)
            self.history.append((True, False, memory))
            return said
        if not self.run:
            self.before = list(self.history)
        self.run.append(memory)
        said = Said(len(self.run), self._silence(), self._memory(memory))
        self.history.append((False, len(self.run) == 1, memory))
        return said

    def _reached(self, step: int) -> int:
        return sum(length >= step for length in self.runs)

    def _silence(self) -> float:
        steps = min(len(self.run), STEPS)
        lasts = 0.0
        for step in range(1, steps):
            lasts -= math.log((self._reached(step + 1) + 0.5) / (self._reached(step) + 1.0))
        nats = lasts - math.log((self._reached(1) + 0.1) / (len(self.runs) + 100.0))
        begun = sum(begun for _, begun, _ in self.before[-self.window :])
        if begun:
            nats = min(nats, lasts - math.log(0.3 * begun / WINDOW))
        return nats

    def _memory(self, memory: float) -> float:
        own = [self.pairs.count(kind) + PRIOR[kind] for kind in range(4)]
        total = sum(own)
        if total < 30 or self.mean <= 0:
            return 0.0
        last = self.before[-1][2]
        run = [last, *self.run[:8]]
        kinds = [kind_of(a, b) for a, b in pairwise(run)]
        first, later = kinds[0], kinds[1:]
        ways = [sum(math.log(way[kind]) for kind in later) for way in (FROZEN, DECAY, NOISE)]
        alive = sum(math.log(own[kind] / total) for kind in later)
        busy = sum(math.log(BUSY[kind]) for kind in later)
        if not (first == 0 and own[0] > 0.4 * total):
            ways = [way + math.log(DYING[first]) for way in ways]
            alive += math.log(own[first] / total)
            busy += math.log(BUSY[first])
        level = 0.0
        for index, value in enumerate(self.run, 1):
            level += (math.log(value + 1) - level) / min(index, 8)
        below = (self.mean - level) / max(0.4, math.sqrt(self.variance))
        around = sorted(value for _, _, value in self.before[-7:-1])
        median = 0.5 * (around[(len(around) - 1) // 2] + around[len(around) // 2])
        if memory < 0.35 * median and below > 1.0:
            ways[1:] = [way + min(2.5, below - 0.5) for way in ways[1:]]
        dead = math.log(sum(math.exp(way) for way in ways) / 3)
        return min(5.0, max(-7.0, dead - max(alive, busy)))


def kind_of(before: float, now: float) -> int:
    """Return 0 equal, 1 smooth, 2 fallen by a fifth, 3 otherwise."""
    if before == now:
        return 0
    ratio = (now + 1) / (before + 1)
    if ratio < 0.8:
        return 2
    return 1 if 0.93 < ratio < 1.08 else 3

"""The results of `models.kernels.hours` on falling hours, from lists of a VM's whole past."""

import math
from itertools import pairwise
from statistics import median

LEAST, MOST = 6, 12


class HoursTwin:
    """One VM; an hour is its number and the five-minute means it has, (writes, cpu) each."""

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self.usual: dict[int, tuple[float, float, int]] = {}
        self.last = 0
        self.row: list[tuple[float, float, float]] = []  # shares of writes and CPU, writes

    def hour(self, number: int, means: list[tuple[float, float]]) -> tuple[int, float]:
        """Return in how many consecutive hours writing fell, and its share of the usual level."""
        if number != self.last + 1:
            self.row = []
        self.last = number
        if len(means) < 6:
            self.row = []
            return 0, math.nan
        writes = math.log(median(w for w, _ in means) + 500.0)
        cpu = math.log(median(c for _, c in means) + 0.001 * self.cores)
        usual_writes, usual_cpu, days = self.usual.get(number % 24, (0.0, 0.0, 0))
        found, share = 0, math.nan
        if days >= 3:
            self.row.append((writes - usual_writes, cpu - usual_cpu, writes))
            found, share = self._falls(), math.exp(self.row[-1][0])
        else:
            self.row = []
        weight = max(0.25, 1 / (days + 1))
        self.usual[number % 24] = (
            usual_writes + weight * (writes - usual_writes),
            usual_cpu + weight * (cpu - usual_cpu),
            days + 1,
        )
        return found, share

    def _falls(self) -> int:
        last_share, last_cpu, last_writes = self.row[-1]
        for length in range(LEAST, MOST + 1):
            part = self.row[-length - 1 :]
            shares = [share for share, _, _ in part]
            if len(part) <= length or any(b >= a - 0.01 for a, b in pairwise(shares)):
                return 0
            share, cpu, writes = part[0]
            fall = share - last_share
            if (
                fall >= math.log(2)
                and abs(share) <= math.log(1.5)
                and writes >= math.log(2500)
                and writes - last_writes >= 0.7 * fall
                and cpu - last_cpu <= 0.7 * fall
            ):
                return length
        return 0

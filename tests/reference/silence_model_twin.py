"""The results of `models.kernels.silence_model`, one VM at a time: every gap is kept unchanged."""

import math

EDGES_S = [2.0**k for k in range(16)]


class SilenceModelTwin:
    """One VM's gaps; the weekly halving is left out, so tests stay below it."""

    def __init__(self) -> None:
        # Length of each silence, oldest first, and whether it was cut short.
        self.ended: list[tuple[float, bool]] = []
        self.run_s = 0.0
        self.held = False

    def learn_one(
        self, *, alive: bool | None, held: bool, dt_s: float, cut_short: bool = False
    ) -> tuple[float, float]:
        """Return how long the VM has been silent, and how surprising that is in nats."""
        if alive or cut_short:
            if not self.held:
                self.ended.append((self.run_s, cut_short))
            self.run_s, self.held = 0.0, False
            return 0.0, 0.0
        if alive is False:
            self.run_s += dt_s
        self.held = self.held or (held and self.run_s > 0)
        return self.run_s, self._surprise() if self.run_s > 0 else 0.0

    def _survival(self, edge_s: float) -> float:
        gaps = reached = 0
        for lasted_s, cut_short in self.ended:
            gaps += not cut_short
            reached = min(reached + (lasted_s >= edge_s), gaps)
        return (reached + 0.5) / (gaps + 1)

    def _surprise(self) -> float:
        index = math.log2(max(self.run_s, 1.0))
        edge = min(int(index), len(EDGES_S) - 1)
        here = math.log(self._survival(EDGES_S[edge]))
        if edge == len(EDGES_S) - 1:
            return -here
        further = math.log(self._survival(EDGES_S[edge + 1]))
        return -(here + (index - edge) * (further - here))

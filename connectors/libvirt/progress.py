"""Detect whether a live migration converges, from libvirt's statistics of its memory passes.

A migration copies all memory in a first pass, and in each further pass the memory written during
the previous one. It ends when the rest can be sent within the permitted downtime of the VM. If the
guest writes faster than the network transmits, the migration never converges, and each pass only
slows the guest down.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from flatline.connectors.libvirt.binding import Stats

# A pass counts as progress if the memory left at its start is a tenth below the best so far.
# Smaller differences are noise.
_IMPROVED_RATIO: Final = 0.9
# A migration stalls if this many passes and this much time brought no progress. On a fast network a
# pass is shorter than a burst of writes, so passes alone show little. On a slow network a pass
# takes minutes, so time alone shows little.
PASSES: Final = 3
PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Observations of a migration so far.

    Attributes
    ----------
    number
        The last observed pass over memory; 0 is none yet.
    best_bytes, best_s, best_number
        The memory left at the start of the last pass that counted as progress; time and number of
        that pass.
    left_bytes
        The memory left at the start of the newest pass.
    at_s
        Time of the newest statistics, in seconds since the migration began.
    """

    number: int = 0
    best_bytes: int = 0
    best_s: float = 0.0
    best_number: int = 0
    left_bytes: int = 0
    at_s: float = 0.0

    def seen(self, stats: Stats) -> Self:
        """Return the progress after new statistics; missing values change nothing.

        `stats` is libvirt's `jobStats` of the migrating VM.
        """
        number, left, elapsed_ms = (
            stats.get(name) for name in ("memory_iteration", "memory_remaining", "time_elapsed")
        )
        if not isinstance(number, int) or not isinstance(left, int):
            return self
        at_s = float(elapsed_ms) / 1000 if isinstance(elapsed_ms, int) else self.at_s
        if number == self.number:
            return replace(self, at_s=at_s)
        if self.number == 0 or left < self.best_bytes * _IMPROVED_RATIO:
            return replace(
                self,
                number=number,
                best_bytes=left,
                best_s=at_s,
                best_number=number,
                left_bytes=left,
                at_s=at_s,
            )
        return replace(self, number=number, left_bytes=left, at_s=at_s)

    @property
    def stalled(self) -> bool:
        """Whether `PASSES` passes and `PATIENCE_S` seconds have brought no progress."""
        return self.number - self.best_number >= PASSES and self.at_s - self.best_s >= PATIENCE_S

    @property
    def sentence(self) -> str:
        """Why a stalled migration is aborted."""
        return (
            f"the migration does not converge: after {self.at_s:.0f} s, pass {self.number} over "
            f"the memory began with {self.left_bytes / 2**20:.0f} MiB left, while pass "
            f"{self.best_number} had {self.best_bytes / 2**20:.0f} MiB left"
        )

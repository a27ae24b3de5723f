"""Whether a live migration gets anywhere, from what libvirt tells of its passes over memory.

A migration copies all memory, then again what was written meanwhile, and so on; it ends when
what is left fits into the time that the VM may stand still. A guest that writes faster than
the network carries never gets there, and each pass slows it down for nothing.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from connectors.libvirt.binding import Stats

# What each pass begins with must fall by a tenth to count as progress: less is noise.
_IMPROVED_RATIO: Final = 0.9
# On a fast network a pass takes a fraction of a second, and a burst of writes lasts longer;
# on a slow one a pass takes minutes, and one that is no better than the last says little.
PASSES: Final = 3
PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What was seen of a migration so far.

    Attributes
    ----------
    number
        The pass over memory that was seen last; 0 is none yet.
    best_bytes, best_s, best_number
        The least that a pass began with, when that was seen, and which pass it was.
    left_bytes
        What the newest pass began with.
    at_s
        When the newest statistics were taken, in seconds since the migration began.
    """

    number: int = 0
    best_bytes: int = 0
    best_s: float = 0.0
    best_number: int = 0
    left_bytes: int = 0
    at_s: float = 0.0

    def seen(self, stats: Stats) -> Self:
        """Return the progress after one more look; what the job does not tell changes nothing."""
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
        """Whether passes have gone by, and time, without one that began with clearly less."""
        return self.number - self.best_number >= PASSES and self.at_s - self.best_s >= PATIENCE_S

    @property
    def sentence(self) -> str:
        """Why a stalled migration is given up."""
        return (
            f"the migration does not converge: after {self.at_s:.0f} s pass {self.number} over the"
            f" memory began with {self.left_bytes / 2**20:.0f} MiB left, pass {self.best_number}"
            f" with {self.best_bytes / 2**20:.0f} MiB"
        )

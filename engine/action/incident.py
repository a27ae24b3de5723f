"""One incident as a planner follows it: its phases, and which may follow which."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from engine.wire.alert import Alert
from engine.wire.order import Order

Phase = Literal[
    "watching",  # fires; nothing ordered, or nothing any more
    "ordering",  # an order was handed to the log and is not read back yet
    "ordered",  # an order stands in the log
    "verifying",  # the call returned; the engine's word is awaited
    "backing_off",  # the step failed or was not attempted; the next one waits
    "mended",  # the engine saw the effect, or the fault went by itself
    "rehearsed",  # a dry run came to its end
    "refused",  # an agent refused: people only
    "unknown",  # nobody knows what the step did: people only
    "exhausted",  # every step failed: people only
]

ENDED: Final = frozenset({"mended", "rehearsed", "refused", "unknown", "exhausted"})

# The one table of legal transitions.
LEGAL: Final[Mapping[Phase, frozenset[Phase]]] = {
    "watching": frozenset({"ordering", "ordered", "mended", "exhausted"}),
    # Back to watching: the append failed, so the step was never given.
    "ordering": frozenset({"ordered", "watching", "mended"}),
    "ordered": frozenset({"verifying", "backing_off", "mended", "rehearsed", "refused", "unknown"}),
    # Straight to ordered: another planner saw the failure first and gave the next step.
    "verifying": frozenset({"mended", "backing_off", "unknown", "exhausted", "ordered"}),
    "backing_off": frozenset({"ordering", "ordered", "mended", "exhausted"}),
    "mended": frozenset(),
    "rehearsed": frozenset(),
    "refused": frozenset(),
    "unknown": frozenset(),
    "exhausted": frozenset(),
}


class BrokenInvariant(AssertionError):
    """The planner reached what must not be; it stops, and its next start reads the log anew."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What is known of one incident.

    Attributes
    ----------
    alert
        The newest word about it; None where only orders were read so far.
    order
        The newest order given for it, or handed to the log.
    rung
        How many rungs of the ladder were tried and failed.
    called_ms
        When the agent marked the order's call as returned; 0 before.
    failing
        The engine kept the alert firing right before the order's deadline.
    next_ms
        Before then no further step.
    held_by
        The rule that holds the next step back, so that it is told once.
    """

    id: str
    phase: Phase = "watching"
    alert: Alert | None = None
    order: Order | None = None
    rung: int = 0
    called_ms: int = 0
    failing: bool = False
    next_ms: int = 0
    held_by: str = ""

    @property
    def step(self) -> int:
        """The number that the next order for it would have."""
        return 0 if self.order is None else self.order.step + 1

    @property
    def last_ms(self) -> int:
        """The newest time anybody said something about it."""
        return max(
            0 if self.alert is None else self.alert.decided_ms,
            0 if self.order is None else self.order.deadline_ms,
        )


def moved(incident: Incident, phase: Phase) -> Incident:
    """Return the incident in `phase`.

    Raises
    ------
    BrokenInvariant
        The table has no such transition.
    """
    if phase not in LEGAL[incident.phase]:
        raise BrokenInvariant(f"incident {incident.id} is {incident.phase}; {phase} may not follow")
    return replace(incident, phase=phase, held_by="")

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
    "settling",  # a migration helped its VM; whether its target suffers is awaited
    "backing_off",  # the step failed or was not attempted; the next one waits
    "mended",  # the engine saw the effect, or the fault went by itself
    "rehearsed",  # a dry run came to its end
    "refused",  # an agent refused: people only
    "unknown",  # nobody knows what the step did: people only
    "exhausted",  # the ladder has no further step: people only
    "quarantined",  # the VM is closed to machines until a person opens it
]

ENDED: Final = frozenset({"mended", "rehearsed", "refused", "unknown", "exhausted", "quarantined"})

# The one table of legal transitions.
LEGAL: Final[Mapping[Phase, frozenset[Phase]]] = {
    "watching": frozenset({"ordering", "ordered", "mended", "exhausted", "quarantined"}),
    # Back to watching or backing off: the append failed, so the step was never given.
    "ordering": frozenset({"ordered", "watching", "backing_off", "mended"}),
    "ordered": frozenset(
        {"verifying", "settling", "backing_off", "mended", "rehearsed", "refused", "unknown"}
    ),
    # Straight to ordered: another planner saw the failure first and gave the next step.
    "verifying": frozenset(
        {"mended", "settling", "backing_off", "unknown", "exhausted", "quarantined", "ordered"}
    ),
    "settling": frozenset({"mended", "backing_off", "ordered"}),
    "backing_off": frozenset({"ordering", "ordered", "mended", "exhausted", "quarantined"}),
    # Its VM was well by itself and is not: the alert fires again under its old id.
    "mended": frozenset({"backing_off", "exhausted"}),
    "rehearsed": frozenset(),
    "refused": frozenset(),
    "unknown": frozenset(),
    "exhausted": frozenset(),
    "quarantined": frozenset(),
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
    undoing
        The next step takes the last migration back.
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
    undoing: bool = False

    @property
    def kind(self) -> str:
        """What the fault is called: by its newest alert, else by the order given for it."""
        if self.alert is not None:
            return self.alert.kind
        return "" if self.order is None else self.order.kind

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

"""One incident as a planner tracks it: its phases and their legal transitions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from flatline.engine.wire.alert import Alert
from flatline.engine.wire.order import Order

Phase = Literal[
    "watching",  # the alert fires; no order is open
    "ordering",  # an order was appended and is not read back from the log yet
    "ordered",  # the order was read back from the log
    "verifying",  # the call returned; the planner waits for the engine's result
    "settling",  # the VM recovered by a migration; the load of its target is checked
    "backing_off",  # the step failed or was not attempted; the next one is delayed
    "mended",  # recovered: the engine verified the effect, or the fault ended by itself
    "rehearsed",  # a dry run has ended
    "refused",  # an agent refused: only a person may act
    "unknown",  # the effect of the step is unknown: only a person may act
    "exhausted",  # the escalation policy has no further step: only a person may act
    "quarantined",  # no machine acts on the VM until a person ends the quarantine
]

ENDED: Final = frozenset({"mended", "rehearsed", "refused", "unknown", "exhausted", "quarantined"})

# All legal transitions.
LEGAL: Final[Mapping[Phase, frozenset[Phase]]] = {
    "watching": frozenset({"ordering", "ordered", "mended", "exhausted", "quarantined"}),
    # Back to watching or backing off: the append failed, so no order exists for the step.
    "ordering": frozenset({"ordered", "watching", "backing_off", "mended"}),
    "ordered": frozenset(
        {"verifying", "settling", "backing_off", "mended", "rehearsed", "refused", "unknown"}
    ),
    # Directly to ordered: another planner saw the failure first and ordered the next step.
    "verifying": frozenset(
        {"mended", "settling", "backing_off", "unknown", "exhausted", "quarantined", "ordered"}
    ),
    "settling": frozenset({"mended", "backing_off", "ordered"}),
    "backing_off": frozenset({"ordering", "ordered", "mended", "exhausted", "quarantined"}),
    # The VM recovered by itself and failed again: the alert fires again with its old id.
    "mended": frozenset({"backing_off", "exhausted"}),
    "rehearsed": frozenset(),
    "refused": frozenset(),
    "unknown": frozenset(),
    "exhausted": frozenset(),
    "quarantined": frozenset(),
}


class BrokenInvariant(AssertionError):
    """The planner reached an illegal state; it stops, and its next start reads the log again."""


@dataclass(frozen=True, slots=True)
class Incident:
    """The state of one incident.

    Attributes
    ----------
    alert
        The newest alert; None while only orders were read.
    order
        The newest order for the incident, read from the log or just appended by this planner.
    failed_steps
        How many steps of the escalation policy were tried and failed.
    called_ms
        When the call returned, by the agent's result; 0 before.
    failing
        The engine still reported the alert as firing shortly before the order's deadline.
    next_ms
        No further step before this time.
    held_by
        The rule that inhibits the next step; stored so that it is reported once.
    undoing
        The next step reverts the last migration.
    """

    id: str
    phase: Phase = "watching"
    alert: Alert | None = None
    order: Order | None = None
    failed_steps: int = 0
    called_ms: int = 0
    failing: bool = False
    next_ms: int = 0
    held_by: str = ""
    undoing: bool = False

    @property
    def kind(self) -> str:
        """The kind of fault: from the newest alert, else from the newest order; "" without both."""
        if self.alert is not None:
            return self.alert.kind
        return "" if self.order is None else self.order.kind

    @property
    def step(self) -> int:
        """The number of the next order, from 0."""
        return 0 if self.order is None else self.order.step + 1

    @property
    def last_ms(self) -> int:
        """The newest time in the alert and the order, ms; 0 without both."""
        return max(
            0 if self.alert is None else self.alert.decided_ms,
            0 if self.order is None else self.order.deadline_ms,
        )


def moved(incident: Incident, phase: Phase) -> Incident:
    """Return the incident in `phase`.

    Raises
    ------
    BrokenInvariant
        The transition is not in `LEGAL`.
    """
    if phase not in LEGAL[incident.phase]:
        raise BrokenInvariant(
            f"incident {incident.id} is in phase {incident.phase}; {phase} is not a legal next "
            "phase"
        )
    return replace(incident, phase=phase, held_by="")

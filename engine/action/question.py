"""What a rule of `admit` sees: the order, and the orders before it as the log holds them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from engine.action.catalogue import Policy
from engine.wire.control import Control
from engine.wire.order import DISRUPTIVE, Claim, Closed, Order

DAY_MS: Final = 86_400_000

# Clocks of nodes that run NTP agree far better; one that is off by more is not to be
# trusted with expiry either.
CLOCK_SLACK_MS: Final = 5_000
# So late a mark may be appended of a call that returned in time.
MARK_GRACE_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Logged:
    """An order as it stands in the log.

    `admitted` says whether the log's own rules let it run; only such an order spends
    budgets. `claim` is the first claim of it that counts, `closed` the first mark that ended it.
    """

    order: Order
    offset: int
    time_ms: int
    admitted: bool
    closed: Closed | None = None
    claim: Claim | None = None

    def in_flight(self, *, at_ms: int) -> bool:
        """Return whether it, if it was admitted, may still be under way at `at_ms`."""
        return self.closed is None and at_ms < self.order.deadline_ms


@dataclass(frozen=True)
class Question:
    """What a rule sees.

    `at_ms` is the append time of the order, or now where it is not appended yet; `now_ms`
    is the clock of who asks.
    """

    order: Order
    earlier: Sequence[Logged]
    policy: Policy
    at_ms: int
    now_ms: int
    controls: Mapping[bytes, Control]

    def spent(self, *, within_ms: int = DAY_MS) -> list[Logged]:
        """Return the orders that count: disruptive, admitted, of the same dry-run kind, recent.

        None where this order itself is not disruptive: it then weighs on no budget.
        """
        return [entry for entry in self._spent if entry.time_ms > self.at_ms - within_ms]

    @cached_property
    def _spent(self) -> Sequence[Logged]:
        # Five rules ask for it, and a day's log is long.
        if self.order.action not in DISRUPTIVE:
            return ()
        return [
            entry
            for entry in self.earlier
            if entry.admitted
            and entry.order.dry_run == self.order.dry_run
            and entry.order.action in DISRUPTIVE
        ]

    def previous(self) -> Logged | None:
        """Return the step before this one, None if the log does not hold it."""
        key = (self.order.incident, self.order.step - 1)
        return next((e for e in self.earlier if (e.order.incident, e.order.step) == key), None)

    def tried(self) -> list[Logged]:
        """Return the disruptive steps of the same incident before this one, oldest first."""
        return [
            entry
            for entry in self.earlier
            if entry.order.incident == self.order.incident
            and entry.order.step < self.order.step
            and entry.order.action in DISRUPTIVE
        ]


# A refusal: the name of its sentence, and what the sentence's gaps are filled with.
Said = tuple[str, Mapping[str, object]]
Rule = Callable[[Question], Said | None]

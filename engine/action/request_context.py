"""The input of a rule of `admit`: the order, and the orders before it in the log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from flatline.engine.action.actions import DISRUPTIVE
from flatline.engine.action.catalogue import Policy
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Claim, Order, OrderResult

DAY_MS: Final = 86_400_000

# The largest clock difference that is tolerated. Clocks of nodes that run NTP agree far better; a
# clock with a larger error cannot be trusted to judge expiry either.
CLOCK_SLACK_MS: Final = 5_000
# How late after the deadline the result of a call that returned in time may be appended.
RESULT_LATENESS_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Logged:
    """An order in the log.

    `admitted` says whether `log_rules` admitted the order; only an admitted order uses budgets.
    `claim` is its first valid claim, `result` the first result that ended it.
    """

    order: Order
    offset: int
    time_ms: int
    admitted: bool
    result: OrderResult | None = None
    claim: Claim | None = None

    def in_flight(self, *, at_ms: int) -> bool:
        """Return whether the order, if it was admitted, may still be running at `at_ms`."""
        return self.result is None and at_ms < self.order.deadline_ms


@dataclass(frozen=True)
class RequestContext:
    """The input of a rule.

    `at_ms` is the append time of the order, or now if it is not appended yet; `now_ms` is the clock
    of the caller.
    """

    order: Order
    earlier: Sequence[Logged]
    policy: Policy
    at_ms: int
    now_ms: int
    controls: Mapping[bytes, Control]

    def spent(self, *, within_ms: int = DAY_MS) -> list[Logged]:
        """Return the recent orders that use budgets: disruptive, admitted, with equal `dry_run`.

        Recent are those appended within `within_ms` before this order. The list is empty if this
        order is not disruptive, because it then uses no budget.
        """
        return [entry for entry in self._spent if entry.time_ms > self.at_ms - within_ms]

    @cached_property
    def _spent(self) -> Sequence[Logged]:
        # Cached: five rules use it, and the log of a day is long.
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


# A refusal: the name of its sentence, and the values of its placeholders.
Said = tuple[str, Mapping[str, object]]
Rule = Callable[[RequestContext], Said | None]

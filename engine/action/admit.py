"""Whether an order may run, from the orders before it and the words of people.

The planner asks before it appends, every agent asks again after reading: the same function
over the same log, so any number of planners and restarts give one answer. `log_rules` read
only the log and therefore hold for everybody; `present_rules` also read the clock and the
control topic, and hold for who asks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from engine.action import log_rules, present_rules
from engine.action.catalogue import Policy
from engine.action.question import DAY_MS, MARK_GRACE_MS, Logged, Question, Rule
from engine.wire.control import Control
from engine.wire.order import DISRUPTIVE, Claim, Closed, Order

SENTENCES: Final[Mapping[str, str]] = {
    "admitted": "The order may run: no rule speaks against it.",
    "over": "The log does not hold the order open.",
    **log_rules.SENTENCES,
    **present_rules.SENTENCES,
}

# Refusals that pass by themselves: the incident may be ordered again after its back-off.
# Any other one closes the incident to machines.
PASSING: Final = frozenset(
    {
        "step_open", "backoff", "vm_in_flight", "vm_spacing", "group_in_flight", "group_sick",
        "node_in_flight", "node_budget", "cell_budget", "site_budget", "data_age", "policy",
        "mode", "not_approved", "paused", "maintenance", "quarantined",
    }
)  # fmt: skip

LOG_RULES: Final = log_rules.LOG_RULES
PRESENT_RULES: Final = present_rules.PRESENT_RULES


class Admission(NamedTuple):
    """Whether an order may run, and why in one sentence; `rule` names the sentence."""

    admitted: bool
    rule: str
    sentence: str


History = tuple[Logged, ...]


def admit(
    order: Order,
    earlier: Sequence[Logged],
    policy: Policy,
    *,
    at_ms: int,
    now_ms: int,
    controls: Mapping[bytes, Control],
) -> Admission:
    """Say whether `order` may run now, given everything that stands before it.

    Parameters
    ----------
    order
        What is asked for.
    earlier
        The orders of the last 24 h that stand before it in the log.
    policy
        The policy of who asks; an order given under another one is refused.
    at_ms
        Append time of the order; the planner, whose order has none yet, passes `now_ms`.
    now_ms
        Wall clock of who asks.
    controls
        The control records in force, by key.
    """
    question = Question(order, earlier, policy, at_ms, now_ms, controls)
    return _first_refusal((*LOG_RULES, *PRESENT_RULES), question)


def logged(history: History, order: Order, policy: Policy, *, offset: int, time_ms: int) -> History:
    """Return the history with one more order, admitted or not, without what is over a day old.

    An order given under another policy counts as spent: its own planner knows better.
    """
    question = Question(order, history, policy, time_ms, time_ms, {})
    admitted = order.policy != policy.hash or _first_refusal(LOG_RULES, question).admitted
    # A repeated key is never admitted, whatever policy it names: the first one wins.
    admitted = admitted and log_rules.duplicate(question) is None
    kept = history
    # A date that the order itself contradicts must not make budgets be forgotten.
    if log_rules.append_time(question) is None:
        kept = tuple(entry for entry in history if entry.time_ms > time_ms - DAY_MS)
    return (*kept, Logged(order, offset, time_ms, admitted))


def closed(history: History, mark: Closed, *, time_ms: int) -> History:
    """Return the history with the order that `mark` ends closed; the first mark stands.

    A mark that was appended (`time_ms`) after the step's deadline came when planners had
    given the step up as unknown already: it explains, and opens nothing again.
    """
    key = (mark.incident, mark.step)
    for index, entry in enumerate(history):
        if (entry.order.incident, entry.order.step) == key:
            if entry.closed is not None or entry.order.node != mark.node:
                return history
            late = time_ms > entry.order.deadline_ms + MARK_GRACE_MS
            if late and entry.order.action in DISRUPTIVE and not entry.order.dry_run:
                mark = msgspec.structs.replace(mark, outcome="unknown")
            return (*history[:index], replace(entry, closed=mark), *history[index + 1 :])
    return history


def claimed(history: History, claim: Claim, *, time_ms: int) -> History:
    """Return the history with the order claimed that `claim` names; the first claim stands.

    A claim counts for the node whose order it is, while the order lives and is not closed.
    """
    key = (claim.incident, claim.step)
    for index, entry in enumerate(history):
        order = entry.order
        if (order.incident, order.step) == key:
            mine = (order.node, order.vm) == (claim.node, claim.vm)
            late = time_ms >= order.expires_ms or entry.closed is not None
            if entry.claim is not None or not mine or late:
                return history
            return (*history[:index], replace(entry, claim=claim), *history[index + 1 :])
    return history


def claim_of(history: History, order: Order) -> Claim | None:
    """Return who may carry the order's step out; None is nobody yet."""
    key = (order.incident, order.step)
    found = (e.claim for e in history if (e.order.incident, e.order.step) == key)
    return next(found, None)


def is_closed(history: History, order: Order) -> bool:
    """Return whether the log says how the order's step ended."""
    key = (order.incident, order.step)
    return any(e.closed is not None and (e.order.incident, e.order.step) == key for e in history)


def may_finish(
    key: tuple[str, int],
    history: History,
    policy: Policy,
    *,
    now_ms: int,
    controls: Mapping[bytes, Control],
) -> Admission:
    """Say whether what was begun of an order, and cut off, may be finished.

    Its budgets are spent; but people may have spoken since, and once its step's deadline or a
    mark has closed it, no call follows.
    """
    for entry in history:
        if (entry.order.incident, entry.order.step) == key:
            if not entry.admitted or not entry.in_flight(at_ms=now_ms):
                break
            question = Question(entry.order, (), policy, entry.time_ms, now_ms, controls)
            return _first_refusal(present_rules.WORDS_OF_PEOPLE, question)
    return Admission(False, "over", SENTENCES["over"])


def _first_refusal(rules: Iterable[Rule], question: Question) -> Admission:
    for rule in rules:
        said = rule(question)
        if said is not None:
            name, values = said
            return Admission(False, name, SENTENCES[name].format(**values))
    return Admission(True, "admitted", SENTENCES["admitted"])

"""Admission control: whether an order may run, given earlier orders and control commands.

The planner checks before it appends an order, and every agent checks again after reading it. All
use the same function over the same log, so any number of planners and restarts get one answer.
`log_rules` read only the log, so their result is the same for every reader. `present_rules` also
read the clock and the control topic, so their result depends on the reader.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from flatline.engine.action import log_rules, present_rules
from flatline.engine.action.actions import DISRUPTIVE
from flatline.engine.action.catalogue import Policy
from flatline.engine.action.request_context import (
    DAY_MS,
    RESULT_LATENESS_MS,
    Logged,
    RequestContext,
    Rule,
)
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Claim, Order, OrderResult

SENTENCES: Final[Mapping[str, str]] = {
    "admitted": "The order may run: no admission rule forbids it.",
    "over": "The order is not in the log, was not admitted, or has already ended.",
    **log_rules.SENTENCES,
    **present_rules.SENTENCES,
}

# Temporary refusals: the incident may be ordered again after its back-off. Any other refusal closes
# the incident to machines.
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
    """Whether an order may run, the reason in one sentence, and the name of that sentence."""

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
    """Return whether `order` may run now, given the log before it.

    Parameters
    ----------
    order
        The order to check.
    earlier
        The orders of the last 24 h that precede it in the log.
    policy
        The policy of the caller; an order given under another policy is refused.
    at_ms
        Append time of the order. The planner passes `now_ms`: its order is not appended yet.
    now_ms
        Wall clock of the caller.
    controls
        The control records in force, by key.
    """
    context = RequestContext(order, earlier, policy, at_ms, now_ms, controls)
    return _first_refusal((*LOG_RULES, *PRESENT_RULES), context)


def logged(history: History, order: Order, policy: Policy, *, offset: int, time_ms: int) -> History:
    """Return the history with one more order, admitted or not, without orders older than a day.

    An order given under another policy counts as spent: only its own planner can judge it.
    """
    context = RequestContext(order, history, policy, time_ms, time_ms, {})
    admitted = order.policy != policy.hash or _first_refusal(LOG_RULES, context).admitted
    # A repeated key is never admitted, under any policy: the first order wins.
    admitted = admitted and log_rules.duplicate(context) is None
    kept = history
    # An append time that contradicts the order's own times must not drop orders from the budgets.
    if log_rules.append_time(context) is None:
        kept = tuple(entry for entry in history if entry.time_ms > time_ms - DAY_MS)
    return (*kept, Logged(order, offset, time_ms, admitted))


def closed(history: History, result: OrderResult, *, time_ms: int) -> History:
    """Return the history with the order of `result` closed; its first result counts.

    A result appended (`time_ms`) after the step's deadline came when planners had already given up
    the step as unknown. Such a result explains the outcome but does not reopen the incident.
    """
    key = (result.incident, result.step)
    for index, entry in enumerate(history):
        if (entry.order.incident, entry.order.step) == key:
            if entry.result is not None or entry.order.node != result.node:
                return history
            late = time_ms > entry.order.deadline_ms + RESULT_LATENESS_MS
            if late and entry.order.action in DISRUPTIVE and not entry.order.dry_run:
                result = msgspec.structs.replace(result, outcome="unknown")
            return (*history[:index], replace(entry, result=result), *history[index + 1 :])
    return history


def claimed(history: History, claim: Claim, *, time_ms: int) -> History:
    """Return the history with the order of `claim` claimed; the first claim of an order counts.

    A claim counts only for the node of the order, before the order expires or is closed.
    """
    key = (claim.incident, claim.step)
    for index, entry in enumerate(history):
        order = entry.order
        if (order.incident, order.step) == key:
            mine = (order.node, order.vm) == (claim.node, claim.vm)
            late = time_ms >= order.expires_ms or entry.result is not None
            if entry.claim is not None or not mine or late:
                return history
            return (*history[:index], replace(entry, claim=claim), *history[index + 1 :])
    return history


def claim_of(history: History, order: Order) -> Claim | None:
    """Return the claim on the order's step, None if no agent has claimed it."""
    key = (order.incident, order.step)
    found = (e.claim for e in history if (e.order.incident, e.order.step) == key)
    return next(found, None)


def is_closed(history: History, order: Order) -> bool:
    """Return whether the log holds the result of the order's step."""
    key = (order.incident, order.step)
    return any(e.result is not None and (e.order.incident, e.order.step) == key for e in history)


def may_finish(
    key: tuple[str, int],
    history: History,
    policy: Policy,
    *,
    now_ms: int,
    controls: Mapping[bytes, Control],
) -> Admission:
    """Return whether an interrupted step may be finished.

    The step has already spent its budgets. A person may have paused or forbidden it since, and no
    call follows after the step's deadline or after a result has closed it.

    Parameters
    ----------
    key
        The incident's id and the number of the step.
    now_ms
        Wall clock of the caller.
    controls
        The control records in force, by key.
    """
    for entry in history:
        if (entry.order.incident, entry.order.step) == key:
            if not entry.admitted or not entry.in_flight(at_ms=now_ms):
                break
            context = RequestContext(entry.order, (), policy, entry.time_ms, now_ms, controls)
            return _first_refusal(present_rules.COMMAND_RULES, context)
    return Admission(False, "over", SENTENCES["over"])


def _first_refusal(rules: Iterable[Rule], context: RequestContext) -> Admission:
    for rule in rules:
        said = rule(context)
        if said is not None:
            name, values = said
            return Admission(False, name, SENTENCES[name].format(**values))
    return Admission(True, "admitted", SENTENCES["admitted"])

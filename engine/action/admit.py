"""Admission control: whether an order may run, given earlier orders and control commands.

The planner checks an order before it appends it, and every agent checks it again after reading it.
All use the same function. `log_rules` read only the log, so every planner and agent gets the same
result, also after a restart. `present_rules` also read the clock and the control topic, so their
result depends on the reader.
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

# Rules whose refusals are temporary: an agent ends the step as "not_attempted", and the planner may
# order again after a back-off, as after an expiry. Any other refusal leaves the incident to people.
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

    An order issued under another policy counts against the budgets as if it had been admitted,
    because only a reader with that policy can check it. `offset` and `time_ms` are those of its
    record in the log.
    """
    context = RequestContext(order, history, policy, time_ms, time_ms, {})
    admitted = order.policy != policy.hash or _first_refusal(LOG_RULES, context).admitted
    # A second order for the same step is never admitted, whatever its policy: the first one counts.
    admitted = admitted and log_rules.duplicate(context) is None
    kept = history
    # An append time that contradicts the order's own times may be wrong. It must not make earlier
    # orders look older than a day, because the budgets would then not count them.
    if log_rules.append_time(context) is None:
        kept = tuple(entry for entry in history if entry.time_ms > time_ms - DAY_MS)
    return (*kept, Logged(order, offset, time_ms, admitted))


def closed(history: History, result: OrderResult, *, time_ms: int) -> History:
    """Return the history with `result` entered in its order; an order's first result counts.

    Planners end a disruptive step as unknown if its deadline passes without a result. So a result
    appended (`time_ms`) more than `RESULT_LATENESS_MS` after the deadline is kept with the outcome
    "unknown", and the incident stays ended. A result for an unknown order, or of another node than
    the order's, changes nothing.
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
    """Return the history with `claim` entered in its order; an order's first claim counts.

    A claim counts only for the node of the order, before the order expires or is closed. Otherwise
    the history is returned unchanged. `time_ms` is the append time of the claim.
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

    Budgets are not checked again, because the step has already used them. The step is refused if a
    newer command forbids it, if its deadline has passed, or if a result has closed it.

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

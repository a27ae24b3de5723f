"""The rules of `admit` that read only the log, so that every reader gets the same result."""

import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from flatline.engine.action.actions import ACTIONS, DISRUPTIVE
from flatline.engine.action.request_context import (
    CLOCK_SLACK_MS,
    DAY_MS,
    RequestContext,
    Rule,
    Said,
)
from flatline.engine.wire.order import MAX_LIFETIME_MS, Order

_TEN_MINUTES_MS: Final = 600_000
# The name of one node or pool. Wildcards are not allowed, because a pattern could match several.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}")

# The canonical form of a UUID: hypervisors, logs and ledgers compare it as text.
_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NIL: Final = str(UUID(int=0))

SENTENCES: Final = {
    "no_target": "{vm!r} does not name one VM.",
    "lifetime": "The order is valid for {lifetime_s:.0f} s; at most {limit_s} s are allowed.",
    "no_deadline": "The deadline of the order is not after its expiry.",
    "appended_early": "The log dates the order {early_s:.1f} s before the planner issued it.",
    "appended_late": "The order reached the log {late_s:.1f} s after its expiry.",
    "bad_target": "{target!r} does not name one other target for the {action} of the VM.",
    "duplicate": "An order for step {step} of this incident is already in the log.",
    "gap": "Step {step} was ordered, but step {before} is not in the log.",
    "step_open": "Step {before} of this incident is still open.",
    "incident_unknown": "The result of step {before} is unknown: no more orders for this incident.",
    "incident_refused": "Step {before} was refused: no more orders for this incident.",
    "backoff": "Step {step} must wait {wait_s:.0f} s for the deadline and back-off of the step "
    "before it.",
    "incident_old": "The incident opened more than a day ago, so its first steps cannot be "
    "checked.",
    "vm_in_flight": "Another order for this VM is in flight.",
    "vm_spacing": "The last order for this VM was {ago_s:.0f} s ago; at most one in {limit_s} s "
    "is allowed.",
    "vm_day": "This VM had {count} orders in 24 h; at most {limit} are allowed.",
    "group_in_flight": "An order for another member of group {group} is in flight.",
    "group_sick": "{count} other members of group {group} have faults, and this VM is alive.",
    "node_in_flight": "Another order is in flight on node {node}.",
    "node_budget": "Node {node} had {count} of {limit} allowed orders in 10 min.",
    "cell_budget": "Cell {cell} had {count} of {limit} allowed orders in 10 min.",
    "site_budget": "The site had {count} of {limit} allowed orders in 10 min.",
}


def _no_target(context: RequestContext) -> Said | None:
    vm = context.order.vm
    names_one = _UUID.fullmatch(vm) and vm != _NIL
    return None if names_one else ("no_target", {"vm": vm})


def _lifetime(context: RequestContext) -> Said | None:
    order = context.order
    limit_ms = min(MAX_LIFETIME_MS, 1000 * context.policy.limits.order_lifetime_s)
    lifetime_ms = order.expires_ms - order.issued_ms
    if not 0 < lifetime_ms <= limit_ms:
        return "lifetime", {"lifetime_s": lifetime_ms / 1000, "limit_s": limit_ms // 1000}
    if order.deadline_ms < order.expires_ms:
        return "no_deadline", {}
    return None


def append_time(context: RequestContext) -> Said | None:
    """Refuse if the append time contradicts the order's own times: all limits use append times.

    Return the name of the refusal's sentence and its values, None to admit.
    """
    order, at_ms = context.order, context.at_ms
    if at_ms < order.issued_ms - CLOCK_SLACK_MS:
        return "appended_early", {"early_s": (order.issued_ms - at_ms) / 1000}
    if at_ms > order.expires_ms + CLOCK_SLACK_MS:
        return "appended_late", {"late_s": (at_ms - order.expires_ms) / 1000}
    return None


def _target(context: RequestContext) -> Said | None:
    """Refuse a move without exactly one target, and a target for an action that moves nothing."""
    order = context.order
    to = ACTIONS[order.action].target
    if to is None:
        wrong = order.target is not None or order.disk is not None
    else:
        here = (order.node,) if to == "node" else order.pools
        names = (order.target,) if to == "node" else (order.target, order.disk)
        wrong = order.target in here or not all(_NAME.fullmatch(name or "") for name in names)
    return ("bad_target", {"target": order.target, "action": order.action}) if wrong else None


def duplicate(context: RequestContext) -> Said | None:
    """Refuse a second order for a step: the first one in the log counts.

    Return the name of the refusal's sentence and its values, None to admit.
    """
    key = (context.order.incident, context.order.step)
    if any((e.order.incident, e.order.step) == key for e in context.earlier):
        return "duplicate", {"step": context.order.step}
    return None


def _escalation(context: RequestContext) -> Said | None:
    """Refuse a further step while an earlier one is open, unknown, refused or in its back-off."""
    order = context.order
    before: Mapping[str, object] = {"step": order.step, "before": order.step - 1}
    if order.step == 0:
        return None
    previous = context.previous()
    if previous is None:
        return "gap", before
    reads = previous.order.action not in DISRUPTIVE
    if previous.result is None and not (reads and context.at_ms >= previous.order.deadline_ms):
        return "step_open", before
    # A step that saves evidence changes nothing. The next step may follow immediately, even if
    # saving failed.
    tried = context.tried()
    if not tried:
        return None
    last = tried[-1]
    # Check all earlier steps, not only the last: its end does not close a step before it.
    for one in tried:
        values = {"step": order.step, "before": one.order.step}
        if one.result is None:
            return "step_open", values
        if one.result.outcome == "unknown":
            return "incident_unknown", values
        if one.result.outcome == "refused":
            return "incident_refused", values
    ended_ms = last.result.time_ms if last.result else context.at_ms
    earliest_ms = max(
        last.order.deadline_ms,
        ended_ms + context.policy.limits.backoff_ms(len(tried)),
    )
    if order.action in DISRUPTIVE and context.at_ms < earliest_ms:
        return "backoff", {"step": order.step, "wait_s": (earliest_ms - context.at_ms) / 1000}
    return None


def _incident_old(context: RequestContext) -> Said | None:
    if context.at_ms - context.order.opened_ms >= DAY_MS:
        return "incident_old", {}
    return None


def _vm(context: RequestContext) -> Said | None:
    order, limits = context.order, context.policy.limits
    mine = [entry for entry in context.spent() if entry.order.vm == order.vm]
    if any(entry.in_flight(at_ms=context.at_ms) for entry in mine):
        return "vm_in_flight", {}
    if len(mine) >= limits.vm_per_24h:
        return "vm_day", {"count": len(mine), "limit": limits.vm_per_24h}
    # If the call of the incident's last step returned, a back-off (`_escalation`) separates its
    # steps instead of this spacing.
    tried = context.tried()
    follows = (
        bool(tried) and tried[-1].result is not None and (tried[-1].result.outcome == "returned")
    )
    last_ms = max(
        (e.time_ms for e in mine if not follows or e.order.incident != order.incident), default=None
    )
    if last_ms is not None and context.at_ms < last_ms + 1000 * limits.vm_spacing_s:
        ago_s = (context.at_ms - last_ms) / 1000
        return "vm_spacing", {"ago_s": ago_s, "limit_s": limits.vm_spacing_s}
    return None


def _group(context: RequestContext) -> Said | None:
    order = context.order
    same = [e for e in context.spent() if (e.order.tenant, e.order.group) == owner_of(order)]
    if order.group is not None and any(e.in_flight(at_ms=context.at_ms) for e in same):
        return "group_in_flight", {"group": order.group}
    return None


def _group_sick(context: RequestContext) -> Said | None:
    """Refuse to move a live VM while others of its group fail: it may be the last that works."""
    order = context.order
    if ACTIONS[order.action].target is not None and order.group_sick > 0:
        return "group_sick", {"count": order.group_sick, "group": order.group}
    return None


def owner_of(order: Order) -> tuple[str | None, str | None]:
    """Return tenant and group of the order's VM."""
    return order.tenant, order.group


def nodes_of(order: Order) -> set[str]:
    """Return the nodes that an order affects: a migration counts at its source and its target."""
    goes = ACTIONS[order.action].target == "node"
    return {order.node, order.target} if goes and order.target else {order.node}


def _node(context: RequestContext) -> Said | None:
    limit = context.policy.limits.node_per_10min
    if context.order.action not in DISRUPTIVE:
        return None
    for node in sorted(nodes_of(context.order)):
        there = [e for e in context.spent() if node in nodes_of(e.order)]
        if any(entry.in_flight(at_ms=context.at_ms) for entry in there):
            return "node_in_flight", {"node": node}
        recent = [e for e in there if e.time_ms > context.at_ms - _TEN_MINUTES_MS]
        if len(recent) >= limit:
            return "node_budget", {"node": node, "count": len(recent), "limit": limit}
    return None


def _cell(context: RequestContext) -> Said | None:
    cell = context.order.cell
    limit = context.policy.limits.cell_budget(context.order.cell_vms)
    count = sum(e.order.cell == cell for e in context.spent(within_ms=_TEN_MINUTES_MS))
    if context.order.action in DISRUPTIVE and count >= limit:
        return "cell_budget", {"cell": cell, "count": count, "limit": limit}
    return None


def _site(context: RequestContext) -> Said | None:
    limit = context.policy.limits.site_budget(context.order.site_vms)
    count = len(context.spent(within_ms=_TEN_MINUTES_MS))
    if context.order.action in DISRUPTIVE and count >= limit:
        return "site_budget", {"count": count, "limit": limit}
    return None


LOG_RULES: Final[tuple[Rule, ...]] = (
    _no_target, _lifetime, _target, duplicate, append_time, _escalation,
    _incident_old, _vm, _group, _group_sick, _node, _cell, _site,
)  # fmt: skip

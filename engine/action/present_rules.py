"""The rules of `admit` that also read the clock and the control topic of the caller."""

from collections.abc import Mapping
from typing import Final

from flatline.engine.action.actions import ACTIONS, DESTRUCTIVE, DISRUPTIVE
from flatline.engine.action.catalogue import Policy
from flatline.engine.action.log_rules import nodes_of, owner_of
from flatline.engine.action.request_context import CLOCK_SLACK_MS, RequestContext, Rule, Said
from flatline.engine.wire.alert import may_be_reset
from flatline.engine.wire.control import Control, Mode
from flatline.engine.wire.order import Action

_STRICTNESS: Final[tuple[Mode, ...]] = ("observe", "approve", "auto")
# Kinds of control records that forbid an order, and the sentence of each.
_WORDS: Final[Mapping[str, str]] = {
    "pause": "paused", "maintenance": "maintenance", "quarantine": "quarantined",
}  # fmt: skip

SENTENCES: Final = {
    "expired": "The order expired {late_s:.1f} s ago.",
    "from_future": "The order is dated {ahead_s:.1f} s ahead of this clock.",
    "data_age": "The newest sample behind the order is {age_s:.0f} s old; at most {limit_s:.0f} s "
    "are allowed.",
    "data_ahead": "The newest sample behind the order is dated {ahead_s:.1f} s ahead of this "
    "clock.",
    "newborn": "The VM has {history} of history; {limit_s} s are required before actions.",
    "witnesses": "Only {heard} indicates that the guest is dead. A {action} requires activity and "
    "one more witness, or the hypervisor.",
    "no_owner": "The tenant or group of the VM is unknown, so no owner has allowed actions.",
    "policy": "The order was issued under policy {given}, but policy {held} is in force here.",
    "mode": "The policy allows only a dry run of {action} for tenant {tenant}.",
    "not_approved": "The {action} for tenant {tenant} requires approval: flatline approve "
    "{incident} --reason WHY.",
    "paused": "{scope} is paused by {by}: {reason}.",
    "maintenance": "{scope} is in maintenance by {by}: {reason}.",
    "quarantined": "{scope} is in quarantine by {by}: {reason}.",
}


def _clock(context: RequestContext) -> Said | None:
    order, now_ms = context.order, context.now_ms
    if now_ms >= order.expires_ms:
        return "expired", {"late_s": (now_ms - order.expires_ms) / 1000}
    if order.issued_ms > now_ms + CLOCK_SLACK_MS:
        return "from_future", {"ahead_s": (order.issued_ms - now_ms) / 1000}
    return None


def _data_age(context: RequestContext) -> Said | None:
    age_ms = context.now_ms - context.order.data_ms
    limit_ms = context.policy.limits.data_age_ms
    if age_ms < -CLOCK_SLACK_MS:
        return "data_ahead", {"ahead_s": -age_ms / 1000}
    if age_ms > limit_ms:
        return "data_age", {"age_s": age_ms / 1000, "limit_s": limit_ms / 1000}
    return None


def _newborn(context: RequestContext) -> Said | None:
    order, limit_s = context.order, context.policy.limits.newborn_s
    known_s = -1.0 if order.history_s is None else order.history_s
    if order.action in DISRUPTIVE and known_s < limit_s and not order.attested:
        history = "an unknown time" if order.history_s is None else f"{known_s:.0f} s"
        return "newborn", {"history": history, "limit_s": limit_s}
    return None


def _witnesses(context: RequestContext) -> Said | None:
    """Refuse to destroy the guest's state unless two independent witnesses confirm its death."""
    order = context.order
    if order.action in DESTRUCTIVE and not may_be_reset(order.witnesses):
        return "witnesses", {
            "action": order.action,
            "heard": ", ".join(order.witnesses) or "nobody",
        }
    return None


def _no_owner(context: RequestContext) -> Said | None:
    return None if all(owner_of(context.order)) else ("no_owner", {})


def _policy(context: RequestContext) -> Said | None:
    commands = [c for c in context.controls.values() if c.kind == "policy" and c.policy]
    in_force = [c.policy for c in commands if c.holds(now_ms=context.now_ms)]
    given, held = context.order.policy, context.policy.hash
    if given == held and all(command == held for command in in_force):
        return None
    return "policy", {"given": given, "held": held if given != held else in_force[0]}


def _mode(context: RequestContext) -> Said | None:
    order = context.order
    if order.dry_run:
        return None
    mode = effective_mode(
        context.policy,
        context.controls,
        tenant=order.tenant,
        action=order.action,
        now_ms=context.now_ms,
    )
    said = {"action": order.action, "tenant": order.tenant, "incident": order.incident}
    if mode == "observe":
        return "mode", said
    if mode == "approve" and not _approved(context):
        return "not_approved", said
    return None


def _approved(context: RequestContext) -> bool:
    order = context.order
    return any(
        control.kind == "approval"
        and control.subject == order.incident
        and control.action in (None, order.action)
        and control.holds(now_ms=context.now_ms)
        for control in context.controls.values()
    )


def effective_mode(
    policy: Policy,
    controls: Mapping[bytes, Control],
    *,
    tenant: str | None,
    action: Action,
    now_ms: int,
) -> Mode:
    """Return the strictest mode: a control record may tighten the policy but never relax it.

    `controls` are the control records by key, and `tenant` is None if it is unknown. `now_ms`
    decides which of the records are in force.
    """
    modes = [policy.mode(tenant=tenant, action=action)]
    modes += [
        control.mode or "observe"
        for control in controls.values()
        if control.kind == "mode"
        and control.action in (None, action)
        and (control.scope == "site" or (control.scope, control.subject) == ("tenant", tenant))
        and control.holds(now_ms=now_ms)
    ]
    return min(modes, key=_STRICTNESS.index)


def _words(context: RequestContext) -> Said | None:
    """Refuse if a command of a person or breaker covers the VM or anything it depends on.

    If an order does not name the pools, networks or zone of its VM, a command about any pool,
    network or zone is taken to cover it.
    """
    order = context.order
    covered = {("cell", order.cell), ("vm", order.vm), ("tenant", order.tenant)}
    covered |= {("node", node) for node in nodes_of(order)}
    covered |= {("pool", pool) for pool in order.pools}
    if ACTIONS[order.action].target == "pool":
        covered.add(("pool", order.target))
    covered |= {("network", network) for network in order.networks}
    covered.add(("zone", order.zone))
    known = {"zone": order.zone, "pool": order.pools, "network": order.networks}
    for control in context.controls.values():
        name = _WORDS.get(control.kind)
        if name is None or not control.holds(now_ms=context.now_ms):
            continue
        unseen = control.scope == "site" or not known.get(control.scope, True)
        if unseen or (control.scope, control.subject) in covered:
            scope = f"{control.scope} {control.subject}".strip().capitalize()
            return name, {"scope": scope, "by": control.by, "reason": control.reason}
    return None


COMMAND_RULES: Final[tuple[Rule, ...]] = (_policy, _mode, _words)
PRESENT_RULES: Final[tuple[Rule, ...]] = (
    _clock, _data_age, _newborn, _witnesses, _no_owner, *COMMAND_RULES,
)  # fmt: skip

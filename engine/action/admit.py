"""Whether an order may run, from the orders before it and the words of people.

The planner asks before it appends, every agent asks again after reading: the same function
over the same log, so any number of planners and restarts give one answer. Rules of the
first table read only the log and therefore hold for everybody; those of the second also
read the clock and the control topic, and hold for who asks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from uuid import UUID

from engine.action.catalogue import Policy
from engine.wire.control import Control
from engine.wire.order import MAX_LIFETIME_MS, Action, Closed, Order

DAY_MS: Final = 86_400_000
_TEN_MINUTES_MS: Final = 600_000

# Clocks of nodes that run NTP agree far better; one that is off by more is not to be
# trusted with expiry either.
CLOCK_SLACK_MS: Final = 5_000

SENTENCES: Final = {
    "admitted": "The order may run: no rule speaks against it.",
    "no_target": "{vm!r} does not name one VM.",
    "lifetime": "The order would live {lifetime_s:.0f} s; {limit_s} s at most.",
    "no_deadline": "The order's deadline does not lie after its expiry.",
    "appended_early": "The log dates the order {early_s:.1f} s before it was given.",
    "appended_late": "The log took the order {late_s:.1f} s after it had expired.",
    "migration_target": "A migration needs a node other than {node} as its target.",
    "duplicate": "The order for step {step} of this incident was given before.",
    "gap": "Step {step} follows no step {before} in the log.",
    "step_open": "Step {before} of this incident has not ended.",
    "incident_unknown": "Step {before} ended unknown: no machine acts on this incident again.",
    "incident_refused": "Step {before} was refused: no machine acts on this incident again.",
    "backoff": "Step {step} may follow {wait_s:.0f} s later, after its deadline and back-off.",
    "incident_old": "The incident opened more than a day ago, its first steps cannot be seen.",
    "vm_in_flight": "Another order for this VM is in flight.",
    "vm_spacing": "This VM was acted on {ago_s:.0f} s ago; once in {limit_s} s.",
    "vm_day": "This VM had {count} orders in 24 h; {limit} at most.",
    "group_in_flight": "Another member of the group {group} is being acted on.",
    "node_in_flight": "Another order is in flight on node {node}.",
    "node_budget": "Node {node} had {count} of {limit} orders in 10 min.",
    "cell_budget": "Cell {cell} had {count} of {limit} orders in 10 min.",
    "site_budget": "The site had {count} of {limit} orders in 10 min.",
    "expired": "The order expired {late_s:.1f} s ago.",
    "from_future": "The order is dated {ahead_s:.1f} s ahead of this clock.",
    "data_age": "The data behind the order is {age_s:.0f} s old; {limit_s:.0f} s at most.",
    "data_ahead": "The data behind the order is dated {ahead_s:.1f} s ahead of this clock.",
    "newborn": "The VM has {history} of history; {limit_s} s are needed before it is touched.",
    "no_owner": "Tenant or group of the VM is unknown, so nobody agreed to actions on it.",
    "policy": "The order was given under policy {given}, here {held} holds.",
    "mode": "Policy lets {action} for tenant {tenant} be rehearsed only.",
    "paused": "{scope} is paused by {by}: {reason}.",
    "maintenance": "{scope} is in maintenance by {by}: {reason}.",
}

# Refusals that pass by themselves: the incident may be ordered again after its back-off.
# Any other one closes the incident to machines.
PASSING: Final = frozenset(
    {
        "step_open", "backoff", "vm_in_flight", "vm_spacing", "group_in_flight",
        "node_in_flight", "node_budget", "cell_budget", "site_budget",
        "data_age", "policy", "mode", "paused", "maintenance",
    }
)  # fmt: skip


class Admission(NamedTuple):
    """Whether an order may run, and why in one sentence; `rule` names the sentence."""

    admitted: bool
    rule: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Logged:
    """An order as it stands in the log.

    `admitted` says whether the log's own rules let it run; only such an order spends
    budgets. `closed` is the first mark that ended it.
    """

    order: Order
    offset: int
    time_ms: int
    admitted: bool
    closed: Closed | None = None

    def in_flight(self, *, at_ms: int) -> bool:
        """Return whether it may still be under way at `at_ms`."""
        return self.admitted and self.closed is None and at_ms < self.order.deadline_ms


History = tuple[Logged, ...]


@dataclass(frozen=True, slots=True)
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
        """Return the orders that count: admitted, of the same dry-run kind, recent."""
        return [
            entry
            for entry in self.earlier
            if entry.admitted
            and entry.order.dry_run == self.order.dry_run
            and entry.time_ms > self.at_ms - within_ms
        ]

    def previous(self) -> Logged | None:
        """Return the step before this one, None if the log does not hold it."""
        key = (self.order.incident, self.order.step - 1)
        return next((e for e in self.earlier if (e.order.incident, e.order.step) == key), None)


# A refusal: the name of its sentence, and what the sentence's gaps are filled with.
_Said = tuple[str, Mapping[str, object]]
Rule = Callable[[Question], _Said | None]


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
    admitted = admitted and _duplicate(question) is None
    kept = history
    # A date that the order itself contradicts must not make budgets be forgotten.
    if _append_time(question) is None:
        kept = tuple(entry for entry in history if entry.time_ms > time_ms - DAY_MS)
    return (*kept, Logged(order, offset, time_ms, admitted))


def closed(history: History, mark: Closed) -> History:
    """Return the history with the order that `mark` ends closed; the first mark stands."""
    key = (mark.incident, mark.step)
    for index, entry in enumerate(history):
        if (entry.order.incident, entry.order.step) == key:
            if entry.closed is not None or entry.order.node != mark.node:
                return history
            return (*history[:index], replace(entry, closed=mark), *history[index + 1 :])
    return history


def _first_refusal(rules: Iterable[Rule], question: Question) -> Admission:
    for rule in rules:
        said = rule(question)
        if said is not None:
            name, values = said
            return Admission(False, name, SENTENCES[name].format(**values))
    return Admission(True, "admitted", SENTENCES["admitted"])


def _no_target(question: Question) -> _Said | None:
    vm = question.order.vm
    try:
        well_formed = str(UUID(vm)) == vm and UUID(vm).int != 0
    except ValueError:
        well_formed = False
    return None if well_formed else ("no_target", {"vm": vm})


def _lifetime(question: Question) -> _Said | None:
    order = question.order
    limit_ms = min(MAX_LIFETIME_MS, 1000 * question.policy.limits.order_lifetime_s)
    lifetime_ms = order.expires_ms - order.issued_ms
    if not 0 < lifetime_ms <= limit_ms:
        return "lifetime", {"lifetime_s": lifetime_ms / 1000, "limit_s": limit_ms // 1000}
    if order.deadline_ms < order.expires_ms:
        return "no_deadline", {}
    return None


def _append_time(question: Question) -> _Said | None:
    """Refuse a date of the log that does not fit the order's own: every limit counts by it."""
    order, at_ms = question.order, question.at_ms
    if at_ms < order.issued_ms - CLOCK_SLACK_MS:
        return "appended_early", {"early_s": (order.issued_ms - at_ms) / 1000}
    if at_ms > order.expires_ms + CLOCK_SLACK_MS:
        return "appended_late", {"late_s": (at_ms - order.expires_ms) / 1000}
    return None


def _migration_target(question: Question) -> _Said | None:
    order = question.order
    moves = order.action == "migrate"
    if moves != (order.target is not None) or order.target in ("", order.node):
        return "migration_target", {"node": order.node}
    return None


def _duplicate(question: Question) -> _Said | None:
    key = (question.order.incident, question.order.step)
    if any((e.order.incident, e.order.step) == key for e in question.earlier):
        return "duplicate", {"step": question.order.step}
    return None


def _escalation(question: Question) -> _Said | None:
    """Let a further step run only after the one before it failed, and not in haste."""
    order = question.order
    before = {"step": order.step, "before": order.step - 1}
    if order.step == 0:
        return None
    previous = question.previous()
    if previous is None:
        return "gap", before
    if previous.closed is None:
        return "step_open", before
    if previous.closed.outcome == "unknown":
        return "incident_unknown", before
    if previous.closed.outcome == "refused":
        return "incident_refused", before
    earliest_ms = max(
        previous.order.deadline_ms,
        previous.closed.time_ms + question.policy.limits.backoff_ms(order.step),
    )
    if question.at_ms < earliest_ms:
        return "backoff", before | {"wait_s": (earliest_ms - question.at_ms) / 1000}
    return None


def _incident_old(question: Question) -> _Said | None:
    if question.at_ms - question.order.opened_ms >= DAY_MS:
        return "incident_old", {}
    return None


def _vm(question: Question) -> _Said | None:
    order, limits = question.order, question.policy.limits
    mine = [entry for entry in question.spent() if entry.order.vm == order.vm]
    if any(entry.in_flight(at_ms=question.at_ms) for entry in mine):
        return "vm_in_flight", {}
    if len(mine) >= limits.vm_per_24h:
        return "vm_day", {"count": len(mine), "limit": limits.vm_per_24h}
    # The next step of the same incident keeps its own distance (`_escalation`), but only
    # where the step before it was really tried.
    previous = question.previous()
    follows = (
        previous is not None
        and previous.closed is not None
        and previous.closed.outcome == "returned"
    )
    last_ms = max(
        (e.time_ms for e in mine if not follows or e.order.incident != order.incident), default=None
    )
    if last_ms is not None and question.at_ms < last_ms + 1000 * limits.vm_spacing_s:
        ago_s = (question.at_ms - last_ms) / 1000
        return "vm_spacing", {"ago_s": ago_s, "limit_s": limits.vm_spacing_s}
    return None


def _group(question: Question) -> _Said | None:
    order = question.order
    same = [e for e in question.spent() if (e.order.tenant, e.order.group) == owner_of(order)]
    if order.group is not None and any(e.in_flight(at_ms=question.at_ms) for e in same):
        return "group_in_flight", {"group": order.group}
    return None


def owner_of(order: Order) -> tuple[str | None, str | None]:
    """Return tenant and group of the order's VM."""
    return order.tenant, order.group


def _nodes(order: Order) -> set[str]:
    """Return the nodes an order weighs on: a migration counts at source and target."""
    return {order.node} | ({order.target} if order.target else set())


def _node(question: Question) -> _Said | None:
    limit = question.policy.limits.node_per_10min
    for node in sorted(_nodes(question.order)):
        there = [e for e in question.spent() if node in _nodes(e.order)]
        if any(entry.in_flight(at_ms=question.at_ms) for entry in there):
            return "node_in_flight", {"node": node}
        recent = [e for e in there if e.time_ms > question.at_ms - _TEN_MINUTES_MS]
        if len(recent) >= limit:
            return "node_budget", {"node": node, "count": len(recent), "limit": limit}
    return None


def _cell(question: Question) -> _Said | None:
    cell, limit = question.order.cell, question.policy.limits.cell_per_10min
    count = sum(e.order.cell == cell for e in question.spent(within_ms=_TEN_MINUTES_MS))
    if count >= limit:
        return "cell_budget", {"cell": cell, "count": count, "limit": limit}
    return None


def _site(question: Question) -> _Said | None:
    limit = question.policy.limits.site_per_10min
    count = len(question.spent(within_ms=_TEN_MINUTES_MS))
    return ("site_budget", {"count": count, "limit": limit}) if count >= limit else None


def _clock(question: Question) -> _Said | None:
    order, now_ms = question.order, question.now_ms
    if now_ms >= order.expires_ms:
        return "expired", {"late_s": (now_ms - order.expires_ms) / 1000}
    if order.issued_ms > now_ms + CLOCK_SLACK_MS:
        return "from_future", {"ahead_s": (order.issued_ms - now_ms) / 1000}
    return None


def _data_age(question: Question) -> _Said | None:
    age_ms = question.now_ms - question.order.data_ms
    limit_ms = question.policy.limits.data_age_ms
    if age_ms < -CLOCK_SLACK_MS:
        return "data_ahead", {"ahead_s": -age_ms / 1000}
    if age_ms > limit_ms:
        return "data_age", {"age_s": age_ms / 1000, "limit_s": limit_ms / 1000}
    return None


def _newborn(question: Question) -> _Said | None:
    order, limit_s = question.order, question.policy.limits.newborn_s
    known_s = -1.0 if order.history_s is None else order.history_s
    if known_s < limit_s and not order.attested:
        history = "an unknown time" if order.history_s is None else f"{known_s:.0f} s"
        return "newborn", {"history": history, "limit_s": limit_s}
    return None


def _no_owner(question: Question) -> _Said | None:
    return None if all(owner_of(question.order)) else ("no_owner", {})


def _policy(question: Question) -> _Said | None:
    words = [c for c in question.controls.values() if c.kind == "policy" and c.policy]
    in_force = [c.policy for c in words if c.holds(now_ms=question.now_ms)]
    given, held = question.order.policy, question.policy.hash
    if given == held and all(word == held for word in in_force):
        return None
    return "policy", {"given": given, "held": held if given != held else in_force[0]}


def _mode(question: Question) -> _Said | None:
    order = question.order
    if order.dry_run:
        return None
    mode = effective_mode(
        question.policy,
        question.controls,
        tenant=order.tenant,
        action=order.action,
        now_ms=question.now_ms,
    )
    return None if mode == "auto" else ("mode", {"action": order.action, "tenant": order.tenant})


def effective_mode(
    policy: Policy,
    controls: Mapping[bytes, Control],
    *,
    tenant: str | None,
    action: Action,
    now_ms: int,
) -> str:
    """Return `observe` or `auto`: a control record may make the policy stricter, never laxer."""
    if any(
        control.kind == "mode"
        and control.mode != "auto"
        and control.action in (None, action)
        and (control.scope == "site" or (control.scope, control.subject) == ("tenant", tenant))
        and control.holds(now_ms=now_ms)
        for control in controls.values()
    ):
        return "observe"
    return policy.mode(tenant=tenant, action=action)


def _words(question: Question) -> _Said | None:
    """Refuse where a pause or a maintenance window covers the VM, its node or its target.

    An order does not say which pools, networks and zone its VM hangs on, so a pause of
    one of those is taken as a pause of everything.
    """
    order = question.order
    covered = {("cell", order.cell), ("vm", order.vm), ("tenant", order.tenant)}
    covered |= {("node", node) for node in _nodes(order)}
    for control in question.controls.values():
        if control.kind not in ("pause", "maintenance"):
            continue
        unseen = control.scope in ("site", "zone", "pool", "network")
        if not unseen and (control.scope, control.subject) not in covered:
            continue
        if control.holds(now_ms=question.now_ms):
            name = "paused" if control.kind == "pause" else "maintenance"
            scope = f"{control.scope} {control.subject}".strip().capitalize()
            return name, {"scope": scope, "by": control.by, "reason": control.reason}
    return None


LOG_RULES: Final[tuple[Rule, ...]] = (
    _no_target, _lifetime, _migration_target, _duplicate, _append_time, _escalation,
    _incident_old, _vm, _group, _node, _cell, _site,
)  # fmt: skip
PRESENT_RULES: Final[tuple[Rule, ...]] = (
    _clock, _data_age, _newborn, _no_owner, _policy, _mode, _words,
)  # fmt: skip

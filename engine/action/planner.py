"""The planner: alerts and the order log in; orders, control records and journal entries out.

A pure, level-triggered state machine. Its state follows from the orders of the last day, the
control records, and the alerts since the first of those orders, so a restart reads these again and
continues. The planner has no ledger: the log serves as the lock.
"""

from dataclasses import replace
from typing import Final, assert_never

from flatline.engine.action.actions import ACTIONS, DISRUPTIVE, LOUD
from flatline.engine.action.admit import closed, logged
from flatline.engine.action.advance import (
    HELD_ASKED,
    advance,
    every_incident,
    evidence_saved,
    other_incidents_of,
    storms,
)
from flatline.engine.action.catalogue import VERDICT_WINDOW_MS, Policy
from flatline.engine.action.events import (
    AlertSeen,
    CaughtUp,
    ControlSeen,
    Instruction,
    LoadSeen,
    OrderSeen,
    PlannerEvent,
    ResultSeen,
    Tick,
)
from flatline.engine.action.incident import ENDED, BrokenInvariant, Incident, moved
from flatline.engine.action.state import PlannerState, Recovery, Stepped, put, report, with_control
from flatline.engine.action.storm import places_of, troubled
from flatline.engine.action.target import with_load
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.order import Order, OrderResult

# How long the planner remembers that a guest recovered by itself: a month, because this depends on
# the guest's configuration, which changes rarely.
_RECOVERY_MS: Final = 30 * 86_400_000


def step(state: PlannerState, event: PlannerEvent, policy: Policy) -> Stepped:
    """Return the state after `event` and the instructions, in order.

    Raises
    ------
    BrokenInvariant
        The resulting state is illegal; the planner stops and reads the log again.
    """
    match event:
        case AlertSeen():
            state, done = _alert_seen(state, event, policy)
        case OrderSeen(order, offset, time_ms):
            state, done = _order_seen(state, order, policy, offset=offset, time_ms=time_ms), ()
        case ResultSeen(mark, time_ms):
            state, done = _result_seen(state, mark, policy, time_ms)
        case ControlSeen(control, key=key, by_operator=by_operator):
            state, done = with_control(state, control, key=key, by_operator=by_operator), ()
        case LoadSeen(cell, load, now_ms):
            loads = with_load(state.loads, cell, load, now_ms=now_ms)
            state, done = replace(state, loads=loads), ()
        case CaughtUp(now_ms):
            state, done = every_incident(replace(state, live=True), policy, now_ms)
        case Tick(now_ms):
            state, done = every_incident(state, policy, now_ms)
        case _:
            assert_never(event)
    # An alert changes one incident; to check all of them each time takes quadratic time.
    check(state, only=event.alert.id if isinstance(event, AlertSeen) else None)
    return state, done


def check(state: PlannerState, *, only: str | None = None) -> None:
    """Raise `BrokenInvariant` if the state is illegal; `only` checks one incident, by its id."""
    keys = [(entry.order.incident, entry.order.step) for entry in state.history if entry.admitted]
    if len(keys) != len(set(keys)):
        raise BrokenInvariant("two orders for one step of an incident were both admitted")
    changed = state.incidents.get(only) if only is not None else None
    of_interest = state.incidents.values() if only is None else (changed,) if changed else ()
    for incident in of_interest:
        if incident.phase in ("ordering", "ordered", "verifying") and incident.order is None:
            raise BrokenInvariant(
                f"incident {incident.id} is in phase {incident.phase} without an order"
            )
        if incident.phase == "ordering" and not state.live:
            raise BrokenInvariant("an order was issued before the log was read to its end")


def _alert_seen(state: PlannerState, seen: AlertSeen, policy: Policy) -> Stepped:
    alert, now_ms = seen.alert, seen.now_ms
    trouble = dict(state.trouble)
    for place in places_of(alert):
        trouble[place] = troubled(trouble.get(place), alert)
    state = replace(state, trouble=trouble)
    if alert.scope != "vm":
        return state, ()
    incident = state.incidents.get(alert.id)
    if incident is not None and _is_stale(alert, incident):
        return state, ()
    back: tuple[Instruction, ...] = ()
    if incident is not None and incident.phase == "mended" and alert.state == "firing":
        incident, back = _back(state, incident)
    if incident is None:
        if alert.state == "resolved":
            state = _recovered(state, alert, policy)
        asked = alert.suggested_action in LOUD or policy.ladders.get(alert.kind)
        if alert.state != "firing" or not asked:
            return _storming(state, alert, now_ms)
        incident = Incident(alert.id)
    before = incident.alert
    incident = _with_command(incident, alert, time_ms=seen.time_ms)
    if alert.state == "resolved" and incident.phase not in (*ENDED, "settling"):
        if incident.order is None:
            state = _recovered(state, alert, policy)
        return _resolved(state, incident, policy)
    # If there are few incidents, each alert is evaluated immediately. If there are many, a new
    # incident waits for the next tick, and an inhibited one for its turn. Each evaluation scans all
    # other incidents, so one for each alert would take quadratic time.
    are_many = len(state.incidents) > HELD_ASKED
    is_news = before is not None and _is_news(alert, before)
    waits = are_many and not is_news and (before is None or bool(incident.held_by))
    state, paused = _storming(put(state, incident), alert, now_ms)
    if waits and not back:
        return state, paused
    other_incidents = other_incidents_of(state.incidents, of=alert)
    state, decided = advance(state, incident, policy, now_ms, other_incidents)
    return state, (*back, *paused, *decided)


def _is_stale(alert: Alert, incident: Incident) -> bool:
    """Return whether a newer alert of the incident is known: an engine may repeat old ones."""
    known = incident.alert
    return known is not None and (alert.transition, alert.decided_ms) < (
        known.transition,
        known.decided_ms,
    )


def _back(
    state: PlannerState, incident: Incident
) -> tuple[Incident | None, tuple[Instruction, ...]]:
    """Return the next state of a recovered incident that fires again; None starts a new one."""
    order = incident.order
    if order is None:
        # The VM had recovered by itself without any order, so nothing forbids a first step.
        return None, ()
    ends = (entry.result for entry in state.history if _key(entry.order) == _key(order))
    outcome = next((mark.outcome for mark in ends if mark is not None), None)
    if outcome in ("expired", "not_attempted"):
        return replace(moved(incident, "backing_off"), next_ms=order.deadline_ms), ()
    if not state.live:
        return incident, ()
    ended = moved(incident, "exhausted")
    return ended, (report(ended, "outcome", "again", page=not order.dry_run),)


def _is_news(alert: Alert, before: Alert | None) -> bool:
    """Return whether an alert differs from the one before it in a field that affects decisions."""
    if before is None:
        return True
    now, known = (
        (one.transition, one.state, one.suggested_action, one.vetoes, one.witnesses, one.pools)
        for one in (alert, before)
    )
    return now != known


def _storming(state: PlannerState, alert: Alert, now_ms: int) -> Stepped:
    return storms(state, now_ms, places_of(alert)) if state.live else (state, ())


def _recovered(state: PlannerState, alert: Alert, policy: Policy) -> PlannerState:
    """Record how long a VM took to recover by itself: next time the planner waits for that long."""
    took_s = (alert.decided_ms - alert.opened_ms) / 1000
    found = alert.resolution
    helped_itself = found is not None and not (found.verified or found.superseded_by)
    if not helped_itself or not 0 <= took_s <= policy.limits.grace_limit_s:
        return state
    kept = {
        vm: recovery
        for vm, recovery in state.recoveries.items()
        if recovery.seen_ms > alert.decided_ms - _RECOVERY_MS
    }
    before = kept.get(alert.subject)
    longest_s = max(took_s, before.longest_s if before else 0.0)
    kept[alert.subject] = Recovery(longest_s, alert.decided_ms)
    return replace(state, recoveries=kept)


def _with_command(incident: Incident, alert: Alert, *, time_ms: int) -> Incident:
    """Return the incident with its newest alert; set `failing` if it shows that the step failed.

    An alert appended (`time_ms`) after the deadline shows no failure, because planners may already
    have ended the step as unknown. A planner that starts later must reach the same result.
    """
    order = incident.order
    failing = incident.failing
    if order is not None and alert.state == "firing":
        since_ms = max(order.deadline_ms - VERDICT_WINDOW_MS, incident.called_ms)
        in_time = since_ms < alert.decided_ms <= order.deadline_ms
        failing = failing or (in_time and time_ms <= order.deadline_ms)
    return replace(incident, alert=alert, failing=failing)


def _resolved(state: PlannerState, incident: Incident, policy: Policy) -> Stepped:
    alert, order = incident.alert, incident.order
    verified = alert is not None and alert.resolution is not None and alert.resolution.verified
    moves = (
        verified
        and order is not None
        and ACTIONS[order.action].target == "node"
        and not order.dry_run
    )
    if moves and order is not None and incident.phase in ("ordered", "verifying"):
        # `called_ms` is 0 if the engine's alert is read before the agent's result.
        since_ms = incident.called_ms or order.issued_ms
        verifying = replace(moved(incident, "settling"), called_ms=since_ms)
        said = report(verifying, "effect", "settling", values={"target": order.target})
        return put(state, verifying), (said,) if state.live else ()
    ended = moved(incident, "mended")
    resolution = alert.resolution if alert else None
    why = {"why": resolution.reason if resolution else "the engine resolved the alert."}
    if order is None or resolution is None or not resolution.verified:
        said = report(ended, "effect", "resolved", values=why)
    else:
        escalation = policy.ladders.get(order.kind, ())
        wanted_s = (
            escalation[incident.failed_steps].stable_s
            if incident.failed_steps < len(escalation)
            else 0
        )
        stable_s = resolution.stable_s or 0.0
        rule = "verified" if stable_s >= wanted_s else "briefly_stable"
        values: dict[str, object] = {**why, "stable_s": stable_s, "wanted_s": wanted_s}
        said = report(ended, "effect", rule, values=values)
    # Records below the end of the log at the start were already reported, by another planner or by
    # an earlier run.
    return put(state, ended), (said,) if state.live else ()


def _order_seen(
    state: PlannerState, order: Order, policy: Policy, *, offset: int, time_ms: int
) -> PlannerState:
    known = any((e.order.incident, e.order.step) == _key(order) for e in state.history)
    history = logged(state.history, order, policy, offset=offset, time_ms=time_ms)
    state = replace(state, history=history)
    incident = state.incidents.get(order.incident, Incident(order.incident))
    # A second order for the same step changes nothing: the first one counts.
    if known or incident.phase in ENDED or incident.phase == "ordered":
        return state
    # In these phases, the order shows that another planner was first to see that the last step
    # failed, or that the migration's target is overloaded.
    tried = incident.phase == "verifying"
    undoing = incident.undoing or incident.phase == "settling"
    incident = replace(
        moved(incident, "ordered"),
        order=order,
        failed_steps=incident.failed_steps + tried,
        called_ms=0,
        failing=False,
        undoing=undoing,
    )
    return put(state, incident)


def _key(order: Order) -> tuple[str, int]:
    return order.incident, order.step


def _result_seen(state: PlannerState, result: OrderResult, policy: Policy, time_ms: int) -> Stepped:
    history = closed(state.history, result, time_ms=time_ms)
    changed = history is not state.history
    state = replace(state, history=history)
    incident = state.incidents.get(result.incident)
    if not changed or incident is None or incident.phase != "ordered":
        return state, ()
    order = incident.order
    if order is None or order.step != result.step:
        return state, ()
    why: dict[str, object] = {"why": result.sentence}
    if order.action not in DISRUPTIVE:
        return evidence_saved(
            state, incident, saved=result.outcome == "returned", why=result.sentence
        )
    (result,) = (e.result for e in history if _key(e.order) == _key(order) and e.result)
    match result.outcome:
        case "returned" if incident.undoing and not (result.dry_run or order.dry_run):
            incident = moved(incident, "mended")
            said = report(incident, "effect", "undone")
        case "returned" if result.dry_run or order.dry_run:
            incident = moved(incident, "rehearsed")
            said = report(incident, "outcome", "rehearsed")
        case "returned":
            incident = replace(moved(incident, "verifying"), called_ms=result.time_ms)
            said = report(incident, "outcome", "called")
        case "refused":
            incident = moved(incident, "refused")
            said = report(incident, "outcome", "refused", page=not order.dry_run, values=why)
        case "unknown":
            incident = moved(incident, "unknown")
            said = report(incident, "outcome", "unknown", page=True, values=why)
        case "expired" | "not_attempted":
            wait_ms = policy.limits.backoff_ms(max(1, result.step + 1))
            next_ms = max(order.deadline_ms, result.time_ms + wait_ms)
            incident = replace(moved(incident, "backing_off"), next_ms=next_ms)
            said = report(incident, "outcome", "not_attempted", values=why)
        case _:
            assert_never(result.outcome)
    return put(state, incident), (said,) if state.live else ()

"""Transitions caused by time alone: deadlines, back-offs, storms, and the next step."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from flatline.engine.action.actions import DISRUPTIVE
from flatline.engine.action.catalogue import Policy
from flatline.engine.action.events import AppendControl, AppendOrder, Instruction, WriteJournal
from flatline.engine.action.incident import Incident, moved
from flatline.engine.action.ordering import (
    OrderContext,
    Proposal,
    answers,
    propose,
    propose_undo,
    step_of,
)
from flatline.engine.action.present_rules import effective_mode
from flatline.engine.action.request_context import DAY_MS, RESULT_LATENESS_MS, Logged
from flatline.engine.action.state import SENTENCES, PlannerState, Stepped, put, report, with_control
from flatline.engine.action.storm import Place, storm_pause
from flatline.engine.action.target import worsened
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Order

# How long after its append a record may be read. If a record could only be in time until some
# moment, the planner waits for this long after that moment before it assumes that there is none.
_LATENESS_MS: Final = 5_000
# How long after a migration's deadline the planner still waits for the load of the target node.
_SETTLE_MS: Final = 300_000
# How many inhibited incidents are checked again each second. That is enough, because inhibitions
# last minutes and a changed alert is handled immediately. Checking a thousand a second took a sixth
# of a core.
HELD_ASKED: Final = 100
# How often incidents are dropped whose newest alert and order are older than a day. Scanning ten
# thousand incidents each second costs as much as all other work.
_SWEEP_MS: Final = 60_000

QUARANTINER: Final = "planner"


def every_incident(state: PlannerState, policy: Policy, now_ms: int) -> Stepped:
    """Advance the incidents to `now_ms`; check for storms first, because they inhibit orders.

    Return the next state and the instructions, in order. An incident that raises an error is given
    up; the error is journalled, not raised.
    """
    if not state.live:
        return state, ()
    state, said = storms(state, now_ms)
    done: list[Instruction] = list(said)
    if abs(now_ms - state.swept_ms) >= _SWEEP_MS:
        known = state.incidents
        kept = {key: one for key, one in known.items() if one.last_ms >= now_ms - DAY_MS}
        state = replace(state, incidents=kept if len(kept) < len(known) else known, swept_ms=now_ms)
    state, asked = _asked(state)
    other_incidents = other_incidents_of(state.incidents)
    for incident in asked:
        try:
            state, more = advance(state, incident, policy, now_ms, other_incidents)
        except Exception as error:  # noqa: BLE001 - one incident must not stop all others
            state, more = _given_up(state, incident, error)
            other_incidents = other_incidents_of(state.incidents)
        done.extend(more)
        # `advance` changes only one incident. Summarising all incidents again after each of them
        # would take quadratic time.
        other_incidents = _with_step(other_incidents, state.incidents.get(incident.id))
    return state, tuple(done)


def _with_step(other_incidents: "OtherIncidents", incident: Incident | None) -> "OtherIncidents":
    """Return the summary of all incidents after one of them was advanced."""
    if incident is None:
        return other_incidents
    before = [order for order in other_incidents.pending if order.incident != incident.id]
    is_pending = incident.phase == "ordering" and incident.order is not None
    pending = (*before, incident.order) if is_pending and incident.order else tuple(before)
    return (
        other_incidents
        if pending == other_incidents.pending
        else replace(other_incidents, pending=pending)
    )


def _given_up(state: PlannerState, incident: Incident, error: Exception) -> Stepped:
    """Drop an incident whose processing failed; its earlier orders still count in the budgets."""
    kept = {key: one for key, one in state.incidents.items() if key != incident.id}
    why = f"{type(error).__name__}: {error}"
    said = report(incident, "outcome", "given_up", page=True, values={"why": why})
    return replace(state, incidents=kept), (said,)


def _asked(state: PlannerState) -> tuple[PlannerState, list[Incident]]:
    """Return the incidents to advance now: all that are not inhibited, and some that are.

    Inhibited incidents take turns, at most `HELD_ASKED` at a time.
    """
    held = [incident for incident in state.incidents.values() if incident.held_by]
    rest = [incident for incident in state.incidents.values() if not incident.held_by]
    if len(held) <= HELD_ASKED:
        return state, rest + held
    first = state.turn % len(held)
    share = (held[first:] + held[:first])[:HELD_ASKED]
    return replace(state, turn=first + HELD_ASKED), rest + share


def storms(state: PlannerState, now_ms: int, places: Iterable[Place] | None = None) -> Stepped:
    """Pause each place in which many VMs have faults at once; `places` None checks all.

    Each place must be in `state.trouble`. Return the next state and the instructions.
    """
    done: list[Instruction] = []
    for place in state.trouble if places is None else dict.fromkeys(places):
        trouble = state.trouble[place]
        pause = storm_pause(
            trouble,
            site=state.site,
            place=place,
            vm_count=_vm_count(state, place),
            controls=state.controls,
            now_ms=now_ms,
        )
        if pause is not None:
            state = with_control(state, pause)
            sentence = SENTENCES["storm"].format(why=pause.reason)
            cell = place[1] if place[0] == "cell" else None
            done += [
                AppendControl(pause),
                WriteJournal("control", "storm", sentence, cell=cell, page=True),
            ]
    return state, tuple(done)


def _vm_count(state: PlannerState, place: Place) -> int:
    scope, name = place
    if scope == "cell":
        return state.loads[name].vm_count if name in state.loads else 0
    loads = state.loads.values()
    return sum((load.pools if scope == "pool" else load.networks).get(name, 0) for load in loads)


@dataclass(frozen=True, slots=True)
class OtherIncidents:
    """A summary of all incidents, which the decision about one incident needs.

    Attributes
    ----------
    pending
        Orders that were appended but not read back yet: they already count in the budgets.
    firing
        The VMs whose alerts fire, as UUID texts by tenant and group.
    """

    pending: tuple[Order, ...]
    firing: Mapping[tuple[str | None, str | None], AbstractSet[str]]


def other_incidents_of(
    incidents: Mapping[str, Incident], *, of: Alert | None = None
) -> OtherIncidents:
    """Return the summary of these incidents; with `of`, `firing` has only that alert's group."""
    firing: defaultdict[tuple[str | None, str | None], set[str]] = defaultdict(set)
    pending = []
    for one in incidents.values():
        if one.phase == "ordering" and one.order is not None:
            pending.append(one.order)
        alert = one.alert
        if alert is None or alert.state != "firing":
            continue
        if of is None or (alert.group == of.group and alert.tenant == of.tenant):
            firing[alert.tenant, alert.group].add(alert.subject)
    return OtherIncidents(tuple(pending), firing)


def advance(
    state: PlannerState,
    incident: Incident,
    policy: Policy,
    now_ms: int,
    other_incidents: OtherIncidents,
) -> Stepped:
    """Advance one incident to `now_ms`: deadlines, back-offs, and the next step.

    Return the next state and the instructions.

    Raises
    ------
    BrokenInvariant
        The incident would enter an illegal phase.
    """
    order = incident.order
    if not state.live:
        return state, ()
    match incident.phase:
        case "watching":
            return _decide(state, incident, policy, now_ms, other_incidents)
        case "backing_off" if now_ms >= incident.next_ms:
            return _decide(state, incident, policy, now_ms, other_incidents)
        case "ordering" if order is not None and now_ms > order.expires_ms + _LATENESS_MS:
            # The order never reached the log, so its step number was not used.
            before = next((e.order for e in reversed(state.history) if _is_of(e, incident)), None)
            again = moved(incident, "backing_off" if incident.undoing else "watching")
            return put(state, replace(again, order=before)), ()
        case "ordered" if order is not None and now_ms > _unmarked_ms(order):
            if order.action not in DISRUPTIVE:
                return evidence_saved(state, incident, saved=False, why=SENTENCES["no_mark"])
            if order.dry_run:
                ended = moved(incident, "rehearsed")
                return put(state, ended), (report(ended, "outcome", "not_rehearsed"),)
            return _lost(state, incident, SENTENCES["no_mark"])
        case "verifying" if order is not None and now_ms > order.deadline_ms + _LATENESS_MS:
            if not incident.failing:
                return _lost(state, incident, SENTENCES["no_verdict"])
            return _failed(state, incident, policy, now_ms)
        case "settling":
            return _settle(state, incident, policy, now_ms)
        case _:
            return state, ()


def _unmarked_ms(order: Order) -> int:
    """Return the time by which a valid result would have been read; see `admit.closed`."""
    return order.deadline_ms + RESULT_LATENESS_MS + _LATENESS_MS


def _is_of(entry: Logged, incident: Incident) -> bool:
    return entry.order.incident == incident.id


def _lost(state: PlannerState, incident: Incident, why: str) -> Stepped:
    ended = moved(incident, "unknown")
    said = report(ended, "outcome", "unknown", page=True, values={"why": why})
    return put(state, ended), (said,)


def _failed(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    order = incident.order
    failed = replace(incident, failed_steps=incident.failed_steps + 1, failing=False)
    following = step_of(failed, policy)
    if following is None:
        ended = moved(failed, "exhausted")
        return put(state, ended), (report(ended, "outcome", "exhausted", page=True),)
    next_ms = now_ms
    if following.action in DISRUPTIVE:
        tried = sum(_is_of(e, incident) and e.order.action in DISRUPTIVE for e in state.history)
        next_ms = max(
            order.deadline_ms if order else now_ms,
            incident.called_ms + policy.limits.backoff_ms(max(1, tried)),
        )
    waiting = replace(moved(failed, "backing_off"), next_ms=next_ms)
    wait_s = max(0, next_ms - now_ms) / 1000
    said = report(waiting, "outcome", "failed", values={"wait_s": wait_s})
    return put(state, waiting), (said,)


def evidence_saved(state: PlannerState, incident: Incident, *, saved: bool, why: str) -> Stepped:
    """Continue an incident after its evidence was saved, or after saving it failed.

    `why` is a sentence for the journal. Return the next state and the instructions.
    """
    said = report(incident, "outcome", "evidence" if saved else "no_evidence", values={"why": why})
    # Saving evidence changed nothing, so no back-off is needed.
    further = replace(
        moved(incident, "backing_off"), failed_steps=incident.failed_steps + 1, next_ms=0
    )
    return put(state, further), (said,) if state.live else ()


def _settle(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    """Check whether a migration overloaded its target; if so, schedule its reversal."""
    order = incident.order
    if order is None or order.target is None:
        return put(state, moved(incident, "mended")), ()
    worse = worsened(
        state.loads.get(order.cell),
        target=order.target,
        limits=policy.limits,
        since_ms=incident.called_ms,
    )
    if worse is None and now_ms <= order.deadline_ms + _SETTLE_MS:
        return state, ()
    if not worse:
        # The target is not known to be overloaded: no reason to move a healthy VM.
        return put(state, moved(incident, "mended")), ()
    next_ms = max(order.deadline_ms, incident.called_ms + policy.limits.backoff_ms(1))
    undoing = replace(moved(incident, "backing_off"), undoing=True, next_ms=next_ms)
    values = {"target": order.target}
    return put(state, undoing), (report(undoing, "decision", "undoing", page=True, values=values),)


def _decide(
    state: PlannerState,
    incident: Incident,
    policy: Policy,
    now_ms: int,
    other_incidents: OtherIncidents,
) -> Stepped:
    """Take the next step, or inhibit it and report the reason once."""
    alert, step = incident.alert, step_of(incident, policy)
    firing = alert is not None and alert.state == "firing"
    if incident.undoing:
        around = _around(state, incident, now_ms, other_incidents)
        return _ordered(state, incident, propose_undo(incident, around, policy))
    if alert is None or not firing:
        return state, ()
    if step is None and incident.failed_steps > 0:
        return put(state, moved(incident, "exhausted")), ()
    if step is not None and step.action == "notify" and answers(step, alert):
        said = report(
            incident,
            "decision",
            "notify",
            page=alert.severity != "info",
            values={"why": alert.sentence},
        )
        further = replace(incident, failed_steps=incident.failed_steps + 1, held_by="")
        state, more = _decide(put(state, further), further, policy, now_ms, other_incidents)
        return state, (said, *more)
    if step is not None and step.action == "quarantine" and answers(step, alert):
        return quarantined(state, incident, policy, now_ms, SENTENCES["ladder_ends"])
    proposal = propose(incident, _around(state, incident, now_ms, other_incidents), policy)
    if proposal.rule == "vm_day":
        count = policy.limits.vm_per_24h
        return quarantined(
            state, incident, policy, now_ms, SENTENCES["crash_loop"].format(count=count)
        )
    return _ordered(state, incident, proposal)


def _around(
    state: PlannerState, incident: Incident, now_ms: int, other_incidents: OtherIncidents
) -> OrderContext:
    pending = tuple(Logged(order, -1, now_ms, admitted=True) for order in other_incidents.pending)
    alert = incident.alert
    vm = alert.subject if alert else ""
    recovery = state.recoveries.get(vm)
    return OrderContext(
        site=state.site,
        planner=state.name,
        earlier=(*state.history, *pending),
        controls=state.controls,
        loads=state.loads,
        now_ms=now_ms,
        group_sick=_group_sick(alert, other_incidents),
        recovery_s=recovery.longest_s if recovery else 0.0,
    )


def _group_sick(alert: Alert | None, other_incidents: OtherIncidents) -> int:
    """Return how many other members of the VM's group have an alert that fires."""
    if alert is None or alert.group is None:
        return 0
    return len(other_incidents.firing.get((alert.tenant, alert.group), set()) - {alert.subject})


def _ordered(state: PlannerState, incident: Incident, proposal: Proposal) -> Stepped:
    if proposal.order is None:
        if proposal.rule == incident.held_by:
            return state, ()
        said = report(incident, "refusal", "held", values={"why": proposal.sentence})
        held = replace(incident, held_by=proposal.rule)
        return put(state, held), (replace(said, rule=proposal.rule),) if proposal.rule else ()
    order = proposal.order
    ordering = replace(moved(incident, "ordering"), order=order, called_ms=0, failing=False)
    said = report(ordering, "decision", "order", values={"why": proposal.sentence})
    return put(state, ordering), (AppendOrder(order), said)


def quarantined(
    state: PlannerState, incident: Incident, policy: Policy, now_ms: int, why: str
) -> Stepped:
    """Quarantine a VM until a person ends the quarantine; in mode `observe` only report it.

    `why` is the reason, a sentence without its full stop. Return the next state and the
    instructions.
    """
    alert = incident.alert
    if alert is None:
        return state, ()
    ended = moved(incident, "quarantined")
    mode = effective_mode(
        policy, state.controls, tenant=alert.tenant, action="reset", now_ms=now_ms
    )
    if mode == "observe":
        said = report(ended, "decision", "not_quarantined", values={"why": f"{why}."})
        return put(state, ended), (said,)
    command = Control(
        kind="quarantine",
        scope="vm",
        subject=alert.subject,
        active=True,
        by=QUARANTINER,
        reason=why,
        time_ms=now_ms,
    )
    said = report(ended, "control", "quarantined", page=True, values={"why": f"{why}."})
    return with_control(put(state, ended), command), (AppendControl(command), said)

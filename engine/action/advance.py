"""Transitions caused by time alone: deadlines, back-offs, storms, and the next rung."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from engine.action.actions import DISRUPTIVE
from engine.action.catalogue import Policy
from engine.action.events import AppendControl, AppendOrder, Instruction, WriteJournal
from engine.action.incident import Incident, moved
from engine.action.ordering import Proposal, Surroundings, answers, propose, propose_undo, rung_of
from engine.action.present_rules import effective_mode
from engine.action.question import DAY_MS, MARK_GRACE_MS, Logged
from engine.action.state import SENTENCES, PlannerState, Stepped, put, told, with_control
from engine.action.storm import Place, storm_pause
from engine.action.target import worsened
from engine.wire.alert import Alert
from engine.wire.control import Control
from engine.wire.order import Order

# The longest delay between the append and the reading of a record that was in time.
_GRACE_MS: Final = 5_000
# How long after a move's deadline the planner waits for a minute of its target's load.
_SETTLE_MS: Final = 300_000
# How many inhibited incidents are checked again each second. Inhibitions last minutes, and a change
# to the incident itself is handled immediately; to check a thousand a second took a sixth of a
# core.
HELD_ASKED: Final = 100
# Incidents that ended a day ago are dropped once a minute: to scan ten thousand each second costs
# as much as all other work.
_SWEEP_MS: Final = 60_000

QUARANTINER: Final = "planner"


def every_incident(state: PlannerState, policy: Policy, now_ms: int) -> Stepped:
    """Advance all incidents to `now_ms`: storms first, since they inhibit other orders."""
    if not state.live:
        return state, ()
    state, said = storms(state, now_ms)
    done: list[Instruction] = list(said)
    if abs(now_ms - state.swept_ms) >= _SWEEP_MS:
        known = state.incidents
        kept = {key: one for key, one in known.items() if one.last_ms >= now_ms - DAY_MS}
        state = replace(state, incidents=kept if len(kept) < len(known) else known, swept_ms=now_ms)
    state, asked = _asked(state)
    others = others_of(state.incidents)
    for incident in asked:
        try:
            state, more = advance(state, incident, policy, now_ms, others)
        except Exception as error:  # noqa: BLE001 - one incident must not stop all others
            state, more = _given_up(state, incident, error)
            others = others_of(state.incidents)
        done.extend(more)
        # A step changes only its own incident; to count all others again each time takes quadratic
        # time.
        others = _with_step(others, state.incidents.get(incident.id))
    return state, tuple(done)


def _with_step(others: "Others", incident: Incident | None) -> "Others":
    """Return the summary of all incidents after one of them was advanced."""
    if incident is None:
        return others
    before = [order for order in others.pending if order.incident != incident.id]
    is_pending = incident.phase == "ordering" and incident.order is not None
    pending = (*before, incident.order) if is_pending and incident.order else tuple(before)
    return others if pending == others.pending else replace(others, pending=pending)


def _given_up(state: PlannerState, incident: Incident, error: Exception) -> Stepped:
    """Drop an incident that raised an error; its earlier orders still count."""
    kept = {key: one for key, one in state.incidents.items() if key != incident.id}
    why = f"{type(error).__name__}: {error}"
    said = told(incident, "outcome", "given_up", page=True, values={"why": why})
    return replace(state, incidents=kept), (said,)


def _asked(state: PlannerState) -> tuple[PlannerState, list[Incident]]:
    """Return the incidents to advance now: all others, and the next part of the inhibited ones."""
    held = [incident for incident in state.incidents.values() if incident.held_by]
    rest = [incident for incident in state.incidents.values() if not incident.held_by]
    if len(held) <= HELD_ASKED:
        return state, rest + held
    first = state.turn % len(held)
    share = (held[first:] + held[:first])[:HELD_ASKED]
    return replace(state, turn=first + HELD_ASKED), rest + share


def storms(state: PlannerState, now_ms: int, places: Iterable[Place] | None = None) -> Stepped:
    """Pause every place whose VMs are in trouble together; None checks all places."""
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
class Others:
    """The summary of all incidents, for the next order of one.

    Attributes
    ----------
    pending
        Orders that were appended but not read back yet: they count as spent.
    firing
        The VMs whose alerts fire, as UUID texts by tenant and group.
    """

    pending: tuple[Order, ...]
    firing: Mapping[tuple[str | None, str | None], AbstractSet[str]]


def others_of(incidents: Mapping[str, Incident], *, of: Alert | None = None) -> Others:
    """Return the summary of these incidents; with `of`, only the VMs of that alert's group."""
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
    return Others(tuple(pending), firing)


def advance(
    state: PlannerState, incident: Incident, policy: Policy, now_ms: int, others: Others
) -> Stepped:
    """Advance one incident to `now_ms`: deadlines, back-offs, and the next step."""
    order = incident.order
    if not state.live:
        return state, ()
    match incident.phase:
        case "watching":
            return _decide(state, incident, policy, now_ms, others)
        case "backing_off" if now_ms >= incident.next_ms:
            return _decide(state, incident, policy, now_ms, others)
        case "ordering" if order is not None and now_ms > order.expires_ms + _GRACE_MS:
            # The order never reached the log, so its step number was not used.
            before = next((e.order for e in reversed(state.history) if _is_of(e, incident)), None)
            again = moved(incident, "backing_off" if incident.undoing else "watching")
            return put(state, replace(again, order=before)), ()
        case "ordered" if order is not None and now_ms > _unmarked_ms(order):
            if order.action not in DISRUPTIVE:
                return evidence_saved(state, incident, saved=False, why=SENTENCES["no_mark"])
            if order.dry_run:
                ended = moved(incident, "rehearsed")
                return put(state, ended), (told(ended, "outcome", "not_rehearsed"),)
            return _lost(state, incident, SENTENCES["no_mark"])
        case "verifying" if order is not None and now_ms > order.deadline_ms + _GRACE_MS:
            if not incident.failing:
                return _lost(state, incident, SENTENCES["no_verdict"])
            return _failed(state, incident, policy, now_ms)
        case "settling":
            return _settle(state, incident, policy, now_ms)
        case _:
            return state, ()


def _unmarked_ms(order: Order) -> int:
    """Return when the last valid mark must have been read: see `admit.closed`."""
    return order.deadline_ms + MARK_GRACE_MS + _GRACE_MS


def _is_of(entry: Logged, incident: Incident) -> bool:
    return entry.order.incident == incident.id


def _lost(state: PlannerState, incident: Incident, why: str) -> Stepped:
    ended = moved(incident, "unknown")
    said = told(ended, "outcome", "unknown", page=True, values={"why": why})
    return put(state, ended), (said,)


def _failed(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    order = incident.order
    failed = replace(incident, rung=incident.rung + 1, failing=False)
    following = rung_of(failed, policy)
    if following is None:
        ended = moved(failed, "exhausted")
        return put(state, ended), (told(ended, "outcome", "exhausted", page=True),)
    next_ms = now_ms
    if following.action in DISRUPTIVE:
        tried = sum(_is_of(e, incident) and e.order.action in DISRUPTIVE for e in state.history)
        next_ms = max(
            order.deadline_ms if order else now_ms,
            incident.called_ms + policy.limits.backoff_ms(max(1, tried)),
        )
    waiting = replace(moved(failed, "backing_off"), next_ms=next_ms)
    wait_s = max(0, next_ms - now_ms) / 1000
    said = told(waiting, "outcome", "failed", values={"wait_s": wait_s})
    return put(state, waiting), (said,)


def evidence_saved(state: PlannerState, incident: Incident, *, saved: bool, why: str) -> Stepped:
    """Continue an incident after the agent reported the result of saving evidence."""
    said = told(incident, "outcome", "evidence" if saved else "no_evidence", values={"why": why})
    # Saving evidence changed nothing, so no back-off is needed.
    further = replace(moved(incident, "backing_off"), rung=incident.rung + 1, next_ms=0)
    return put(state, further), (said,) if state.live else ()


def _settle(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    """Check whether a migration overloaded its target, and revert the migration if so."""
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
    return put(state, undoing), (told(undoing, "decision", "undoing", page=True, values=values),)


def _decide(
    state: PlannerState, incident: Incident, policy: Policy, now_ms: int, others: Others
) -> Stepped:
    """Take the next rung, or inhibit it and report the reason once."""
    alert, rung = incident.alert, rung_of(incident, policy)
    firing = alert is not None and alert.state == "firing"
    if incident.undoing:
        around = _around(state, incident, now_ms, others)
        return _ordered(state, incident, propose_undo(incident, around, policy))
    if alert is None or not firing:
        return state, ()
    if rung is None and incident.rung > 0:
        return put(state, moved(incident, "exhausted")), ()
    if rung is not None and rung.action == "notify" and answers(rung, alert):
        said = told(
            incident,
            "decision",
            "notify",
            page=alert.severity != "info",
            values={"why": alert.sentence},
        )
        further = replace(incident, rung=incident.rung + 1, held_by="")
        state, more = _decide(put(state, further), further, policy, now_ms, others)
        return state, (said, *more)
    if rung is not None and rung.action == "quarantine" and answers(rung, alert):
        return quarantined(state, incident, policy, now_ms, SENTENCES["ladder_ends"])
    proposal = propose(incident, _around(state, incident, now_ms, others), policy)
    if proposal.rule == "vm_day":
        count = policy.limits.vm_per_24h
        return quarantined(
            state, incident, policy, now_ms, SENTENCES["crash_loop"].format(count=count)
        )
    return _ordered(state, incident, proposal)


def _around(state: PlannerState, incident: Incident, now_ms: int, others: Others) -> Surroundings:
    pending = tuple(Logged(order, -1, now_ms, admitted=True) for order in others.pending)
    alert = incident.alert
    vm = alert.subject if alert else ""
    recovery = state.recoveries.get(vm)
    return Surroundings(
        site=state.site,
        planner=state.name,
        earlier=(*state.history, *pending),
        controls=state.controls,
        loads=state.loads,
        now_ms=now_ms,
        group_sick=_group_sick(alert, others),
        recovery_s=recovery.longest_s if recovery else 0.0,
    )


def _group_sick(alert: Alert | None, others: Others) -> int:
    """Return how many other members of the VM's group have an alert that fires."""
    if alert is None or alert.group is None:
        return 0
    return len(others.firing.get((alert.tenant, alert.group), set()) - {alert.subject})


def _ordered(state: PlannerState, incident: Incident, proposal: Proposal) -> Stepped:
    if proposal.order is None:
        if proposal.rule == incident.held_by:
            return state, ()
        said = told(incident, "refusal", "held", values={"why": proposal.sentence})
        held = replace(incident, held_by=proposal.rule)
        return put(state, held), (replace(said, rule=proposal.rule),) if proposal.rule else ()
    order = proposal.order
    ordering = replace(moved(incident, "ordering"), order=order, called_ms=0, failing=False)
    said = told(ordering, "decision", "order", values={"why": proposal.sentence})
    return put(state, ordering), (AppendOrder(order), said)


def quarantined(
    state: PlannerState, incident: Incident, policy: Policy, now_ms: int, why: str
) -> Stepped:
    """Quarantine a VM until a person ends it; in mode `observe` only report it."""
    alert = incident.alert
    if alert is None:
        return state, ()
    ended = moved(incident, "quarantined")
    mode = effective_mode(
        policy, state.controls, tenant=alert.tenant, action="reset", now_ms=now_ms
    )
    if mode == "observe":
        said = told(ended, "decision", "not_quarantined", values={"why": f"{why}."})
        return put(state, ended), (said,)
    word = Control(
        kind="quarantine",
        scope="vm",
        subject=alert.subject,
        active=True,
        by=QUARANTINER,
        reason=why,
        time_ms=now_ms,
    )
    said = told(ended, "control", "quarantined", page=True, values={"why": f"{why}."})
    return with_control(put(state, ended), word), (AppendControl(word), said)

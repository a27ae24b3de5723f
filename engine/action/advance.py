"""What time alone brings: deadlines, back-offs, storms, and the next rung of a ladder."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

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
from engine.wire.order import DISRUPTIVE, Order

# How late a record may be read that was in time when it was written.
_GRACE_MS: Final = 5_000
# After a move's deadline so long is waited for a minute that tells of its target.
_SETTLE_MS: Final = 300_000
# So many incidents that a rule holds back are asked again each second. What holds them lasts
# minutes and their own news comes at once; a thousand a second took a sixth of a core.
HELD_ASKED: Final = 100
# What ended a day ago is dropped once a minute: to look at ten thousand each second costs as much
# as all else.
_SWEEP_MS: Final = 60_000

QUARANTINER: Final = "planner"


def every_incident(state: PlannerState, policy: Policy, now_ms: int) -> Stepped:
    """Let time pass for all: storms first, since they stop what incidents may ask for."""
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
        # Each step changes its own incident alone: to count all of them again takes the square.
        others = _with_step(others, state.incidents.get(incident.id))
    return state, tuple(done)


def _with_step(others: "Others", incident: Incident | None) -> "Others":
    """Return what all incidents say after one of them was brought further."""
    if incident is None:
        return others
    before = [order for order in others.pending if order.incident != incident.id]
    is_pending = incident.phase == "ordering" and incident.order is not None
    pending = (*before, incident.order) if is_pending and incident.order else tuple(before)
    return others if pending == others.pending else replace(others, pending=pending)


def _given_up(state: PlannerState, incident: Incident, error: Exception) -> Stepped:
    """Drop an incident that no step can be found for; what was done for it stays counted."""
    kept = {key: one for key, one in state.incidents.items() if key != incident.id}
    why = f"{type(error).__name__}: {error}"
    said = told(incident, "outcome", "given_up", page=True, values={"why": why})
    return replace(state, incidents=kept), (said,)


def _asked(state: PlannerState) -> tuple[PlannerState, list[Incident]]:
    """Return the incidents that time may bring further now: of those held back a share, in turn."""
    held = [incident for incident in state.incidents.values() if incident.held_by]
    rest = [incident for incident in state.incidents.values() if not incident.held_by]
    if len(held) <= HELD_ASKED:
        return state, rest + held
    first = state.turn % len(held)
    share = (held[first:] + held[:first])[:HELD_ASKED]
    return replace(state, turn=first + HELD_ASKED), rest + share


def storms(state: PlannerState, now_ms: int, places: Iterable[Place] | None = None) -> Stepped:
    """Pause every place whose VMs are in trouble together; None looks at all of them."""
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
    """What all incidents together say about the next order of one.

    Attributes
    ----------
    pending
        Orders that were handed to the log and are not read back yet: they are spent all the same.
    firing
        The VMs whose alerts fire, as UUID texts by tenant and group.
    """

    pending: tuple[Order, ...]
    firing: Mapping[tuple[str | None, str | None], AbstractSet[str]]


def others_of(incidents: Mapping[str, Incident], *, of: Alert | None = None) -> Others:
    """Return what these incidents say about each one of them, or about the group of `of` alone."""
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
    """Do what time alone brings one incident: deadlines, back-offs, and the next step."""
    order = incident.order
    if not state.live:
        return state, ()
    match incident.phase:
        case "watching":
            return _decide(state, incident, policy, now_ms, others)
        case "backing_off" if now_ms >= incident.next_ms:
            return _decide(state, incident, policy, now_ms, others)
        case "ordering" if order is not None and now_ms > order.expires_ms + _GRACE_MS:
            # It never reached the log, so its number was not used.
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
    """Return when the last mark that counts must have been read: `admit.closed`."""
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
    """Go on after an agent told what became of the saving of evidence."""
    said = told(incident, "outcome", "evidence" if saved else "no_evidence", values={"why": why})
    # It changed nothing, so nothing need be waited for.
    further = replace(moved(incident, "backing_off"), rung=incident.rung + 1, next_ms=0)
    return put(state, further), (said,) if state.live else ()


def _settle(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    """See whether a migration's target suffers from it, and take the migration back if so."""
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
        # Nobody said that it suffers: no reason to move a VM that is well.
        return put(state, moved(incident, "mended")), ()
    next_ms = max(order.deadline_ms, incident.called_ms + policy.limits.backoff_ms(1))
    undoing = replace(moved(incident, "backing_off"), undoing=True, next_ms=next_ms)
    values = {"target": order.target}
    return put(state, undoing), (told(undoing, "decision", "undoing", page=True, values=values),)


def _decide(
    state: PlannerState, incident: Incident, policy: Policy, now_ms: int, others: Others
) -> Stepped:
    """Take the next rung, or hold it back and say why once."""
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
    """Close a VM to machines until a person opens it; where it is only observed, say so."""
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

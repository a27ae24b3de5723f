"""The planner: alerts and the orders' log in, orders and words for people out.

A pure state machine. It is level-triggered: whatever it holds follows from the orders of
the last day, the control records and the alerts since the first of those orders, so a
restart reads these again and goes on. It keeps no ledger; the log is the lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from engine.action.admit import DAY_MS, History, Logged, closed, logged
from engine.action.catalogue import NOUNS, VERDICT_WINDOW_MS, Policy
from engine.action.events import (
    AlertSeen,
    AppendControl,
    AppendOrder,
    CaughtUp,
    ClosedSeen,
    ControlSeen,
    Instruction,
    LoadSeen,
    OrderSeen,
    PlannerEvent,
    Tick,
    WriteJournal,
)
from engine.action.incident import ENDED, BrokenInvariant, Incident, moved
from engine.action.ordering import FITTING, Surroundings, propose
from engine.action.storm import Trouble, storm_pause, troubled
from engine.action.target import CellLoad
from engine.wire.alert import Alert
from engine.wire.control import Control
from engine.wire.journal import EntryKind
from engine.wire.order import Closed, Order

# How late a record may be read that was in time when it was written.
_GRACE_MS: Final = 5_000

SENTENCES: Final = {
    "order": "Ordered: {why}",
    "held": "{vm} is not touched: {why}",
    "called": "The {action} of {vm} was carried out; the engine's word is awaited.",
    "rehearsed": "The rehearsal of the {action} of {vm} passed every guard; nothing was done.",
    "not_rehearsed": "The rehearsal of the {action} of {vm} was not finished by any agent.",
    "refused": "The agent refused the {action} of {vm}: {why} A person must look.",
    "unknown": "What the {action} did to {vm} is unknown: {why} No machine acts on this incident"
    " again; a person must look.",
    "not_attempted": "The {action} of {vm} was not attempted: {why} It may be ordered again later.",
    "verified": "{vm} is well again after the {action}: {why}",
    "briefly_stable": "{vm} is well again after the {action}, but was watched {stable_s:.0f} s of"
    " {wanted_s} s only: {why}",
    "resolved": "{vm} is well again by itself: {why}",
    "failed": "The {action} did not help {vm}; the next step may follow in {wait_s:.0f} s.",
    "exhausted": "No step of the catalogue helped {vm}. A person must look.",
    "storm": "{why}: no actions there until a person clears it or 30 min of calm.",
    "no_mark": "no agent told the end before the deadline.",
    "no_verdict": "the engine said nothing about it before the deadline.",
}


@dataclass(frozen=True, slots=True)
class PlannerState:
    """Everything a planner knows. `name` and `site` are its own."""

    name: str
    site: str
    live: bool = False
    history: History = ()
    incidents: Mapping[str, Incident] = field(default_factory=dict)
    controls: Mapping[bytes, Control] = field(default_factory=dict)
    loads: Mapping[str, CellLoad] = field(default_factory=dict)
    trouble: Mapping[str, Trouble] = field(default_factory=dict)


Stepped = tuple[PlannerState, tuple[Instruction, ...]]


def step(state: PlannerState, event: PlannerEvent, policy: Policy) -> Stepped:
    """Return the next state and what is to be done, in order.

    Raises
    ------
    BrokenInvariant
        The result must not be; the planner stops and reads the log anew.
    """
    match event:
        case AlertSeen(alert, now_ms):
            state, done = _alert_seen(state, alert, policy, now_ms)
        case OrderSeen(order, offset, time_ms):
            state, done = _order_seen(state, order, policy, offset=offset, time_ms=time_ms), ()
        case ClosedSeen(mark):
            state, done = _closed_seen(state, mark, policy)
        case ControlSeen(control):
            state, done = replace(state, controls=_with(state.controls, control)), ()
        case LoadSeen(cell, load):
            state, done = replace(state, loads={**state.loads, cell: load}), ()
        case CaughtUp(now_ms):
            state, done = _every_incident(replace(state, live=True), policy, now_ms)
        case Tick(now_ms):
            state, done = _every_incident(state, policy, now_ms)
        case _:
            assert_never(event)
    check(state)
    return state, done


def check(state: PlannerState) -> None:
    """Raise `BrokenInvariant` if the state is one that must not be."""
    keys = [(entry.order.incident, entry.order.step) for entry in state.history if entry.admitted]
    if len(keys) != len(set(keys)):
        raise BrokenInvariant("two orders for one incident step were both admitted")
    for incident in state.incidents.values():
        if incident.phase in ("ordering", "ordered", "verifying") and incident.order is None:
            raise BrokenInvariant(f"incident {incident.id} is {incident.phase} without an order")
        if incident.phase == "ordering" and not state.live:
            raise BrokenInvariant("an order was given before the log was read to its end")


def _with(controls: Mapping[bytes, Control], control: Control) -> dict[bytes, Control]:
    return {**controls, control.key(): control}


def _put(state: PlannerState, incident: Incident) -> PlannerState:
    return replace(state, incidents={**state.incidents, incident.id: incident})


def _told(
    incident: Incident,
    kind: EntryKind,
    rule: str,
    *,
    page: bool = False,
    values: Mapping[str, object] | None = None,
) -> WriteJournal:
    """Return the journal entry for `rule`, its sentence filled from the incident."""
    order, alert = incident.order, incident.alert
    known = {
        "vm": order.vm if order else alert.subject if alert else "the VM",
        "action": NOUNS.get(order.action, order.action) if order else "no action",
        "kind": alert.kind if alert else "the fault",
    }
    return WriteJournal(
        kind=kind,
        rule=rule,
        sentence=SENTENCES[rule].format(**known, **(values or {})),
        incident=incident.id,
        step=order.step if order else None,
        vm=known["vm"] if order or alert else None,
        cell=order.cell if order else alert.cell if alert else None,
        page=page,
    )


def _alert_seen(state: PlannerState, alert: Alert, policy: Policy, now_ms: int) -> Stepped:
    trouble = troubled(state.trouble.get(alert.cell), alert)
    state = replace(state, trouble={**state.trouble, alert.cell: trouble})
    if alert.scope != "vm":
        return state, ()
    incident = state.incidents.get(alert.id)
    if incident is None:
        if alert.state != "firing" or alert.suggested_action not in FITTING:
            return state, ()
        incident = Incident(alert.id)
    elif incident.alert is not None and (alert.transition, alert.decided_ms) < (
        incident.alert.transition,
        incident.alert.decided_ms,
    ):
        return state, ()
    incident = _with_word(incident, alert)
    if alert.state == "resolved" and incident.phase not in ENDED:
        return _resolved(state, incident, policy)
    state = _put(state, incident)
    storm_state, paused = _storms(state, now_ms) if state.live else (state, ())
    decided_state, decided = _advance(storm_state, incident, policy, now_ms)
    return decided_state, (*paused, *decided)


def _with_word(incident: Incident, alert: Alert) -> Incident:
    """Return the incident with its newest alert, and whether it speaks of a failed step."""
    order = incident.order
    failing = incident.failing
    if order is not None and alert.state == "firing":
        since_ms = max(order.deadline_ms - VERDICT_WINDOW_MS, incident.called_ms)
        failing = failing or since_ms < alert.decided_ms <= order.deadline_ms
    return replace(incident, alert=alert, failing=failing)


def _resolved(state: PlannerState, incident: Incident, policy: Policy) -> Stepped:
    alert, order = incident.alert, incident.order
    ended = moved(incident, "mended")
    resolution = alert.resolution if alert else None
    why = {"why": resolution.reason if resolution else "the engine resolved the alert."}
    if order is None or resolution is None or not resolution.verified:
        said = _told(ended, "effect", "resolved", values=why)
    else:
        ladder = policy.ladders.get(order.kind, ())
        wanted_s = ladder[incident.rung].stable_s if incident.rung < len(ladder) else 0
        stable_s = resolution.stable_s or 0.0
        rule = "verified" if stable_s >= wanted_s else "briefly_stable"
        values: dict[str, object] = {**why, "stable_s": stable_s, "wanted_s": wanted_s}
        said = _told(ended, "effect", rule, values=values)
    # Before the log is read to its end this was told by whoever planned then.
    return _put(state, ended), (said,) if state.live else ()


def _order_seen(
    state: PlannerState, order: Order, policy: Policy, *, offset: int, time_ms: int
) -> PlannerState:
    known = any((e.order.incident, e.order.step) == _key(order) for e in state.history)
    history = logged(state.history, order, policy, offset=offset, time_ms=time_ms)
    state = replace(state, history=history)
    incident = state.incidents.get(order.incident, Incident(order.incident))
    # A repeated key changes nothing: the first order for a step wins.
    if known or incident.phase in ENDED or incident.phase == "ordered":
        return state
    tried = incident.phase == "verifying"
    incident = replace(
        moved(incident, "ordered"),
        order=order,
        rung=incident.rung + tried,
        called_ms=0,
        failing=False,
    )
    return _put(state, incident)


def _key(order: Order) -> tuple[str, int]:
    return order.incident, order.step


def _closed_seen(state: PlannerState, mark: Closed, policy: Policy) -> Stepped:
    history = closed(state.history, mark)
    changed = history is not state.history
    state = replace(state, history=history)
    incident = state.incidents.get(mark.incident)
    if not changed or incident is None or incident.phase != "ordered":
        return state, ()
    order = incident.order
    if order is None or order.step != mark.step:
        return state, ()
    why: dict[str, object] = {"why": mark.sentence}
    match mark.outcome:
        case "returned" if mark.dry_run or order.dry_run:
            incident = moved(incident, "rehearsed")
            said = _told(incident, "outcome", "rehearsed")
        case "returned":
            incident = replace(moved(incident, "verifying"), called_ms=mark.time_ms)
            said = _told(incident, "outcome", "called")
        case "refused":
            incident = moved(incident, "refused")
            said = _told(incident, "outcome", "refused", page=not order.dry_run, values=why)
        case "unknown":
            incident = moved(incident, "unknown")
            said = _told(incident, "outcome", "unknown", page=True, values=why)
        case "expired" | "not_attempted":
            wait_ms = policy.limits.backoff_ms(mark.step + 1)
            next_ms = max(order.deadline_ms, mark.time_ms + wait_ms)
            incident = replace(moved(incident, "backing_off"), next_ms=next_ms)
            said = _told(incident, "outcome", "not_attempted", values=why)
        case _:
            assert_never(mark.outcome)
    return _put(state, incident), (said,) if state.live else ()


def _every_incident(state: PlannerState, policy: Policy, now_ms: int) -> Stepped:
    """Let time pass: storms first, since they stop what the incidents may ask for."""
    if not state.live:
        return state, ()
    state, said = _storms(state, now_ms)
    done: list[Instruction] = list(said)
    for incident in tuple(state.incidents.values()):
        if incident.last_ms < now_ms - DAY_MS:
            kept = {key: kept for key, kept in state.incidents.items() if key != incident.id}
            state = replace(state, incidents=kept)
            continue
        state, more = _advance(state, incident, policy, now_ms)
        done.extend(more)
    return state, tuple(done)


def _storms(state: PlannerState, now_ms: int) -> Stepped:
    done: list[Instruction] = []
    for cell, trouble in state.trouble.items():
        load = state.loads.get(cell)
        pause = storm_pause(
            trouble,
            site=state.site,
            cell=cell,
            vm_count=load.vm_count if load else 0,
            controls=state.controls,
            now_ms=now_ms,
        )
        if pause is not None:
            state = replace(state, controls=_with(state.controls, pause))
            sentence = SENTENCES["storm"].format(why=pause.reason)
            done += [
                AppendControl(pause),
                WriteJournal("control", "storm", sentence, cell=cell, page=True),
            ]
    return state, tuple(done)


def _advance(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    """Do what time alone brings: deadlines, back-offs, and the next order."""
    order = incident.order
    if not state.live:
        return state, ()
    match incident.phase:
        case "watching":
            return _decide(state, incident, policy, now_ms)
        case "backing_off" if now_ms >= incident.next_ms:
            return _decide(state, incident, policy, now_ms)
        case "ordering" if order is not None and now_ms > order.expires_ms + _GRACE_MS:
            # It never reached the log, so its number was not used.
            before = next((e.order for e in reversed(state.history) if _is_of(e, incident)), None)
            return _put(state, replace(moved(incident, "watching"), order=before)), ()
        case "ordered" if order is not None and now_ms > order.deadline_ms + _GRACE_MS:
            if order.dry_run:
                ended = moved(incident, "rehearsed")
                return _put(state, ended), (_told(ended, "outcome", "not_rehearsed"),)
            return _lost(state, incident, SENTENCES["no_mark"])
        case "verifying" if order is not None and now_ms > order.deadline_ms + _GRACE_MS:
            if not incident.failing:
                return _lost(state, incident, SENTENCES["no_verdict"])
            return _failed(state, incident, policy, now_ms)
        case _:
            return state, ()


def _is_of(entry: Logged, incident: Incident) -> bool:
    return entry.order.incident == incident.id


def _lost(state: PlannerState, incident: Incident, why: str) -> Stepped:
    ended = moved(incident, "unknown")
    said = _told(ended, "outcome", "unknown", page=True, values={"why": why})
    return _put(state, ended), (said,)


def _failed(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    order, rung = incident.order, incident.rung + 1
    kind = order.kind if order else ""
    if rung >= len(policy.ladders.get(kind, ())):
        ended = replace(moved(incident, "exhausted"), rung=rung)
        return _put(state, ended), (_told(ended, "outcome", "exhausted", page=True),)
    deadline_ms = order.deadline_ms if order else now_ms
    next_ms = max(deadline_ms, incident.called_ms + policy.limits.backoff_ms(incident.step))
    waiting = replace(moved(incident, "backing_off"), rung=rung, next_ms=next_ms, failing=False)
    wait_s = max(0, next_ms - now_ms) / 1000
    return _put(state, waiting), (_told(waiting, "outcome", "failed", values={"wait_s": wait_s}),)


def _decide(state: PlannerState, incident: Incident, policy: Policy, now_ms: int) -> Stepped:
    """Give the next order, or hold it back and say why once."""
    # What was handed to the log and is not read back yet is spent all the same.
    pending = tuple(
        Logged(other.order, -1, now_ms, admitted=True)
        for other in state.incidents.values()
        if other.phase == "ordering" and other.order is not None
    )
    proposal = propose(
        incident,
        Surroundings(
            site=state.site,
            planner=state.name,
            earlier=(*state.history, *pending),
            controls=state.controls,
            loads=state.loads,
            now_ms=now_ms,
        ),
        policy,
    )
    if proposal.rule == "exhausted":
        ended = moved(incident, "exhausted")
        return _put(state, ended), (_told(ended, "outcome", "exhausted", page=True),)
    if proposal.order is None:
        if proposal.rule == incident.held_by:
            return state, ()
        said = _told(incident, "refusal", "held", values={"why": proposal.sentence})
        held = replace(incident, held_by=proposal.rule)
        return _put(state, held), (replace(said, rule=proposal.rule),) if proposal.rule else ()
    order = proposal.order
    ordering = replace(moved(incident, "ordering"), order=order, called_ms=0, failing=False)
    said = _told(ordering, "decision", "order", values={"why": proposal.sentence})
    return _put(state, ordering), (AppendOrder(order), said)

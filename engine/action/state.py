"""The state of a planner, and the sentences of its journal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flatline.engine.action.actions import ACTIONS
from flatline.engine.action.admit import History
from flatline.engine.action.commands import with_command
from flatline.engine.action.events import Instruction, WriteJournal
from flatline.engine.action.incident import Incident
from flatline.engine.action.layered import layered
from flatline.engine.action.storm import Place, Trouble
from flatline.engine.action.target import CellLoad
from flatline.engine.wire.control import Control
from flatline.engine.wire.journal import EntryKind

SENTENCES: Final = {
    "order": "Ordered: {why}",
    "held": "No action on {vm}: {why}",
    "called": "The {action} of {vm} was carried out; the engine now verifies the effect.",
    "rehearsed": "The dry run of the {action} of {vm} passed all checks; no call was made.",
    "not_rehearsed": "No agent completed the dry run of the {action} of {vm}.",
    "refused": "The agent refused the {action} of {vm}: {why} A person must inspect the VM.",
    "unknown": "The result of the {action} of {vm} is unknown: {why} No more orders for this "
    "incident. A person must inspect the VM.",
    "not_attempted": "The {action} of {vm} was not attempted: {why} It may be ordered again later.",
    "verified": "{vm} recovered after the {action}: {why}",
    "briefly_stable": "{vm} recovered after the {action}, but was observed for only "
    "{stable_s:.0f} s of {wanted_s} s: {why}",
    "resolved": "{vm} recovered by itself: {why}",
    "failed": "The {action} did not help {vm}; the next step may follow in {wait_s:.0f} s.",
    "exhausted": "No step of the policy helped {vm}. A person must inspect the VM.",
    "again": "The fault of {vm} returned after its recovery. The {action} that was ordered before "
    "is not repeated. A person must inspect the VM.",
    "notify": "A person must inspect {vm}: {why}",
    "evidence": "Evidence of {vm} was saved: {why}",
    "no_evidence": "No evidence of {vm} was saved: {why}",
    "settling": "{vm} recovered after the {action}; its target {target} is observed.",
    "undoing": "The {action} of {vm} overloaded {target}; it is to be undone.",
    "undone": "The {action} of {vm} was undone.",
    "quarantined": "{vm} is in quarantine: {why}",
    "not_quarantined": "{vm} would be in quarantine, but the mode is observe: {why}",
    "crash_loop": "it failed again after {count} repairs within 24 h",
    "ladder_ends": "quarantine is the last step of the policy",
    "storm": "{why}: actions there are paused until a person ends the pause or no new fault "
    "occurs for 30 min.",
    "given_up": "The planner abandons the incident of {vm} after an error: {why}. A person must "
    "inspect the VM and report this error.",
    "no_mark": "no agent reported a result before the deadline.",
    "no_verdict": "the engine reported nothing about it before the deadline.",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """The longest time a VM took to recover by itself, and when a recovery was last seen."""

    longest_s: float
    seen_ms: int


@dataclass(frozen=True, slots=True)
class PlannerState:
    """The state of the planner `name` of `site`; `recoveries` are by the UUID text of a VM.

    `turn` is the position of the round-robin over inhibited incidents, and `swept_ms` is when
    incidents older than a day were last dropped.
    """

    name: str
    site: str
    live: bool = False
    history: History = ()
    incidents: Mapping[str, Incident] = field(default_factory=dict)
    controls: Mapping[bytes, Control] = field(default_factory=dict)
    loads: Mapping[str, CellLoad] = field(default_factory=dict)
    trouble: Mapping[Place, Trouble] = field(default_factory=dict)
    recoveries: Mapping[str, Recovery] = field(default_factory=dict)
    turn: int = 0
    swept_ms: int = 0


Stepped = tuple[PlannerState, tuple[Instruction, ...]]


def put(state: PlannerState, incident: Incident) -> PlannerState:
    """Return the state with one incident added or replaced."""
    return replace(state, incidents=layered(state.incidents).with_entry(incident.id, incident))


def with_control(
    state: PlannerState, control: Control, *, key: bytes | None = None, by_operator: bool = False
) -> PlannerState:
    """Return the state with one more control command; `key` is the record's key if it differs."""
    under = control.key() if key is None else key
    return replace(
        state, controls=with_command(state.controls, under, control, by_operator=by_operator)
    )


def report(
    incident: Incident,
    kind: EntryKind,
    rule: str,
    *,
    page: bool = False,
    values: Mapping[str, object] | None = None,
) -> WriteJournal:
    """Return the journal entry for `rule`, with its sentence filled in from the incident.

    Parameters
    ----------
    rule
        A key of `SENTENCES`.
    page
        Whether a person must be notified.
    values
        Values of the placeholders other than `vm`, `action` and `kind`; one that lacks a value
        raises `KeyError`.
    """
    order, alert = incident.order, incident.alert
    known = {
        "vm": order.vm if order else alert.subject if alert else "the VM",
        "action": ACTIONS[order.action].noun if order else "no action",
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

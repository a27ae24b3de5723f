"""The next order for an incident, or why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.action.admit import Logged, admit, effective_mode
from engine.action.catalogue import Policy, Step
from engine.action.incident import Incident
from engine.action.target import CellLoad, choose_target
from engine.wire.alert import Alert
from engine.wire.control import Control
from engine.wire.order import Order

# What the engine suggests, and the actions that answer it: the catalogue chooses among them.
FITTING: Final[Mapping[str, frozenset[str]]] = {
    "reboot": frozenset({"reset", "reboot"}),
    "migrate": frozenset({"migrate"}),
}

SENTENCES: Final = {
    "order": "{action} {vm} on {node}{target}, step {step}: {why}",
    "rehearse": "rehearse: {action} {vm} on {node}{target}, step {step}: {why}",
    "not_actionable": "it is not open to actions, its owner has not agreed.",
    "unplaced": "the alert does not say on which node and in which run it is.",
    "undated": "the alert does not say when the VM was last seen.",
    "no_ladder": "the catalogue has no step for {kind}.",
    "no_fit": "the catalogue answers {kind} with {action}, the engine suggests {suggestion}.",
    "exhausted": "every step of the catalogue was tried.",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else a planner knows when it decides: see `engine.action.planner.PlannerState`."""

    site: str
    planner: str
    earlier: Sequence[Logged]
    controls: Mapping[bytes, Control]
    loads: Mapping[str, CellLoad]
    now_ms: int


class Proposal(NamedTuple):
    """An order, or None with the rule that holds it back; an empty rule says nothing."""

    order: Order | None
    rule: str = ""
    sentence: str = ""


def propose(incident: Incident, around: Surroundings, policy: Policy) -> Proposal:
    """Return the order that may be given for `incident` now, or what holds it back."""
    alert = incident.alert
    if alert is None or alert.state != "firing" or alert.suggested_action not in FITTING:
        return Proposal(None)
    ladder = policy.ladders.get(alert.kind, ())
    if not alert.actionable:
        return _held("not_actionable")
    if not ladder:
        return _held("no_ladder", kind=alert.kind)
    if incident.rung >= len(ladder):
        return _held("exhausted")
    if alert.node is None or alert.instance is None:
        return _held("unplaced")
    if alert.data_ms is None:
        return _held("undated")
    rung = ladder[incident.rung]
    if rung.action not in FITTING[alert.suggested_action]:
        suggestion = alert.suggested_action
        return _held("no_fit", kind=alert.kind, action=rung.action, suggestion=suggestion)
    target = None
    if rung.action == "migrate":
        choice = choose_target(
            around.loads.get(alert.cell),
            cell=alert.cell,
            source=alert.node,
            limits=policy.limits,
            now_ms=around.now_ms,
            avoid=_closed_nodes(around),
        )
        if choice.target is None:
            return Proposal(None, choice.rule, choice.sentence)
        target = choice.target
    order = _order(incident, alert, rung, around, policy, target)
    admission = admit(
        order,
        around.earlier,
        policy,
        at_ms=around.now_ms,
        now_ms=around.now_ms,
        controls=around.controls,
    )
    if not admission.admitted:
        return Proposal(None, admission.rule, admission.sentence)
    return Proposal(order, "order", order.sentence)


def _held(rule: str, **values: object) -> Proposal:
    return Proposal(None, rule, SENTENCES[rule].format(**values))


def _closed_nodes(around: Surroundings) -> frozenset[str]:
    """Return the nodes that people have paused or are working on."""
    return frozenset(
        control.subject
        for control in around.controls.values()
        if control.kind in ("pause", "maintenance")
        and control.scope == "node"
        and control.holds(now_ms=around.now_ms)
    )


def _order(
    incident: Incident,
    alert: Alert,
    rung: Step,
    around: Surroundings,
    policy: Policy,
    target: str | None,
) -> Order:
    now_ms, node, instance = around.now_ms, alert.node, alert.instance
    data_ms = alert.data_ms
    if node is None or instance is None or data_ms is None:
        raise ValueError("an order needs the VM's node and run, and when it was last seen")
    mode = effective_mode(
        policy, around.controls, tenant=alert.tenant, action=rung.action, now_ms=now_ms
    )
    sentence = SENTENCES["order" if mode == "auto" else "rehearse"].format(
        action=rung.action,
        vm=alert.name or alert.subject,
        node=node,
        target=f" to {target}" if target else "",
        step=incident.step,
        why=alert.sentence,
    )
    return Order(
        incident=incident.id,
        step=incident.step,
        action=rung.action,
        vm=alert.subject,
        instance=instance,
        site=around.site,
        cell=alert.cell,
        node=node,
        kind=alert.kind,
        cpu_shape=alert.cpu_shape,
        issued_ms=now_ms,
        expires_ms=now_ms + 1000 * policy.limits.order_lifetime_s,
        deadline_ms=now_ms + 1000 * rung.deadline_s,
        data_ms=data_ms,
        dry_run=mode != "auto",
        planner=around.planner,
        policy=policy.hash,
        sentence=sentence,
        target=target,
        tenant=alert.tenant,
        group=alert.group,
        opened_ms=alert.opened_ms,
        history_s=alert.history_s,
        attested=_attested(alert),
    )


def _attested(alert: Alert) -> bool:
    """Return whether the VM said itself that it crashed: its panic device or its watchdog."""
    return any(item.signal == "told" for item in alert.evidence)

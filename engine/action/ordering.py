"""The next order for an incident, or the reason why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from flatline.engine.action.actions import ACTIONS, DESTRUCTIVE, DISRUPTIVE, LOUD
from flatline.engine.action.admit import admit
from flatline.engine.action.catalogue import Limits, Policy
from flatline.engine.action.incident import Incident
from flatline.engine.action.present_rules import effective_mode
from flatline.engine.action.request_context import DAY_MS, Logged
from flatline.engine.action.target import CellLoad, Choice, Mover, choose_target
from flatline.engine.faults import Step
from flatline.engine.wire.alert import Alert, may_be_reset
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Order

# Evidence signals that are direct reports of a crash, and the witness that each report yields.
_ATTESTING: Final[Mapping[str, str]] = {
    "told": "guest", "watchdog": "guest", "crashed": "hypervisor",
}  # fmt: skip
_MINUTE_MS: Final = 60_000
# A guest that recovered by itself once may need a little longer the next time.
_GRACE_FACTOR: Final = 1.25

SENTENCES: Final = {
    "order": "{action} {vm} on {node}{target}, step {step}: {why}",
    "rehearse": "dry run: {action} {vm} on {node}{target}, step {step}: {why}",
    "undo": "the load of {target} rose to {load:.0%} after the migration, so the VM moves back",
    "not_actionable": "the owner has not allowed actions on the VM.",
    "vetoed": "the engine forbids an action at present: {vetoes}.",
    "unplaced": "the alert does not name the node and run of the VM.",
    "undated": "the alert does not name the time of the last sample.",
    "no_ladder": "the policy has no step for {kind}.",
    "no_fit": "the policy answers {kind} with {action}, but the engine suggests {suggestion}.",
    "needs": "the {action} requires the witnesses {needs}; those present: {found}.",
    "unwitnessed": "only {found} indicates a death. A {action} requires activity and one more "
    "witness, or the hypervisor.",
    "grace": "the VM may recover by itself; the planner waits {wait_s:.0f} s more.",
    "no_disk": "the alert does not name the disk to move.",
    "no_pool": "the policy names no target pool for disks of {pools}.",
}


@dataclass(frozen=True, slots=True)
class OrderContext:
    """What the planner knows besides the incident; see `engine.action.state.PlannerState`.

    `group_sick` counts the other members of the VM's group that are in trouble; `recovery_s` is the
    longest time in which this VM recovered by itself, 0 for never.
    """

    site: str
    planner: str
    earlier: Sequence[Logged]
    controls: Mapping[bytes, Control]
    loads: Mapping[str, CellLoad]
    now_ms: int
    group_sick: int = 0
    recovery_s: float = 0.0


class Proposal(NamedTuple):
    """An order, or None with the rule that inhibits it; an empty rule is not reported."""

    order: Order | None
    rule: str = ""
    sentence: str = ""


def step_of(incident: Incident, policy: Policy) -> Step | None:
    """Return the current step of the incident's escalation policy, None past its end."""
    escalation = policy.ladders.get(incident.kind, ())
    return escalation[incident.failed_steps] if incident.failed_steps < len(escalation) else None


def answers(step: Step, alert: Alert) -> bool:
    """Return whether this step matches the engine's suggestion."""
    return alert.suggested_action in ACTIONS[step.action].signals


def propose(incident: Incident, around: OrderContext, policy: Policy) -> Proposal:
    """Return the order that may be given for `incident` now, or the rule that inhibits it."""
    alert, step = incident.alert, step_of(incident, policy)
    if alert is None or alert.state != "firing" or alert.suggested_action == "none":
        return Proposal(None)
    loud = alert.suggested_action in LOUD
    if step is None or step.action in ("notify", "quarantine"):
        return _held("no_ladder", kind=alert.kind) if loud else Proposal(None)
    if not loud and not answers(step, alert):
        return Proposal(None) if alert.suggested_action != "inspect" else _unwitnessed(alert, step)
    held = _precondition(alert, step, around, policy.limits)
    if held is not None:
        return held
    choice = _destination(alert, step, around, policy)
    if choice.rule:
        return Proposal(None, choice.rule, choice.sentence)
    order = _order(incident, alert, step, around, policy, choice)
    return _admitted(order, around, policy)


def propose_undo(incident: Incident, around: OrderContext, policy: Policy) -> Proposal:
    """Return the order that reverts a migration which overloaded its target.

    The order contains the newest load of both nodes, and the node and run in which the engine saw
    the VM after the migration. Without any of these the proposal has no order and an empty rule.
    """
    done, alert = incident.order, incident.alert
    found = alert.resolution if alert else None
    load = around.loads.get(done.cell) if done else None
    if done is None or done.target is None or alert is None or found is None or load is None:
        return Proposal(None)
    if found.node != done.target or found.instance is None:
        return Proposal(None)
    here = msgspec.structs.replace(
        alert,
        node=found.node,
        instance=found.instance,
        data_ms=min(around.now_ms, load.minute_ms + _MINUTE_MS),
    )
    there = load.nodes.get(done.target)
    back = Choice(done.node, source_load=there, target_load=load.nodes.get(done.node))
    why = SENTENCES["undo"].format(target=done.target, load=there or 0.0)
    order = _order(incident, here, _UNDO, around, policy, back, why=why)
    return _admitted(order, around, policy)


def _admitted(order: Order, around: OrderContext, policy: Policy) -> Proposal:
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


def _precondition(
    alert: Alert, step: Step, around: OrderContext, limits: Limits
) -> Proposal | None:
    """Return the first reason against a step, apart from its admission; None if there is none."""
    if not alert.actionable:
        return _held("not_actionable")
    if not answers(step, alert):
        suggestion = alert.suggested_action
        return _held("no_fit", kind=alert.kind, action=step.action, suggestion=suggestion)
    if alert.vetoes and step.action in DISRUPTIVE:
        return _held("vetoed", vetoes=", ".join(alert.vetoes))
    if alert.node is None or alert.instance is None:
        return _held("unplaced")
    if alert.data_ms is None:
        return _held("undated")
    if step.action in DESTRUCTIVE and not may_be_reset(alert.witnesses):
        return _unwitnessed(alert, step)
    if not set(step.needs) <= set(alert.witnesses):
        needs, known = ", ".join(step.needs), ", ".join(alert.witnesses) or "none"
        return _held("needs", action=step.action, needs=needs, found=known)
    grace_s = float(step.grace_s)
    if step.action in DESTRUCTIVE and not _attested(alert):
        learned_s = min(limits.grace_limit_s, _GRACE_FACTOR * around.recovery_s)
        grace_s = max(grace_s, learned_s)
    wait_ms = alert.opened_ms + 1000 * grace_s - around.now_ms
    return _held("grace", wait_s=wait_ms / 1000) if grace_s and wait_ms > 0 else None


def _unwitnessed(alert: Alert, step: Step) -> Proposal:
    found = ", ".join(alert.witnesses) or "the alert"
    return _held("unwitnessed", action=step.action, found=found)


def _destination(alert: Alert, step: Step, around: OrderContext, policy: Policy) -> Choice:
    """Return the target of a move, or the rule against it; neither if the step moves nothing."""
    to = ACTIONS[step.action].target
    if to == "pool":
        if alert.disk is None:
            return Choice(None, "no_disk", SENTENCES["no_disk"])
        closed = _closed(around, "pool")
        for pool in alert.pools:
            for target in policy.pools.get(pool, ()):
                if target not in closed and target not in alert.pools:
                    return Choice(target)
        pools = ", ".join(alert.pools) or "an unknown pool"
        return Choice(None, "no_pool", SENTENCES["no_pool"].format(pools=pools))
    if to != "node" or alert.node is None:
        return Choice(None)
    return choose_target(
        around.loads.get(alert.cell),
        cell=alert.cell,
        source=alert.node,
        mover=Mover(
            alert.subject,
            alert.memory_bytes,
            f"{alert.tenant}/{alert.group}" if alert.group else "",
        ),
        limits=policy.limits,
        now_ms=around.now_ms,
        avoid=_closed(around, "node") | _left_by(alert.subject, around),
    )


def _closed(around: OrderContext, scope: str) -> frozenset[str]:
    """Return the nodes or pools that are paused or in maintenance."""
    return frozenset(
        control.subject
        for control in around.controls.values()
        if control.kind in ("pause", "maintenance")
        and control.scope == scope
        and control.holds(now_ms=around.now_ms)
    )


def _left_by(vm: str, around: OrderContext) -> frozenset[str]:
    """Return the nodes from which the VM was ordered to move within a day: it must not return."""
    return frozenset(
        entry.order.node
        for entry in around.earlier
        if entry.order.vm == vm
        and ACTIONS[entry.order.action].target == "node"
        and entry.time_ms > around.now_ms - DAY_MS
    )


def _order(
    incident: Incident,
    alert: Alert,
    step: Step,
    around: OrderContext,
    policy: Policy,
    choice: Choice,
    *,
    why: str = "",
) -> Order:
    now_ms, node, instance = around.now_ms, alert.node, alert.instance
    data_ms, action = alert.data_ms, step.action
    if node is None or instance is None or data_ms is None:
        raise ValueError(
            "an order needs the node and run of the VM, and the time of its last sample"
        )
    if action == "notify" or action == "quarantine":
        raise ValueError(f"{action} is a step of the planner itself, no agent executes it")
    mode = effective_mode(
        policy, around.controls, tenant=alert.tenant, action=action, now_ms=now_ms
    )
    sentence = SENTENCES["rehearse" if mode == "observe" else "order"].format(
        action=action,
        vm=alert.name or alert.subject,
        node=node,
        target=f" to {choice.target}" if choice.target else "",
        step=incident.step,
        why=why or alert.sentence,
    )
    cell = around.loads.get(alert.cell)
    return Order(
        incident=incident.id,
        step=incident.step,
        action=action,
        vm=alert.subject,
        instance=instance,
        site=around.site,
        cell=alert.cell,
        node=node,
        kind=alert.kind,
        cpu_shape=alert.cpu_shape,
        issued_ms=now_ms,
        expires_ms=now_ms + 1000 * policy.limits.order_lifetime_s,
        deadline_ms=now_ms + 1000 * step.deadline_s,
        data_ms=data_ms,
        counted=alert.counted,
        dry_run=mode == "observe",
        planner=around.planner,
        policy=policy.hash,
        sentence=sentence,
        target=choice.target,
        tenant=alert.tenant,
        group=alert.group,
        opened_ms=alert.opened_ms,
        history_s=alert.history_s,
        attested=_attested(alert),
        disk=alert.disk if ACTIONS[action].target == "pool" else None,
        zone=alert.zone,
        pools=alert.pools,
        networks=alert.networks,
        witnesses=alert.witnesses,
        cell_vms=cell.vm_count if cell else 0,
        site_vms=sum(load.vm_count for load in around.loads.values()),
        group_sick=around.group_sick,
        source_load_ratio=choice.source_load,
        target_load_ratio=choice.target_load,
    )


# The step that reverts a migration is a migration, with the times of the default policy.
_UNDO: Final = Step(action="migrate", deadline_s=900, stable_s=60)


def _attested(alert: Alert) -> bool:
    """Return whether the VM's panic device, its watchdog or its hypervisor reports the crash."""
    return any(_ATTESTING.get(item.signal) in alert.witnesses for item in alert.evidence)

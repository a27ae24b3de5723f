"""The permissions of a policy, in readable form for its owner."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from flatline.engine.action.actions import ACTIONS, AGENT_ACTIONS, DISRUPTIVE
from flatline.engine.action.catalogue import Limits, Policy
from flatline.engine.faults import Step
from flatline.engine.wire.control import Mode
from flatline.engine.wire.order import Action

_PURPOSES: Final[Mapping[str, str]] = {
    "production": "production: all values are within the hard limits",
    "demo": "demo, for simulated VMs only: some hard limits are wider",
    "lab": "lab, for test VMs only: some hard limits are wider",
}
_MODES: Final[Mapping[Mode, str]] = {
    "auto": "executed without approval",
    "approve": "executed after approval by a person",
    "observe": "limited to dry runs",
}


def explained(policy: Policy) -> Iterator[str]:
    """Yield one line for each fact that an operator must know before using `policy`.

    These are its purpose, the allowed actions of each tenant, the limits that differ from the
    defaults, the escalation steps for each kind of fault, and the target pools of disks.
    """
    yield f"purpose: {_PURPOSES[policy.purpose]}"
    yield f"every tenant: {_modes(policy.modes.actions, rest=policy.modes.default)}"
    for tenant, actions in sorted(policy.modes.tenants.items()):
        merged = policy.modes.actions | actions
        yield f"tenant {tenant}: {_modes(merged, rest=policy.modes.default)}"
    yield "a VM without a tenant: every action is limited to dry runs"
    yield f"limits: {_limits(policy.limits)}"
    for kind, steps in policy.ladders.items():
        yield f"{kind}: {', then '.join(_step(step) for step in steps) or 'alert only'}"
    yield "any other kind of fault: alert only"
    for pool, targets in policy.pools.items():
        yield f"disks of pool {pool} may go to {', else '.join(targets) or 'no other pool'}"


def _modes(actions: Mapping[Action, Mode], *, rest: Mode) -> str:
    """Return each mode with its actions, the most permissive mode first."""
    parts = []
    for mode, what in _MODES.items():
        named = [ACTIONS[name].noun for name in AGENT_ACTIONS if actions.get(name) == mode]
        if rest == mode:
            named.append("every other action" if actions else "every action")
        if named:
            parts.append(f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} {what}")
    return "; ".join(parts)


def _limits(limits: Limits) -> str:
    """Return the limits that differ from the defaults, each beside its default."""
    usual = msgspec.structs.asdict(Limits())
    changed = [
        f"{name} {_figure(value)} (default {_figure(usual[name])})"
        for name, value in msgspec.structs.asdict(limits).items()
        if value != usual[name]
    ]
    return ", ".join(changed) or "the default ones"


def _figure(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value).strip("()")


def _step(step: Step) -> str:
    """Return one step in words: its action, what it waits for, and how success is verified."""
    parts = [ACTIONS[step.action].command]
    if step.grace_s:
        parts.append(f"after {step.grace_s} s of grace")
    if step.needs:
        parts.append(f"if {' and '.join(step.needs)} agree")
    if step.action in DISRUPTIVE:
        parts.append(f"(recovered for {step.stable_s} s within {step.deadline_s} s)")
    return " ".join(parts)

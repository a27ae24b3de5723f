"""Guards of planner and admission, and the mutants of `tests/mutants.py` that remove them."""

from typing import Final

from tests.agent_guards import AGENT_MUTANTS
from tests.engine_guards import ENGINE_MUTANTS
from tests.key_guards import KEY_MUTANTS
from tests.mutant import ROLES, Mutant
from tests.receiver_guards import RECEIVER_MUTANTS
from tests.slices import ROOT
from tests.witness_guards import WITNESS_MUTANTS


def _without(rule: str, *, last: str = "log_rules") -> Mutant:
    """Return the mutant in which a rule of `admit` has no effect."""
    return Mutant(
        f"admit without {rule.strip('_')}",
        f"engine/action/{last}.py",
        f"def {rule}(context: RequestContext) -> Said | None:\n",
        f"def {rule}(context: RequestContext) -> Said | None:\n    return None\n\n\n"
        f"def _was{rule}(context: RequestContext) -> Said | None:\n",
    )


_LOG: Final = (
    "_no_target", "_lifetime", "_target", "duplicate", "append_time", "_escalation",
    "_incident_old", "_vm", "_group", "_group_sick", "_node", "_cell", "_site",
)  # fmt: skip
_PRESENT: Final = (
    "_clock", "_data_age", "_newborn", "_witnesses", "_no_owner", "_policy", "_mode", "_words",
)  # fmt: skip
_PLAN: Final = "engine/action/planner.py"
_DISKS: Final = "connectors/libvirt/disks.py"
_ADVANCE: Final = "engine/action/advance.py"

MUTANTS: Final = (
    *AGENT_MUTANTS,
    *RECEIVER_MUTANTS,
    *ENGINE_MUTANTS,
    *(_without(rule) for rule in _LOG),
    *(_without(rule, last="present_rules") for rule in _PRESENT),
    Mutant(
        "a signature is not checked", "engine/wire/order.py",
        "        trusted[name].verify(signatures[0], value)\n", "        pass\n",
        ("tests/unit/engine/wire", *ROLES),
    ),
    Mutant(
        "an agent's key gives orders", "engine/action/keys.py",
        "    if name not in allowed:\n", "    if name not in allowed and False:\n",
    ),
    Mutant(
        "an agent's key closes orders of any node", "engine/action/keys.py",
        "    if not isinstance(entry, Order) and entry.node not in",
        "    if False and entry.node not in",
    ),
    *KEY_MUTANTS,
    *WITNESS_MUTANTS,
    Mutant(
        "an old word said twice opens an incident anew", _PLAN,
        "    if incident is not None and _is_stale(alert, incident):\n", "    if False:\n",
    ),
    Mutant(
        "a VM that is back in trouble is ignored", _PLAN,
        '    if incident is not None and incident.phase == "mended" and alert.state == "firing":\n',
        "    if incident is None:\n",
    ),
    Mutant(
        "a disk goes over to its copy long after the deadline", _DISKS,
        "            if time.monotonic() > deadline:\n",
        "            if not now.ready and time.monotonic() > deadline:\n",
        ("tests/unit/connectors/libvirt/test_disks.py",),
    ),
    Mutant(
        "a copy that was begun is told as a refusal", _DISKS,
        '            raise HypervisorUnreachable(\n                f"the copy',
        '            raise ActionRefused(\n                f"the copy',
        ("tests/unit/connectors/libvirt/test_disks.py",),
    ),
    Mutant(
        "orders of the last day that the log lost are forgotten", "engine/action/ledger.py",
        "    needed = (*day_ago, *ledger.positions)[:1]\n", "    needed = ledger.positions[-1:]\n",
    ),
    Mutant(
        "there is no storm breaker", "engine/action/storm.py",
        "    if count < bar:\n", "    if True:\n",
    ),
    Mutant(
        "the storm breaker ignores what a person cleared", "engine/action/storm.py",
        "        cleared_ms = standing.time_ms\n", "        cleared_ms = 0\n",
    ),
    Mutant(
        "the planner orders before it has read the log", _ADVANCE,
        "    if not state.live:\n        return state, ()\n    match incident.phase:\n",
        "    match incident.phase:\n",
    ),
    Mutant(
        "the planner forgets what it has just ordered", _ADVANCE,
        "        earlier=(*state.history, *pending),\n", "        earlier=state.history,\n",
    ),
    Mutant(
        "silence at the deadline counts as failure", _ADVANCE,
        "            if not incident.failing:\n", "            if False:\n",
    ),
    Mutant(
        "an alert that came too late counts as failure", _PLAN,
        "(in_time and time_ms <= order.deadline_ms)", "in_time",
    ),
    Mutant(
        "the next step does not wait for the deadline", "engine/action/log_rules.py",
        "        last.order.deadline_ms,\n", "        0,\n",
    ),
    Mutant(
        "a word about a zone holds nothing", "engine/action/present_rules.py",
        '    covered.add(("zone", order.zone))\n', "",
    ),
    Mutant(
        "a VM goes to a node that people have closed", "engine/action/ordering.py",
        '        avoid=_closed(around, "node") | _left_by(alert.subject, around),\n',
        "        avoid=_left_by(alert.subject, around),\n",
    ),
    Mutant(
        "the next step does not wait", _ADVANCE,
        "            incident.called_ms + policy.limits.backoff_ms(max(1, tried)),\n",
        "            0,\n",
    ),
    Mutant(
        "a crash loop goes on", _ADVANCE,
        '    if proposal.rule == "vm_day":\n', '    if proposal.rule == "never":\n',
    ),
    Mutant(
        "a target that suffers is left to suffer", "engine/action/target.py",
        "    return carried > min(", "    return False and carried > min(",
    ),
    Mutant(
        "a guest is given no time to help itself", "engine/action/ordering.py",
        '    return _held("grace", wait_s=wait_ms / 1000) if grace_s and wait_ms > 0 else None\n',
        "    return None\n",
    ),
    Mutant(
        "who has not agreed is acted on", "engine/action/ordering.py",
        "    if not alert.actionable:\n", "    if False:\n",
    ),
    Mutant(
        "a veto of the engine holds nothing", "engine/action/ordering.py",
        "    if alert.vetoes and step.action in DISRUPTIVE:\n", "    if False:\n",
    ),
    Mutant(
        "a VM wanders back to where it came from", "engine/action/ordering.py",
        '        avoid=_closed(around, "node") | _left_by(alert.subject, around),\n',
        '        avoid=_closed(around, "node"),\n',
    ),
    Mutant(
        "a target needs no memory and no other group", "engine/action/target.py",
        "        and _takes(load.rooms.get(node, NodeRoom()), mover)\n", "",
    ),
    Mutant(
        "an edited journal entry is believed", "engine/action/chain.py",
        "        if link_of(entry) != entry.link:\n", "        if False:\n",
    ),
    Mutant(
        "a journal that was cut is whole", "engine/action/chain.py",
        "        if head.sequence and links.get", "        if False and links.get",
    ),
    Mutant(
        "a policy may be laxer than the hard limits", "engine/action/catalogue.py",
        "        if not low <= value <= high:\n", "        if False:\n",
    ),
    Mutant(
        "a guest that told of its panic gets no time to reboot itself",
        "engine/detection/hypotheses.py",
        "    waits = not still if seen.crashed else _may_reboot_itself(seen, configuration)\n",
        "    waits = not still\n",
        ("tests/unit/engine/detection/test_partition.py",),
    ),
    Mutant(
        "no guest gets time to reboot itself", "engine/detection/hypotheses.py",
        "        or _dead_s(seen) < configuration.self_reboot_s\n", "",
        ("tests/unit/engine/detection/test_partition.py",),
    ),
    Mutant(
        "one coarse sample is time enough to reboot itself", "engine/detection/hypotheses.py",
        "seen.run_samples < configuration.alert_samples\n        or ", "",
        ("tests/unit/engine/detection/test_partition.py",),
    ),
    Mutant(
        "the rest before a panic counts as time to reboot", "engine/detection/hypotheses.py",
        "return min(seen.run_s, seen.reported_s, others_s)", "return min(seen.run_s, others_s)",
        ("tests/unit/engine/detection/test_partition.py",),
    ),
    Mutant(
        "who moves again in a frame that waits is ordered", "engine/detection/judge.py",
        '        cautious = [*cautious, "moves_again"]\n', "        pass\n",
        ("tests/unit/engine/detection/test_disturbed_order.py",),
    ),
    Mutant(
        "a silence that outlasts the others' is ordered", "engine/detection/aggregate_evidence.py",
        "== aggregates_layout.OUTLASTED:\n", "== 2.0:\n",
        ("tests/unit/engine/detection/test_aggregate_evidence.py",),
    ),
    Mutant(
        "memory that moves is no sign of life", "engine/detection/aggregate_evidence.py",
        '        refusals.append("memory_lives")\n', "        pass\n",
        ("tests/unit/engine/detection/test_aggregate_evidence.py",),
    ),
    Mutant(
        "the naive actuator: the look always agrees", "engine/action/preflight.py",
        "        if said is not None:\n            return _refusal(*said)\n",
        "        if False:\n            return _refusal(*said)\n",
    ),
    Mutant(
        "the naive actuator: everything is admitted", "engine/action/admit.py",
        "        if said is not None:\n            name, values = said\n",
        "        if said is not None and False:\n            name, values = said\n",
    ),
)  # fmt: skip


def check() -> list[str]:
    """Return one sentence for each mutant whose text is not once in the source or lacks a suite."""
    texts = [
        f"{mutant.name}: its text stands {count} times in {mutant.file}, once is needed"
        for mutant in MUTANTS
        if (count := (ROOT / mutant.file).read_text().count(mutant.old)) != 1
    ]
    suites = sorted({suite for mutant in MUTANTS for suite in mutant.suites})
    return texts + [
        f"suite {suite} does not exist" for suite in suites if not (ROOT / suite).exists()
    ]

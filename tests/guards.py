"""The guards of the actuator, and how each is removed: what `tests/mutants.py` tries."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.slices import ROOT

# The quick ones first: a guard that a unit test holds costs a second.
UNIT: Final = ("tests/unit/engine/action",)
ROLES: Final = (
    "tests/simulation/test_hostile.py",
    "tests/simulation/test_actuation.py",
    "tests/simulation/test_actuation_faults.py",
    "tests/unit/engine/roles/test_act.py",
    "tests/unit/engine/roles/test_act_memory.py",
)


class Mutant(NamedTuple):
    """One guard less: `old` in `file` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    suites: Sequence[str] = UNIT


def _without(rule: str, *, last: str = "log_rules") -> Mutant:
    """Return the mutant in which a rule of `admit` says nothing."""
    return Mutant(
        f"admit without {rule.strip('_')}",
        f"engine/action/{last}.py",
        f"def {rule}(question: Question) -> Said | None:\n",
        f"def {rule}(question: Question) -> Said | None:\n    return None\n\n\n"
        f"def _was{rule}(question: Question) -> Said | None:\n",
    )


_LOG: Final = (
    "_no_target", "_lifetime", "_target", "duplicate", "append_time", "_escalation",
    "_incident_old", "_vm", "_group", "_group_sick", "_node", "_cell", "_site",
)  # fmt: skip
_PRESENT: Final = (
    "_clock", "_data_age", "_newborn", "_witnesses", "_no_owner", "_policy", "_mode", "_words",
)  # fmt: skip
_LOOK: Final = (
    "_enough", "_same_vm", "_same_run", "_open_to_actions", "_monitor_answers", "_no_job",
    "_running_or_crashed", "_running", "_every_device_counts", "_stands_still",
    "_still_since_judged", "_balloon_is_stale", "_balloon_silent_since_judged", "_same_shape",
    "_requests_complete", "_same_owner", "_not_booted", "_dead_vcpus_stand_still",
    "_no_sign_of_life", "_second_witness",
)  # fmt: skip
_ACT: Final = "engine/roles/act.py"
_CLOCKS: Final = ("tests/unit/engine/roles/test_act_clocks.py",)
_MEMORY: Final = ("tests/unit/engine/roles/test_act_memory.py",)
_RESUMES: Final = ("tests/unit/engine/roles/test_act_resumes.py",)
_LOOKS: Final = ("tests/contracts/look",)
_PLAN: Final = "engine/action/planner.py"
_DISKS: Final = "connectors/libvirt/disks.py"
_ADVANCE: Final = "engine/action/advance.py"

MUTANTS: Final = (
    *(_without(rule) for rule in _LOG),
    *(_without(rule, last="present_rules") for rule in _PRESENT),
    *(
        Mutant(
            f"look without {rule.strip('_')}",
            "engine/action/look.py",
            f"def {rule}(seen: Seen) -> _Said | None:\n",
            f"def {rule}(seen: Seen) -> _Said | None:\n    return None\n\n\n"
            f"def _was{rule}(seen: Seen) -> _Said | None:\n",
        )
        for rule in _LOOK
    ),
    Mutant(
        "a signature is not checked", "engine/wire/order.py",
        "        trusted[name].verify(signature, value)\n", "        pass\n",
        ("tests/unit/engine/wire", *ROLES),
    ),
    Mutant(
        "an agent's key gives orders", "engine/action/keys.py",
        "    if name not in allowed:\n", "    if name not in allowed and False:\n",
    ),
    Mutant(
        "an agent's key closes orders of any node", "engine/action/keys.py",
        "    if isinstance(entry, Closed) and entry.node not in",
        "    if False and entry.node not in",
    ),
    Mutant(
        "an approval needs no operator", "engine/action/keys.py",
        '    if control.kind == "approval":\n', '    if control.kind == "never":\n',
    ),
    Mutant(
        "the ledger lets a step be accepted again", "engine/action/ledger.py",
        "    if entry.state not in LEGAL[state]:\n", "    if False:\n",
    ),
    Mutant(
        "a call that was cut off counts as not attempted", "engine/action/ledger.py",
        'state: Outcome = "not_attempted" if entry.state == "accepted" else "unknown"',
        'state: Outcome = "not_attempted"',
    ),
    Mutant(
        "a log that is not known is trusted", "engine/action/ledger.py",
        "    until_ms = now_ms + 1000 * observe_s\n", "    until_ms = now_ms\n",
    ),
    Mutant(
        "the agent does not ask once more before the call", _ACT,
        "        return self._refusal(task)\n", "        return None\n", ROLES,
    ),
    Mutant(
        "the agent does not read control and orders to their ends", _ACT,
        "                await self._read_to_ends()\n        except",
        "                pass\n        except",
        ROLES,
    ),
    Mutant(
        "the barrier reads no orders", _ACT,
        "        for topic in (CONTROL.name, ORDERS.name):\n            for record in await",
        "        for topic in (CONTROL.name,):\n            for record in await",
        _MEMORY,
    ),
    Mutant(
        "an agent that restarts knows an hour of orders", _ACT,
        "time_ms=self._since_ms)", "time_ms=now_ms - DAY_MS // 24)", _MEMORY,
    ),
    Mutant(
        "the ledger is believed before the disk has it", _ACT,
        "        self._store.append(encode_ledger_entry(entry))\n        self._ledger = ledger\n",
        "        self._ledger = ledger\n        self._store.append(encode_ledger_entry(entry))\n",
        _MEMORY,
    ),
    Mutant(
        "a look may hang for ever", _ACT,
        "asyncio.timeout(_LOOK_S)", "asyncio.timeout(None)", _MEMORY,
    ),
    Mutant(
        "a topic that was cut back is not noticed", _ACT,
        "                if cut is not None:\n",
        "                if False and cut is not None:\n", ROLES,
    ),
    Mutant(
        "what cannot be told is done all the same", _ACT,
        "                if not await self._outbox.emptied(within_s=BARRIER_S):\n",
        "                if False:\n", ROLES,
    ),
    Mutant(
        "a full disk does not hold the call back", "engine/roles/act.py",
        "        self._store.append(encode_ledger_entry(entry))\n",
        "        try:\n            self._store.append(encode_ledger_entry(entry))\n"
        "        except StateUnwritable:\n            pass\n",
        ROLES,
    ),
    Mutant(
        "an unknown outcome is said to be a refusal", _ACT,
        'ended("unknown", "verb_unknown", **names, why=why_of(error))\n        self._marks',
        'ended("refused", "verb_unknown", **names, why=why_of(error))\n        self._marks',
        ROLES,
    ),
    Mutant(
        "a rehearsal is carried out", _ACT,
        "                if not task.dry_run:\n", "                if True:\n", ROLES,
    ),
    Mutant(
        "any pause is taken for that of a reset", "engine/action/look.py",
        '    paused = look.state == "paused" and look.state_reason == "crashed"\n',
        '    paused = look.state == "paused"\n', _RESUMES,
    ),
    Mutant(
        "a monitor of which nothing is known answers", "engine/action/look.py",
        "look.monitor_answered is True for", "look.monitor_answered is not False for",
    ),
    Mutant(
        "a job of which nothing is known is none", "engine/action/look.py",
        "all(look.job_active is False for", "not any(look.job_active for",
    ),
    Mutant(
        "a state without a reason is believed", "engine/action/look.py",
        ' or look.state_reason == "unknown":', ":",
    ),
    Mutant(
        "the order's word that the guest crashed excuses its writes", "engine/action/look.py",
        "    if judged is None or seen.told:\n",
        "    if judged is None or seen.order.attested:\n",
    ),
    Mutant(
        "the order's word excuses a device without counters", "engine/action/look.py",
        "if devices and not seen.crashed else None",
        "if devices and not seen.order.attested else None",
    ),
    Mutant(
        "the guest's own word excuses a device without counters", "engine/action/look.py",
        "if devices and not seen.crashed else None", "if devices and not seen.told else None",
    ),
    Mutant(
        "one vCPU is its own witness", "engine/action/witnesses.py",
        "whole and len(last.vcpu_time_ns) > 1 and vcpus", "whole and vcpus",
    ),
    Mutant(
        "a vCPU of which nothing is told stands still", "engine/action/witnesses.py",
        "len(first.vcpu_time_ns) == first.vcpus == last.vcpus == len(last.vcpu_time_ns)", "True",
    ),
    Mutant(
        "a vCPU that rests as it did before is a witness", "engine/action/witnesses.py",
        "max(least_s, _REST_FACTOR * rest.longest_s)", "least_s",
    ),
    Mutant(
        "a look tells a halt from rest", "engine/action/witnesses.py",
        '        return shape != "idle" and not signs.rests\n', "        return True\n",
    ),
    Mutant(
        "a balloon that was never asked is late", "engine/action/witnesses.py",
        "    if not look.balloon_period_s or look.balloon_last_update_s is None:\n",
        "    if look.balloon_last_update_s is None:\n",
    ),
    Mutant(
        "the last look forbids nothing", "connectors/libvirt/verbs.py",
        "            why = permit.last_check(look)\n", "            why = None\n",
        ("tests/unit/connectors/libvirt/test_verb_permits.py",),
    ),
    Mutant(
        "the last look may be old", "connectors/libvirt/verbs.py",
        " or time.monotonic_ns() - look.mono_ns <= LAST_LOOK_S * 1e9:", " or look:",
        ("tests/unit/connectors/libvirt/test_verb_permits.py",),
    ),
    Mutant(
        "what is asked last is asked of no rule", "engine/action/look.py",
        "            if said is not None:\n                return SENTENCES",
        "            if False:\n                return SENTENCES",
    ),
    Mutant(
        "the agent hands no last check on", _ACT,
        "Permit(order.instance, send_within_s, last_check(order, looks))",
        "Permit(order.instance, send_within_s, lambda _look: None)",
        ("tests/unit/engine/roles/test_act_permits.py",),
    ),
    Mutant(
        "what was heard before libvirtd went is still believed", "connectors/libvirt/heard.py",
        "            self._reports.clear()\n", "            pass\n", _LOOKS,
    ),
    Mutant(
        "a boot leaves the panic before it standing", "connectors/libvirt/heard.py",
        "self._boots[vm] = self._number\n                self._reports.pop(vm, None)\n",
        "self._boots[vm] = self._number\n", _LOOKS,
    ),
    Mutant(
        "another run of the VM is resumed", "engine/action/look.py",
        "    return paused and look.instance == instance and not look.opted_out\n",
        "    return paused and not look.opted_out\n", _RESUMES,
    ),
    Mutant(
        "a resume is made up for whatever people said", "engine/roles/calling.py",
        "    if not finish.admitted:\n", "    if False:\n", _RESUMES,
    ),
    Mutant(
        "libvirt resumes whatever is paused", "connectors/libvirt/resets.py",
        "    if not was_reset(state):\n", "    if False:\n",
        ("tests/unit/connectors/libvirt/test_verbs.py",),
    ),
    Mutant(
        "the look may be old when the call is made", _ACT,
        "        if send_within_s <= 0:\n", "        if False:\n", ROLES,
    ),
    Mutant(
        "the pause that was read may be old when the call is made", _ACT,
        "BARRIER_S - words_s, ", "", _CLOCKS,
    ),
    Mutant(
        "an order that waits grows no older", _ACT,
        "        return max(self._clock.now_ms(), task.time_ms + waited_ms)\n",
        "        return self._clock.now_ms()\n", _CLOCKS,
    ),
    Mutant(
        "an agent that has not read a whole day counts on it", _ACT,
        "        if task.time_ms - DAY_MS < self._since_ms:\n", "        if False:\n", _CLOCKS,
    ),
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
        '            raise VerbRefused(\n                f"the copy',
        ("tests/unit/connectors/libvirt/test_disks.py",),
    ),
    Mutant(
        "orders of the last day that the log lost are forgotten", "engine/action/ledger.py",
        "    needed = (*day_ago, *ledger.positions)[:1]\n", "    needed = ledger.positions[-1:]\n",
    ),
    Mutant(
        "an unfamiliar log is acted on", _ACT,
        "                if await self._log.identity() != self._identity:\n",
        "                if False:\n", ROLES,
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
        "    if alert.vetoes and rung.action in DISRUPTIVE:\n", "    if False:\n",
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
        "return min(seen.run_s, seen.told_s)", "return seen.run_s",
        ("tests/unit/engine/detection/test_partition.py",),
    ),
    Mutant(
        "who moves again in a frame that waits is ordered", "engine/detection/judge.py",
        '        cautious = [*cautious, "moves_again"]\n', "        pass\n",
        ("tests/unit/engine/detection/test_weather.py",),
    ),
    Mutant(
        "a silence that outlasts the others' is ordered", "engine/detection/totals.py",
        "== vitals_layout.OUTLASTED:\n", "== 2.0:\n",
        ("tests/unit/engine/detection/test_totals.py",),
    ),
    Mutant(
        "memory that moves is no sign of life", "engine/detection/totals.py",
        '        refusals.append("memory_lives")\n', "        pass\n",
        ("tests/unit/engine/detection/test_totals.py",),
    ),
    Mutant(
        "the naive actuator: the look always agrees", "engine/action/look.py",
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
    """Return one sentence for each mutant whose text does not stand in the source just once."""
    return [
        f"{mutant.name}: its text stands {count} times in {mutant.file}, once is needed"
        for mutant in MUTANTS
        if (count := (ROOT / mutant.file).read_text().count(mutant.old)) != 1
    ]

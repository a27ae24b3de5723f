"""The guards of the agent on the node, and the mutants that remove them."""

from typing import Final

from tests.mutant import ROLES, Mutant

_LOOK: Final = (
    "_enough", "_same_vm", "_same_run", "_open_to_actions", "_monitor_answers", "_no_job",
    "_running_or_crashed", "_running", "_every_device_counts", "_stands_still",
    "_still_since_judged", "_balloon_is_stale", "_balloon_silent_since_judged", "_same_shape",
    "_requests_complete", "_same_owner", "_not_booted", "_dead_vcpus_stand_still",
    "_no_sign_of_life", "_second_witness", "_old_or_reported",
)  # fmt: skip
_ACT: Final = "engine/roles/act.py"
_BOOKS: Final = "engine/roles/books.py"
_CLAIMS: Final = ("tests/unit/engine/roles/test_act_claims.py",)
_CLOCKS: Final = ("tests/unit/engine/roles/test_act_clocks.py",)
_MEMORY: Final = ("tests/unit/engine/roles/test_act_memory.py",)
_RESUMES: Final = ("tests/unit/engine/roles/test_act_resumes.py",)
_POISON: Final = ("tests/unit/engine/roles/test_poison.py",)
_PROBE: Final = ("tests/unit/connectors/probe",)
_WATCHING: Final = ("tests/unit/engine/roles/test_guest_probing.py",)
_PREFLIGHT: Final = ("tests/contracts/preflight",)

AGENT_MUTANTS: Final = (
    Mutant(
        "an unfamiliar log is acted on", _ACT,
        "                if await self._log.identity() != self._books.identity:\n",
        "                if False:\n", ROLES,
    ),
    *(
        Mutant(
            f"look without {rule.strip('_')}",
            "engine/action/preflight.py",
            f"def {rule}(seen: Seen) -> _Said | None:\n",
            f"def {rule}(seen: Seen) -> _Said | None:\n    return None\n\n\n"
            f"def _was{rule}(seen: Seen) -> _Said | None:\n",
        )
        for rule in _LOOK
    ),
    Mutant(
        "an order at which the agent fails after its entry counts as not done",
        "engine/roles/calling.py", '        case "sent":\n            return ended("unknown"',
        '        case "sent":\n            return ended("refused"', _POISON,
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
        "    until_ms = now_ms + 1000 * watch_s\n", "    until_ms = now_ms\n",
    ),
    Mutant(
        "the agent does not ask once more before the call", _ACT,
        '"already_closed")\n        return end\n', '"already_closed")\n        return None\n',
        ROLES,
    ),
    Mutant(
        "the agent does not read control and orders to their ends", _ACT,
        "topic=cut)\n                self._commands_ns = self._clock.mono_ns()\n"
        "                await self._reading.read_to_ends()\n",
        "topic=cut)\n                self._commands_ns = self._clock.mono_ns()\n",
        (*_CLAIMS, *ROLES),
    ),
    Mutant(
        "the barrier reads no orders", "engine/roles/reading.py",
        "        for topic in TOPICS:\n            last, known",
        "        for topic in (CONTROL.name,):\n            last, known",
        _MEMORY,
    ),
    Mutant(
        "an agent that restarts knows an hour of orders", _ACT,
        "begin(since_ms=self._since_ms)", "begin(since_ms=now_ms - DAY_MS // 24)", _MEMORY,
    ),
    Mutant(
        "the ledger is believed before the disk has it", _BOOKS,
        "        self._store.append(encode_ledger_entry(entry))\n        self.ledger = ledger\n",
        "        self.ledger = ledger\n        self._store.append(encode_ledger_entry(entry))\n",
        _MEMORY,
    ),
    Mutant(
        "a look may hang for ever", _ACT,
        "asyncio.timeout(_SAMPLE_TIMEOUT_S)", "asyncio.timeout(None)", _MEMORY,
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
        "a full disk does not hold the call back", _BOOKS,
        "        self._store.append(encode_ledger_entry(entry))\n",
        "        try:\n            self._store.append(encode_ledger_entry(entry))\n"
        "        except StateUnwritable:\n            pass\n",
        ROLES,
    ),
    Mutant(
        "an unknown outcome is said to be a refusal", _ACT,
        'ended("unknown", "verb_unknown", **names, why=why_of(error))\n        self._results',
        'ended("refused", "verb_unknown", **names, why=why_of(error))\n        self._results',
        ROLES,
    ),
    Mutant(
        "a rehearsal is carried out", _ACT,
        "                if not task.dry_run:\n", "                if True:\n", ROLES,
    ),
    Mutant(
        "a claim of another agent is ignored", "engine/roles/calling.py",
        "    if claim is None or claim.agent == agent:\n", "    if True:\n",
        _CLAIMS,
    ),
    Mutant(
        "a claim need not stand in the log", _ACT,
        "        if end is None and claim_of(self._reading.history, task.order) is None:\n",
        "        if False:\n", _CLAIMS,
    ),
    Mutant(
        "nothing is read after the claim", _ACT,
        "task.dry_run)\n                self._commands_ns = self._clock.mono_ns()\n"
        "                await self._reading.read_to_ends()\n",
        "task.dry_run)\n                self._commands_ns = self._clock.mono_ns()\n",
        _CLAIMS,
    ),
    Mutant(
        "the last claim of a step wins", "engine/action/admit.py",
        "            if entry.claim is not None or not mine or late:\n",
        "            if not mine or late:\n",
    ),
    Mutant(
        "a claim of another node counts", "engine/action/admit.py",
        "(order.node, order.vm) == (claim.node, claim.vm)", "order.vm == claim.vm",
    ),
    Mutant(
        "a claim behind the order's expiry counts", "engine/action/admit.py",
        "time_ms >= order.expires_ms or entry.result", "entry.result",
    ),
    Mutant(
        "who lost the claim closes the step", _ACT,
        '        if end.rule == "claimed":\n            #', "        if False:\n            #",
        _CLAIMS,
    ),
    Mutant(
        "who read the claim after the step's end closes the step again", _ACT,
        "task.order) and not is_claimed:\n", "task.order):\n",
        _CLAIMS,
    ),
    Mutant(
        "who could not look closes the step that another claimed", _ACT,
        'end = end if end is not None and end.rule == "claimed" else samples', "end = samples",
        _CLAIMS,
    ),
    Mutant(
        "a log that was cut back is trusted where the policy trusts new ones",
        "engine/action/ledger.py",
        "max(observe_s, DAY_MS // 1000) if restored else observe_s", "observe_s",
    ),
    Mutant(
        "words of people that the log lost are forgotten", "engine/action/ledger.py",
        " or control.end < position.control:", ":",
    ),
    Mutant(
        "a log with other records is the same log", "engine/action/ledger.py",
        "here and noted and here != noted for", "False for",
    ),
    Mutant(
        "a ledger older than the log is believed", _BOOKS,
        "        if is_behind(self.ledger, mine):\n", "        if False:\n", _CLAIMS,
    ),
    Mutant(
        "a word of people is noted a minute later", _BOOKS,
        "        if noted and position.control == noted.control and now_ms",
        "        if noted and now_ms",
        _CLAIMS,
    ),
    Mutant(
        "a log that is exchanged under the agent is read on", "engine/roles/reading.py",
        "                if record.offset == last and known and", "                if False and",
        _CLAIMS,
    ),
    Mutant(
        "the ledger's own count limits nothing", _ACT,
        "        if admission.admitted:\n            admission = within_limits(",
        "        if False:\n            admission = within_limits(", _CLAIMS,
    ),
    Mutant(
        "the ledger counts no VM's day", "engine/action/ledger_rules.py",
        "    if len(day) >= limits.vm_per_24h:\n", "    if False:\n",
    ),
    Mutant(
        "the ledger counts nothing of the node", "engine/action/ledger_rules.py",
        "    if len(recent) >= limit:\n", "    if False:\n",
    ),
    Mutant(
        "two agents of one hypervisor run", "engine/wiring.py",
        "        with node.alone(), node.ledger() as ledger:\n",
        "        with node.ledger() as ledger:\n", ("tests/unit/engine/test_wiring.py",),
    ),
    Mutant(
        "agents in two network namespaces do not see each other", "connectors/embedded/lock.py",
        "        if lock is None:\n            raise AlreadyRunning(f\"{holder_of(path)} {twice}",
        "        if False:\n            raise AlreadyRunning(f\"{holder_of(path)} {twice}",
        ("tests/unit/connectors/embedded",),
    ),
    Mutant(
        "an answer of another card is the guest's", "connectors/probe/packets.py",
        "    if sender != asked:\n", "    if False:\n", _PROBE,
    ),
    Mutant(
        "an ARP answer for another card counts", "connectors/probe/packets.py",
        "(tuple(kind), operation, mac, has) == (_ARP_OF_ETHERNET, _REPLY, asked, address)",
        "(tuple(kind), operation, has) == (_ARP_OF_ETHERNET, _REPLY, address)", _PROBE,
    ),
    Mutant(
        "an answer that a router passed on counts", "connectors/probe/packets.py",
        "(following, hops) != (_ICMPV6, _HOPS)", "following != _ICMPV6", _PROBE,
    ),
    Mutant(
        "a right that is missing is silence", "connectors/probe/prober.py",
        '        except PermissionError:\n            return ProbeAnswer("unknown", why',
        '        except PermissionError:\n            return ProbeAnswer("silent", why', _PROBE,
    ),
    Mutant(
        "silence on a bridge that is cut is a witness", "engine/action/guest_liveness.py",
        'if sign == "silent" and not works else sign', 'if False else sign', _WATCHING,
    ),
    Mutant(
        "a guest's own answer says that its bridge works", "engine/action/guest_liveness.py",
        " for other, moment_ns in answered_ns.items() if other != vm\n",
        " for moment_ns in answered_ns.values()\n", _WATCHING,
    ),
    Mutant(
        "a card whose cable is pulled is asked", "connectors/libvirt/inventory.py",
        'if link is not None and link.get("state") == "down":', "if False:",
        ("tests/unit/connectors/libvirt/test_liveness.py",),
    ),
    Mutant(
        "who never answered is silent", "engine/action/guest_liveness.py",
        "    return last_ns is not None and now_ns - last_ns <= ANSWERED_WITHIN_NS\n",
        "    return True\n",
    ),
    Mutant(
        "who answered yesterday is silent", "engine/action/guest_liveness.py",
        "    return last_ns is not None and now_ns - last_ns <= ANSWERED_WITHIN_NS\n",
        "    return last_ns is not None\n",
    ),
    Mutant(
        "a boot takes no answer back", "engine/action/guest_liveness.py",
        "    if before is None or (before.instance, before.boots_seen) != run:\n",
        "    if before is None:\n",
    ),
    Mutant(
        "a panic of an earlier boot counts", "engine/action/guest_liveness.py",
        "    if guest.console_old is None:\n", "    if False:\n",
    ),
    Mutant(
        "a vCPU that computes was at rest", "engine/action/guest_liveness.py",
        "if gained <= most else 0.0)", "if gained > 0 else 0.0)",
    ),
    Mutant(
        "a vCPU that runs a little for the guest's I/O was at rest",
        "engine/action/guest_liveness.py",
        " if now.moved == before.moved is not None else 0\n", "\n",
    ),
    Mutant(
        "who works on without answering is silent", "engine/action/guest_liveness.py",
        "moved_ns - missed_ns > PRECEDES_S * 1e9", "moved_ns < missed_ns",
    ),
    Mutant(
        "nobody is asked during the look", _ACT,
        "            signs = self._guest_probing.signs(samples[-1], asked)\n", "", _WATCHING,
    ),
    Mutant(
        "an answer that is not understood is silence", "engine/roles/guest_probing.py",
        '            self._failed("agent", one.vm, error)\n            return "unknown"\n',
        '            self._failed("agent", one.vm, error)\n            return "silent"\n',
        _WATCHING,
    ),
    Mutant(
        "a balloon is set though nobody asked for it", "engine/roles/guest_probing.py",
        "            if self._sets_balloons and one.balloon_period_s == 0:\n",
        "            if one.balloon_period_s == 0:\n", _WATCHING,
    ),
    Mutant(
        "pictures are taken of screens without their owner's consent",
        "connectors/libvirt/evidence.py",
        '    if not agreed(read_marks(ElementTree.fromstring(xml)), "screenshots"):\n',
        "    if False:\n", ("tests/unit/connectors/libvirt/test_evidence.py",),
    ),
    Mutant(
        "any pause is taken for that of a reset", "engine/action/preflight.py",
        '    paused = sample.state == "paused" and sample.state_reason == "crashed"\n',
        '    paused = sample.state == "paused"\n', _RESUMES,
    ),
    Mutant(
        "a monitor of which nothing is known answers", "engine/action/preflight.py",
        "sample.monitor_answered is True for", "sample.monitor_answered is not False for",
    ),
    Mutant(
        "a job of which nothing is known is none", "engine/action/preflight.py",
        "all(sample.job_active is False for", "not any(sample.job_active for",
    ),
    Mutant(
        "a state without a reason is believed", "engine/action/preflight.py",
        ' or sample.state_reason == "unknown":', ":",
    ),
    Mutant(
        "the order's word that the guest crashed excuses its writes", "engine/action/preflight.py",
        "    if judged is None or seen.reported:\n",
        "    if judged is None or seen.order.attested:\n",
    ),
    Mutant(
        "a disk whose counters are left out stands still", "connectors/libvirt/inventory.py",
        '        if target is not None and target.get("dev") not in counted_disks:\n',
        "        if False:\n",
        ("tests/unit/connectors/libvirt/test_actuator.py",),
    ),
    Mutant(
        "the order's word excuses a device without counters", "engine/action/preflight.py",
        "if devices and not seen.crashed else None",
        "if devices and not seen.order.attested else None",
    ),
    Mutant(
        "the guest's own word excuses a device without counters", "engine/action/preflight.py",
        "if devices and not seen.crashed else None", "if devices and not seen.reported else None",
    ),
    Mutant(
        "one vCPU is its own witness", "engine/action/witness_checks.py",
        " or len(last.vcpu_time_ns) < 2 or not vcpus:", " or not vcpus:",
    ),
    Mutant(
        "a vCPU whose time is unknown stands still", "engine/action/witness_checks.py",
        "    if counts != {last.vcpus} or", "    if len(counts) > 1 or",
    ),
    Mutant(
        "a tick of 10 ms is fine enough to tell rest by", "engine/action/witness_checks.py",
        "for times in (sample.vcpu_time_ns, sample.vcpu_delay_ns)",
        "for times in (sample.vcpu_time_ns,)",
    ),
    Mutant(
        "a vCPU that rests as it did before is a witness", "engine/action/witness_checks.py",
        "max(_STILL_S, _REST_FACTOR * rest.longest_s)", "_STILL_S",
    ),
    Mutant(
        "a vCPU that was never seen at rest is a witness", "engine/action/witness_checks.py",
        "rest is None or rest.idle_s < _IDLE_LEAST_S", "rest is None",
    ),
    Mutant(
        "what stood still while the guest did I/O is a witness", "engine/action/witness_checks.py",
        "    return signs.quiet_s is not None and still_s >", "    return False and still_s >",
    ),
    Mutant(
        "a crash that the guest survived is a witness", "engine/action/witness_checks.py",
        "    return not _precedes((sample.mono_ns - sample.reported_ns) / 1e9, signs)\n",
        "    return True\n",
    ),
    Mutant(
        "interrupts that KVM never counted stand still", "engine/action/witness_checks.py",
        "    return known and _rests_too_long(signs, signs.interrupts)\n", "    return known\n",
    ),
    Mutant(
        "a moment of rest is a witness", "engine/action/witness_checks.py",
        "max(_STILL_S, _REST_FACTOR * rest.longest_s)", "_REST_FACTOR * rest.longest_s",
    ),
    Mutant(
        "a balloon that was never asked is late", "engine/action/witness_checks.py",
        "    if not sample.balloon_period_s or sample.balloon_last_update_s is None:\n",
        "    if sample.balloon_last_update_s is None:\n",
    ),
    Mutant(
        "the last look forbids nothing", "connectors/libvirt/actuator.py",
        "            why = permit.last_check(sample)\n", "            why = None\n",
        ("tests/unit/connectors/libvirt/test_actuator_permits.py",),
    ),
    Mutant(
        "the last look may be old", "connectors/libvirt/actuator.py",
        " or time.monotonic_ns() - sample.mono_ns <= LAST_SAMPLE_S * 1e9:", " or sample:",
        ("tests/unit/connectors/libvirt/test_actuator_permits.py",),
    ),
    Mutant(
        "a call that came too late is refused for good", "engine/roles/calling.py",
        "    if isinstance(error, ActionUnsent):\n", "    if False:\n", ROLES,
    ),
    Mutant(
        "a call that was refused may be made later", "engine/roles/calling.py",
        "    if isinstance(error, ActionUnsent):\n", "    if True:\n", ROLES,
    ),
    Mutant(
        "libvirt's being late is its refusal", "connectors/libvirt/actuator.py",
        "                raise ActionUnsent(\n", "                raise ActionRefused(\n",
        ("tests/unit/connectors/libvirt/test_actuator_permits.py",),
    ),
    Mutant(
        "what is asked last is asked of no rule", "engine/action/preflight.py",
        "            if said is not None:\n                return SENTENCES",
        "            if False:\n                return SENTENCES",
    ),
    Mutant(
        "the agent hands no last check on", _ACT,
        "Permit(order.instance, send_within_s, last_check(order, samples))",
        "Permit(order.instance, send_within_s, lambda _look: None)",
        ("tests/unit/engine/roles/test_act_permits.py",),
    ),
    Mutant(
        "what was heard before libvirtd went is still believed", "connectors/libvirt/heard.py",
        "            self._reports.clear()\n", "            pass\n", _PREFLIGHT,
    ),
    Mutant(
        "a boot leaves the panic before it standing", "connectors/libvirt/heard.py",
        "self._boots[vm] = self._number\n                self._reports.pop(vm, None)\n",
        "self._boots[vm] = self._number\n", _PREFLIGHT,
    ),
    Mutant(
        "another run of the VM is resumed", "engine/action/preflight.py",
        "    return paused and sample.instance == instance and not sample.opted_out\n",
        "    return paused and not sample.opted_out\n", _RESUMES,
    ),
    Mutant(
        "a resume is made up for whatever people said", "engine/roles/calling.py",
        "    if not finish.admitted:\n", "    if False:\n", _RESUMES,
    ),
    Mutant(
        "libvirt resumes whatever is paused", "connectors/libvirt/resets.py",
        "    if not was_reset(state):\n", "    if False:\n",
        ("tests/unit/connectors/libvirt/test_actuator.py",),
    ),
    Mutant(
        "the look may be old when the call is made", _ACT,
        "        if send_within_s <= 0:\n", "        if False:\n", ROLES,
    ),
    Mutant(
        "the pause that was read may be old when the call is made", _ACT,
        "BARRIER_S - commands_s, ", "", _CLOCKS,
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
)  # fmt: skip

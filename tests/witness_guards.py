"""The guards of the rule that a death needs two witnesses, and how each is removed."""

from typing import Final

from tests.mutant import Mutant

_ALERT: Final = "engine/wire/alert.py"
_HYPOTHESES: Final = "engine/detection/hypotheses.py"
_WITNESSES: Final = "engine/detection/witnesses.py"
_LIFECYCLE: Final = "engine/detection/lifecycle.py"
_SUITE: Final = (
    "tests/unit/engine/detection/test_witnesses.py",
    "tests/unit/engine/detection/test_lived.py",
)
_UNSEEN: Final = ("tests/unit/engine/detection/test_unseen.py",)
_GATE: Final = ("tests/unit/engine/detection/test_gate.py",)
_EVIDENCE: Final = ("tests/unit/engine/detection/test_evidence.py",)
_RATES: Final = ("tests/unit/engine/detection/test_rates.py",)
_KERNEL: Final = ("tests/unit/models/kernels/test_standstill.py",)

WITNESS_MUTANTS: Final = (
    Mutant(
        "any nats count", _ALERT,
        " and worth[witness] > 0.0 and worth[witness] >= least[witness]\n",
        " and worth[witness] > 0.0\n", _SUITE,
    ),
    Mutant(
        "what stood still before the silence is a witness", _WITNESSES,
        "    return still_s > seen.run_s + max(configuration.precedes_s, 2.0 * seen.dt_s)\n",
        "    return False\n", _SUITE,
    ),
    Mutant(
        "activity alone is enough", _ALERT,
        '("activity" in heard and len(heard) > 1)', '"activity" in heard', _SUITE,
    ),
    Mutant(
        "two that are not activity are enough", _ALERT,
        '("activity" in heard and len(heard) > 1)', "len(heard) > 1", _SUITE,
    ),
    Mutant(
        "a name that is no witness counts", _ALERT,
        "    heard = set(witnesses) & set(WITNESSES)\n", "    heard = set(witnesses)\n", _SUITE,
    ),
    Mutant(
        "the planner does not ask for a second witness", "engine/action/ordering.py",
        "    if step.action in DESTRUCTIVE and not may_be_reset(alert.witnesses):\n",
        "    if False:\n",
    ),
    Mutant(
        "what is only to be looked at is ordered", "engine/action/actions.py",
        'harm=Harm.RESET, signals={"reboot"}', 'harm=Harm.RESET, signals={"reboot", "inspect"}',
    ),
    Mutant(
        "a console's text attests a crash", "engine/action/ordering.py",
        '    "told": "guest", "watchdog": "guest", "crashed": "hypervisor",\n',
        '    "told": "guest", "watchdog": "guest", "crashed": "hypervisor",\n'
        '    "console_panic": "guest",\n',
    ),
    Mutant(
        "signs of life hold back no order", _HYPOTHESES,
        'seen.shape == "unknown" or signs_of_life(others):\n', 'seen.shape == "unknown":\n', _SUITE,
    ),
    Mutant(
        "signs of life hold back no panic that was told", _HYPOTHESES,
        "    refusals = [*cautious, *signs_of_life(others)]\n", "    refusals = [*cautious]\n",
        _SUITE,
    ),
    Mutant(
        "other vCPUs that moved meanwhile are not waited for", _HYPOTHESES,
        "        others_s = seen.others.run_s\n", "        pass\n", _SUITE,
    ),
    Mutant(
        "a vCPU that works beside the busy one is no sign of life", _WITNESSES,
        "        if still.reported == standstill.MOVED:\n", "        if False:\n", _SUITE,
    ),
    Mutant(
        "an answer to a probe is no sign of life", "engine/detection/evidence.py",
        "        if answered_ms > onset_ms and answered_ms >= taken_back[who]\n",
        "        if False\n", _SUITE,
    ),
    Mutant(
        "a probe counts however long ago it was answered", _LIFECYCLE,
        "        if is_fresh and event_ms >= vm.probe_answered_ms:\n",
        "        if event_ms >= vm.probe_answered_ms:\n", _SUITE,
    ),
    Mutant(
        "silence is believed from any node's agent", _LIFECYCLE,
        "    if home is None or home.name != node:\n", "    if home is None:\n", _SUITE,
    ),
    Mutant(
        "the CPU level leaves out what the guest waited for", "models/kernels/state_update.py",
        "    wanted = cpu + (0.0 if math.isnan(delay) else delay)\n", "    wanted = cpu\n",
        _EVIDENCE,
    ),
    Mutant(
        "less wanted is a fall", "engine/detection/evidence.py",
        "seen.cpu_before and used <= ratio * used_before\n", "seen.cpu_before\n", _EVIDENCE,
    ),
    Mutant(
        "less used is a fall", "engine/detection/evidence.py",
        "    return seen.cpu <= ratio * seen.cpu_before and used", "    return used", _EVIDENCE,
    ),
    Mutant(
        "a silence of an earlier release has not fallen", "engine/detection/evidence.py",
        "    used_before = seen.used_before or math.inf\n",
        "    used_before = seen.used_before\n", _EVIDENCE,
    ),
    Mutant(
        "a jump of the delay counter counts as waiting", "models/kernels/state_update.py",
        "    if not is_possible:\n        delay = np.nan\n", "", _RATES,
    ),
    Mutant(
        "a jump of the delay counter lowers the level", "models/kernels/state_update.py",
        "known[index] and is_possible, ", "known[index], ", _RATES,
    ),
    Mutant(
        "no vCPU waits for longer than a sample", "models/kernels/state_update.py",
        "_LONGEST_WAIT_S: Final = 60.0\n", "_LONGEST_WAIT_S: Final = 0.0\n", _RATES,
    ),
    Mutant(
        "a jump of the CPU counter counts as use", "models/kernels/state_update.py",
        " or (count > 0 and cpu > count + _MOST_OVERHEAD):\n", ":\n", _RATES,
    ),
    Mutant(
        "busy vCPUs teach how long idle ones stand still", "models/kernels/standstill.py",
        "    if is_idle:\n        return silence_model.ALIVE\n",
        "    return silence_model.ALIVE\n", _KERNEL,
    ),
    Mutant(
        "work ends a standstill as a timer does", "models/kernels/standstill.py",
        "return silence_model.CUT_SHORT if stood", "return silence_model.ALIVE if stood", _KERNEL,
    ),
    Mutant(
        "work teaches how long idle vCPUs stand still", "models/kernels/standstill.py",
        "            most_ns = idle_ns if rests[index] else 0.0\n",
        "            most_ns = idle_ns\n", _KERNEL,
    ),
    Mutant(
        "vCPUs that stand still as they often did are a witness", "models/kernels/standstill.py",
        "SHARE: Final = np.float32(0.25)\n", "SHARE: Final = np.float32(1)\n", _SUITE,
    ),
    Mutant(
        "vCPUs that stop long after the last byte are believed at once", _HYPOTHESES,
        "    if usual or _is_older_than_its_halt(seen, configuration):\n", "    if usual:\n",
        _SUITE,
    ),
    Mutant(
        "vCPUs that moved in this very silence are a witness at once", _WITNESSES,
        "    if seen.lived is not None and not _outlasts(still, seen.lived, configuration):\n",
        "    if False:\n", _SUITE,
    ),
    Mutant(
        "work of other vCPUs counts as their standstill", "engine/detection/judge.py",
        "    if lives or (follows and seen.others.reported == standstill.MOVED):\n",
        "    if lives:\n", _SUITE,
    ),
    Mutant(
        "work hides how long the vCPUs sleep", "engine/detection/judge.py",
        "    follows = seen.lived is not None and seen.lived.ago_s <= 1.5 * seen.dt_s\n",
        "    follows = seen.lived is not None\n", _SUITE,
    ),
    Mutant(
        "work of other vCPUs is a sign of life", "engine/detection/judge.py",
        "        seen = note_life(node, table, index, seen, is_sign=lives)\n",
        "        seen = note_life(node, table, index, seen)\n", _SUITE,
    ),
    Mutant(
        "a guest that lived in its silence is alerted each time it stands still", _HYPOTHESES,
        "    if _is_of_job(seen, (*shown, *rest), configuration):\n", "    if False:\n",
        _SUITE,
    ),
    Mutant(
        "a guest that comes back again and again is told each time",
        "engine/detection/incidents.py",
        "        if _is_habit(known, finding, vm, now):\n",
        "        if False:\n", _SUITE,
    ),
    Mutant(
        "a kernel that serves its timers has halted", _HYPOTHESES,
        '    return seen.shape == "idle" and seen.whole.reported == standstill.MOVED\n',
        "    return False\n", _SUITE,
    ),
    Mutant(
        "a death that is to be ordered waits until its kind has settled",
        "engine/detection/incidents.py",
        ' or finding.suggestion == "reboot":\n', ":\n",
        ("tests/unit/engine/detection/test_incidents.py",),
    ),
    Mutant(
        "an order goes out in the sample in which its pool stops", "engine/detection/judge.py",
        "    verdict = _held_by_mates(cell, vm, verdict, seen, stopped)\n", "", _GATE,
    ),
    Mutant(
        "a crashed VM waits for those that it shares a pool with", "engine/detection/judge.py",
        "    if seen.crashed or verdict.suggestion not in", "    if verdict.suggestion not in",
        _GATE,
    ),
    Mutant(
        "a pool that goes on holds orders back", "engine/detection/stopped.py",
        "        and moved[thing] < configuration.stopped_ratio * count\n", "", _GATE,
    ),
    Mutant(
        "two VMs are a pool that stops", "engine/detection/stopped.py",
        "        if count >= configuration.gate_members\n", "        if count >= 1\n", _GATE,
    ),
    Mutant(
        "a VM that its owner paused is at work", "engine/detection/movement.py",
        " & meant_to_run(table) & is_reported\n", " & is_reported\n", _GATE,
    ),
    Mutant(
        "a VM without a report in the newest sample counts as active",
        "engine/detection/movement.py",
        " & meant_to_run(table) & is_reported\n", " & meant_to_run(table)\n", _GATE,
    ),
    Mutant(
        "VMs that their owner paused fall silent again and again", "engine/detection/gate.py",
        "table.which(bit) & meant_to_run(table)", "table.which(bit)", _GATE,
    ),
    Mutant(
        "a stall goes on while its VMs are paused", "engine/detection/gate.py",
        "        if not any(_may_move(cell, vm) for vm in cause.fell):\n",
        "        if not any(vm in cell.vms for vm in cause.fell):\n", _GATE,
    ),
    Mutant(
        "a monitor hangs until somebody says that it does not", "engine/detection/judge.py",
        "    forget_hung_monitor(vm)\n", "", _UNSEEN,
    ),
    Mutant(
        "a monitor hangs on in a new run of the collector", "engine/detection/fold.py",
        "        _forget_hung_monitors(cell, node)\n", "        pass\n", _UNSEEN,
    ),
    Mutant(
        "a VM is started with a hung monitor", _LIFECYCLE,
        '"shutdown", "job_active", "monitor_hung"),\n', '"shutdown", "job_active"),\n', _UNSEEN,
    ),
    Mutant(
        "nodes that died disturb the others for as long as they are known",
        "engine/detection/liveness.py",
        "        if _is_long_silent(cell, cell.nodes[name], configuration):\n",
        "        if False:\n", _UNSEEN,
    ),
    Mutant(
        "nodes that fall silent disturb nobody", "engine/detection/liveness.py",
        "    return silent_ms >= 2 * configuration.node_silent_intervals * node.interval_ms\n",
        "    return silent_ms >= 0\n", _UNSEEN,
    ),
    Mutant(
        "a stall explains whatever comes after it", "engine/detection/gate.py",
        "        if _outlived(cell, cause, vm, configuration):\n", "        if False:\n", _GATE,
    ),
    Mutant(
        "a stall whose VMs are silent for good explains nobody who worked on",
        "engine/detection/gate.py",
        "    return silent < configuration.gate_release_share * len(fell)\n",
        "    return True\n", _GATE,
    ),
    Mutant(
        "vCPUs that take turns stand still", "models/kernels/standstill.py",
        "    changed = mover[index] >= 0 and most > 0 and busiest != mover[index]\n",
        "    changed = False\n", _KERNEL,
    ),
)  # fmt: skip

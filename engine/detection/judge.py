"""Judge each cell once per window: all live nodes reported, or the allowed lateness is over."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np

from flatline.engine.detection import sentences
from flatline.engine.detection.aggregate_evidence import is_correlated, judge_aggregates
from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.correlated_failures import judge_correlated_failures
from flatline.engine.detection.coverage import devices_of, ways
from flatline.engine.detection.departures import end_departed, end_of_vms
from flatline.engine.detection.evidence import Picture, explanations, note_life, picture, vetoes
from flatline.engine.detection.fold import set_inhibitions
from flatline.engine.detection.forest import opinion, score_gated
from flatline.engine.detection.gate import explains, judge_gate
from flatline.engine.detection.hypotheses import Verdict, judge_vm
from flatline.engine.detection.incidents import SLOW_KINDS, confidence, settle
from flatline.engine.detection.lifecycle import forget_hung_monitor
from flatline.engine.detection.liveness import (
    check_absent,
    check_contention,
    check_members,
    check_nodes,
    check_reboots,
    check_sight,
)
from flatline.engine.detection.notices import follow_notices
from flatline.engine.detection.outcomes import (
    Explained,
    Finding,
    Outcome,
    is_notice,
    key_of,
    text_of,
    uuid_of,
)
from flatline.engine.detection.ownership import check_identities
from flatline.engine.detection.recovery import follow_vm
from flatline.engine.detection.screening import screen
from flatline.engine.detection.slow import judge_trends
from flatline.engine.detection.stopped import shares_with, stopped_just_now
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.detection.windows import moves_ahead
from flatline.engine.detection.witnesses import shows_life, witness_items
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.metrics import VM_STATES
from flatline.models.kernels import standstill
from flatline.models.kernels.screening import ONLY_AGGREGATES, SUSPECT

_RUNNING = VM_STATES.index("running")
# Samples with activity that end an inhibition: a single one may include activity from before the
# event.
_LIFE_SAMPLES = 2
# One stuck VM of fifty makes tasks of a node wait for disks for this share of the time.
_NODE_WAITS_RATIO = 0.015


def judge(cell: Cell, now: Now) -> list[Alert]:
    """Close the window; return the alerts to publish, in order."""
    cell.out_of_order.turn(now.time_ms, round(now.configuration.overtaken_window_s * 1000))
    screen(cell, now.configuration)
    score_gated(cell)
    check_sight(cell, now)
    cell.reported.clear()
    cell.beyond.clear()
    cell.round_ms = 0
    cell.closed_ms = now.time_ms
    cell.counts.windows += 1
    return settle(cell, _outcomes(cell, now), now)


def _outcomes(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Yield the outcomes of each detector; later detectors see the incidents they opened."""
    yield from check_nodes(cell, now)
    yield from check_members(cell, now)
    yield from judge_gate(cell, now)
    yield from judge_correlated_failures(cell, now)
    found: set[bytes] = set()
    held: dict[bytes, bool] = {}
    yield from _judge_vms(cell, found, held, now)
    yield from judge_trends(cell, found, now)
    yield from check_contention(cell, now)
    yield from check_reboots(cell, now)
    yield from _follow(cell, found, now)
    for cause in cell.common_causes.values():
        held |= dict.fromkeys(cause.members, True)
    set_inhibitions(cell, held)
    yield from _unwatch(cell, now)


def _judge_vms(
    cell: Cell, found: set[bytes], held: dict[bytes, bool], now: Now
) -> Iterator[Outcome]:
    """Yield the outcomes of all suspects; add those with a fault to `found`."""
    # Computed only where an action would be suggested, and once per window.
    stopped = cache(partial(stopped_just_now, cell, now.configuration))
    for name in sorted(cell.tables):
        node, table = cell.nodes[name], cell.tables[name]
        if node.silent:
            continue
        for index in _suspects(cell, table):
            uuid = table.vm(index)
            vm = cell.vms[uuid]
            if vm.node != name:
                continue
            if not (vm.reported or table.flags[index] >> SUSPECT & 1):
                # The VM is watched but not suspect. It has no fault; its silence may be explained.
                if _is_explained(cell, node, table, index, vm, now):
                    held[uuid] = True
                continue
            outcome, is_found = _judge_one(cell, node, table, index, held, stopped, now)
            if outcome is not None:
                yield outcome
            if is_found:
                found.add(uuid)


def _suspects(cell: Cell, table: VmTable) -> list[int]:
    """Return the rows to examine: suspects and watched VMs."""
    found = {table.indices[vm] for vm in cell.watched if vm in table.indices}
    if table.found[SUSPECT]:
        found.update(np.flatnonzero(table.which(SUSPECT)).tolist())
    return sorted(found)


def _is_explained(
    cell: Cell,
    node: Node,
    table: VmTable,
    index: int,
    vm: Vm,
    now: Now,
) -> bool:
    """Return whether a silence of a VM would have an external reason."""
    state, job_active = table.number("state", index), table.number("job_active", index) > 0
    reasons = explanations(vm, state=state, job_active=job_active, time_ms=now.time_ms)
    by_aggregates = bool(table.flags[index] >> ONLY_AGGREGATES & 1)
    if any(reason != "boot" for reason in reasons) or (
        by_aggregates and is_correlated(table, index)
    ):
        return True
    silent = table.number("run_samples", index) > 0
    onset_ms = table.number("onset_ms", index) if silent else node.event_ms
    return explains(cell, vm.uuid, onset_ms=onset_ms, configuration=now.configuration) is not None


def _judge_one(
    cell: Cell,
    node: Node,
    table: VmTable,
    index: int,
    held: dict[bytes, bool],
    stopped: Callable[[], frozenset[tuple[str, str]]],
    now: Now,
) -> tuple[Outcome | None, bool]:
    """Judge one VM; return the outcome, None for none, and whether a fault was found."""
    time_ms, configuration = now
    by_aggregates = bool(table.flags[index] >> ONLY_AGGREGATES & 1)
    vm = cell.vms[table.vm(index)]
    seen = picture(node, table, index, vm, configuration)
    others = witness_items(seen, configuration)
    lives = shows_life(seen, others, configuration)
    # Work ends a standstill of the other vCPUs early and hides how long it would have lasted. So it
    # is recorded only in the sample after a sign of life (half an interval allows for jitter).
    follows = seen.lived is not None and seen.lived.ago_s <= 1.5 * seen.dt_s
    if lives or (follows and seen.others.reported == standstill.MOVED):
        seen = note_life(node, table, index, seen, is_sign=lives)
        others = witness_items(seen, configuration)
    explained, cautious = vetoes(cell, node, vm, seen, time_ms=time_ms)
    if moves_ahead(cell, node, table, index):
        cautious = [*cautious, "moves_again"]
    waits = node.gauges.get("psi_io_some_ratio", 0.0) >= _NODE_WAITS_RATIO
    if by_aggregates and not (seen.crashed or seen.reported):
        verdict = judge_aggregates(table, index, seen, others, cautious, configuration)
    else:
        verdict = judge_vm(seen, others, cautious, configuration, node_waits_for_io=waits)
    onset_ms = seen.onset_ms if verdict is None else verdict.onset_ms
    common_cause = explains(cell, vm.uuid, onset_ms=onset_ms, configuration=configuration)
    if common_cause is not None:
        explained = [*explained, f"{common_cause.scope}:{common_cause.subject}"]
    if by_aggregates and is_correlated(table, index):
        explained = [*explained, f"cell:{cell.name}"]
    if explained:
        held[vm.uuid] = True
    if verdict is None:
        return None, False
    text = text_of(vm.uuid)
    if explained:
        incident = cell.incidents.get(key_of("vm", text))
        # An alert that the VM is missing stays: this is itself the explanation of the silence.
        if incident is None or incident.alert.kind == Kind.VM_SILENCE:
            return None, True
        # Slow faults continue or end as if the VM were not silent.
        if incident.alert.kind in SLOW_KINDS:
            return None, False
        cause = common_cause.incident if common_cause is not None else None
        return Explained(incident, tuple(explained), cause), True
    verdict = _held_by_mates(cell, vm, verdict, seen, stopped)
    return _finding(cell, node, table, index, vm, text, seen, verdict, configuration), True


def _held_by_mates(
    cell: Cell,
    vm: Vm,
    verdict: Verdict,
    seen: Picture,
    stopped: Callable[[], frozenset[tuple[str, str]]],
) -> Verdict:
    """Return the verdict without its action if most VMs of a shared resource have just stopped."""
    # A VM that its hypervisor holds as crashed is not delayed.
    if seen.crashed or verdict.suggestion not in {"reboot", "migrate"}:
        return verdict
    correlated = shares_with(cell, vm.uuid, stopped())
    if correlated is None:
        return verdict
    return verdict._replace(
        suggestion="alert", vetoes=(*verdict.vetoes, f"stopped_just_now:{correlated}")
    )


def _finding(
    cell: Cell,
    node: Node,
    table: VmTable,
    index: int,
    vm: Vm,
    text: str,
    seen: Picture,
    verdict: Verdict,
    configuration: Configuration,
) -> Finding:
    strange = opinion(table, index)
    return Finding(
        scope="vm",
        subject=text,
        kind=verdict.kind,
        firing=verdict.firing,
        severity=verdict.severity,
        suggestion=verdict.suggestion,
        confidence=confidence(verdict.score, configuration),
        onset_ms=verdict.onset_ms,
        position=node.position(verdict.sequence),
        sentence=sentences.of_verdict(
            sentences.name_of(vm, text),
            node.name,
            verdict,
            seen,
            way=ways(devices_of(vm)),
        ),
        evidence=verdict.evidence if strange is None else (*verdict.evidence, strange),
        vetoes=verdict.vetoes,
        node=node.name,
        instance=table.number("instance", index),
        history_s=round(table.figure("history_s", index), 3),
        cpu_shape=verdict.shape,
    )


def _follow(cell: Cell, found: set[bytes], now: Now) -> Iterator[Outcome]:
    """Continue the open incidents of VMs for which this window found no fault."""
    for uuid in sorted(cell.watched):
        absent = check_absent(cell, cell.vms[uuid], now)
        if absent is not None:
            yield absent
    yield from end_departed(cell, now)
    yield from check_identities(cell, time_ms=now.time_ms)
    yield from follow_notices(cell, now)
    for key, incident in sorted(cell.incidents.items()):
        alert = incident.alert
        if alert.state == "resolved":
            kept_ms = now.configuration.resolved_kept_s * 1000
            if now.time_ms - incident.published_ms > kept_ms and not _goes_on(cell, key, alert):
                del cell.incidents[key]
            continue
        if alert.scope != "vm" or is_notice(key):
            continue
        uuid = uuid_of(alert.subject)
        contended = alert.kind == Kind.NODE_CONTENTION and incident.reported_action is None
        if uuid in found and not contended:
            continue
        vm = cell.vms.get(uuid)
        if vm is not None:
            yield follow_vm(cell, incident, vm, now)


def _goes_on(cell: Cell, key: str, alert: Alert) -> bool:
    """Return whether an alert's silence still lasts: a new finding would have the same id."""
    if alert.scope != "vm" or is_notice(key):
        return False
    located = cell.locate(uuid_of(alert.subject))
    if located is None:
        return False
    _, table, index = located
    is_silent = table.number("run_samples", index) > 0
    return is_silent and table.number("onset_ms", index) == alert.onset_ms


def _believe_life(cell: Cell, vm: Vm) -> None:
    """If the guest is active, end inhibitions whose closing event never arrived."""
    located = cell.locate(vm.uuid)
    if located is None or vm.gone_ms:
        return
    _, table, index = located
    running = table.number("state", index) == _RUNNING
    if not running or table.number("alive_samples", index) < _LIFE_SAMPLES:
        return
    vm.left_by_command = False
    vm.reported, vm.said = "", {}
    forget_hung_monitor(vm)
    for reason in ("paused", "stopped", "shutdown"):
        if vm.inhibitions.get(reason, 0) < 0:
            del vm.inhibitions[reason]


def _unwatch(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Drop VMs that left long ago and expired inhibitions; no longer watch VMs without events."""
    time_ms, configuration = now
    old_ms = time_ms - round(configuration.resolved_kept_s * 1000)
    forgotten: list[bytes] = []
    for uuid in sorted(cell.watched):
        vm = cell.vms[uuid]
        _believe_life(cell, vm)
        vm.inhibitions = {
            reason: until_ms
            for reason, until_ms in vm.inhibitions.items()
            if until_ms < 0 or until_ms > time_ms
        }
        if vm.gone_ms and vm.gone_ms < old_ms and not _is_missed(cell, vm, now):
            forgotten.append(uuid)
            continue
        open_incident = cell.incidents.get(key_of("vm", text_of(uuid)))
        busy = (
            vm.inhibitions
            or vm.gone_ms
            or vm.reported
            or vm.said
            or vm.twice
            or vm.reboot_pending
            or vm.monitor_hung_ms
            or (vm.missed_ms and time_ms - vm.missed_ms < configuration.host_member_s * 1000)
            or vm.rebooted_ms > old_ms
            or (vm.reported_action is not None and vm.reported_action.time_ms > old_ms)
            or open_incident is not None
        )
        if not busy:
            cell.watched.discard(uuid)
    yield from end_of_vms(cell, forgotten, "it was removed long ago")


def _is_missed(cell: Cell, vm: Vm, now: Now) -> bool:
    """Return whether a VM that disappeared without an event still has a firing alert."""
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    is_reported = incident is not None and incident.alert.state == "firing"
    recently = now.time_ms - vm.gone_ms < now.configuration.forget_s * 1000
    return is_reported and recently and not vm.left_by_command

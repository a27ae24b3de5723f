"""Detect slow faults: leaks, runaways, floods, slow disks, unannounced boots.

They develop over hours and use means of five minutes (`models.kernels.trends`). None is urgent.
"""

from collections.abc import Iterator

import numpy as np

from engine.detection import sentences
from engine.detection.cell import Cell, Node, Vm
from engine.detection.configuration import Now
from engine.detection.incidents import SLOW_KINDS, news_ms
from engine.detection.lanes import Lanes
from engine.detection.outcomes import Finding, key_of, text_of
from engine.detection.totals import is_shared
from engine.faults import Kind
from engine.wire.alert import EvidenceItem, Suggestion
from models.kernels import glance, trends

_O = trends.OUT
_SIGNS = (glance.LEAK, glance.FLOOD, glance.RUNAWAY, glance.SLOWED, glance.BOOTED)
# An event this soon after an incident belongs to it.
_AFTER_MS = 3_600_000


def judge_trends(cell: Cell, found: set[bytes], now: Now) -> Iterator[Finding]:
    """Yield the slow faults; add the VMs with one to `found`."""
    for name in sorted(cell.lanes):
        node, lanes = cell.nodes[name], cell.lanes[name]
        if node.silent or not any(lanes.found[sign] for sign in _SIGNS):
            continue
        leak, flood, runaway, slowed, booted = (lanes.which(sign) for sign in _SIGNS)
        if lanes.found[glance.BOOTED] >= now.configuration.boot_storm_members:
            # Guests of a node that boot together have a fault of the node.
            booted &= False
        for lane in np.flatnonzero(leak | flood | runaway | slowed | booted):
            vm = cell.vms[lanes.vm(int(lane))]
            if vm.node != name or _is_excused(cell, vm, lanes, int(lane), now):
                continue
            if leak[lane]:
                finding = _leak(node, lanes, int(lane), vm)
            elif flood[lane]:
                finding = _flood(cell, node, lanes, int(lane), vm, now)
            elif runaway[lane]:
                finding = _runaway(node, lanes, int(lane), vm)
            elif slowed[lane]:
                finding = _degraded(node, lanes, int(lane), vm)
            elif _is_own_boot(cell, vm, now):
                finding = _crash(node, lanes, int(lane), vm)
            else:
                continue
            found.add(vm.uuid)
            yield finding


def _is_excused(cell: Cell, vm: Vm, lanes: Lanes, lane: int, now: Now) -> bool:
    """Return whether another reason explains it, or an incident of another kind is open."""
    if vm.held_by(now.time_ms):
        return True
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    if incident is not None and incident.alert.state in {"pending", "firing"}:
        return incident.alert.kind not in SLOW_KINDS
    return is_shared(lanes, lane)


def _is_own_boot(cell: Cell, vm: Vm, now: Now) -> bool:
    """Return whether a boot was neither announced nor the end of an earlier incident."""
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    if incident is not None and now.time_ms - news_ms(incident) < _AFTER_MS:
        return False
    recently = now.time_ms - now.configuration.host_member_s * 1000
    if vm.missed_ms > recently or vm.rebooted_ms > now.time_ms - _AFTER_MS:
        return False
    return vm.mark is None or now.time_ms - vm.mark.time_ms > _AFTER_MS


def _finding(
    node: Node,
    lanes: Lanes,
    lane: int,
    vm: Vm,
    *,
    kind: Kind,
    sentence: str,
    evidence: EvidenceItem,
    suggestion: Suggestion | None = None,
) -> Finding:
    """Return the finding of a kind, with the suggestion of its row unless another is given."""
    text = text_of(vm.uuid)
    return Finding(
        scope="vm",
        subject=text,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion=suggestion or kind.fault.suggestion,
        confidence=0.9,
        onset_ms=node.event_ms,
        position=node.position(),
        sentence=(
            f"{sentences.name_of(vm, text)} on {node.name} {sentence} "
            f"Probable cause: {kind.fault.meaning}."
        ),
        evidence=(evidence,),
        node=node.name,
        instance=lanes.number("instance", lane),
        history_s=round(lanes.figure("history_s", lane), 3),
        cpu_shape="mixed",
    )


def _leak(node: Node, lanes: Lanes, lane: int, vm: Vm) -> Finding:
    growth = float(lanes.shows[lane, _O["growth"]])
    return _finding(
        node,
        lanes,
        lane,
        vm,
        kind=Kind.MEM_LEAK,
        sentence=(
            "has used more memory in nearly every five minutes of the last two and a half hours. "
            f"It now uses {growth:.1f} times as much as before."
        ),
        evidence=EvidenceItem(signal="memory", value=round(growth, 3)),
    )


def _runaway(node: Node, lanes: Lanes, lane: int, vm: Vm) -> Finding:
    cores = float(lanes.shows[lane, _O["runaway_cores"]])
    return _finding(
        node,
        lanes,
        lane,
        vm,
        kind=Kind.CPU_RUNAWAY,
        sentence=(
            f"has used {cores:.0f} more cores than ever before for an hour, while its disk and "
            "network activity is unchanged."
        ),
        evidence=EvidenceItem(signal="cpu", value=cores),
    )


def _degraded(node: Node, lanes: Lanes, lane: int, vm: Vm) -> Finding:
    hours, share = (float(lanes.shows[lane, _O[name]]) for name in ("slowed_hours", "write_share"))
    return _finding(
        node,
        lanes,
        lane,
        vm,
        kind=Kind.DEGRADING_STORAGE,
        sentence=(
            f"has written less in each of the last {hours:.0f} hours. Its write rate is now "
            f"{share:.0%} of the usual rate at this time of day, while its CPU use fell less."
        ),
        evidence=EvidenceItem(signal="writes", value=round(share, 3)),
    )


def _crash(node: Node, lanes: Lanes, lane: int, vm: Vm) -> Finding:
    return _finding(
        node,
        lanes,
        lane,
        vm,
        kind=Kind.CRASH_REBOOT,
        sentence="showed a CPU spike, stopped sending and booted, and nothing announced a reboot.",
        evidence=EvidenceItem(signal="boot", text="The counters look like those of a boot"),
    )


def _flood(
    cell: Cell,
    node: Node,
    lanes: Lanes,
    lane: int,
    vm: Vm,
    now: Now,
) -> Finding:
    work = lanes.shows[: len(lanes), _O["work_share"]].copy()
    work[lane] = 1.0
    victims = int(((work > 0) & (work < now.configuration.victim_share)).sum())
    calm = now.time_ms >= max(cell.disturbed_ms, cell.outage_ms) and not node.stale
    migrates = victims > 0 and calm and bool(lanes.which(glance.ONLY_TOTALS)[lane])
    return _finding(
        node,
        lanes,
        lane,
        vm,
        kind=Kind.NOISY_NEIGHBOUR,
        suggestion=None if migrates else "alert",
        sentence=(
            f"writes more than ever before, with all its CPU busy, while {victims} neighbours do "
            "less work."
        ),
        evidence=EvidenceItem(signal="neighbours", value=float(victims)),
    )

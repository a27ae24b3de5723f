"""Detect slow faults: leaks, runaways, floods, slow disks, unannounced boots.

They develop over hours and use means of five minutes (`models.kernels.trends`). None is urgent.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from flatline.engine.detection import sentences
from flatline.engine.detection.aggregate_evidence import is_correlated
from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.configuration import Now
from flatline.engine.detection.incidents import SLOW_KINDS, news_ms
from flatline.engine.detection.outcomes import Finding, key_of, text_of
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import EvidenceItem, Suggestion
from flatline.models.kernels import screening, trends

# A boot this soon after an incident or an action belongs to it.
_AFTER_MS = 3_600_000


class _Suspect(NamedTuple):
    """A VM with a sign of a slow fault."""

    cell: Cell
    node: Node
    table: VmTable
    row: int
    vm: Vm
    now: Now

    def shown(self, name: str) -> float:
        """Return a result of the slow trends by its name in `trends.OUT`."""
        return float(self.table.shows[self.row, trends.OUT[name]])


def judge_trends(cell: Cell, found: set[bytes], now: Now) -> Iterator[Finding]:
    """Yield the slow faults; add the UUIDs of the VMs with one to `found`."""
    for name in sorted(cell.tables):
        node, table = cell.nodes[name], cell.tables[name]
        signs = [sign for sign in _FINDERS if table.found[sign]]
        if table.found[screening.BOOTED] >= now.configuration.boot_storm_members:
            # Guests of a node that boot together have a fault of the node.
            signs.remove(screening.BOOTED)
        if node.silent or not signs:
            continue
        which = {sign: table.which(sign) for sign in signs}
        for index in np.flatnonzero(np.logical_or.reduce(list(which.values()))).tolist():
            vm = cell.vms[table.vm(index)]
            if vm.node != name or _is_excused(cell, vm, table, index, now):
                continue
            find = next(_FINDERS[sign] for sign in signs if which[sign][index])
            finding = find(_Suspect(cell, node, table, index, vm, now))
            if finding is not None:
                found.add(vm.uuid)
                yield finding


def _is_excused(cell: Cell, vm: Vm, table: VmTable, index: int, now: Now) -> bool:
    """Return whether the sign has another explanation, or an incident that is not slow is open."""
    if vm.inhibited_by(now.time_ms):
        return True
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    if incident is not None and incident.alert.state in {"pending", "firing"}:
        return incident.alert.kind not in SLOW_KINDS
    return is_correlated(table, index)


def _is_own_boot(cell: Cell, vm: Vm, now: Now) -> bool:
    """Return whether a boot was neither announced nor the end of an earlier incident."""
    incident = cell.incidents.get(key_of("vm", text_of(vm.uuid)))
    if incident is not None and now.time_ms - news_ms(incident) < _AFTER_MS:
        return False
    recently = now.time_ms - now.configuration.host_member_s * 1000
    if vm.missed_ms > recently or vm.rebooted_ms > now.time_ms - _AFTER_MS:
        return False
    return vm.reported_action is None or now.time_ms - vm.reported_action.time_ms > _AFTER_MS


def _finding(
    one: _Suspect,
    kind: Kind,
    sentence: str,
    evidence: EvidenceItem,
    suggestion: Suggestion | None = None,
) -> Finding:
    """Return the finding of a kind; without `suggestion` it has that of the kind."""
    text = text_of(one.vm.uuid)
    name = sentences.name_of(one.vm, text)
    return Finding(
        scope="vm",
        subject=text,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion=suggestion or kind.fault.suggestion,
        confidence=0.9,
        onset_ms=one.node.event_ms,
        position=one.node.position(),
        sentence=f"{name} on {one.node.name} {sentence} Probable cause: {kind.fault.meaning}.",
        evidence=(evidence,),
        node=one.node.name,
        instance=one.table.number("instance", one.row),
        history_s=round(one.table.figure("history_s", one.row), 3),
        cpu_shape="mixed",
    )


def _leak(one: _Suspect) -> Finding:
    growth = one.shown("growth")
    return _finding(
        one,
        Kind.MEM_LEAK,
        "has used more memory in nearly every five minutes of the last two and a half hours. "
        f"It now uses {growth:.1f} times as much as before.",
        EvidenceItem(signal="memory", value=round(growth, 3)),
    )


def _runaway(one: _Suspect) -> Finding:
    cores = one.shown("runaway_cores")
    return _finding(
        one,
        Kind.CPU_RUNAWAY,
        f"has used {cores:.0f} more cores than ever before for an hour, while its disk and "
        "network activity is unchanged.",
        EvidenceItem(signal="cpu", value=cores),
    )


def _degraded(one: _Suspect) -> Finding:
    hours, share = one.shown("slowed_hours"), one.shown("write_share")
    return _finding(
        one,
        Kind.DEGRADING_STORAGE,
        f"has written less in each of the last {hours:.0f} hours. Its write rate is now "
        f"{share:.0%} of the usual rate at this time of day, while its CPU use fell less.",
        EvidenceItem(signal="writes", value=round(share, 3)),
    )


def _crash(one: _Suspect) -> Finding | None:
    if not _is_own_boot(one.cell, one.vm, one.now):
        return None
    return _finding(
        one,
        Kind.CRASH_REBOOT,
        "showed a CPU spike, stopped sending and booted, and nothing announced a reboot.",
        EvidenceItem(signal="boot", text="The counters look like those of a boot"),
    )


def _flood(one: _Suspect) -> Finding:
    cell, table = one.cell, one.table
    work = table.shows[: len(table), trends.OUT["work_share"]].copy()
    work[one.row] = 1.0
    victims = int(((work > 0) & (work < one.now.configuration.victim_share)).sum())
    calm = one.now.time_ms >= max(cell.disturbed_ms, cell.outage_ms) and not one.node.stale
    migrates = victims > 0 and calm and bool(table.which(screening.ONLY_AGGREGATES)[one.row])
    return _finding(
        one,
        Kind.NOISY_NEIGHBOUR,
        f"writes more than ever before, with all its CPU busy, while {victims} neighbours do "
        "less work.",
        EvidenceItem(signal="neighbours", value=float(victims)),
        None if migrates else "alert",
    )


# Function that examines a VM, by its screening flag. Of several flags, the first one here counts.
_FINDERS: Final[Mapping[int, Callable[[_Suspect], Finding | None]]] = {
    screening.LEAK: _leak,
    screening.FLOOD: _flood,
    screening.RUNAWAY: _runaway,
    screening.SLOWED: _degraded,
    screening.BOOTED: _crash,
}

"""Detect correlated failures: a silence that many VMs share is one incident of what they share.

A shared resource is a pool, network, host or cell. 92 % of sudden silences in real fleets are
shared (research: fastStorage, 522 transitions). A common cause lasts until its members move again.
Until then it inhibits the verdicts on them, and their silence is not learned as usual.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection import sentences
from flatline.engine.detection.cell import Cell, CommonCause, Node
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.movement import SIGNALS, meant_to_run, moving, reporting, subjects
from flatline.engine.detection.outcomes import Ended, Finding, Outcome, key_of, text_of
from flatline.engine.detection.rates import MEANT_TO_RUN, SHARE_TAU_S
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import Kind, of_family
from flatline.engine.wire.alert import EvidenceItem, Resolution, Scope
from flatline.models.kernels import screening

# Kind of a stall, by the scope of the shared resource.
_KINDS: Final[Mapping[str, Kind]] = {
    scope: kind for kind in Kind if kind.fault.family == "stall" for scope in kind.fault.scopes
}
_FELL = {"disk": screening.FELL_DISK, "tx": screening.FELL_TX, "life": screening.FELL_LIFE}
# Alerts of these kinds report no silence: their VMs can still fall silent by a common cause.
_NO_SILENCE = of_family("slow", "contention")
# Maximum number of VMs in an alert; the sentence has the count.
_LISTED = 64
# Of several resources that explain the same VMs equally well, the most specific one is chosen.
_RANK = {"pool": 0, "network": 1, "host": 2, "cell": 3}


class Silence(NamedTuple):
    """One VM that fell silent recently, by one signal."""

    vm: bytes
    node: str
    sequence: int
    onset_ms: int


class Candidate(NamedTuple):
    """A shared resource whose VMs fell silent together, and the signal that stopped."""

    scope: Scope
    subject: str
    signal: str
    silent: tuple[Silence, ...]
    active: int
    share: float
    outside: float


def judge_gate(cell: Cell, now: Now) -> Iterator[Outcome]:
    """Open new common causes, and end those whose members move again.

    Apply each outcome before requesting the next one, as `incidents.settle` does.
    """
    yield from _release(cell, now)
    explained = {vm for cause in cell.common_causes.values() for vm in cause.members}
    found = list(_candidates(cell, explained, now.configuration))
    while found:
        best = max(found, key=_explains)
        yield _finding(cell, best, now.configuration)
        # The caller has applied the finding by now, so its incident is open.
        cause = _common_cause(cell, best, now)
        explained |= set(cause.members)
        found = list(_candidates(cell, explained, now.configuration))


def explains(
    cell: Cell, vm: bytes, *, onset_ms: int, configuration: Configuration
) -> CommonCause | None:
    """Return the common cause of a VM's silence, None where it has none.

    A cause does not explain a silence that was published and began more than `gate_earlier_s`
    before the cause. Nor does it explain the silence of a VM that still worked long after the cause
    began, if most other VMs have moved since. `onset_ms` is the event time at which it began.
    """
    for cause in cell.common_causes.values():
        if vm not in cause.members:
            continue
        incident = cell.incidents.get(key_of("vm", text_of(vm)))
        was_reported = (
            incident is not None
            and incident.alert.state in {"pending", "firing"}
            and incident.alert.kind not in _NO_SILENCE
        )
        earlier_ms = cause.onset_ms - configuration.gate_earlier_s * 1000
        if was_reported and onset_ms < earlier_ms:
            continue
        if _outlived(cell, cause, vm, configuration):
            continue
        return cause
    return None


def _outlived(cell: Cell, cause: CommonCause, vm: bytes, configuration: Configuration) -> bool:
    """Return whether a VM used its disks as usual long after a cause began, and most others moved.

    VMs that end their work together look like a stall, and still write a little now and then. If
    one of them dies hours later, its silence has another cause. A real stall either lets only
    single requests pass, so that no VM uses its disks as usual, or it blocks some requests for
    good, so that most VMs that fell silent stay silent.
    """
    after_ms = cause.onset_ms + round(1000 * configuration.gate_outlived_s)
    located = cell.locate(vm)
    if cause.signal == "tx" or located is None or not _served_after(located, after_ms):
        return False
    _, table, index = located
    before = 0.5 * math.exp(-float(table.disk[0, index]) / SHARE_TAU_S)
    if table.figure("disk_share", index) < before:
        return False
    fell = [there for one in cause.fell if (there := cell.locate(one)) and not there[0].silent]
    silent = sum(not _served_after(there, after_ms) for there in fell)
    return silent < configuration.gate_release_share * len(fell)


def _served_after(located: tuple[Node, VmTable, int], after_ms: int) -> bool:
    """Return whether a VM's disks moved after a moment, by its node's clock."""
    _, table, row = located
    is_silent = table.number("disk_samples", row) > 0
    return not is_silent or table.number("disk_onset_ms", row) > after_ms


def _explains(candidate: Candidate) -> tuple[float, int, int, str]:
    fit = round(candidate.share - candidate.outside, 1)
    return fit, len(candidate.silent), -_RANK[candidate.scope], candidate.subject


def _candidates(
    cell: Cell, explained: set[bytes], configuration: Configuration
) -> Iterator[Candidate]:
    """Yield every shared resource whose VMs fell silent together."""
    seen = reporting(cell)
    for signal, scopes in SIGNALS:
        silent = _silent(cell, seen, signal, explained, configuration)
        if len(silent) < configuration.gate_members:
            continue
        correlated = [
            scope for scope in scopes if _is_correlated(cell, scope, silent, configuration)
        ]
        # Active VMs are counted only if enough VMs of one resource fell silent. Most windows skip
        # this step.
        active = _moving_vms(cell, seen, signal, explained) | silent.keys() if correlated else set()
        for scope in correlated:
            yield from _by_scope(cell, scope, signal, silent, active, configuration)


def _is_correlated(
    cell: Cell, scope: str, silent: dict[bytes, Silence], configuration: Configuration
) -> bool:
    """Return whether enough of the silent VMs share one resource of this scope."""
    counts = Counter(subject for vm in silent for subject in subjects(cell, scope, vm))
    return max(counts.values(), default=0) >= configuration.gate_members


def _by_scope(
    cell: Cell,
    scope: str,
    signal: str,
    silent: dict[bytes, Silence],
    active: set[bytes],
    configuration: Configuration,
) -> Iterator[Candidate]:
    members: dict[str, set[bytes]] = {}
    for vm in active:
        for subject in subjects(cell, scope, vm):
            members.setdefault(subject, set()).add(vm)
    for subject, among in sorted(members.items()):
        hit = [silent[vm] for vm in among if vm in silent]
        share = _needed_share(scope, configuration)
        needed = max(configuration.gate_members, share * len(among))
        if len(hit) < needed:
            continue
        hit_share = len(hit) / len(among)
        others = len(active) - len(among)
        outside = (len(silent) - len(hit)) / others if others else 0.0
        if outside > hit_share / 2:
            # Other VMs fell silent too, so the cause is a resource that both groups share.
            continue
        if scope == "cell" and len({silence.node for silence in hit}) < 2:
            continue
        yield Candidate(
            scope=scope,  # type: ignore[arg-type]  # one of the four literals above
            subject=subject,
            signal=signal,
            silent=tuple(sorted(hit, key=lambda one: (one.onset_ms, one.node, one.vm))),
            active=len(among),
            share=hit_share,
            outside=outside,
        )


def _needed_share(scope: str, configuration: Configuration) -> float:
    wide = scope in {"host", "cell"}
    return configuration.gate_wide_share if wide else configuration.gate_share


def _silent(
    cell: Cell,
    seen: dict[str, VmTable],
    signal: str,
    explained: set[bytes],
    configuration: Configuration,
) -> dict[bytes, Silence]:
    """Return VMs that fell silent within `gate_window_s`; empty if too few for a common cause."""
    bit = _FELL[signal]
    silent: dict[bytes, Silence] = {}
    if sum(table.found[bit] for table in seen.values()) < configuration.gate_members:
        return silent
    prefix, onset = ("disk", "disk_onset_ms") if signal == "disk" else ("run", "onset_ms")
    for name, table in seen.items():
        sequences, onsets = table.numbers(f"{prefix}_sequence"), table.numbers(onset)
        if signal == "tx":
            sequences, onsets = _since_sent(cell.nodes[name], table)
        fell = np.flatnonzero(table.which(bit) & meant_to_run(table)) if table.found[bit] else ()
        for index in fell:
            vm = table.vm(int(index))
            if vm not in explained and vm in cell.vms:
                silent[vm] = Silence(vm, name, int(sequences[index]), int(onsets[index]))
    return silent


def _since_sent(node: Node, table: VmTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, per row, the first sample without transmit and its event time in ms."""
    # A VM that stops sending may still use its disks, so the overall silence does not show it.
    still_ms = 1000 * table.row("tx_still_s")[: len(table)]
    samples = np.maximum(np.rint(still_ms / node.interval_ms).astype(np.int64) - 1, 0)
    return node.sequence - samples, node.event_ms - samples * node.interval_ms


def _moving_vms(
    cell: Cell, seen: dict[str, VmTable], signal: str, explained: set[bytes]
) -> set[bytes]:
    """Return the VMs that are active now by one signal and are not explained."""
    return {
        vm
        for name, table in seen.items()
        for vm in map(table.vm, np.flatnonzero(moving(table, cell.nodes[name], signal)).tolist())
        if vm not in explained and vm in cell.vms
    }


def _finding(cell: Cell, cause: Candidate, configuration: Configuration) -> Finding:
    kind = _KINDS[cause.scope]
    first = cause.silent[0]
    text = sentences.of_common_cause(
        scope=cause.scope,
        subject=cause.subject,
        signal=cause.signal,
        count=len(cause.silent),
        active=cause.active,
        cell=cell.name,
    )
    return Finding(
        scope=cause.scope,
        subject=cause.subject,
        kind=kind,
        firing=True,
        severity=kind.fault.severity,
        suggestion=kind.fault.suggestion,
        confidence=round(cause.share, 4),
        onset_ms=first.onset_ms,
        position=cell.nodes[first.node].position(first.sequence),
        sentence=text,
        evidence=(
            EvidenceItem(
                signal=cause.signal,
                value=float(len(cause.silent)),
                # The field is declared as a float. After a restore, an int would be encoded as
                # other bytes.
                limit=max(
                    float(configuration.gate_members),
                    _needed_share(cause.scope, configuration) * cause.active,
                ),
                text=f"{len(cause.silent)} of {cause.active} active VMs fell silent",
            ),
        ),
        vms=tuple(text_of(one.vm) for one in cause.silent[:_LISTED]),
        node=cause.subject if cause.scope == "host" else None,
    )


def _common_cause(cell: Cell, cause: Candidate, now: Now) -> CommonCause:
    """Store a common cause whose incident is open, and return it."""
    key = key_of(cause.scope, cause.subject)
    common_cause = cell.common_causes[key] = CommonCause(
        scope=cause.scope,
        subject=cause.subject,
        signal=cause.signal,
        # The cause explains every VM that shares the resource, including idle ones.
        members=_sharing(cell, cause),
        fell=tuple(silence.vm for silence in cause.silent),
        incident=cell.incidents[key].alert.id,
        since_ms=now.time_ms,
        onset_ms=cause.silent[0].onset_ms,
    )
    return common_cause


def _sharing(cell: Cell, cause: Candidate) -> tuple[bytes, ...]:
    return tuple(sorted(vm for vm in cell.vms if cause.subject in subjects(cell, cause.scope, vm)))


def _release(cell: Cell, now: Now) -> Iterator[Outcome]:
    """End causes whose members move again; their inhibition lasts for `gate_grace_s` more."""
    time_ms, configuration = now
    for key, cause in sorted(cell.common_causes.items()):
        if cause.released_ms:
            if time_ms - cause.released_ms >= configuration.gate_grace_s * 1000:
                del cell.common_causes[key]
            continue
        still, active = _still_silent(cell, cause)
        if not any(_may_move(cell, vm) for vm in cause.fell):
            # All VMs that fell silent are paused, stopped or gone, so none will move again.
            del cell.common_causes[key]
            incident = cell.incidents.get(key)
            if incident is not None and incident.alert.state == "firing":
                yield Ended(
                    incident,
                    Resolution(reason="none of its VMs runs any more"),
                    f"None of the VMs of {cause.scope} {cause.subject} that fell silent "
                    "runs any more.",
                )
            continue
        if active and still < configuration.gate_release_share * active:
            cause.released_ms = time_ms
            incident = cell.incidents.get(key)
            if incident is not None and incident.alert.state == "firing":
                thing, lasted_s = (
                    f"{cause.scope} {cause.subject}",
                    (time_ms - cause.since_ms) / 1000,
                )
                yield Ended(
                    incident,
                    Resolution(reason=_KINDS[cause.scope].fault.recovered),
                    f"The VMs of {thing} are active again after {lasted_s:.0f} s.",
                )


def _may_move(cell: Cell, vm: bytes) -> bool:
    """Return whether a VM is meant to run; True on a silent node, where this is unknown."""
    located = cell.locate(vm)
    return located is not None and (located[0].silent or _is_meant_to_run(located[1], located[2]))


def _is_meant_to_run(table: VmTable, index: int) -> bool:
    return bool(MEANT_TO_RUN[table.number("state", index)])


def _still_silent(cell: Cell, cause: CommonCause) -> tuple[int, int]:
    """Return how many of the VMs that fell silent still are, and how many are visible."""
    still = seen = 0
    for vm in cause.fell:
        located = cell.locate(vm)
        if located is None or located[0].silent or not _is_meant_to_run(located[1], located[2]):
            continue
        node, table, index = located
        seen += 1
        if cause.signal == "tx":
            still += table.figure("tx_still_s", index) >= 2 * max(node.dt_s, 0.1)
        else:
            out = table.disk if cause.signal == "disk" else table.life
            still += bool(out[0, index] > 0)
    return still, seen

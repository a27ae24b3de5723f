"""Assign alerts to occurrences, and find false alarms and misses.

An incident is all lines with one alert id. It belongs to an occurrence if one of its firing lines
falls into the occurrence's time and it concerns the VMs, host or fleet of the occurrence. An
incident that belongs to no fault is false, unless it is the fleet or host alert that a confounder
requires. A suggestion to reboot or migrate a VM is false if no occurrence requires that action of
that VM, even if a guard would have stopped the order.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from flatline.engine.evaluation.lines import AlertLine
from flatline.engine.evaluation.truth import SCOPES, Occurrence

# Suggestions that affect a VM.
HARMFUL: Final = ("reboot", "migrate")
# An alert still belongs to an occurrence that ended at most this long ago (the longer of the two
# times), because consequences such as a boot or a written backlog are reported late.
_AFTER_INTERVALS: Final = 3.0
_AFTER_S: Final = 120.0
# In sampling intervals. A window closes a little after its sample, so a line that is late by up to
# this much still counts for the sample.
SAMPLE_SLACK: Final = 0.5

Chosen = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class ReportedIncident:
    """One incident: its lines, oldest first, with at least one firing."""

    id: str
    lines: tuple[AlertLine, ...]

    @property
    def firing(self) -> tuple[AlertLine, ...]:
        """The firing lines."""
        return tuple(line for line in self.lines if line.state == "firing")

    @property
    def first(self) -> AlertLine:
        """The first firing line."""
        return self.firing[0]

    def befalls(self) -> frozenset[str]:
        """Return the VMs that the incident names in its first firing line."""
        line = self.first
        return frozenset({line.subject}) if line.scope == "vm" else frozenset(line.vms)


@dataclass(frozen=True, slots=True)
class Finding:
    """One occurrence and the incidents that belong to it.

    Attributes
    ----------
    alert_s, suggestion_s
        Time from the start of the occurrence to the first firing line, and to the first firing line
        with the right suggestion; None if there is none.
    kind
        The last kind of the first incident about the occurrence; empty if there is none.
    extra
        Number of incidents beyond the first that belong to the occurrence. Incidents of victims do
        not count, nor do incidents of a shared resource that are about another occurrence.
    """

    occurrence: Occurrence
    reported: tuple[ReportedIncident, ...]
    alert_s: float | None
    suggestion_s: float | None
    kind: str
    extra: int


@dataclass(frozen=True, slots=True)
class FalseOrder:
    """A wrong suggestion to act on a VM; `behind` is the occurrence that caused it, or None."""

    incident: ReportedIncident
    line: AlertLine
    behind: Occurrence | None


@dataclass(frozen=True, slots=True)
class FalseAlert:
    """An incident that belongs to no fault; `behind` is its confounder, None if there is none."""

    incident: ReportedIncident
    behind: Occurrence | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of comparing a replay with the ground truth."""

    findings: tuple[Finding, ...]
    false_orders: tuple[FalseOrder, ...]
    false_alerts: tuple[FalseAlert, ...]
    reported: tuple[ReportedIncident, ...]


def incidents_of(lines: Iterable[AlertLine]) -> tuple[ReportedIncident, ...]:
    """Return the incidents that ever fired, sorted by the time of the first firing.

    `lines` are those of all alerts; the lines of one alert must be oldest first.
    """
    by_id: dict[str, list[AlertLine]] = {}
    for line in lines:
        by_id.setdefault(line.id, []).append(line)
    found = [ReportedIncident(name, tuple(own)) for name, own in by_id.items()]
    fired = [one for one in found if one.firing]
    return tuple(sorted(fired, key=lambda one: (one.first.t, one.id)))


def judge(
    lines: Iterable[AlertLine],
    truth: Sequence[Occurrence],
    *,
    interval_s: float,
    chosen: Chosen | None = None,
    aggregates_only: bool = False,
) -> Judgement:
    """Compare a replay with the ground truth.

    Parameters
    ----------
    lines
        All lines of the replay; those of one alert must be oldest first.
    interval_s
        Sampling interval of the recording.
    aggregates_only
        Whether the recording has only totals of each VM, so that no second witness is possible.
        The engine then suggests to inspect instead of to reboot, and this counts as a reboot.
    chosen
        Selects the VMs that count, for figures on a part of the VMs. Occurrences without such a VM
        and incidents of another VM are left out. None selects all.
    """
    reported = incidents_of(map(_decided, lines) if aggregates_only else lines)
    after_s = max(_AFTER_S, _AFTER_INTERVALS * interval_s)
    slack_s = SAMPLE_SLACK * interval_s
    belonging: dict[int, list[ReportedIncident]] = {}
    owned: dict[str, list[Occurrence]] = {}
    for place, occurrence in enumerate(truth):
        for one in reported:
            if _belongs(one, occurrence, before_s=slack_s, after_s=after_s):
                belonging.setdefault(place, []).append(one)
                owned.setdefault(one.id, []).append(occurrence)
    kept = [one for one in reported if _counts(one, chosen)]
    return Judgement(
        findings=tuple(
            _finding(
                occurrence,
                _about(occurrence, belonging.get(place, []), owned),
                before_s=slack_s,
                after_s=after_s,
            )
            for place, occurrence in enumerate(truth)
            if chosen is None or any(chosen(vm) for vm in occurrence.vms)
        ),
        false_orders=tuple(
            order for one in kept for order in _false_orders(one, owned.get(one.id, []))
        ),
        false_alerts=tuple(
            FalseAlert(one, _behind(owned.get(one.id, [])))
            for one in kept
            if not any(_explains(occurrence, one) for occurrence in owned.get(one.id, []))
        ),
        reported=tuple(kept),
    )


def _decided(line: AlertLine) -> AlertLine:
    is_sure = line.suggested_action == "inspect"
    return msgspec.structs.replace(line, suggested_action="reboot") if is_sure else line


def within_samples(delay_s: float | None, samples: int, interval_s: float) -> bool:
    """Return whether a delay is at most `samples` sampling intervals plus `SAMPLE_SLACK`.

    A delay of None means that nothing was found, and gives False.
    """
    return delay_s is not None and delay_s <= (samples + SAMPLE_SLACK) * interval_s


def _counts(one: ReportedIncident, chosen: Chosen | None) -> bool:
    if chosen is None or one.first.scope != "vm":
        return True
    return chosen(one.first.subject)


def _belongs(
    one: ReportedIncident, occurrence: Occurrence, *, before_s: float, after_s: float
) -> bool:
    begins = occurrence.start_s - before_s
    ends = occurrence.end_s + after_s
    if not any(begins <= line.t <= ends for line in one.firing):
        return False
    return _speaks_of(one.first, occurrence)


def _speaks_of(line: AlertLine, occurrence: Occurrence) -> bool:
    if line.scope == "vm":
        return line.subject in occurrence.vms or line.subject in occurrence.victims
    if line.scope in {"fleet", "cell"}:
        return occurrence.is_wide
    if line.scope == "host":
        return line.subject == occurrence.host or bool(occurrence.vms & set(line.vms))
    return bool(occurrence.vms & set(line.vms))


def _finding(
    occurrence: Occurrence, reported: list[ReportedIncident], *, before_s: float, after_s: float
) -> Finding:
    own = [one for one in reported if _answers(one, occurrence)]
    first = occurrence.start_s - before_s
    last = occurrence.end_s + after_s
    firing = sorted(
        (line for one in own for line in one.firing if first <= line.t <= last),
        key=lambda line: line.t,
    )
    right = [line for line in firing if line.suggested_action == occurrence.expected]
    # The reported kind is the last kind of its first incident.
    leading = [line for line in firing if line.id == firing[0].id]
    return Finding(
        occurrence=occurrence,
        reported=tuple(own),
        alert_s=firing[0].t - occurrence.start_s if firing else None,
        suggestion_s=right[0].t - occurrence.start_s if right else None,
        kind=leading[-1].kind if leading else "",
        extra=max(0, len([one for one in reported if not one.befalls() & occurrence.victims]) - 1),
    )


def _about(
    occurrence: Occurrence, reported: list[ReportedIncident], owned: dict[str, list[Occurrence]]
) -> list[ReportedIncident]:
    """Return the incidents without those of a shared resource that concern other occurrences."""
    # Example: if the fleet falls silent during a host outage, the incident of the fleet does not
    # count as a repeated incident of the host.
    return [
        one
        for one in reported
        if one.first.scope == "vm"
        or _answers(one, occurrence)
        or not any(_answers(one, other) for other in owned[one.id])
    ]


def _answers(one: ReportedIncident, occurrence: Occurrence) -> bool:
    """Return whether an incident is about the occurrence itself and not about its side effects."""
    scope = one.first.scope
    if occurrence.is_wide:
        return scope in SCOPES[occurrence.kind]
    return scope == "vm" and one.first.subject in occurrence.vms


def _explains(occurrence: Occurrence, one: ReportedIncident) -> bool:
    """Return whether the occurrence justifies the incident, so that it is no false alarm."""
    if occurrence.is_fault:
        # A fault of one guest does not justify an alert about its host or fleet.
        return one.first.scope == "vm" or occurrence.is_wide or bool(occurrence.victims)
    # A confounder justifies only the fleet or host alert that it requires.
    return occurrence.expected in {"fleet_alert", "host_alert"} and _answers(one, occurrence)


def _false_orders(one: ReportedIncident, owned: list[Occurrence]) -> list[FalseOrder]:
    found = []
    for action in HARMFUL:
        lines = [line for line in one.firing if line.suggested_action == action]
        right = any(
            occurrence.expected == action and one.first.subject in occurrence.vms
            for occurrence in owned
        )
        if lines and not right:
            found.append(FalseOrder(one, lines[0], _behind(owned, faults=True)))
    return found


def _behind(owned: list[Occurrence], *, faults: bool = False) -> Occurrence | None:
    """Return the cause of a false alarm: the confounder, else (for orders) the fault."""
    confounders = [occurrence for occurrence in owned if not occurrence.is_fault]
    if confounders:
        return confounders[0]
    return owned[0] if faults and owned else None

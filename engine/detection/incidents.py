"""Run the life cycle of incidents: pending, firing, resolved or suppressed; one per fault.

An incident keeps its id when its kind changes. Slow faults, which develop over hours, are an
exception: an urgent fault ends them and opens with its own id and its own start. Firing alerts are
published again every minute with the same id and transition, for planners that start late.
"""

import math
from collections.abc import Iterable
from typing import assert_never

import msgspec

from flatline.engine.detection.cell import Cell, Incident, Vm
from flatline.engine.detection.configuration import Configuration, Now, configuration_hash
from flatline.engine.detection.outcomes import (
    Calmed,
    Continued,
    Ended,
    Explained,
    Finding,
    Outcome,
    uuid_of,
)
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.faults import kind_of, of_family
from flatline.engine.wire.alert import Alert, Counted, Resolution, alert_id, counted_witnesses
from flatline.models.kernels import baseline

# Slow faults develop over hours (`engine.detection.slow`). An incident may change between these
# kinds. Every other fault of the VM is a separate incident.
SLOW_KINDS = of_family("slow")
# Where activity is the only witness, a computing guest looks like a dead one (`_is_habit`).
_DEATHS = of_family("death")
_ALONE = frozenset({"activity"})


def settle(cell: Cell, outcomes: Iterable[Outcome], now: Now) -> list[Alert]:
    """Apply each outcome before requesting the next; return the alerts to publish, in order."""
    alerts: list[Alert] = []
    for outcome in outcomes:
        match outcome:
            case Finding():
                alerts += _report(cell, outcome, now)
            case Ended():
                alerts.append(_resolve(cell, outcome, now))
            case Explained():
                alerts += _suppress(cell, outcome, now)
            case Calmed():
                alerts += _calm(outcome.incident, now)
            case Continued():
                alerts += _republish(outcome.incident, now)
            case _:
                assert_never(outcome)
    return alerts


def confidence(score: float, configuration: Configuration) -> float:
    """Return the probability of a fault (0 to 1) at this score in nats, from the prior odds."""
    return round(1.0 / (1.0 + math.exp(min(60.0, configuration.prior_nats - score))), 4)


def news_ms(incident: Incident) -> int:
    """Return the append time in ms from which an incident may explain a later boot.

    An incident that lasts for hours is published every minute. Only its opening may explain a boot.
    """
    alert = incident.alert
    is_slow = alert.kind in SLOW_KINDS and alert.state != "resolved"
    return alert.opened_ms if is_slow else incident.published_ms


def _report(cell: Cell, finding: Finding, now: Now) -> list[Alert]:
    """Open or continue the incident of a finding; return the alerts to publish."""
    vm = cell.vms.get(uuid_of(finding.subject)) if finding.scope == "vm" else None
    alerts = _opened_or_continued(cell, finding, vm, now)
    if finding.key:
        # For a notice this is the time of its last cause, not of recovery.
        cell.incidents[finding.key].well_ms = now.time_ms
    return alerts


def _opened_or_continued(cell: Cell, finding: Finding, vm: Vm | None, now: Now) -> list[Alert]:
    key = finding.place()
    known = cell.incidents.get(key)
    if known is not None and known.alert.state == "resolved":
        if _is_habit(known, finding, vm, now):
            return []
        if _returned(known, finding, now):
            known.flaps += 1
            known.reported_action = None
        else:
            known = None
    ended: list[Alert] = []
    if known is not None and _is_other(known, finding):
        if not finding.firing:
            # A suspicion does not end the slow fault. Its incident opens when it is confirmed.
            return _calm(known, now)
        if finding.position == known.alert.position:
            # One sample showed both faults, so they have the same alert id. The time to act on the
            # urgent one begins now.
            known.alert = msgspec.structs.replace(
                known.alert, opened_ms=now.time_ms, onset_ms=finding.onset_ms
            )
        else:
            ended, known = [_superseded(cell, known, finding, now)], None
    if known is None:
        alert = _opened(cell, finding, vm, now)
        cell.incidents[key] = Incident(alert=alert, published_ms=now.time_ms)
        cell.counts.alerts += 1
        return [*ended, alert]
    return _continued(cell, known, finding, vm, now)


def _continued(
    cell: Cell, known: Incident, finding: Finding, vm: Vm | None, now: Now
) -> list[Alert]:
    """Continue an open incident; return the alerts to publish."""
    known.well_ms = 0
    state = "firing" if finding.firing or known.alert.state == "firing" else "pending"
    before = known.alert
    finding = _settled(known, finding, now)
    kind, suggestion = finding.kind.value, finding.suggestion
    if before.state == "firing" and not finding.firing:
        kind = before.kind
        # An earlier suggestion continues only without vetoes and in the same run of the VM.
        if not finding.vetoes and finding.instance == before.instance:
            suggestion = before.suggested_action
    changed = (state, kind, suggestion) != (before.state, before.kind, before.suggested_action)
    if not changed and not (state == "firing" and _is_due(known, now)):
        return []
    known.alert = msgspec.structs.replace(
        before,
        transition=before.transition + 1 if changed else before.transition,
        state=state,
        kind=kind,
        suggested_action=suggestion,
        severity=finding.severity,
        confidence=finding.confidence,
        decided_ms=now.time_ms,
        sentence=finding.sentence,
        evidence=finding.evidence,
        vetoes=finding.vetoes,
        vms=finding.vms,
        node=finding.node,
        instance=finding.instance,
        history_s=finding.history_s,
        cpu_shape=finding.cpu_shape,
        incident=finding.incident,
        witnesses=counted_witnesses(finding.evidence),
        resolution=None,
    )
    known.alert = _identified(cell, known.alert, vm)
    known.published_ms = now.time_ms
    cell.counts.alerts += 1
    return [known.alert]


def _resolve(cell: Cell, ended: Ended, now: Now) -> Alert:
    return _close(cell, ended.incident, "resolved", now, ended.sentence, ended.resolution)


def _suppress(cell: Cell, outcome: Explained, now: Now) -> list[Alert]:
    incident = outcome.incident
    if incident.alert.state not in {"pending", "firing"}:
        return []
    name = incident.alert.name or incident.alert.subject
    sentence = (
        f"{name}: not judged on its own, because this explains it: {', '.join(outcome.vetoes)}."
    )
    incident.alert = msgspec.structs.replace(
        incident.alert, vetoes=outcome.vetoes, incident=outcome.explained_by
    )
    return [_close(cell, incident, "suppressed", now, sentence, None)]


def _calm(incident: Incident, now: Now) -> list[Alert]:
    alert = incident.alert
    if alert.state != "firing" or alert.suggested_action not in {"inspect", "reboot", "migrate"}:
        return _republish(incident, now)
    incident.alert = msgspec.structs.replace(
        alert, transition=alert.transition + 1, suggested_action="alert", decided_ms=now.time_ms
    )
    incident.published_ms = now.time_ms
    return [incident.alert]


def _republish(incident: Incident, now: Now) -> list[Alert]:
    if incident.alert.state != "firing" or not _is_due(incident, now):
        return []
    incident.alert = msgspec.structs.replace(incident.alert, decided_ms=now.time_ms)
    incident.published_ms = now.time_ms
    return [incident.alert]


def _is_due(incident: Incident, now: Now) -> bool:
    """Return whether a firing alert has to be published again."""
    return now.time_ms - incident.published_ms >= now.configuration.republish_s * 1000


def _is_other(known: Incident, finding: Finding) -> bool:
    """Return whether a slow fault is open and this finding is a fault that is not slow."""
    is_open = known.alert.state != "resolved"
    return is_open and known.alert.kind in SLOW_KINDS and finding.kind not in SLOW_KINDS


def _superseded(cell: Cell, known: Incident, finding: Finding, now: Now) -> Alert:
    """End a slow fault; the alert names the incident that replaces it."""
    alert = known.alert
    follower = alert_id(scope=finding.scope, subject=finding.subject, position=finding.position)
    reason = f"superseded by a new incident of kind {finding.kind}"
    ended = Ended(
        known,
        Resolution(reason=reason, superseded_by=follower),
        f"{alert.name or alert.subject}: {alert.kind} is {reason}.",
    )
    return _resolve(cell, ended, now)


def _settled(known: Incident, finding: Finding, now: Now) -> Finding:
    """Return the finding; a similar kind replaces the published one only after `hung_kind_s`."""
    # Guests that use no CPU look alike: they differ only in timers, which some kernels still serve
    # in some samples. A death with a suggestion to reboot is published immediately.
    alert, kind = known.alert, kind_of(known.alert.kind)
    is_alike = kind is not None and kind.fault.is_idle and finding.kind.fault.is_idle
    if kind is None or finding.kind is kind or not is_alike or finding.suggestion == "reboot":
        known.other_ms = 0
        return finding
    known.other_ms = known.other_ms or now.time_ms
    if now.time_ms - known.other_ms < now.configuration.hung_kind_s * 1000:
        is_mild = {finding.suggestion, alert.suggested_action} == {"alert", "inspect"}
        return msgspec.structs.replace(
            finding,
            kind=kind,
            sentence=alert.sentence,
            suggestion=alert.suggested_action if is_mild else finding.suggestion,
        )
    known.other_ms = 0
    return finding


def _returned(known: Incident, finding: Finding, now: Now) -> bool:
    """Return whether a resolved fault is back: the same silence, or the same kind soon after."""
    if finding.position == known.alert.position:
        return True
    recently = now.time_ms - known.published_ms < now.configuration.resolved_kept_s * 1000
    alone = known.alert.resolution is not None and not known.alert.resolution.verified
    return recently and alone and finding.kind == known.alert.kind and finding.firing


def _is_habit(known: Incident, finding: Finding, vm: Vm | None, now: Now) -> bool:
    """Return whether a guest recently returned by itself from a similar silence."""
    # With activity as the only witness, the next silence is then reported only at twice the length
    # of the last one, or after `lived_wait_s`.
    alert, resolution = known.alert, known.alert.resolution
    if resolution is None or resolution.verified or finding.position == alert.position:
        return False
    if vm is None or vm.rebooted_ms > alert.onset_ms or finding.instance != alert.instance:
        return False
    if {alert.kind, finding.kind} - _DEATHS or set(counted_witnesses(finding.evidence)) - _ALONE:
        return False
    lasted_ms = known.published_ms - alert.onset_ms
    wait_ms = min(2 * lasted_ms, round(now.configuration.lived_wait_s * 1000))
    return now.time_ms - finding.onset_ms < wait_ms


def _close(
    cell: Cell,
    incident: Incident,
    state: str,
    now: Now,
    sentence: str,
    resolution: Resolution | None,
) -> Alert:
    incident.alert = msgspec.structs.replace(
        incident.alert,
        transition=incident.alert.transition + 1,
        state=state,
        suggested_action="none",
        decided_ms=now.time_ms,
        sentence=sentence,
        resolution=resolution,
    )
    incident.published_ms = now.time_ms
    cell.counts.alerts += 1
    return incident.alert


def _opened(cell: Cell, finding: Finding, vm: Vm | None, now: Now) -> Alert:
    alert = Alert(
        id=finding.alert_id(),
        transition=0,
        scope=finding.scope,
        subject=finding.subject,
        site=cell.site,
        zone=cell.zone,
        cell=cell.name,
        kind=finding.kind.value,
        state="firing" if finding.firing else "pending",
        severity=finding.severity,
        confidence=finding.confidence,
        onset_ms=finding.onset_ms,
        opened_ms=now.time_ms,
        decided_ms=now.time_ms,
        suggested_action=finding.suggestion,
        sentence=finding.sentence,
        position=finding.position,
        configuration=configuration_hash(now.configuration),
        node=finding.node,
        instance=finding.instance,
        history_s=finding.history_s,
        cpu_shape=finding.cpu_shape,
        vms=finding.vms,
        vetoes=finding.vetoes,
        evidence=finding.evidence,
        incident=finding.incident,
        witnesses=counted_witnesses(finding.evidence),
    )
    return _identified(cell, alert, vm)


def _identified(cell: Cell, alert: Alert, vm: Vm | None) -> Alert:
    """Return the alert with the VM data that the planner needs, so that it reads no frames."""
    if vm is None:
        return alert
    located = cell.locate(vm.uuid)
    return msgspec.structs.replace(
        alert,
        name=vm.name or None,
        tenant=vm.tenant,
        group=vm.group,
        actionable=vm.actionable,
        panic_device=vm.panic_device,
        data_ms=alert.data_ms if located is None else located[0].data_ms or None,
        counted=alert.counted if located is None else _counted(located[1], located[2]),
        pools=vm.pools,
        networks=vm.networks,
        memory_bytes=vm.memory_bytes,
    )


def _counted(table: VmTable, index: int) -> Counted:
    """Return the VM's counters at its newest sample, whose append time is `data_ms`."""
    _cpu_time_ns, read, written, sent = (
        None if value == baseline.NO_PREVIOUS else int(value) for value in table.previous[:, index]
    )
    return Counted(block_wr_bytes=written, block_rd_bytes=read, net_tx_bytes=sent)

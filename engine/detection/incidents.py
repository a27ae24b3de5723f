"""Run the life cycle of incidents: pending, firing, resolved or suppressed; one per fault.

An incident keeps its id when its kind changes. Slow faults, which develop over hours, are an
exception: an urgent fault ends them and opens with its own id and its own start. Firing alerts are
published again every minute with the same id and transition, for planners that start late.
"""

import math

import msgspec

from engine.detection.cell import Cell, Incident, Vm
from engine.detection.configuration import Configuration, configuration_hash
from engine.detection.lanes import Lanes
from engine.wire.alert import (
    Alert,
    Counted,
    CpuShape,
    EvidenceItem,
    Resolution,
    SamplePosition,
    Scope,
    Severity,
    Suggestion,
    alert_id,
    counted_witnesses,
)
from models.kernels import baseline

# Slow faults, which develop over hours (`engine.detection.slow`). An incident may change between
# these kinds. Every other fault of the VM is a separate incident.
SLOW_KINDS = frozenset(
    {"mem_leak", "cpu_runaway", "noisy_neighbour", "crash_reboot", "degrading_storage"}
)
# Where activity is the only witness, a computing guest looks like a dead one.
_DEATHS = frozenset({"panic_spin", "panic_halt"})
_ALONE = frozenset({"activity"})
# Guests that use no CPU and do nothing. Timers that are served in some samples distinguish them.
_ALIKE = frozenset({"hung_io", "hung_userland", "panic_halt"})


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Detection result of a slot for one subject of any scope; the input of an incident."""

    scope: Scope
    subject: str
    kind: str
    firing: bool
    severity: Severity
    suggestion: Suggestion
    confidence: float
    onset_ms: int
    position: SamplePosition
    sentence: str
    evidence: tuple[EvidenceItem, ...] = ()
    vetoes: tuple[str, ...] = ()
    vms: tuple[str, ...] = ()
    node: str | None = None
    instance: int | None = None
    history_s: float | None = None
    cpu_shape: CpuShape = "unknown"
    incident: str | None = None
    # Key in the cell if it is not the only incident of its subject.
    key: str = ""

    def place(self) -> str:
        """Return the key of the incident in its cell."""
        return self.key or key_of(self.scope, self.subject)

    def alert_id(self) -> str:
        """Return the id of the alert that this finding opens."""
        subject = f"{self.kind}:{self.subject}" if self.key else self.subject
        return alert_id(scope=self.scope, subject=subject, position=self.position)


def text_of(uuid: bytes) -> str:
    """Return a VM's UUID in the form of alerts; `uuid.UUID` takes ten times as long."""
    digits = uuid.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def key_of(scope: str, subject: str) -> str:
    """Return the key in a cell of the one open incident of a subject."""
    return f"{scope}/{subject}"


def confidence(score: float, configuration: Configuration) -> float:
    """Return the probability of a fault at this score, from the prior odds."""
    return round(1.0 / (1.0 + math.exp(min(60.0, configuration.prior_nats - score))), 4)


def news_ms(incident: Incident) -> int:
    """Return the append time in ms from which an incident may explain a later boot.

    An incident that lasts for hours is published every minute. Only its opening may explain a boot.
    """
    alert = incident.alert
    is_slow = alert.kind in SLOW_KINDS and alert.state != "resolved"
    return alert.opened_ms if is_slow else incident.published_ms


def report(
    cell: Cell,
    finding: Finding,
    *,
    time_ms: int,
    configuration: Configuration,
    vm: Vm | None = None,
) -> list[Alert]:
    """Open or continue the incident of a finding; return the alerts to publish."""
    key = finding.place()
    known = cell.incidents.get(key)
    if known is not None and known.alert.state == "resolved":
        if _is_habit(known, finding, vm, time_ms, configuration):
            return []
        if _returned(known, finding, time_ms, configuration):
            known.flaps += 1
            known.mark = None
        else:
            known = None
    ended: list[Alert] = []
    if known is not None and _is_other(known, finding):
        if not finding.firing:
            # A suspicion ends nothing; if it is confirmed, its incident opens then.
            return calmed(known, time_ms=time_ms, configuration=configuration)
        if finding.position == known.alert.position:
            # One sample showed both, so they share an id, but the time to act begins now.
            known.alert = msgspec.structs.replace(
                known.alert, opened_ms=time_ms, onset_ms=finding.onset_ms
            )
        else:
            ended, known = _superseded(cell, known, finding, time_ms=time_ms), None
    if known is None:
        alert = _opened(cell, finding, time_ms=time_ms, configuration=configuration, vm=vm)
        cell.incidents[key] = Incident(alert=alert, published_ms=time_ms)
        cell.totals.alerts += 1
        return [*ended, alert]
    return _continued(cell, known, finding, time_ms=time_ms, configuration=configuration, vm=vm)


def _continued(
    cell: Cell,
    known: Incident,
    finding: Finding,
    *,
    time_ms: int,
    configuration: Configuration,
    vm: Vm | None,
) -> list[Alert]:
    """Continue an open incident; return the alerts to publish."""
    known.well_ms = 0
    state = "firing" if finding.firing or known.alert.state == "firing" else "pending"
    before = known.alert
    finding = _settled(known, finding, time_ms, configuration)
    kind, suggestion = finding.kind, finding.suggestion
    if before.state == "firing" and not finding.firing:
        kind = before.kind
        # An earlier suggestion is not kept under a veto or for another run of the VM.
        if not finding.vetoes and finding.instance == before.instance:
            suggestion = before.suggested_action
    changed = (state, kind, suggestion) != (before.state, before.kind, before.suggested_action)
    again = state == "firing" and time_ms - known.published_ms >= configuration.republish_s * 1000
    if not (changed or again):
        return []
    known.alert = msgspec.structs.replace(
        before,
        transition=before.transition + 1 if changed else before.transition,
        state=state,
        kind=kind,
        suggested_action=suggestion,
        severity=finding.severity,
        confidence=finding.confidence,
        decided_ms=time_ms,
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
    known.published_ms = time_ms
    cell.totals.alerts += 1
    return [known.alert]


def resolve(
    cell: Cell, incident: Incident, resolution: Resolution, *, time_ms: int, sentence: str
) -> list[Alert]:
    """End an incident for the given reason."""
    return [_close(cell, incident, "resolved", time_ms, sentence=sentence, resolution=resolution)]


def suppress(
    cell: Cell,
    incident: Incident,
    *,
    vetoes: tuple[str, ...],
    explained_by: str | None,
    time_ms: int,
) -> list[Alert]:
    """Suppress an open incident that something else explains; the alert names the cause."""
    if incident.alert.state not in {"pending", "firing"}:
        return []
    name = incident.alert.name or incident.alert.subject
    sentence = f"{name}: not judged on its own, because this explains it: {', '.join(vetoes)}."
    alert = msgspec.structs.replace(incident.alert, vetoes=vetoes, incident=explained_by)
    incident.alert = alert
    return [_close(cell, incident, "suppressed", time_ms, sentence=sentence, resolution=None)]


def calmed(incident: Incident, *, time_ms: int, configuration: Configuration) -> list[Alert]:
    """Continue an alert whose VM is not visible or is healthy again, without a suggestion."""
    alert = incident.alert
    if alert.state != "firing" or alert.suggested_action not in {"inspect", "reboot", "migrate"}:
        return republished(incident, time_ms=time_ms, configuration=configuration)
    incident.alert = msgspec.structs.replace(
        alert, transition=alert.transition + 1, suggested_action="alert", decided_ms=time_ms
    )
    incident.published_ms = time_ms
    return [incident.alert]


def republished(incident: Incident, *, time_ms: int, configuration: Configuration) -> list[Alert]:
    """Return a firing alert again if a minute has passed since it was last published."""
    due = time_ms - incident.published_ms >= configuration.republish_s * 1000
    if incident.alert.state != "firing" or not due:
        return []
    incident.alert = msgspec.structs.replace(incident.alert, decided_ms=time_ms)
    incident.published_ms = time_ms
    return [incident.alert]


def _is_other(known: Incident, finding: Finding) -> bool:
    """Return whether a slow fault is open and this finding is another fault of the VM."""
    is_open = known.alert.state != "resolved"
    return is_open and known.alert.kind in SLOW_KINDS and finding.kind not in SLOW_KINDS


def _superseded(cell: Cell, known: Incident, finding: Finding, *, time_ms: int) -> list[Alert]:
    """End a slow fault; the alert names the incident that replaces it."""
    alert = known.alert
    follower = alert_id(scope=finding.scope, subject=finding.subject, position=finding.position)
    reason = f"superseded by a new incident of kind {finding.kind}"
    return resolve(
        cell,
        known,
        Resolution(reason=reason, superseded_by=follower),
        time_ms=time_ms,
        sentence=f"{alert.name or alert.subject}: {alert.kind} is {reason}.",
    )


def _settled(
    known: Incident, finding: Finding, time_ms: int, configuration: Configuration
) -> Finding:
    """Return the finding with the published kind until a similar kind has lasted long enough."""
    # A death with a suggestion to reboot is published immediately.
    alert = known.alert
    is_alike = {finding.kind, alert.kind} <= _ALIKE and finding.suggestion != "reboot"
    if finding.kind == alert.kind or not is_alike:
        known.other_ms = 0
        return finding
    known.other_ms = known.other_ms or time_ms
    if time_ms - known.other_ms < configuration.hung_kind_s * 1000:
        looks = {finding.suggestion, alert.suggested_action} == {"alert", "inspect"}
        return msgspec.structs.replace(
            finding,
            kind=alert.kind,
            sentence=alert.sentence,
            suggestion=alert.suggested_action if looks else finding.suggestion,
        )
    known.other_ms = 0
    return finding


def _returned(
    known: Incident, finding: Finding, time_ms: int, configuration: Configuration
) -> bool:
    """Return whether a resolved fault is back: the same silence, or the same kind soon after."""
    if finding.position == known.alert.position:
        return True
    recently = time_ms - known.published_ms < configuration.resolved_kept_s * 1000
    alone = known.alert.resolution is not None and not known.alert.resolution.verified
    return recently and alone and finding.kind == known.alert.kind and finding.firing


def _is_habit(
    known: Incident, finding: Finding, vm: Vm | None, time_ms: int, configuration: Configuration
) -> bool:
    """Return whether a guest recently returned by itself from a similar silence."""
    # With activity as the only witness, the next silence is reported only at twice that length.
    alert, resolution = known.alert, known.alert.resolution
    if resolution is None or resolution.verified or finding.position == alert.position:
        return False
    if vm is None or vm.rebooted_ms > alert.onset_ms or finding.instance != alert.instance:
        return False
    if {alert.kind, finding.kind} - _DEATHS or set(counted_witnesses(finding.evidence)) - _ALONE:
        return False
    lasted_ms = known.published_ms - alert.onset_ms
    wait_ms = min(2 * lasted_ms, round(configuration.lived_wait_s * 1000))
    return time_ms - finding.onset_ms < wait_ms


def _close(
    cell: Cell,
    incident: Incident,
    state: str,
    time_ms: int,
    *,
    sentence: str,
    resolution: Resolution | None,
) -> Alert:
    incident.alert = msgspec.structs.replace(
        incident.alert,
        transition=incident.alert.transition + 1,
        state=state,
        suggested_action="none",
        decided_ms=time_ms,
        sentence=sentence,
        resolution=resolution,
    )
    incident.published_ms = time_ms
    cell.totals.alerts += 1
    return incident.alert


def _opened(
    cell: Cell,
    finding: Finding,
    *,
    time_ms: int,
    configuration: Configuration,
    vm: Vm | None,
) -> Alert:
    alert = Alert(
        id=finding.alert_id(),
        transition=0,
        scope=finding.scope,
        subject=finding.subject,
        site=cell.site,
        zone=cell.zone,
        cell=cell.name,
        kind=finding.kind,
        state="firing" if finding.firing else "pending",
        severity=finding.severity,
        confidence=finding.confidence,
        onset_ms=finding.onset_ms,
        opened_ms=time_ms,
        decided_ms=time_ms,
        suggested_action=finding.suggestion,
        sentence=finding.sentence,
        position=finding.position,
        configuration=configuration_hash(configuration),
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
    place = cell.place(vm.uuid)
    return msgspec.structs.replace(
        alert,
        name=vm.name or None,
        tenant=vm.tenant,
        group=vm.group,
        actionable=vm.actionable,
        panic_device=vm.panic_device,
        data_ms=alert.data_ms if place is None else place[0].data_ms or None,
        counted=alert.counted if place is None else _counted(place[1], place[2]),
        pools=vm.pools,
        networks=vm.networks,
        memory_bytes=vm.memory_bytes,
    )


def _counted(lanes: Lanes, lane: int) -> Counted:
    """Return the VM's counters at its newest sample, whose append time is `data_ms`."""
    _cpu_time_ns, read, written, sent = (
        None if value == baseline.NO_PREVIOUS else int(value) for value in lanes.previous[:, lane]
    )
    return Counted(block_wr_bytes=written, block_rd_bytes=read, net_tx_bytes=sent)

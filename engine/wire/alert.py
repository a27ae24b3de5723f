"""Alerts: CloudEvents 1.0 in Kafka's binary mode, JSON data.

The id of an alert is fixed when it opens. It is a hash of its scope, subject and opening sample, so
a restart, a replay or another log gives the same id. Delivery is at least once: consumers drop
repeats by the CloudEvents id (`alert id/transition`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_json
from flatline.engine.wire.frame import Role

Scope = Literal["vm", "host", "pool", "network", "cell", "fleet"]
AlertState = Literal["pending", "firing", "resolved", "suppressed"]
Severity = Literal["info", "warning", "error", "critical"]
# "inspect": the test is as certain as for "reboot", but no second witness confirms the death. No
# policy turns "inspect" into an order.
Suggestion = Literal[
    "none", "alert", "inspect", "reboot", "migrate", "move_disk", "host_alert", "fleet_alert"
]
# Kinds of independent evidence that a guest is dead. In a batch job, silence and CPU shape have the
# same cause, so together they count as one witness, "activity".
Witness = Literal["activity", "vcpus", "exits", "balloon", "guest", "hypervisor", "probe"]
WITNESSES: Final[tuple[Witness, ...]] = get_args(Witness)
# CPU shape: how the vCPUs were used while the guest was silent. The preflight check must find the
# same shape.
CpuShape = Literal["unknown", "idle", "one_core", "all_cores", "mixed"]

EVENT_TYPE: Final = "io.flatline.alert.v1"


class SamplePosition(msgspec.Struct, frozen=True, kw_only=True):
    """The source of a sample and its frame's sequence, which are the same on every log."""

    node: limits.Name
    role: Role
    run: limits.Name
    sequence: limits.Count


class EvidenceItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One signal and its weight.

    Attributes
    ----------
    nats
        Log-likelihood ratio that the signal adds to the hypothesis; a negative value is evidence
        against the hypothesis. None: the signal is shown as context and not counted.
    limit
        The value that `value` was compared with; None where there is no single one.
    witness
        The source of the evidence, one of `WITNESSES`; "" for evidence that is not counted.
    minimum_nats
        The witness counts only if the sum of all its evidence reaches this number of nats.
    """

    signal: limits.Word
    value: limits.Figure | None = None
    limit: limits.Figure | None = None
    nats: limits.Figure | None = None
    text: limits.Sentence = ""
    witness: limits.Word = ""
    minimum_nats: limits.Figure | None = None


class Resolution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an alert was resolved.

    `verified` is True if telemetry showed that an action helped. `node` and `instance` are the
    present node and run of the VM. `superseded_by` is the id of an alert on another fault that
    replaced this alert; the VM has not recovered then.
    """

    reason: limits.Sentence
    verified: bool = False
    action: limits.Word | None = None
    order_step: limits.Count | None = None
    stable_s: limits.Figure | None = None
    node: limits.Text | None = None
    instance: int | None = None
    superseded_by: limits.Word | None = None


class Counted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counters of a VM (written, read, sent) when it was judged; None was not measured."""

    block_wr_bytes: int | None = None
    block_rd_bytes: int | None = None
    net_tx_bytes: int | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One state of one alert.

    Attributes
    ----------
    id
        `alert_id(scope, subject, position)`: 32 hex digits.
    transition
        Number of changes of state, kind or suggestion so far, from 0. Publishing a firing alert
        again does not change it.
    subject
        UUID text for scope `vm`, else the name of the node, pool, network, cell or site.
    onset_ms
        Event time of the estimated start of the fault.
    opened_ms, decided_ms
        Append time of the record that opened the alert, and of the record that decided this state.
    instance
        The run of the VM that is judged (`metrics.LEVELS`); None for wider scopes.
    incident
        Id of the wider alert that explains this one.
    data_ms
        Append time of the newest sample of the VM that the verdict is based on; publishing again
        does not renew it. None is unknown, and too old to act on.
    counted
        The VM's counters as of `data_ms`; None is unknown.
    pools, networks
        The pools and networks that the VM uses; empty is unknown.
    disk
        Target device of the disk with the fault; None where the fault is not in a disk.
    memory_bytes
        Memory that the VM would use on another node; None is unknown.
    witnesses
        Witnesses of the death that reach their stated minimum, in the order of `WITNESSES`.
    """

    id: limits.Word
    transition: limits.Count
    scope: Scope
    subject: limits.Text
    site: limits.Name
    zone: limits.Name
    cell: limits.Name
    kind: limits.Word
    state: AlertState
    severity: Severity
    confidence: limits.Figure
    onset_ms: int
    opened_ms: limits.TimeMs
    decided_ms: limits.TimeMs
    suggested_action: Suggestion
    sentence: limits.Sentence
    position: SamplePosition
    configuration: limits.Word
    v: Literal[1] = 1
    node: limits.Text | None = None
    instance: int | None = None
    name: limits.Text | None = None
    tenant: limits.Text | None = None
    group: limits.Text | None = None
    actionable: bool = False
    history_s: limits.Figure | None = None
    panic_device: bool = False
    cpu_shape: CpuShape = "unknown"
    vms: limits.Texts = ()
    vetoes: limits.Texts = ()
    evidence: Annotated[tuple[EvidenceItem, ...], Meta(max_length=limits.MAX_DETAILS)] = ()
    incident: limits.Word | None = None
    resolution: Resolution | None = None
    data_ms: limits.TimeMs | None = None
    pools: limits.Texts = ()
    networks: limits.Texts = ()
    disk: limits.Text | None = None
    memory_bytes: limits.Bytes | None = None
    counted: Counted | None = None
    witnesses: limits.Texts = ()


def counted_witnesses(evidence: Sequence[EvidenceItem]) -> tuple[Witness, ...]:
    """Return the witnesses whose evidence reaches its stated minimum.

    A witness without a stated minimum does not count. Nor does evidence against the fault.
    """
    worth: dict[str, float] = {}
    least: dict[str, float] = {}
    for item in evidence:
        if item.witness is not None:
            worth[item.witness] = worth.get(item.witness, 0.0) + (item.nats or 0.0)
            if item.minimum_nats is not None:
                least[item.witness] = max(item.minimum_nats, least.get(item.witness, 0.0))
    return tuple(
        witness
        for witness in WITNESSES
        if witness in least and worth[witness] > 0.0 and worth[witness] >= least[witness]
    )


def may_be_reset(witnesses: Sequence[str]) -> bool:
    """Return whether these witnesses suffice to treat a guest as dead.

    Required are `activity` and a second witness, or `hypervisor` alone. The latter suffices because
    the hypervisor reports the VM as crashed and runs none of its vCPUs.
    """
    heard = set(witnesses) & set(WITNESSES)
    return "hypervisor" in heard or ("activity" in heard and len(heard) > 1)


def alert_id(*, scope: Scope, subject: str, position: SamplePosition) -> str:
    """Return the id of the alert that the sample at `position` opened."""
    text = "\x00".join(
        (scope, subject, position.node, position.role, position.run, str(position.sequence))
    )
    return blake2b(text.encode(), digest_size=16).hexdigest()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Alert)


def encode_alert(alert: Alert) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Return the value and the CloudEvents headers of one alert (Kafka binding, 3.2)."""
    moment = datetime.fromtimestamp(alert.decided_ms / 1000, UTC).isoformat(timespec="milliseconds")
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{alert.id}/{alert.transition}".encode()),
        ("ce_type", EVENT_TYPE.encode()),
        ("ce_source", f"/flatline/{alert.site}/{alert.cell}".encode()),
        ("ce_subject", alert.subject.encode()),
        ("ce_time", moment.encode()),
        ("content-type", b"application/json"),
    )
    return _encoder.encode(alert), headers


def decode_alert(value: bytes) -> Alert:
    """Return the alert that `value` encodes.

    Raises
    ------
    RecordRejected
        `value` is not an alert of a version that this release reads.
    """
    return decode_json(value, _decoder)

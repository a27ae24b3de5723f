"""One seeded value of each contract, used by the tests of bytes, schemas and golden files."""

import uuid

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.wire import metrics
from flatline.engine.wire.alert import Alert, EvidenceItem, Resolution, SamplePosition, alert_id
from flatline.engine.wire.control import Control
from flatline.engine.wire.forecast import Forecasts
from flatline.engine.wire.frame import Event, Frame, Header, InventoryItem, PoolSample, VmRows
from flatline.engine.wire.journal import JournalEntry
from flatline.engine.wire.order import Claim, Order, OrderResult
from flatline.engine.wire.score import FEATURES, Scores
from flatline.engine.wire.vcpus import VcpuRows

# Not a secret: the key only keeps golden signatures constant.
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

POSITION = SamplePosition(node="node-a1", role="collector", run="0011223344556677", sequence=42)
VM = uuid.UUID(int=0x1234).bytes


def rows(size, *, seed=1, missing_share=0.0):
    rng = np.random.default_rng(seed)
    age_s = rng.uniform(600, 60 * 86_400, size)
    integers = np.zeros((len(metrics.INTEGERS), size), np.uint64)
    for row, metric in enumerate(metrics.COUNTERS):
        rate = 10 ** rng.uniform(-2, 6, size)
        integers[row] = (age_s * rate / metric.quantum).astype(np.uint64) * np.uint64(
            metric.quantum
        )
    integers[metrics.INTEGER_ROW["state"]] = 1
    integers[metrics.INTEGER_ROW["vcpus"]] = rng.integers(1, 16, size)
    integers[metrics.INTEGER_ROW["balloon_last_update_s"]] = 1_790_000_000 + rng.integers(
        0, 9, size
    )
    # The released state had neither KVM counters nor device sets: a sample of it has none, and the
    # same bytes.
    reported = len(metrics.COUNTERS + metrics.LEVELS)
    missing = np.ones(integers.shape, bool)
    missing[:reported] = rng.random((reported, size)) < missing_share
    integers[missing] = 0
    gauges = rng.random((len(metrics.GAUGES), size)).astype(np.float32)
    gauges[:, ::7] = np.nan
    return VmRows(
        uuids=rng.bytes(16 * size),
        integers=integers,
        missing=missing if missing.any() else None,
        gauges=gauges,
    )


def vcpu_rows(size, *, seed=3, most=9, missing_share=0.1):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most, size).astype(np.uint16)
    times_ns = rng.integers(0, 2**60, counts.sum(dtype=int)).astype(np.uint64)
    missing = rng.random(len(times_ns)) < missing_share
    times_ns[missing] = 0
    return VcpuRows(counts=counts, times_ns=times_ns, missing=missing if missing.any() else None)


HEADER = Header(
    site="lab",
    zone="z1",
    cell="cell-a",
    node="node-a1",
    role="collector",
    run="0011223344556677",
    sequence=42,
    event_time_ns=1_790_000_000_000_000_000,
    mono_ns=5_000_000_000,
    interval_ms=2000,
)


def header(**changes):
    return msgspec.structs.replace(HEADER, **changes)


def frame(size=5, *, missing_share=0.1):
    return Frame(
        header=header(),
        rows=rows(size, missing_share=missing_share),
        events=(
            Event(id="e-1", kind="rebooted", time_ns=1_790_000_000_000_000_000, vm=VM),
            Event(id="e-2", kind="hypervisor_lost", time_ns=1, detail={"why": "closed"}),
        ),
        inventory=(
            InventoryItem(
                vm=VM,
                name="web-17",
                tenant="acme",
                group="web",
                flavor="m1.small",
                actionable=True,
                vcpus=2,
                memory_bytes=1 << 31,
                disks={"vda": "ssd"},
                nics={"vnet0": "front"},
                balloon_period_s=2,
            ),
        ),
        node={"cpu_cores": 64.0, "cpu_busy_ratio": 0.25},
        pools=(PoolSample(name="ssd", capacity_bytes=1 << 40, latency_s=0.002),),
    )


ALERT = Alert(
    id=alert_id(scope="vm", subject=str(uuid.UUID(bytes=VM)), position=POSITION),
    transition=1,
    scope="vm",
    subject=str(uuid.UUID(bytes=VM)),
    site="lab",
    zone="z1",
    cell="cell-a",
    kind="panic_spin",
    state="firing",
    severity="critical",
    confidence=0.999,
    onset_ms=1_790_000_000_000,
    opened_ms=1_790_000_006_000,
    decided_ms=1_790_000_012_000,
    suggested_action="reboot",
    sentence="web-17 on node-a1 has used exactly one core and done no I/O for 12 s.",
    position=POSITION,
    configuration="0" * 16,
    node="node-a1",
    instance=7,
    name="web-17",
    tenant="acme",
    group="web",
    actionable=True,
    history_s=90_000.0,
    cpu_shape="one_core",
    evidence=(EvidenceItem(signal="silence", value=12.0, limit=9.0, nats=8.1, text="no I/O"),),
    resolution=Resolution(reason="writes resumed", verified=True, action="reset", order_step=0),
)

ORDER = Order(
    incident=ALERT.id,
    step=0,
    action="reset",
    vm=ALERT.subject,
    instance=7,
    site="lab",
    cell="cell-a",
    node="node-a1",
    kind="panic_spin",
    cpu_shape="one_core",
    issued_ms=1_790_000_013_000,
    expires_ms=1_790_000_073_000,
    deadline_ms=1_790_000_193_000,
    data_ms=1_790_000_012_000,
    dry_run=True,
    planner="planner-1",
    policy="0" * 16,
    sentence="Reset web-17: its kernel has panicked.",
    tenant="acme",
    group="web",
)

CLAIM = Claim(
    incident="0123456789abcdef0123456789abcdef",
    step=0,
    vm="6e1a2b3c-0000-4000-8000-000000000001",
    node="n1",
    agent="n1/run1.2f",
    dry_run=False,
    time_ms=1_790_000_007_000,
)
RESULT = OrderResult(
    incident=ORDER.incident,
    step=0,
    vm=ORDER.vm,
    node="node-a1",
    agent="agent-a1",
    outcome="returned",
    dry_run=True,
    time_ms=1_790_000_020_000,
    sentence="The reset returned.",
)

JOURNAL = JournalEntry(
    writer="agent-a1",
    sequence=0,
    time_ms=1_790_000_020_000,
    kind="outcome",
    sentence="The reset returned.",
    previous="",
    link="0" * 64,
    incident=ORDER.incident,
    step=0,
    vm=ORDER.vm,
    cell="cell-a",
    detail={"dry_run": "true"},
)

CONTROL = Control(
    kind="pause",
    scope="cell",
    subject="cell-a",
    active=True,
    by="ann",
    reason="storage work",
    time_ms=1_790_000_000_000,
    until_ms=1_790_000_600_000,
)

FORECASTS = Forecasts(
    site="lab",
    zone="z1",
    cell="cell-a",
    node="node-a1",
    time_ms=1_790_000_040_000,
    step_s=60,
    uuids=VM,
    values=np.arange(90, dtype="<f4").tobytes(),
    node_values=np.arange(90, 180, dtype="<f4").tobytes(),
)

SCORES = Scores(
    site="lab",
    cell="cell-a",
    minute_ms=1_789_999_980_000,
    uuids=VM,
    values=np.arange(len(FEATURES), dtype="<f4").tobytes(),
    classes=("web",),
    node_load={"node-a1": 0.25},
    configuration="0" * 16,
    coverage=bytes([0b0001011, 0b10001]),
)

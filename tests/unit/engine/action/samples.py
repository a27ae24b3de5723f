"""Valid orders, looks, alerts and results that nothing forbids; a test changes one detail."""

from typing import Any
from uuid import UUID

import msgspec

from flatline.engine.action.admit import History, closed, logged
from flatline.engine.action.catalogue import Policy, parse_policy, read_shipped
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.wire.alert import Alert, EvidenceItem, SamplePosition
from flatline.engine.wire.control import Control
from flatline.engine.wire.order import Order, OrderResult

NOW_MS = 1_790_000_000_000
VM = "6e1a2b3c-0000-4000-8000-000000000001"
OTHER_VM = "6e1a2b3c-0000-4000-8000-000000000002"
POLICY = parse_policy(read_shipped("lab"), source="lab")
DEFAULT = parse_policy(read_shipped("default"), source="default")


def order(under: Policy = POLICY, /, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "incident": "a" * 32,
        "step": 0,
        "action": "reset",
        "vm": VM,
        "instance": 7,
        "site": "site",
        "cell": "c0",
        "node": "n0",
        "kind": "panic_spin",
        "cpu_shape": "one_core",
        "issued_ms": NOW_MS,
        "expires_ms": NOW_MS + 60_000,
        "deadline_ms": NOW_MS + 300_000,
        "data_ms": NOW_MS - 2_000,
        "dry_run": False,
        "planner": "p",
        "policy": under.hash,
        "sentence": "reset it",
        "tenant": "acme",
        "group": "web",
        "opened_ms": NOW_MS - 20_000,
        "history_s": 200_000.0,
        "witnesses": ("activity", "balloon"),
    }
    return Order(**(values | changes))


def past(given: Order, *, ago_s: float, **changes: Any) -> Order:
    """Return `given` as if it had been issued `ago_s` ago."""
    names = ("issued_ms", "expires_ms", "deadline_ms", "data_ms")
    shifted = {name: getattr(given, name) - round(1000 * ago_s) for name in names}
    return msgspec.structs.replace(given, **(shifted | changes))


def mark(given: Order, *, time_ms: int, **changes: Any) -> OrderResult:
    values: dict[str, Any] = {
        "incident": given.incident,
        "step": given.step,
        "vm": given.vm,
        "node": given.node,
        "agent": "n0/run",
        "outcome": "returned",
        "dry_run": given.dry_run,
        "time_ms": time_ms,
        "sentence": "done",
    }
    return OrderResult(**(values | changes))


def history(*given: Order, policy: Policy = POLICY, ends: str | None = "returned") -> History:
    """Return the log after these orders, each closed 10 s after it was issued."""
    entries: History = ()
    for offset, one in enumerate(given):
        entries = logged(entries, one, policy, offset=offset, time_ms=one.issued_ms)
        if ends is not None:
            ended_ms = one.issued_ms + 10_000
            entries = closed(entries, mark(one, time_ms=ended_ms, outcome=ends), time_ms=ended_ms)
    return entries


def look(*, at_s: float = 0.0, **changes: Any) -> PreflightSample:
    values: dict[str, Any] = {
        "vm": UUID(VM).bytes,
        "instance": 7,
        "mono_ns": round(at_s * 1e9),
        "wall_ms": NOW_MS + round(at_s * 1e3),
        "state": "running",
        "state_reason": "other",
        "monitor_answered": True,
        "job_active": False,
        "boots_seen": 0,
        "reported": None,
        "reported_ns": None,
        "tenant": "acme",
        "group": "web",
        "opted_out": False,
        "uncounted": None,
        "vcpus": 2,
        "vcpu_time_ns": (round(at_s * 1e9), 0),
        "vcpu_delay_ns": (),
        "cpu_time_ns": round(at_s * 1e9),
        "block_rd_reqs": 50,
        "block_wr_reqs": 100,
        "block_rd_bytes": 25_600,
        "block_wr_bytes": 51_200,
        "net_tx_pkts": 30,
        "net_tx_bytes": 1_920,
        "balloon_last_update_s": 1_000,
        "balloon_period_s": None,
        "kvm_irq_injections": None,
        "kvm_io_exits": None,
    }
    values |= {"reported_ns": 0} if changes.get("reported") else {}
    return PreflightSample(**(values | changes))


def alert(**changes: Any) -> Alert:
    values: dict[str, Any] = {
        "id": "a" * 32,
        "transition": 1,
        "scope": "vm",
        "subject": VM,
        "site": "site",
        "zone": "z0",
        "cell": "c0",
        "kind": "panic_spin",
        "state": "firing",
        "severity": "critical",
        "confidence": 0.99,
        "onset_ms": NOW_MS - 30_000,
        "opened_ms": NOW_MS - 20_000,
        "decided_ms": NOW_MS,
        "suggested_action": "reboot",
        "sentence": "It spins and its disks are silent.",
        "position": SamplePosition(node="n0", role="collector", run="r", sequence=1),
        "configuration": "c",
        "node": "n0",
        "instance": 7,
        "tenant": "acme",
        "group": "web",
        "actionable": True,
        "history_s": 200_000.0,
        "cpu_shape": "one_core",
        "data_ms": changes.get("decided_ms", NOW_MS),
        "witnesses": ("activity", "balloon"),
        "evidence": (
            EvidenceItem(signal="silence", nats=6.0),
            EvidenceItem(signal="cpu", nats=4.0),
        ),
    }
    return Alert(**(values | changes))


def control(**changes: Any) -> dict[bytes, Control]:
    values: dict[str, Any] = {
        "kind": "pause",
        "scope": "site",
        "subject": "",
        "active": True,
        "by": "ann",
        "reason": "work",
        "time_ms": NOW_MS,
    }
    command = Control(**(values | changes))
    return {command.key(): command}

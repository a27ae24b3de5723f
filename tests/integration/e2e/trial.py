"""One incident of one guest: separate roles on separate topics.

Limits count over the whole log of a site, so each trial is its own site. Without an engine the test
publishes the alerts; the guest counts the real actions, on its console.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from benchmarks.report import report
from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Guest, wait_until
from flatline.connectors.kafka.config import KafkaConfig
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.frame_keyring import make_site_key
from flatline.engine.keyring import own_key, trusted_keys
from flatline.engine.wire.alert import Alert, EvidenceItem, Resolution, SamplePosition, encode_alert
from flatline.engine.wire.order import Order, OrderResult, encode_order
from flatline.engine.wire.topics import ALERTS, ORDERS, SNAPSHOTS
from tests.integration.e2e.process import Process
from tests.integration.e2e.site import CELL, INTERVAL_S, NODE, SETTINGS, trust
from tests.integration.e2e.watcher import Watcher
from tests.signing import with_signature


def alert_about(guest: Guest, vm: bytes, **changes: Any) -> Alert:
    """Return an engine's alert on a guest that has reported its panic."""
    now_ms = int(time.time() * 1000)
    values: dict[str, Any] = {
        "transition": 1, "scope": "vm", "subject": str(UUID(bytes=vm)), "site": "lab",
        "zone": "lab", "cell": CELL, "kind": "panic_halt", "state": "firing",
        "severity": "critical", "confidence": 1.0, "onset_ms": now_ms - 20_000,
        "opened_ms": now_ms - 15_000, "decided_ms": now_ms, "suggested_action": "reboot",
        "sentence": "It is dead.", "configuration": "c", "node": NODE, "name": guest.name,
        "position": SamplePosition(node=NODE, role="collector", run="r", sequence=9),
        "tenant": "acme", "group": guest.name, "actionable": True,
        "history_s": 200_000.0, "cpu_shape": "idle", "data_ms": now_ms,
        "witnesses": ("activity", "guest"),
        "evidence": (
            EvidenceItem(signal="silence", nats=9.0), EvidenceItem(signal="told", nats=9.0),
        ),
    }  # fmt: skip
    return Alert(**(values | changes))


def report_ends(
    name: str, *, claim: str, ends: Sequence[tuple[str, str]], words: Sequence[str]
) -> None:
    """Write to `reports/NAME.json` how often the trials of each kind had each end."""
    counts = Counter(ends)
    report(
        name,
        claim=claim,
        rows=[
            {"killed": kind} | {end: counts[kind, end] for end in words}
            for kind in dict.fromkeys(kind for kind, _ in ends)
        ],
        goals_met=all(end in words for _, end in ends),
    )


class Trial:
    """A guest that has panicked or will, and the processes that may reset it."""

    def __init__(
        self,
        folder: Path,
        *,
        broker: Cluster,
        guest: Guest,
        uri: str,
        vm: bytes,
        node: str = NODE,
        roles: Sequence[str] = ("plan", "act"),
    ) -> None:
        folder.mkdir(parents=True)
        self.guest, self.vm, self.name, self.node = guest, vm, folder.name, node
        self._trusted, self._boots = folder / "trusted", guest.boots
        self._trusted.mkdir()
        site_keys = folder / "site-keys"
        make_site_key(site_keys, now_ms=int(time.time() * 1000))
        # The test signs as an engine, even if one runs.
        self._engine = own_key(folder / "engine-keys", "engine")
        public = (folder / "engine-keys" / "engine.pub").read_bytes()
        (self._trusted / "engine-test.pub").write_bytes(public)
        text = read_shipped("lab")
        self.policy = parse_policy(text, source="lab")
        (folder / "policy.toml").write_text(text)
        prefix = f"{folder.name}."
        self.processes: dict[str, Process] = {}
        for role in roles:
            settings = SETTINGS.format(
                cell=CELL, node=node, partitions=1, bootstrap=broker.bootstrap, prefix=prefix,
                interval_s=INTERVAL_S, read_uri=guest.lab.ro_uri(node), write_uri=uri,
                policy=folder / "policy.toml", state=folder / role / "state",
                trusted=self._trusted,
            )  # fmt: skip
            self.processes[role] = Process(role, role, folder=folder / role, settings=settings)
            trust(self.processes[role], role, node=node, folder=self._trusted, site_keys=site_keys)
        self.watcher = Watcher(
            KafkaConfig(
                bootstrap=broker.bootstrap,
                client_id="watcher",
                partitions=1,
                topic_prefix=prefix,
                create_topics=True,
            )
        )
        self.instance = 0
        self.incident = uuid4().hex

    def __enter__(self) -> Self:
        self.watcher.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes.values():
            if exc is not None:
                exc.add_note(process.log[-3000:])
            process.resume()
            process.end()
        self.watcher.__exit__(exc_type, exc, traceback)

    def start(self, *roles: str) -> None:
        """Start all processes, or the named ones."""
        for role in roles or self.processes:
            self.processes[role].start()
        for role in roles or self.processes:
            if role in ("plan", "act"):
                self.processes[role].says("starts under policy", within_s=90)

    def restart(self, role: str) -> None:
        """Kill a process and start it again, without waiting."""
        self.processes[role].kill()
        self.processes[role].start()

    def executions(self) -> int:
        """Return how often the guest was booted again, by its own count."""
        return self.guest.boots - self._boots

    def say(self, state: str, **changes: Any) -> None:
        """Publish an engine's alert on the guest."""
        reported = {"id": self.incident, "state": state, "instance": self.instance} | changes
        value, headers = with_signature(
            encode_alert(alert_about(self.guest, self.vm, **reported)), self._engine
        )
        self.watcher.append(ALERTS.name, key=CELL.encode(), value=value, headers=headers)

    def resolve(self) -> None:
        """Report that the action helped."""
        resolution = Resolution(reason="it booted", verified=True, stable_s=30.0)
        self.say("resolved", transition=2, suggested_action="none", resolution=resolution)

    def order(self, *, lifetime_s: float) -> Order:
        """Append an order of the planner with this lifetime, and return it."""
        now_ms = int(time.time() * 1000)
        order = Order(
            incident=uuid4().hex, step=0, action="reset", vm=str(UUID(bytes=self.vm)),
            instance=self.instance, site="lab", cell=CELL, node=NODE, kind="panic_halt",
            cpu_shape="idle", issued_ms=now_ms, expires_ms=now_ms + round(1000 * lifetime_s),
            deadline_ms=now_ms + 300_000, data_ms=now_ms, dry_run=False, planner="test",
            policy=self.policy.hash, sentence="reset it", tenant="acme", group=self.guest.name,
            opened_ms=now_ms - 15_000, history_s=200_000.0, attested=True,
            witnesses=("activity", "guest"), zone="lab",
        )  # fmt: skip
        key = own_key(self.processes["plan"].state / "keys", "planner")
        value, headers = encode_order(order, key)
        self.watcher.append(ORDERS.name, key=CELL.encode(), value=value, headers=headers)
        return order

    def alerts(self) -> list[Alert]:
        return [seen.alert for seen in self.watcher.alerts(str(UUID(bytes=self.vm)))]

    def orders(self) -> list[Order]:
        return [seen.order for seen in self.watcher.orders(self._keys)]

    def marks(self) -> list[OrderResult]:
        return [seen.result for seen in self.watcher.marks(self._keys)]

    def promised(self) -> list[str]:
        """Return the states in the agent's ledger so far, read while the agent runs."""
        path = self.processes["act"].state / f"agent-{self.node}.sqlite"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
            try:
                found = [bytes(row[0]) for row in ledger.execute("SELECT value FROM entry")]
            except sqlite3.OperationalError:
                return []  # it is being created
        states = ("accepted", "sent", "returned", "unknown", "not_attempted", "refused", "marked")
        return [s for value in found for s in states if f'"state":"{s}"'.encode() in value]

    def reached(self, step: str) -> bool:
        """Return whether the incident has reached the step."""
        match step:
            case "alert":
                return bool(self.alerts())
            case "firing" | "resolved":
                return step in {alert.state for alert in self.alerts()}
            case "snapshot":
                return self._saved_since_firing()
            case "order":
                return bool(self.orders())
            case "effect":
                return self.executions() > 0
            case "closed":
                return bool(self.marks())
            case _:
                return step in self.promised()

    def wait_for(self, step: str, *, within_s: float = 90.0) -> None:
        """Wait until the incident has reached the step or has ended."""
        wait_until(
            lambda: self.reached(step) or bool(self.marks()),
            within_s=within_s,
            what=f"{step} in {self.name}",
        )

    def _saved_since_firing(self) -> bool:
        saved = self.watcher.records(SNAPSHOTS.name)
        alerts = self.watcher.alerts(str(UUID(bytes=self.vm)))
        firing_s = [seen.time_s for seen in alerts if seen.alert.state == "firing"]
        return bool(saved and firing_s) and saved[-1].time_ms / 1000 > firing_s[0]

    @property
    def _keys(self) -> Any:
        return trusted_keys(self._trusted, own=None)

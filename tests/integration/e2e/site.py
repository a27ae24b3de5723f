"""A site of real processes on a real broker: one node, engine, planners and an agent."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import msgspec

from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Lab, wait_until
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.connectors.kafka.config import KafkaConfig
from flatline.engine.action.catalogue import read_shipped
from flatline.engine.action.keys import TrustedKeys
from flatline.engine.frame_keyring import (
    make_name,
    make_site_key,
    name_key_path,
    read_site_keys,
    write_name_key,
    write_site_key,
)
from flatline.engine.keyring import Signer, own_key, trusted_keys
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.metrics import INTEGER_ROW
from tests.integration.e2e.process import Process, run
from tests.integration.e2e.watcher import SeenAlert, SeenOrder, SeenResult, Watcher

# As short as a collector reliably supports, since it adds to the measured times.
INTERVAL_S = 2.0
NODE = "a"
CELL = "lab"
PARTITIONS = 2
# The processes by name and role; the further planners are trusted and started only on request.
PROCESSES = {
    "collect": "collect",
    "engine": "engine",
    "plan": "plan",
    "second": "plan",
    "sleeper": "plan",
    "act": "act",
}

SIGNER_OF: dict[str, Signer] = {"plan": "planner", "act": "agent", "engine": "engine"}

SETTINGS = """
[site]
name = "lab"
zone = "lab"
cell = "{cell}"
node = "{node}"

[log]
kind = "kafka"
partitions = {partitions}

[log.kafka]
bootstrap = "{bootstrap}"
topic_prefix = "{prefix}"
consumer = "faust"

[collect]
interval_s = {interval_s}
libvirt_uri = "{read_uri}"

[engine]
snapshot_every_s = 10

[act]
libvirt_uri = "{write_uri}"

[policy]
file = "{policy}"

[state]
folder = "{state}"

[keys]
trusted = "{trusted}"
"""


class Site:
    """One node of the lab and the roles for it.

    Entering it sets up one process of each role and creates the topics, but starts nothing.
    """

    def __init__(self, folder: Path, *, broker: Cluster, lab: Lab) -> None:
        self._folder = folder
        self._broker = broker
        self._lab = lab
        self._trusted = folder / "trusted"
        self._trusted.mkdir(parents=True)
        self._site_keys = folder / "site-keys"
        make_site_key(self._site_keys, now_ms=SystemClock().now_ms())
        self._policy = folder / "policy.toml"
        self._policy.write_text(read_shipped("lab"))
        self.processes: dict[str, Process] = {}
        self.watcher = Watcher(
            KafkaConfig(bootstrap=broker.bootstrap, client_id="watcher", partitions=PARTITIONS)
        )

    def __enter__(self) -> Self:
        for name, role in PROCESSES.items():
            self._set_up(name, role)
        run("doctor", "--create-topics", config=self.processes["act"].config)
        self.watcher.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes.values():
            process.end()
        self.watcher.__exit__(exc_type, exc, traceback)

    def start(self, *names: str) -> None:
        """Start processes that are set up."""
        for name in names:
            self.processes[name].start()

    def pick(self, *names: str) -> tuple[Process, ...]:
        """Return processes by name."""
        return tuple(self.processes[name] for name in names)

    def wait_until(self, holds: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Return as soon as the condition holds, while all started processes run."""

        def holds_still() -> bool:
            self.watcher.check()
            for process in self.processes.values():
                process.check()
            return holds()

        wait_until(holds_still, within_s=within_s, what=what)

    def wait_for_frames(self, count: int, *, within_s: float) -> None:
        """Wait until the log holds `count` more samples of the node than now."""
        known = self._sample_count()
        self.wait_until(
            lambda: self._sample_count() >= known + count,
            within_s=within_s,
            what=f"{count} frames of the node",
        )

    def _sample_count(self) -> int:
        return sum(len(frame.rows) > 0 for frame in self.watcher.frames())

    def writers(self) -> set[str]:
        """Return the roles that have written frames."""
        return {frame.header.role for frame in self.watcher.frames()}

    @property
    def trusted(self) -> TrustedKeys:
        """Return the keys trusted here."""
        return trusted_keys(self._trusted, own=None)

    def vm(self, name: str) -> str:
        """Return the UUID of a guest, from its inventory in the log."""
        for frame in self.watcher.frames():
            for item in frame.inventory:
                if item.name == name:
                    return str(UUID(bytes=item.vm))
        raise AssertionError(f"no frame tells what {name} is")

    def instance(self, vm: str) -> int:
        """Return the run of a VM, from the newest frame."""
        wanted = UUID(vm).bytes
        for frame in reversed(self.watcher.frames()):
            for column in range(len(frame.rows)):
                if frame.rows.vm(column) == wanted:
                    return int(frame.rows.integers[INTEGER_ROW["instance"], column])
        raise AssertionError(f"no frame holds {vm}")

    def alerts(self, vm: str, *, since_s: float = 0.0) -> list[SeenAlert]:
        """Return the alerts on a VM."""
        return [seen for seen in self.watcher.alerts(vm) if seen.time_s >= since_s]

    def firing(self, vm: str, *, since_s: float) -> list[SeenAlert]:
        """Return the firing alerts of a VM."""
        return [s for s in self.alerts(vm, since_s=since_s) if s.alert.state == "firing"]

    def verified(self, vm: str, *, since_s: float) -> list[SeenAlert]:
        """Return the alerts of a VM for which the engine verified an action."""
        return [s for s in self.alerts(vm, since_s=since_s) if _verified(s.alert)]

    def orders(self, vm: str | None = None) -> list[SeenOrder]:
        """Return the orders for a VM, or for all."""
        return [s for s in self.watcher.orders(self.trusted) if vm in (None, s.order.vm)]

    def marks(self, vm: str) -> list[SeenResult]:
        """Return the marks that ended a VM's orders."""
        return [seen for seen in self.watcher.marks(self.trusted) if seen.result.vm == vm]

    def calls(self, vm: str) -> list[str]:
        """Return the sentence of each call to the hypervisor in the journal."""
        return [e.sentence for e in self.watcher.journal() if e.kind == "call" and e.vm == vm]

    def promised(self, vm: str) -> list[str]:
        """Return the states of a VM's steps in the agent's ledger; the agent must have ended."""
        path = self.processes["act"].state / f"agent-{NODE}.sqlite"
        with EmbeddedLedger(path) as ledger:
            steps = [msgspec.json.decode(entry) for entry in ledger.entries()]
        return [step["state"] for step in steps if step.get("vm") == vm]

    def _set_up(self, name: str, role: str) -> None:
        folder = self._folder / name
        node = NODE if role in ("collect", "act") else name
        settings = SETTINGS.format(
            cell=CELL,
            node=node,
            partitions=PARTITIONS,
            bootstrap=self._broker.bootstrap,
            prefix="",
            interval_s=INTERVAL_S,
            read_uri=self._lab.ro_uri(NODE),
            write_uri=self._lab.uri(NODE),
            policy=self._policy,
            state=folder / "state",
            trusted=self._trusted,
        )
        process = Process(name, role, folder=folder, settings=settings)
        self.processes[name] = process
        trust(process, role, node=node, folder=self._trusted, site_keys=self._site_keys)


def trust(process: Process, role: str, *, node: str, folder: Path, site_keys: Path) -> None:
    """Create a process's keys before its first start, and distribute the public one."""
    keys = process.state / "keys"
    [(site_key, secret)] = read_site_keys(site_keys).items()
    if role in ("collect", "act"):
        name = make_name("node", node, site_key=site_key, now_ms=SystemClock().now_ms())
        write_name_key(name_key_path(keys, "node", node), name, secret)
    else:
        write_site_key(keys, site_key, secret)
    signer = SIGNER_OF.get(role)
    if signer is not None:
        own_key(process.state / "keys", signer)
        public = process.state / "keys" / f"{signer}.pub"
        (folder / f"{signer}-{node}.pub").write_bytes(public.read_bytes())


def _verified(alert: Alert) -> bool:
    return alert.state == "resolved" and alert.resolution is not None and alert.resolution.verified

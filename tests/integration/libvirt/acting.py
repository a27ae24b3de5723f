"""A real agent process on a real node, with orders of a test through an embedded log.

Each has a separate log, so that orders of other tests do not count in its limits.
"""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

from deploy.lab.libvirt_lab import Lab, wait_until
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.libvirt.actuator import LibvirtActuator
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.action.keys import open_entry
from flatline.engine.keyring import own_key, trusted_keys
from flatline.engine.ports import Headers
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.wire.alert import Alert, encode_alert
from flatline.engine.wire.control import Control, decode_control, encode_control
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.order import Claim, Entry, Order, OrderResult, encode_order
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import ALERTS, CONTROL, FRAMES, JOURNAL, ORDERS, SCORES
from tests.integration.e2e.process import Process
from tests.signing import scored, with_signature

T = TypeVar("T")

NODE, OTHER, CELL = "a", "b", "lab"
PARTITIONS = 1
# The preflight check takes 4 s, saving evidence and a call some more; the rest is for a busy
# machine.
END_S = 90.0
# A migration may start before the kernel has released the port of the previous one.
_ports = itertools.count(49_700)

# A machine has one agent for each libvirtd, by its address; tests run several in parallel.
_aliases = itertools.count(1)

SETTINGS = """
[site]
name = "lab"
zone = "lab"
cell = "{cell}"
node = "{node}"

[log]
kind = "embedded"
partitions = {partitions}

[act]
libvirt_uri = "{uri}"

[act.targets.{other}]
uri = "{other_uri}"
data_uri = "tcp://127.0.0.1:{port}"
unsafe = true
{bandwidth}

[policy]
file = "{policy}"

[state]
folder = "{state}"
"""


def alias(uri: str) -> str:
    """Return another spelling of a libvirtd's address."""
    return uri.replace("/run/libvirt-sock", "/" * next(_aliases) + "run/libvirt-sock")


class ActingNode:
    """The agent of hypervisor a; entering starts it.

    Parameters
    ----------
    policy
        Maps lines of the shipped policy to their replacements.
    base
        Name of the shipped policy.
    bandwidth_mib_s
        Limit of a migration's network bandwidth.
    webhook
        Webhook of a planner; empty sends no notices.
    inside
        The command within which the agent runs, for another network namespace.
    """

    def __init__(
        self,
        folder: Path,
        lab: Lab,
        *,
        policy: dict[str, str] | None = None,
        base: str = "lab",
        bandwidth_mib_s: int | None = None,
        webhook: str | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        text = read_shipped(base)
        for line, instead in (policy or {}).items():
            assert line in text
            text = text.replace(line, instead)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.toml").write_text(text)
        self.lab = lab
        self.policy = parse_policy(text, source="lab")
        bandwidth = f"bandwidth_mib_s = {bandwidth_mib_s}" if bandwidth_mib_s else ""
        self._settings = settings = SETTINGS.format(
            cell=CELL, node=NODE, partitions=PARTITIONS, uri=alias(lab.uri(NODE)), other=OTHER,
            other_uri=lab.uri(OTHER), port=next(_ports), bandwidth=bandwidth,
            policy=folder / "policy.toml", state=folder / "agent" / "state",
        ) + (f'\n[notify]\nurl = "{webhook}"\n' if webhook else "")  # fmt: skip
        self.agent = Process(
            "act", "act", folder=folder / "agent", settings=settings, inside=inside
        )
        self.planner = Process("plan", "plan", folder=folder / "plan", settings=settings)
        self._planner = own_key(self.agent.state / "keys", "planner")
        self.agent_key = own_key(self.agent.state / "keys", "agent")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            exc.add_note(self.agent.log[-4000:])
            exc.add_note(self.planner.log[-4000:])
        self.agent.resume()
        for process in (self.agent, self.planner):
            process.end()

    def start(self) -> None:
        """Start the agent and wait until it accepts orders."""
        self.agent.start()
        self.agent.says("starts under policy", within_s=60)

    def twin(self, folder: Path, *, inside: Sequence[str]) -> Process:
        """Return a second agent of the same node on the same log, which no lock excludes.

        It has its own state folder and ledger, and another spelling of libvirtd's address.
        """
        settings = self._settings.replace(str(self.agent.state), str(folder / "state"))
        uri = self.lab.uri(NODE)
        settings = re.sub(r'libvirt_uri = "[^"]*"', f'libvirt_uri = "{alias(uri)}"', settings)
        twin = Process("twin", "act", folder=folder, settings=settings, inside=inside)
        for name in ("log", "keys"):
            (self.agent.state / name).mkdir(mode=0o700, exist_ok=True)
            (twin.state / name).symlink_to(self.agent.state / name)
        return twin

    def start_planner(self) -> None:
        """Start a planner on the same log, and wait until it plans."""
        self.planner.start()
        self.planner.says("starts under policy", within_s=60)

    def sample(self, vm: bytes) -> PreflightSample:
        """Return an agent's current view of a guest."""

        async def seen() -> PreflightSample:
            async with LibvirtActuator(uri=self.lab.uri(NODE)) as actuator:
                return await actuator.sample(vm)

        return asyncio.run(seen())

    def order(self, vm: bytes, action: str, *, ago_s: int = 0, **changes: Any) -> Order:
        """Append an order that only the live VM can forbid, and return it.

        `ago_s` is its age in seconds.
        """
        now_ms = int(time.time() * 1000) - 1000 * ago_s
        values: dict[str, Any] = {
            "incident": uuid4().hex, "step": 0, "action": action, "vm": str(UUID(bytes=vm)),
            "site": "lab", "cell": CELL, "node": NODE, "kind": "panic_spin",
            "cpu_shape": "one_core", "issued_ms": now_ms, "expires_ms": now_ms + 60_000,
            "deadline_ms": now_ms + 300_000, "data_ms": now_ms, "dry_run": False,
            "planner": "test", "policy": self.policy.hash, "sentence": f"{action} it",
            "tenant": "acme", "group": "web", "opened_ms": now_ms - 20_000,
            "history_s": 200_000.0, "witnesses": ("activity", "balloon"), "zone": "lab",
        }  # fmt: skip
        if "instance" not in changes:
            values["instance"] = self.sample(vm).instance
        order = Order(**(values | changes))
        value, headers = encode_order(order, self._planner)
        # An older order has been in the log since then.
        self.append(ORDERS.name, value, headers=headers, time_ms=now_ms if ago_s else None)
        return order

    def say(self, alert: Alert) -> None:
        """Publish an engine's alert."""
        key = own_key(self.agent.state / "keys", "engine")
        value, headers = with_signature(encode_alert(alert), key)
        self.append(ALERTS.name, value, headers=headers)

    def report_load(self, scores: Scores) -> None:
        """Publish a minute of the engine's scores."""
        value, headers = scored(scores, key=own_key(self.agent.state / "keys", "engine"))
        self.append(SCORES.name, value, headers=headers)

    def append(
        self, topic: str, value: bytes, *, headers: Headers = (), time_ms: int | None = None
    ) -> None:
        """Append a record to the log, optionally with a time in the past."""
        self._on_log(
            lambda log: log.append(
                topic, key=CELL.encode(), value=value, headers=headers, time_ms=time_ms
            )
        )

    def orders(self) -> list[Order]:
        """Return the orders so far."""
        return [entry for entry in self._entries() if isinstance(entry, Order)]

    def claims(self, order: Order) -> list[Claim]:
        """Return the claims of an order's step, in the log's order."""
        claims = [entry for entry in self._entries() if isinstance(entry, Claim)]
        return [claim for claim in claims if claim.incident == order.incident]

    def words(self) -> list[Control]:
        """Return the control records so far."""
        return [decode_control(record.value) for record in self._read(CONTROL.name)]

    def control(self, **changes: Any) -> None:
        """Append a control command."""
        command = Control(
            active=True, by="ann", reason="work", time_ms=int(time.time() * 1000), **changes
        )
        key = own_key(self.agent.state / "keys", "operator")
        value, headers = with_signature((encode_control(command), ()), key)
        self._on_log(
            lambda log: log.append(CONTROL.name, key=command.key(), value=value, headers=headers)
        )

    def end_of(self, order: Order, *, within_s: float = END_S) -> OrderResult:
        """Return the result of an order, once it is in the log."""
        wait_until(lambda: self._mark(order) is not None, within_s=within_s, what="the order's end")
        mark = self._mark(order)
        assert mark is not None
        return mark

    def said(self, order: Order) -> list[str]:
        """Return the sentences of the journal about an order, oldest first."""
        return [entry.sentence for entry in self.journal() if entry.incident == order.incident]

    def wait_for_words(self, words: str, *, within_s: float = END_S) -> None:
        """Wait until the journal contains the words."""
        wait_until(
            lambda: any(words in entry.sentence for entry in self.journal()),
            within_s=within_s,
            what=f"{words!r} in the journal",
        )

    def journal(self) -> list[JournalEntry]:
        """Return the journal so far."""
        return [decode_entry(record.value) for record in self._read(JOURNAL.name)]

    def acted(self) -> list[str]:
        """Return the records of actions that the engine would see."""
        frames = [decode_frame(record.value) for record in self._read(FRAMES.name)]
        kinds = [event.kind for frame in frames for event in frame.events]
        return [kind for kind in kinds if kind.startswith("action_")]

    def noticed(self, vm: bytes) -> list[tuple[str, dict[str, str]]]:
        """Return the agent's reports on a guest to the engine, oldest first."""
        frames = [decode_frame(record.value) for record in self._read(FRAMES.name)]
        events = [event for frame in frames for event in frame.events]
        return [
            (one.kind, one.detail)
            for one in events
            if one.vm == vm and not one.kind.startswith("action_")
        ]

    def evidence(self) -> list[dict[str, bytes]]:
        """Return the agent's bundles of evidence, file by file; check their permissions."""
        folder = self.agent.state / "evidence"
        if not folder.is_dir():
            return []
        bundles = []
        for bundle in sorted(folder.iterdir()):
            assert bundle.stat().st_mode & 0o777 == 0o700
            files = sorted(bundle.iterdir())
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
            bundles.append({file.name: file.read_bytes() for file in files})
        return bundles

    def missing_of(self, bundle: dict[str, bytes]) -> dict[str, str]:
        """Return the missing parts of a bundle, with the reasons."""
        missing: dict[str, str] = json.loads(bundle["about.json"])["missing"]
        return missing

    def _mark(self, order: Order) -> OrderResult | None:
        results = (entry for entry in self._entries() if isinstance(entry, OrderResult))
        return next((mark for mark in results if mark.incident == order.incident), None)

    def _entries(self) -> list[Entry]:
        trusted = trusted_keys(self.agent.state / "trusted", own=self.agent.state / "keys")
        return [
            open_entry(record.value, record.headers, trusted=trusted)
            for record in self._read(ORDERS.name)
        ]

    def _read(self, topic: str) -> list[Any]:
        self.agent.check()
        return self._on_log(lambda log: log.read_to_end(topic, 0, offset=0))

    def _on_log(self, work: Callable[[EmbeddedLog], Awaitable[T]]) -> T:
        config = EmbeddedConfig(folder=self.agent.state / "log", partitions=PARTITIONS)

        async def done() -> T:
            async with EmbeddedLog(config, clock=SystemClock()) as log:
                return await work(log)

        return asyncio.run(done())

"""A detector that knows the truth, reports it late, and lies where a seed requests it."""

import asyncio
import random
from typing import Any, Final

import msgspec

from flatline.engine.wire.alert import Alert, EvidenceItem, Resolution, SamplePosition
from flatline.engine.wire.score import NodeMinute, Scores
from flatline.engine.wire.topics import ALERTS, SCORES
from tests.signing import said, scored
from tests.simulation.faulty_ports import Store
from tests.simulation.truthful_fleet import EPOCH_MS, Condition, Fleet, Guest

NODES: Final = {"n0": "c0", "n1": "c0", "n2": "c1"}
_ROOM: Final = NodeMinute(vms=8, cores=32.0, memory_available_bytes=1e11)


class Detector:
    """Publishes alerts and loads of a fleet; with `silent` it detects nothing any more."""

    def __init__(self, fleet: Fleet, store: Store, chance: random.Random) -> None:
        self.fleet = fleet
        self.store = store
        self.chance = chance
        self.silent = False
        self.alerts: dict[int, Alert] = {}
        self.runs = 0

    def now_ms(self) -> int:
        return EPOCH_MS + round(1000 * asyncio.get_running_loop().time())

    def die(self, guest: Guest, kind: Condition) -> None:
        loop = asyncio.get_running_loop()
        if guest.condition != "alive" or guest.job:
            return
        self.fleet.dies(guest, kind, loop.time())
        if not self.silent:
            loop.call_later(self.chance.uniform(20.0, 60.0), self._notice, guest)

    def suffer(self, guest: Guest) -> None:
        """Report that a guest waits for its node's cores."""
        if guest.lane not in self.alerts and guest.condition == "alive":
            self.fire(
                guest,
                {"kind": "node_contention", "suggested_action": "migrate", "cpu_shape": "unknown"},
            )

    def _notice(self, guest: Guest) -> None:
        if guest.lives() or self.silent:
            return
        shape = "one_core" if guest.condition == "panic_spin" else "idle"
        self.fire(guest, {"kind": guest.condition, "cpu_shape": shape})

    def cry_wolf(self) -> None:
        """Report a live guest as dead, in one of the ways in which a detector may be wrong."""
        chance = self.chance
        guest = chance.choice(self.fleet.guests)
        if guest.lane in self.alerts:
            return
        wrong = chance.choice(
            (
                {},
                {"cpu_shape": "all_cores"},
                {"instance": guest.instance - 1},
                {"node": chance.choice(list(NODES))},
                {"history_s": 60.0},
                {"tenant": None},
                {"actionable": False},
                {"data_ms": self.now_ms() - 121_000},
                {"subject": "*"},
                {"vetoes": ("job_active",)},
                {"witnesses": ("activity",)},
                {"kind": "hung_userland", "cpu_shape": "mixed"},
            )
        )
        if chance.random() < 0.2 and guest.condition == "alive":
            # It did panic, and writes its memory to disk: it reboots by itself.
            guest.turn("kdump", asyncio.get_running_loop().time())
            asyncio.get_running_loop().call_later(chance.uniform(60, 400), self._dumped, guest)
        self.fire(guest, wrong, false=True)

    def _dumped(self, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        if guest.condition == "kdump":
            self.fleet.boots(guest, loop.time(), loop.call_later)

    def fire(self, guest: Guest, changes: dict[str, Any], *, false: bool = False) -> None:
        now_ms = self.now_ms()
        self.runs += 1
        values: dict[str, Any] = {
            "id": f"{self.runs:032x}",
            "transition": 1,
            "scope": "vm",
            "subject": guest.text,
            "site": "site",
            "zone": "z0",
            "cell": guest.cell,
            "kind": "panic_spin",
            "state": "firing",
            "severity": "critical",
            "confidence": 0.999,
            "onset_ms": now_ms - 20_000,
            "opened_ms": now_ms,
            "decided_ms": now_ms,
            "suggested_action": "reboot",
            "sentence": "It spins and its disks are silent.",
            "position": SamplePosition(node=guest.node, role="collector", run="r", sequence=1),
            "configuration": "c",
            "node": guest.node,
            "instance": guest.instance,
            "tenant": "acme",
            "group": guest.group,
            "actionable": True,
            "history_s": 200_000.0,
            "cpu_shape": "one_core",
            "data_ms": now_ms,
            "witnesses": ("activity", "balloon"),
            "evidence": (
                EvidenceItem(signal="silence", nats=6.0),
                EvidenceItem(signal="cpu", nats=4.0),
            ),
        }
        alert = Alert(**(values | changes))
        self.alerts[guest.lane] = alert
        self._say(alert)
        asyncio.get_running_loop().call_later(60.0, self._again, guest, alert, 3 if false else 99)

    def _say(self, alert: Alert) -> None:
        value, headers = said(alert)
        self.store.put(ALERTS.name, alert.cell.encode(), value, headers)

    def host_silent(self, node: str) -> None:
        guests = [guest for guest in self.fleet.guests if guest.node == node]
        now_ms = self.now_ms()
        self._say(
            Alert(
                id=f"host-{node}", transition=0, scope="host", subject=node, site="site", zone="z0",
                cell=NODES[node], kind="host_silence", state="firing", severity="critical",
                confidence=0.99, onset_ms=now_ms, opened_ms=now_ms, decided_ms=now_ms,
                suggested_action="host_alert", sentence="It is silent.", configuration="c",
                position=SamplePosition(node=node, role="collector", run="r", sequence=1),
                vms=tuple(guest.text for guest in guests), node=node,
            )
        )  # fmt: skip

    def _again(self, guest: Guest, alert: Alert, left: int) -> None:
        """Publish an alert again, or report that its guest has recovered."""
        moved = alert.kind == "node_contention" and guest.node != alert.node
        lives = guest.condition == "alive" and alert.kind != "node_contention"
        now_ms = self.now_ms()
        if (moved or lives or left == 0) and not self.silent:
            helped = moved or guest.lane in self.fleet.recovered
            resolution = Resolution(
                reason="It works.", verified=helped, stable_s=60.0, node=guest.node,
                instance=guest.instance,
            )  # fmt: skip
            self._say(
                msgspec.structs.replace(
                    alert, state="resolved", transition=2, decided_ms=now_ms,
                    suggested_action="none", resolution=resolution,
                )
            )  # fmt: skip
            self.alerts.pop(guest.lane, None)
            return
        data_ms = alert.data_ms if self.silent or alert.data_ms != alert.decided_ms else now_ms
        alert = msgspec.structs.replace(alert, decided_ms=now_ms, data_ms=data_ms)
        self._say(alert)
        asyncio.get_running_loop().call_later(60.0, self._again, guest, alert, left - 1)

    def scores(self) -> None:
        """Publish the load of the nodes in the last minute."""
        if self.silent:
            return
        for cell in ("c0", "c1"):
            guests = [guest for guest in self.fleet.guests if guest.cell == cell]
            nodes = [node for node, place in NODES.items() if place == cell]
            scores = Scores(
                site="site", cell=cell, minute_ms=self.now_ms() - 60_000,
                uuids=b"".join(guest.vm for guest in guests), values=b"\0" * 4 * len(guests),
                features=("cpu_cores",), classes=(),
                node_load={node: 0.92 if node == "n0" else 0.3 for node in nodes},
                nodes=dict.fromkeys(nodes, _ROOM),
                configuration="c",
            )  # fmt: skip
            self.store.put(SCORES.name, cell.encode(), *scored(scores))

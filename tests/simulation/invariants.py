"""The invariants of every action of a seeded run, recomputed in the plainest way."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from flatline.engine.action.catalogue import Policy
from flatline.engine.action.keys import TrustedKeys, open_entry
from flatline.engine.action.ledger import read_ledger
from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Record
from flatline.engine.wire.control import Control, decode_control
from flatline.engine.wire.order import Claim, Order, OrderResult
from flatline.engine.wire.topics import CONTROL, ORDERS
from tests.simulation.faulty_ports import Process
from tests.simulation.truthful_fleet import EPOCH_MS, Guest

Family = Literal["mixed", "storm", "blackout", "race"]

# Maximum delay from a pause in the log to its effect.
_PAUSE_EFFECT_S: Final = 5.0


@dataclass
class Result:
    """The result of one seed."""

    seed: int
    family: Family
    breaches: list[str] = field(default_factory=list)
    effects: int = 0
    orders: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    adversities: tuple[str, ...] = ()
    repairable: int = 0
    repaired: int = 0


class Liveness:
    """Observes every record and every action of a run; writes violations to `result`."""

    def __init__(
        self,
        result: Result,
        *,
        policy: Policy,
        trusted: TrustedKeys,
        ledgers: dict[str, list[bytes]],
        vms: int,
    ) -> None:
        self.result = result
        self._policy = policy
        self._trusted = trusted
        self._ledgers = ledgers
        self._vms = vms
        self._executed: dict[tuple[str, int], float] = {}
        self._spent: list[tuple[int, Order]] = []
        self._first_orders: dict[tuple[str, int], tuple[int, Order]] = {}
        self._claims: dict[tuple[str, int], str] = {}
        self._pauses: dict[bytes, tuple[Control, float]] = {}

    def appended(self, record: Record) -> None:
        """Record an appended record."""
        if record.topic == CONTROL.name:
            command = decode_control(record.value)
            if not command.active and not record.headers:
                return  # only an operator's command ends a pause
            self._pauses[command.key()] = (command, asyncio.get_running_loop().time())
        if record.topic != ORDERS.name:
            return
        try:
            entry = open_entry(record.value, record.headers, trusted=self._trusted)
        except RecordRejected as error:
            self.result.breaches.append(f"an unreadable entry stands in the log: {error}")
            return
        if isinstance(entry, OrderResult):
            self.result.outcomes[entry.outcome] += 1
            return
        if isinstance(entry, Claim):
            self._claims.setdefault((entry.incident, entry.step), entry.agent)
            return
        self.result.orders += 1
        self._first_orders.setdefault((entry.incident, entry.step), (record.time_ms, entry))

    def _breach(self, what: str) -> None:
        self.result.breaches.append(f"{what} at {asyncio.get_running_loop().time():.3f} s")

    def check(self, process: Process, guest: Guest, action: str, target: str) -> None:
        """Check one action, directly before it happens, against all invariants."""
        self.result.effects += 1
        now_s = asyncio.get_running_loop().time()
        if action in ("reset", "reboot") and guest.lives():
            self._breach(f"{action} of a guest that is {guest.condition}")
        ledger = read_ledger(self._ledgers[guest.node])
        sent = [e for e in ledger.steps.values() if e.state == "sent" and e.vm == guest.text]
        if len(sent) != 1:
            self._breach(f"{action} with {len(sent)} entries in the ledger that announce it")
            return
        key = sent[0].key
        if key in self._executed:
            self._breach(f"second execution of step {key}")
        self._executed[key] = now_s
        if key not in self._claims:
            self._breach(f"{action} of step {key} that nobody claimed")
        at_ms, order = self._first_orders[key]
        if (order.action, order.vm, order.node) != (
            action,
            guest.text,
            guest.node,
        ) or order.dry_run:
            self._breach(f"{action} is not what step {key} ordered")
        self._check_unknown(key)
        self._check_budgets(at_ms, order)
        self._check_pauses(process, guest, order, now_s)
        if now_s * 1000 + EPOCH_MS > order.expires_ms + abs(process.faults.clock_offset_ms) + 6_000:
            self._breach("an expired order was carried out")

    def _check_unknown(self, key: tuple[str, int]) -> None:
        for entries in self._ledgers.values():
            for entry in read_ledger(entries).outcomes.values():
                if entry.incident == key[0] and entry.state == "unknown":
                    self._breach(f"incident {key[0]} goes on after an unknown outcome")

    def _check_budgets(self, at_ms: int, order: Order) -> None:
        """Recompute the counts of the limits, in the plainest way."""
        limits = self._policy.limits
        count = self._most_in_10min(at_ms, lambda _: True)
        if count > limits.site_budget(self._vms):
            self._breach(f"{count} actions of the site in 10 min")
        count = self._most_in_10min(at_ms, lambda other: other.cell == order.cell)
        if count > limits.cell_budget(self._vms):
            self._breach(f"{count} actions of cell {order.cell} in 10 min")
        for node in {order.node, order.target or order.node}:
            count = self._most_in_10min(at_ms, partial(_weighs_on, node))
            if count > limits.node_per_10min:
                self._breach(f"{count} actions on node {node} in 10 min")
        mine = [(ms, o) for ms, o in self._spent if o.vm == order.vm]
        if len(mine) + 1 > limits.vm_per_24h:
            self._breach(f"{len(mine) + 1} actions on one VM")
        for ms, other in mine:
            least_ms = 600_000 if other.incident == order.incident else 1_800_000
            if at_ms - ms < least_ms:
                self._breach(f"two actions on one VM within {(at_ms - ms) / 1000:.0f} s")
        self._spent.append((at_ms, order))

    def _most_in_10min(self, at_ms: int, counts: Callable[[Order], bool]) -> int:
        """Return the maximum number of counting actions in any 10 min around one more at `at_ms`.

        Agents act in another order than that of the log, so a window may end later.
        """
        dates_ms = [at_ms, *(ms for ms, order in self._spent if counts(order))]
        ends_ms = [ms for ms in dates_ms if 0 <= ms - at_ms < 600_000]
        return max(sum(end - 600_000 < ms <= end for ms in dates_ms) for end in ends_ms)

    def _check_pauses(self, process: Process, guest: Guest, order: Order, now_s: float) -> None:
        covered = {
            ("site", ""), ("cell", guest.cell), ("node", guest.node), ("vm", guest.text),
            ("node", order.target or guest.node),
        }  # fmt: skip
        for command, since_s in self._pauses.values():
            holds = command.holds(now_ms=EPOCH_MS + round(1000 * now_s))
            if command.kind not in ("pause", "maintenance", "quarantine") or not holds:
                continue
            if (command.scope, command.subject) not in covered or since_s > now_s:
                continue
            # A wrong clock may end a breaker's command early; a person's has no end.
            if command.until_ms is not None and process.faults.clock_offset_ms:
                continue
            if process.barrier_s > since_s or now_s - since_s > _PAUSE_EFFECT_S:
                self._breach(
                    f"an action on {command.scope} {command.subject} after its pause was read"
                )


def _weighs_on(node: str, order: Order) -> bool:
    return node in (order.node, order.target)


def invariant_of(breach: str) -> str:
    """Return the invariant of a violation: its message without what differs between seeds."""
    return re.sub(r"[0-9a-f]{32}|\d[\d.]*|\('.*?\)", "N", breach)

"""A fleet whose truth is known at every moment and costs almost nothing to query.

The main simulator draws every counter of every VM each second, which is too slow for ten thousand
runs of half an hour. Here a guest is a few numbers, and its counters are functions of time: a live
guest moves each of them at least once in three seconds, a dead one moves none.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

from flatline.engine.preflight_data import PreflightSample

Condition = Literal["alive", "booting", "panic_spin", "panic_halt", "kdump"]
DEAD: Final = frozenset({"panic_spin", "panic_halt"})

# The preflight check takes 4.1 s: the quietest live guest moves each counter once in 3 s.
_QUIETEST_PER_S: Final = 0.34
_BOOTING_PER_S: Final = 40.0
# Share of a core of a vCPU that only the kernel's own timers wake.
_TICKING: Final = 0.007
_BALLOON_PERIOD_S: Final = 5
EPOCH_MS: Final = 1_790_000_000_000


@dataclass(slots=True)
class Guest:
    """The true state of one VM; `since_s` is when its condition began."""

    lane: int
    vm: bytes
    text: str
    cell: str
    node: str
    group: str
    instance: int
    rate_per_s: float
    cores_busy: float
    tenant: str = "acme"
    opted_in: bool = True
    condition: Condition = "alive"
    since_s: float = 0.0
    job: bool = False
    counted: float = 0.0
    spun_s: float = 0.0
    ticked_s: float = 0.0
    resets: int = 0

    def lives(self) -> bool:
        """Whether a reset or reboot would do harm."""
        return self.condition not in DEAD

    def turn(self, condition: Condition, now_s: float) -> None:
        """Change the condition from now on; the counters keep their values."""
        self.counted, self.spun_s = self._counted(now_s), self._spun_s(now_s)
        self.ticked_s = self._ticked_s(now_s)
        self.condition, self.since_s = condition, now_s

    def _counted(self, now_s: float) -> float:
        rates = {"alive": self.rate_per_s, "booting": _BOOTING_PER_S, "kdump": _BOOTING_PER_S}
        return self.counted + rates.get(self.condition, 0.0) * (now_s - self.since_s)

    def _spun_s(self, now_s: float) -> float:
        share = {"panic_spin": 1.0, "panic_halt": 0.0}.get(self.condition, self.cores_busy)
        return self.spun_s + share * (now_s - self.since_s)

    def _ticked_s(self, now_s: float) -> float:
        """Return the CPU time of the second vCPU: a live kernel wakes it continuously."""
        share = 0.0 if self.condition in DEAD else _TICKING
        return self.ticked_s + share * (now_s - self.since_s)

    def _reported_s(self, now_s: float) -> int:
        """Return when the guest last reported its memory; a booting guest does not report."""
        last_s = now_s if self.condition == "alive" else self.since_s
        return EPOCH_MS // 1000 + int(last_s // _BALLOON_PERIOD_S * _BALLOON_PERIOD_S)

    def sample(self, now_s: float) -> PreflightSample:
        """Return the hypervisor's view of it."""
        counted, spun_ns = int(self._counted(now_s)), int(1e9 * self._spun_s(now_s))
        ticked_ns = int(1e9 * self._ticked_s(now_s))
        return PreflightSample(
            vm=self.vm,
            instance=self.instance,
            mono_ns=round(1e9 * now_s),
            wall_ms=EPOCH_MS + round(1e3 * now_s),
            state="running",
            state_reason="other",
            monitor_answered=True,
            job_active=self.job,
            boots_seen=self.resets,
            reported=None,
            reported_ns=None,
            tenant=self.tenant,
            group=self.group,
            opted_out=not self.opted_in,
            uncounted=None,
            vcpus=2,
            vcpu_time_ns=(spun_ns, ticked_ns),
            vcpu_delay_ns=(0, 0),
            cpu_time_ns=spun_ns + ticked_ns,
            block_rd_reqs=counted,
            block_wr_reqs=counted,
            block_rd_bytes=512 * counted,
            block_wr_bytes=512 * counted,
            net_tx_pkts=counted,
            net_tx_bytes=64 * counted,
            balloon_last_update_s=self._reported_s(now_s),
            balloon_period_s=_BALLOON_PERIOD_S,
            kvm_irq_injections=None,
            kvm_io_exits=None,
        )


@dataclass(slots=True)
class Fleet:
    """All guests, and their events: a name, when, and of which VM."""

    guests: list[Guest]
    by_vm: dict[bytes, Guest] = field(default_factory=dict)
    deaths: dict[int, float] = field(default_factory=dict)
    recovered: dict[int, float] = field(default_factory=dict)
    instances: int = 1_000

    def dies(self, guest: Guest, kind: Condition, now_s: float) -> None:
        """Let a live guest die permanently."""
        if guest.condition == "alive":
            guest.turn(kind, now_s)
            self.deaths[guest.lane] = now_s

    def boots(
        self, guest: Guest, now_s: float, later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        """Boot a guest; after half a minute it works as before."""
        guest.turn("booting", now_s)
        number = guest.resets = guest.resets + 1

        def up() -> None:
            if guest.condition == "booting" and guest.resets == number:
                guest.turn("alive", now_s + 30.0)
                self.recovered[guest.lane] = now_s + 30.0

        later(30.0, up)

    def moves(self, guest: Guest, node: str) -> None:
        """Move a guest to another node, as a new run of it."""
        self.instances += 1
        guest.node, guest.instance = node, self.instances


def small_fleet(chance: random.Random, *, vms: int = 24) -> Fleet:
    """Return a fleet on three nodes in two cells, whose guests differ at random."""
    guests = []
    for index in range(vms):
        node = f"n{index % 3}"
        vm = UUID(int=chance.getrandbits(128) | 1)
        guests.append(
            Guest(
                lane=index,
                vm=vm.bytes,
                text=str(vm),
                cell="c1" if node == "n2" else "c0",
                node=node,
                group=f"g{index % 8}",
                instance=100 + index,
                rate_per_s=chance.uniform(_QUIETEST_PER_S, 20.0),
                cores_busy=chance.choice((0.02, 0.3, 0.97, 1.0)),
            )
        )
    return Fleet(guests, {guest.vm: guest for guest in guests})

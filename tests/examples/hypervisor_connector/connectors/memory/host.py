"""VMs that exist only in memory, with counters that follow from how long they have run."""

from dataclasses import dataclass, field
from typing import Final

from flatline.engine.errors import VmNotFound
from flatline.engine.ports import Clock
from flatline.engine.wire.frame import Event

VCPUS: Final = 2
POOLS: Final = ("ssd", "hdd")
_STEP_NS: Final = 10_000_000
_BALLOON_PERIOD_S: Final = 5


@dataclass(slots=True)
class Guest:
    """One VM. `since_ns` is the monotonic time at which this run, `instance`, began."""

    vm: bytes
    name: str
    since_ns: int
    instance: int = 1
    boots: int = 0
    pool: str = "ssd"
    tenant: str = "acme"
    group: str = "web"
    actionable: bool = True


@dataclass(slots=True)
class Host:
    """One node; VMs can migrate between the hosts of one `peers` mapping."""

    name: str
    clock: Clock
    peers: dict[str, "Host"] = field(default_factory=dict)
    guests: dict[bytes, Guest] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peers[self.name] = self

    def run(self, vms: int, *, for_s: int = 3600) -> None:
        """Add VMs that have run for `for_s` seconds."""
        for number in range(1, vms + 1):
            vm = number.to_bytes(16, "big")
            since_ns = self.clock.mono_ns() - for_s * 1_000_000_000
            self.guests[vm] = Guest(vm, f"vm-{number}", since_ns)

    def find(self, vm: bytes) -> Guest:
        """Return the VM.

        Raises
        ------
        VmNotFound
            It does not run here.
        """
        if vm not in self.guests:
            raise VmNotFound(f"host {self.name} knows no VM {vm.hex()}")
        return self.guests[vm]

    def note(self, kind: str, guest: Guest) -> None:
        """Record an event of the VM; its id is unique in the site."""
        number, now_ns = len(self.events), self.clock.now_ms() * 1_000_000
        event = Event(id=f"{self.name}-{number}", kind=kind, time_ns=now_ns, vm=guest.vm)
        self.events.append(event)

    def boot(self, guest: Guest) -> None:
        """Boot the VM in the same run."""
        guest.boots += 1
        self.note("rebooted", guest)

    def move(self, guest: Guest, target: "Host") -> None:
        """Move the VM to another host, where a new run of it begins."""
        self.note("migrated_out", self.guests.pop(guest.vm))
        guest.instance, guest.since_ns = guest.instance + 1, self.clock.mono_ns()
        target.guests[guest.vm] = guest
        target.note("migrated_in", guest)

    def counters(self, guest: Guest) -> dict[str, int]:
        """Return the counters by their names in `engine.wire.metrics`, since this run began."""
        steps = (self.clock.mono_ns() - guest.since_ns) // _STEP_NS
        return {
            "cpu_time_ns": sum(self.vcpu_times_ns(guest)),
            "block_rd_reqs": steps,
            "block_rd_bytes": steps * 4096,
            "block_wr_reqs": steps,
            "block_wr_bytes": steps * 4096,
            "net_tx_pkts": steps,
            "net_tx_bytes": steps * 100,
        }

    def vcpu_times_ns(self, guest: Guest) -> tuple[int, ...]:
        """Return for how long each vCPU has run: a tenth of the time."""
        steps = (self.clock.mono_ns() - guest.since_ns) // _STEP_NS
        return (steps * _STEP_NS // 10,) * VCPUS

    def balloon_s(self) -> int:
        """Return when the guests last reported their memory, s since the epoch."""
        now_s = self.clock.now_ms() // 1000
        return now_s - now_s % _BALLOON_PERIOD_S

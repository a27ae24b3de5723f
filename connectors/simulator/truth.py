"""The ground truth of a simulated world, for tests and summaries; no adapter shows it."""

from dataclasses import dataclass, field

from flatline.connectors.simulator.plan import Incident


@dataclass(slots=True)
class Death:
    """Death of a guest, and its recovery; times in ns since the world began."""

    vm: int
    kind: str
    at_ns: int
    alive_ns: int | None = None
    repaired_by: str = ""


@dataclass(slots=True)
class Happening:
    """An incident that was played; `ended_ns` is None while it lasts."""

    incident: Incident
    vms: tuple[int, ...]
    began_ns: int
    ended_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Harm:
    """Damage of an action to a healthy guest."""

    vm: int
    action: str
    at_ns: int
    was: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Evidence that a node saved of a VM."""

    vm: int
    incident: str
    step: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class ActionCall:
    """An action that reached the hypervisor; `outcome` is ok, refused or nothing_happened.

    It is `asked` while `World.interference` decides.
    """

    vm: int
    action: str
    node: str
    at_ns: int
    was: str
    outcome: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A finished live migration."""

    vm: int
    source: str
    target: str
    at_ns: int
    by: str


@dataclass(slots=True)
class Truth:
    """The world's own record; VMs are indices in the plan, times are in ns since the world began.

    Attributes
    ----------
    deaths
        Oldest first; a VM that dies twice has two entries.
    harms
        Every healthy guest harmed by an action: their number must stay 0.
    """

    deaths: list[Death] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    harms: list[Harm] = field(default_factory=list)
    action_calls: list[ActionCall] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    evidence: list[Kept] = field(default_factory=list)

    def dead_since_ns(self, vm: int) -> int | None:
        """Return since when the VM has been dead, None while it lives."""
        for death in reversed(self.deaths):
            if death.vm == vm:
                return death.at_ns if death.alive_ns is None else None
        return None

    def died(self, vm: int, kind: str, at_ns: int) -> None:
        """Record a death by an incident of this kind, unless the VM is already dead."""
        if self.dead_since_ns(vm) is None:
            self.deaths.append(Death(vm, kind, at_ns))

    def lives(self, vm: int, at_ns: int, by: str) -> None:
        """Record that a VM is alive again, if it was dead; `by` is for `Death.repaired_by`."""
        for death in reversed(self.deaths):
            if death.vm == vm and death.alive_ns is None:
                death.alive_ns = at_ns
                death.repaired_by = by

    def calls(self, action: str, *, vm: int | None = None) -> list[ActionCall]:
        """Return the calls of one action that were not refused, for one VM or for all."""
        return [
            call
            for call in self.action_calls
            if call.action == action and call.outcome != "refused" and vm in (None, call.vm)
        ]

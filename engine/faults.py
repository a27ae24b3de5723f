"""Every kind of fault as one row: where it occurs, how urgent it is, what is done, how it ends.

To add a kind, add one member of `Kind`. Detection, policies, evaluation and the command line read
their part of its row, so no other table has to name it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

from flatline.engine.wire.alert import Scope, Severity, Suggestion, Witness
from flatline.engine.wire.order import Action

# The actions of an escalation policy: those ordered from an agent, and those of the planner itself.
StepAction = Literal["notify", Action, "quarantine"]

# Groups of similar kinds. "slow": develops over hours. "sight": the VM or node is not visible.
# "stall": many VMs are silent together. "notice": concerns the data and not a guest.
Family = Literal["death", "hang", "boot", "slow", "contention", "sight", "stall", "notice"]

# How the end of a fault is detected: its I/O counters increase ("moves"), its disk requests
# increase ("disks"), it gets the CPU it requests, it is visible, it writes as usual, its memory no
# longer grows, it has released the cores, or its `signal` of `models.kernels.trends` is 0.
# "detector": the detector of the fault also detects its end. "time": it ends after `calm_s` without
# a new cause.
Recovery = Literal[
    "moves", "disks", "cpu", "visible", "writes", "memory", "cores", "signal", "detector", "time"
]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of an escalation policy.

    Attributes
    ----------
    action
        `notify` and `quarantine` are done by the planner, all others by the VM's agent.
    grace_s
        How long the alert must have been open, because a guest may recover by itself. If this VM
        once took longer to recover by itself, the planner waits that long.
    needs
        Witnesses that the alert must have, in addition to those that `admit` requires.
    deadline_s
        Time within which the engine must have verified the effect; after it the outcome counts as
        unknown.
    stable_s
        How long the VM must have been healthy before it counts as recovered.
    """

    action: StepAction
    grace_s: int = 0
    needs: tuple[Witness, ...] = ()
    deadline_s: int = 300
    stable_s: int = 60


@dataclass(frozen=True, slots=True)
class Escalation:
    """The steps of the default policy and the reason for them; no steps: only an alert."""

    why: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What Flatline knows about a kind of fault.

    Attributes
    ----------
    family
        The group of similar kinds.
    scopes
        The scopes of its alerts.
    meaning
        The fault in words that can end a sentence.
    severity
        The severity of its alert, unless the evidence requires another.
    suggestion
        The strongest suggestion that the engine makes; with weaker evidence it suggests less.
    recovery
        How the end of the fault is detected.
    recovered
        The reason in the resolved alert; empty if the reason depends on what was observed.
    escalation
        The steps of the default policy.
    signal
        For the recovery "signal": the name of the signal in `trends.OUT`.
    calm_s
        For the recovery "time": the time without a new cause after which the fault ends.
    is_idle
        Whether the guest uses no CPU and does no I/O, so that such kinds are hard to distinguish.
    is_scored
        Whether evaluation scores this kind: datasets contain events of it.
    """

    family: Family
    scopes: frozenset[Scope]
    meaning: str
    severity: Severity
    suggestion: Suggestion
    recovery: Recovery
    recovered: str = ""
    escalation: Escalation = Escalation()
    signal: str = ""
    calm_s: float = 0.0
    is_idle: bool = False
    is_scored: bool = False


_VM: Final[frozenset[Scope]] = frozenset({"vm"})

_RESET: Final = Step(action="reset", deadline_s=300, stable_s=60)
_QUARANTINE: Final = Step(action="quarantine")
_EVIDENCE: Final = Step(action="save_evidence")
_NOTIFY: Final = Step(action="notify")
_MIGRATE: Final = Step(action="migrate", deadline_s=900, stable_s=60)

_DEAD: Final = Escalation(
    "The guest's kernel is dead: it cannot be asked to reboot.", (_RESET, _RESET, _QUARANTINE)
)
_TELL: Final = Escalation(
    "No call from outside frees memory, stops a program or explains why a guest rebooted.",
    (_NOTIFY,),
)


class Kind(StrEnum):
    """A kind of fault. Its value is the `kind` of an alert; `fault` holds its properties."""

    fault: Fault

    def __new__(cls, name: str, fault: Fault) -> "Kind":
        """Return the kind with this name and these properties."""
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.fault = fault
        return kind

    # fmt: off
    PANIC_SPIN = "panic_spin", Fault(
        family="death", scopes=_VM, meaning="a kernel panic with a spinning vCPU",
        severity="critical", suggestion="reboot", recovery="moves", escalation=_DEAD,
        is_scored=True,
    )
    PANIC_HALT = "panic_halt", Fault(
        family="death", scopes=_VM, meaning="a kernel panic with halted vCPUs", severity="critical",
        suggestion="reboot", recovery="moves", escalation=_DEAD, is_idle=True, is_scored=True,
    )
    HUNG_USERLAND = "hung_userland", Fault(
        family="hang", scopes=_VM, meaning="processes hang while the kernel is alive",
        severity="error", suggestion="alert", recovery="disks",
        recovered="its disks are active again",
        escalation=Escalation(
            "The kernel is alive: it can still unmount its file systems. The grace period "
            "lets it recover.",
            (
                _EVIDENCE,
                Step(action="reboot", grace_s=120, deadline_s=600, stable_s=60),
                _NOTIFY,
            ),
        ),
        is_idle=True,
    )
    HUNG_IO = "hung_io", Fault(
        family="hang", scopes=_VM, meaning="the disks do not respond", severity="error",
        suggestion="migrate", recovery="disks", recovered="its disks are active again",
        escalation=Escalation(
            "Requests that do not complete would block a migration or a move as well.",
            (_EVIDENCE, _NOTIFY),
        ),
        is_idle=True, is_scored=True,
    )
    BOOT_STUCK = "boot_stuck", Fault(
        family="boot", scopes=_VM, meaning="the boot does not complete", severity="warning",
        suggestion="alert", recovery="moves", recovered="it has booted",
        escalation=Escalation(
            "The guest has not finished its boot: its console shows the reason.",
            (_EVIDENCE, _NOTIFY),
        ),
    )
    # The engine does not report it; a separate monitor may.
    CRASH_LOOP = "crash_loop", Fault(
        family="boot", scopes=_VM, meaning="it fails again after each recovery",
        severity="critical", suggestion="alert", recovery="moves",
        escalation=Escalation(
            "The VM died again after each recovery: the cause is still present.",
            (_EVIDENCE, _QUARANTINE),
        ),
    )
    NODE_CONTENTION = "node_contention", Fault(
        family="contention", scopes=_VM, meaning="the node is overloaded", severity="warning",
        suggestion="migrate", recovery="cpu", recovered="it gets the CPU it requests again",
        escalation=Escalation("Another node has room.", (_MIGRATE,)),
    )
    NOISY_NEIGHBOUR = "noisy_neighbour", Fault(
        family="slow", scopes=_VM, meaning="a noisy neighbour", severity="warning",
        suggestion="migrate", recovery="signal", signal="flood",
        recovered="it no longer overloads its node",
        escalation=Escalation("Its neighbours do less work.", (_MIGRATE, _NOTIFY)),
        is_scored=True,
    )
    CRASH_REBOOT = "crash_reboot", Fault(
        family="slow", scopes=_VM, meaning="a crash from which it recovered by itself",
        severity="info", suggestion="alert", recovery="moves", escalation=_TELL, is_scored=True,
    )
    DEGRADING_STORAGE = "degrading_storage", Fault(
        family="slow", scopes=_VM, meaning="degrading storage", severity="warning",
        suggestion="alert", recovery="writes",
        escalation=Escalation(
            "A disk can be moved while its guest runs.",
            (Step(action="move_disk", deadline_s=3600, stable_s=60), _NOTIFY),
        ),
        is_scored=True,
    )
    MEM_LEAK = "mem_leak", Fault(
        family="slow", scopes=_VM, meaning="a memory leak", severity="warning", suggestion="alert",
        recovery="memory", recovered="its memory no longer grows", escalation=_TELL,
        is_scored=True,
    )
    CPU_RUNAWAY = "cpu_runaway", Fault(
        family="slow", scopes=_VM, meaning="a runaway process", severity="warning",
        suggestion="alert", recovery="cores", recovered="it has released the extra cores",
        escalation=_TELL, is_scored=True,
    )
    VM_SILENCE = "vm_silence", Fault(
        family="sight", scopes=_VM, meaning="the VM is not visible and not judged",
        severity="warning", suggestion="alert", recovery="visible", recovered="it reports again",
        escalation=_TELL, is_scored=True,
    )
    HOST_SILENCE = "host_silence", Fault(
        family="sight", scopes=frozenset({"host"}),
        meaning="the node or its collector does not report", severity="critical",
        suggestion="host_alert", recovery="detector", recovered="it reports again",
        is_scored=True,
    )
    POOL_STALL = "pool_stall", Fault(
        family="stall", scopes=frozenset({"pool"}),
        meaning="the disks of the VMs of a pool stand still together", severity="critical",
        suggestion="host_alert", recovery="detector", recovered="its VMs are active again",
    )
    NETWORK_STALL = "network_stall", Fault(
        family="stall", scopes=frozenset({"network"}),
        meaning="the VMs of a network stop sending together", severity="critical",
        suggestion="host_alert", recovery="detector", recovered="its VMs are active again",
    )
    HOST_STALL = "host_stall", Fault(
        family="stall", scopes=frozenset({"host"}),
        meaning="the VMs of a node fall silent together", severity="critical",
        suggestion="host_alert", recovery="detector", recovered="its VMs are active again",
    )
    FLEET_SILENCE = "fleet_silence", Fault(
        family="stall", scopes=frozenset({"cell", "fleet"}),
        meaning="the VMs or nodes of a cell fall silent together", severity="critical",
        suggestion="fleet_alert", recovery="detector", recovered="its VMs are active again",
    )
    DUPLICATE_VM = "duplicate_vm", Fault(
        family="notice", scopes=_VM, meaning="two nodes run one VM", severity="critical",
        suggestion="alert", recovery="time", recovered="it runs on only one node again",
        calm_s=60.0,
    )
    DUPLICATE_COLLECTOR = "duplicate_collector", Fault(
        family="notice", scopes=frozenset({"host"}),
        meaning="several collectors report as one node", severity="error", suggestion="alert",
        recovery="time", recovered="only one collector reports as this node again", calm_s=60.0,
    )
    CLOCK_STEP = "clock_step", Fault(
        family="notice", scopes=frozenset({"host", "cell"}), meaning="a clock stepped",
        severity="warning", suggestion="alert", recovery="time",
        recovered="the clock has not stepped for two minutes", calm_s=120.0,
    )
    RECORD_SKIPPED = "record_skipped", Fault(
        family="notice", scopes=frozenset({"cell"}),
        meaning="a record could not be used and is skipped", severity="error", suggestion="alert",
        recovery="time", recovered="no further record was skipped for 15 minutes", calm_s=900.0,
    )
    # fmt: on


_BY_NAME: Final = {kind.value: kind for kind in Kind}


def of_family(*families: Family) -> frozenset[str]:
    """Return the kinds of these families."""
    return frozenset(kind for kind in Kind if kind.fault.family in families)


def kind_of(name: str) -> Kind | None:
    """Return the kind of this name, None if only another release or a monitor uses the name."""
    return _BY_NAME.get(name)

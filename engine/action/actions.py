"""The table of actions: names, harm to the guest, and the suggestions that each action answers.

A new action needs an entry here, rules of the preflight check (`engine.action.preflight`), a method
of the port `Actuator` and its call (`engine.roles.calling`). The type checker reports what is
missing.
"""

from collections.abc import Set
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, Literal, TypedDict, TypeVar, get_args

from flatline.engine.wire.alert import Suggestion
from flatline.engine.wire.order import Action

T = TypeVar("T")


class Harm(IntEnum):
    """What the guest loses by an action; an escalation policy orders actions by rising harm."""

    NONE = 0
    """Nothing: the guest does not notice the action."""
    PAUSE = 1
    """Milliseconds of run time, while the VM is switched to another node or disk."""
    REBOOT = 2
    """Its running processes; the guest may end them properly."""
    RESET = 3
    """The content of its memory; no process is ended properly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What planner, agent and command line know of one action.

    Attributes
    ----------
    noun
        Its name in sentences: "the {noun} of a VM".
    command
        Its name in `flatline policy check`: "{command}, then ...".
    harm
        What the guest loses.
    target
        What the order names as destination; None for an action that moves nothing.
    signals
        The engine's suggestions that this action answers.
    """

    noun: str
    command: str
    harm: Harm
    signals: Set[Suggestion]
    target: Literal["node", "pool"] | None = None


class ByAction(TypedDict, Generic[T]):
    """A table with one entry for each action of an agent."""

    save_evidence: T
    reboot: T
    reset: T
    migrate: T
    move_disk: T


class _ByStep(ByAction[Facts]):
    notify: Facts
    quarantine: Facts


_ANY: Final[Set[Suggestion]] = {"alert", "inspect", "reboot", "migrate", "move_disk"}

ACTIONS: Final[_ByStep] = {
    "notify": Facts(
        noun="notification", command="notify people", harm=Harm.NONE, signals=_ANY
    ),
    "save_evidence": Facts(
        noun="evidence collection", command="save evidence", harm=Harm.NONE, signals=_ANY
    ),
    "migrate": Facts(
        noun="migration", command="migrate", harm=Harm.PAUSE, signals={"migrate", "move_disk"},
        target="node",
    ),
    "move_disk": Facts(
        noun="disk move", command="move the disk", harm=Harm.PAUSE, signals={"move_disk"},
        target="pool",
    ),
    "reboot": Facts(noun="reboot", command="reboot", harm=Harm.REBOOT, signals={"reboot"}),
    "reset": Facts(noun="reset", command="reset", harm=Harm.RESET, signals={"reboot"}),
    "quarantine": Facts(
        noun="quarantine", command="quarantine", harm=Harm.NONE, signals=_ANY
    ),
}  # fmt: skip

# The actions that an agent is ordered to do.
AGENT_ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
# Actions that the guest notices, the mildest first: only these use budgets.
DISRUPTIVE: Final[tuple[Action, ...]] = tuple(
    action for harm in Harm if harm for action in AGENT_ACTIONS if ACTIONS[action].harm == harm
)
# Actions that the guest does not survive; the others leave it running.
DESTRUCTIVE: Final[frozenset[Action]] = frozenset(
    action for action in AGENT_ACTIONS if ACTIONS[action].harm >= Harm.REBOOT
)
# Suggestions that ask for a disruptive action.
LOUD: Final[frozenset[Suggestion]] = frozenset(
    signal for action in DISRUPTIVE for signal in ACTIONS[action].signals
)

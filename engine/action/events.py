"""What a planner is told, and what it asks to be done."""

from dataclasses import dataclass

from engine.action.target import CellLoad
from engine.wire.alert import Alert
from engine.wire.control import Control
from engine.wire.journal import EntryKind
from engine.wire.order import Closed, Order


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """An alert stands in the log since `time_ms`."""

    alert: Alert
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class OrderSeen:
    """An order stands in the log, whoever gave it."""

    order: Order
    offset: int
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class ClosedSeen:
    """An agent's mark stands in the log since `time_ms`."""

    mark: Closed
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class ControlSeen:
    """A control record was read; `key` is the record's, None the word's own.

    `by_operator` as `engine.action.words.Heard` has it.
    """

    control: Control
    now_ms: int
    key: bytes | None = None
    by_operator: bool = False


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """A minute of scores told what the nodes of a cell carried."""

    cell: str
    load: CellLoad
    now_ms: int


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything that stood in the log at the start has been read; decisions may begin."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A second passed."""

    now_ms: int


PlannerEvent = AlertSeen | OrderSeen | ClosedSeen | ControlSeen | LoadSeen | CaughtUp | Tick


@dataclass(frozen=True, slots=True)
class AppendOrder:
    """Sign the order and append it."""

    order: Order


@dataclass(frozen=True, slots=True)
class AppendControl:
    """Append the control record."""

    control: Control


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Journal one decision, refusal or effect; `page` means that a person must hear of it."""

    kind: EntryKind
    rule: str
    sentence: str
    incident: str | None = None
    step: int | None = None
    vm: str | None = None
    cell: str | None = None
    page: bool = False


Instruction = AppendOrder | AppendControl | WriteJournal

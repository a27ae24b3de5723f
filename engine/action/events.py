"""The events of a planner (its input) and its instructions (its output)."""

from dataclasses import dataclass

from flatline.engine.action.target import CellLoad
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.control import Control
from flatline.engine.wire.journal import EntryKind
from flatline.engine.wire.order import Order, OrderResult


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """An alert was read from the log; `time_ms` is its append time."""

    alert: Alert
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class OrderSeen:
    """An order of this or another planner was read from the log."""

    order: Order
    offset: int
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class ResultSeen:
    """The result of an agent was read from the log; `time_ms` is its append time."""

    result: OrderResult
    time_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class ControlSeen:
    """A control record was read; `key` is its key, None if it is the key of the command.

    For `by_operator` see `engine.action.commands.Heard`.
    """

    control: Control
    now_ms: int
    key: bytes | None = None
    by_operator: bool = False


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """The load of the nodes of a cell in one minute was read."""

    cell: str
    load: CellLoad
    now_ms: int


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All records that were in the log at the start have been read; decisions may begin."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """One second has passed."""

    now_ms: int


PlannerEvent = AlertSeen | OrderSeen | ResultSeen | ControlSeen | LoadSeen | CaughtUp | Tick


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
    """Journal one decision, refusal or effect; `page` means that a person must be notified."""

    kind: EntryKind
    rule: str
    sentence: str
    incident: str | None = None
    step: int | None = None
    vm: str | None = None
    cell: str | None = None
    page: bool = False


Instruction = AppendOrder | AppendControl | WriteJournal

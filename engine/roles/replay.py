"""Replay: runs a recording through the engine and planner of a site, without a log between them.

The loop has no clock but that of the recording: the same recording, configuration and policies give
the same lines, byte for byte. No agent carries out orders: each closes as `not attempted` and its
incident is left to people, so an incident has at most one order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

import msgspec
import numpy as np
from numpy.typing import NDArray

from flatline.engine.action.catalogue import Policy
from flatline.engine.action.events import (
    AlertSeen,
    AppendControl,
    AppendOrder,
    CaughtUp,
    ControlSeen,
    LoadSeen,
    OrderSeen,
    PlannerEvent,
    ResultSeen,
    Tick,
    WriteJournal,
)
from flatline.engine.action.planner import step
from flatline.engine.action.request_context import DAY_MS
from flatline.engine.action.state import PlannerState
from flatline.engine.action.target import CellLoad
from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration, configuration_hash
from flatline.engine.detection.coverage import witnesses_of
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest
from flatline.engine.evaluation.lines import AlertLine, OrderLine
from flatline.engine.ports import Record, RecordedFrame, Recording
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import UUID_BYTES, Frame
from flatline.engine.wire.metrics import INTEGER_ROW
from flatline.engine.wire.order import Order, OrderResult
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import FRAMES

_PLANNER: Final = "replay"
_CPU_ROW: Final = INTEGER_ROW["cpu_time_ns"]
# Deadlines and back-offs are minutes; the planner of a site ticks as often.
_TICK_MS: Final = 1_000
_NOT_ATTEMPTED: Final = "A replay executes no action."


@dataclass(slots=True)
class Planned:
    """The planner of one policy in the replay, and its results."""

    policy: Policy
    state: PlannerState
    orders: list[OrderLine] = field(default_factory=list)
    held: Counter[str] = field(default_factory=Counter)
    ordered: set[str] = field(default_factory=set)
    ticked_ms: int = 0


class Replayer:
    """Runs one recording.

    Parameters
    ----------
    policies
        By unique name; each policy gets its own planner, and all planners read the same alerts.

    Attributes
    ----------
    alerts, fired
        Number of alert lines by kind and state, and the ids of all alerts that ever fired.
    frames, vm_samples
        Frames folded, and rows of VMs in them.
    planned
        By policy name.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        policies: Mapping[str, Policy],
        configuration: Configuration | None = None,
    ) -> None:
        self.configuration = Configuration() if configuration is None else configuration
        self._recording = recording
        self._names = recording.names
        self._partitions: dict[int, Partition] = {}
        self._reported: dict[str, int] = {}
        self._offset = 0
        self.planned = {
            name: Planned(policy, PlannerState(name=_PLANNER, site=""))
            for name, policy in policies.items()
        }
        self.alerts: Counter[tuple[str, str]] = Counter()
        self.fired: set[str] = set()
        self.frames = 0
        self.vm_samples = 0
        # By VM: the minutes in which its available witnesses changed, each with the witnesses
        # available from then on.
        self.witnesses: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
        self.observed_s_by_day: dict[int, float] = {}
        self._observed_s: dict[bytes, NDArray[np.float64]] = {}
        self._first_ms = self._last_ms = 0

    def run(self) -> Iterator[AlertLine]:
        """Yield the lines of alerts, oldest first; orders are added to `planned` as they come.

        Raises
        ------
        FlatlineError
            A part of the recording cannot be read.
        """
        for recorded in self._recording.recorded_frames():
            yield from self.fold(recorded)

    def fold(self, recorded: RecordedFrame) -> Iterator[AlertLine]:
        """Fold one frame and yield the lines that result."""
        frame, time_ms = recorded.frame, recorded.time_ms
        self._first_ms, self._last_ms = self._first_ms or time_ms, time_ms
        event_s = time_ms / 1000
        if frame is not None:
            self._count(frame)
            event_s = frame.header.event_time_ns / 1e9
        state = self._partitions.get(recorded.partition)
        if state is None:
            state = self._partitions[recorded.partition] = Partition(self.configuration)
        value = recorded.value
        record = Record(FRAMES.name, recorded.partition, self._offset, time_ms, b"", value)
        self._offset += 1
        for output in state.fold(record, frame):
            if output.alert is not None:
                yield from self._alert(output.alert, event_s, time_ms)
            elif output.scores is not None:
                self._load_is(output.scores, event_s, time_ms)
        self._let_time_pass(event_s, time_ms)

    def _count(self, frame: Frame) -> None:
        header, missing = frame.header, frame.rows.missing
        if header.role != "collector":
            return
        rows = frame.rows
        # A VM counts as seen if its CPU time is known: libvirt has this even if the VM's monitor
        # does not answer.
        known = np.ones(len(rows), np.bool_) if missing is None else ~missing[_CPU_ROW]
        seen = int(np.count_nonzero(known))
        self.frames += 1
        self.vm_samples += seen
        interval_s = header.interval_ms / 1000
        day = (self._last_ms - self._first_ms) // DAY_MS
        self.observed_s_by_day[day] = self.observed_s_by_day.get(day, 0.0) + seen * interval_s
        observed_s = self._observed_s.get(rows.uuids)
        if observed_s is None:
            observed_s = self._observed_s[rows.uuids] = np.zeros(len(rows))
        observed_s += known * interval_s

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells by name, in their current state."""
        return {
            name: cell for state in self._partitions.values() for name, cell in state.cells.items()
        }

    @property
    def spanned_s(self) -> float:
        """The elapsed time of the recording, s."""
        return (self._last_ms - self._first_ms) / 1000

    def vm_days(self) -> dict[str, float]:
        """Return how long each VM was seen, in days, by its name in the recording."""
        days: dict[str, float] = {}
        for roster, observed_s in self._observed_s.items():
            for index, seconds in enumerate(observed_s):
                uuid = str(UUID(bytes=roster[index * UUID_BYTES : (index + 1) * UUID_BYTES]))
                vm = self._names.get(uuid, uuid)
                days[vm] = days.get(vm, 0.0) + float(seconds) / 86_400
        return dict(sorted(days.items()))

    @property
    def began_s(self) -> float:
        """The start of the recording, s since the epoch."""
        return self._first_ms / 1000

    @property
    def configuration_hash(self) -> str:
        """The hash of the configuration, as in every alert."""
        return configuration_hash(self.configuration)

    def digest(self) -> str:
        """Return the sha256 of all state that affects decisions; `+` joins those of partitions."""
        return "+".join(digest(self._partitions[number]) for number in sorted(self._partitions))

    def _alert(self, alert: Alert, event_s: float, time_ms: int) -> Iterator[AlertLine]:
        for planned in self.planned.values():
            self._planner_saw(planned, alert, event_s, time_ms)
        # A firing alert is published again every minute, but only a transition gives a line.
        if self._reported.get(alert.id, -1) == alert.transition:
            return
        self._reported[alert.id] = alert.transition
        self.alerts[alert.kind, alert.state] += 1
        if alert.state == "firing":
            self.fired.add(alert.id)
        yield self._line(alert, event_s)

    def _line(self, alert: Alert, event_s: float) -> AlertLine:
        name = self._names.get
        scope, subject = alert.scope, alert.subject
        if scope == "vm":
            subject = name(subject, subject)
        # A recording that names its VMs is a dataset of one cell. The ground truth calls that cell
        # the fleet.
        whole = scope == "cell" and len(self._names) > 0
        return AlertLine(
            t=event_s,
            onset_t=alert.onset_ms / 1000,
            id=alert.id,
            scope="fleet" if whole else scope,
            subject=subject,
            vms=tuple(name(vm, vm) for vm in alert.vms),
            kind=alert.kind,
            state=alert.state,
            confidence=alert.confidence,
            suggested_action=alert.suggested_action,
            vetoes=alert.vetoes,
            sentence=alert.sentence,
        )

    def _planner_saw(self, planned: Planned, alert: Alert, event_s: float, time_ms: int) -> None:
        if alert.id in planned.ordered:
            # The incident is left to people, so nothing more is ordered for it. It still counts
            # among the incidents of its cell.
            alert = msgspec.structs.replace(alert, suggested_action="none")
        self._feed(planned, AlertSeen(alert, time_ms, time_ms), event_s, time_ms)

    def _note_witnesses(self, scores: Scores) -> None:
        for place, found in enumerate(scores.covered()[:, 0].tolist()):
            uuid = scores.uuids[place * UUID_BYTES : (place + 1) * UUID_BYTES]
            known = self.witnesses.setdefault(str(UUID(bytes=uuid)), [])
            heard = witnesses_of(found)
            if not known or known[-1][1] != heard:
                known.append((scores.minute_ms, heard))

    def _load_is(self, scores: Scores, event_s: float, time_ms: int) -> None:
        self._note_witnesses(scores)
        load = CellLoad(scores.minute_ms, scores.node_load, scores.vm_count)
        for planned in self.planned.values():
            self._feed(planned, LoadSeen(scores.cell, load, time_ms), event_s, time_ms)

    def _let_time_pass(self, event_s: float, time_ms: int) -> None:
        for planned in self.planned.values():
            if time_ms - planned.ticked_ms >= _TICK_MS:
                planned.ticked_ms = time_ms
                self._feed(planned, Tick(time_ms), event_s, time_ms)

    def _feed(self, planned: Planned, event: PlannerEvent, event_s: float, time_ms: int) -> None:
        if not planned.state.live:
            planned.state = replace(planned.state, site=self._site())
            planned.state, _ = step(planned.state, CaughtUp(time_ms), planned.policy)
        planned.state, instructions = step(planned.state, event, planned.policy)
        for instruction in instructions:
            match instruction:
                case AppendOrder(order):
                    self._ordered(planned, order, event_s, time_ms)
                case AppendControl(control):
                    self._feed(planned, ControlSeen(control, time_ms), event_s, time_ms)
                case WriteJournal(kind="refusal", rule=rule):
                    planned.held[rule] += 1
                case WriteJournal():
                    pass

    def _site(self) -> str:
        sites = {cell.site for state in self._partitions.values() for cell in state.cells.values()}
        return min(sites, default="replay")

    def _ordered(self, planned: Planned, order: Order, event_s: float, time_ms: int) -> None:
        """Record an order, and give it and its result to the planner, as if read from the log."""
        planned.orders.append(
            OrderLine(
                t=event_s,
                vm=self._names.get(order.vm, order.vm),
                action=order.action,
                incident=order.incident,
                step=order.step,
                sentence=order.sentence,
            )
        )
        planned.ordered.add(order.incident)
        offset = len(planned.orders)
        result = OrderResult(
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            node=order.node,
            agent=_PLANNER,
            outcome="not_attempted",
            dry_run=order.dry_run,
            time_ms=time_ms,
            sentence=_NOT_ATTEMPTED,
        )
        for event in (
            OrderSeen(order, offset, time_ms, time_ms),
            ResultSeen(result, time_ms, time_ms),
        ):
            planned.state, _ = step(planned.state, event, planned.policy)
        others = {
            key: incident
            for key, incident in planned.state.incidents.items()
            if key != order.incident
        }
        planned.state = replace(planned.state, incidents=others)

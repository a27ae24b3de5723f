"""Fold the records of one partition into state, without I/O, event loop or wall clock.

The same records give the same alerts and the same digest, independent of their transport.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

from flatline.engine.detection.bounds import MAX_WAITING_BYTES, excess_of
from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration, Now
from flatline.engine.detection.fold import fold_frame
from flatline.engine.detection.forest import new_forest
from flatline.engine.detection.incidents import settle
from flatline.engine.detection.judge import judge
from flatline.engine.detection.minutes import close_minute
from flatline.engine.detection.outcomes import Ended, Finding, Outcome, notice_key
from flatline.engine.detection.ownership import log_stepped
from flatline.engine.detection.sources import (
    Arrival,
    Counters,
    Source,
    Waiting,
    forget_ended,
    note_mark,
    order,
    out_of_order_ms,
    refusal_of,
    release,
    source_key,
    stale_command,
)
from flatline.engine.detection.stepping import step_back
from flatline.engine.detection.windows import is_due, is_early
from flatline.engine.errors import FoldFailed, RecordRejected
from flatline.engine.faults import Kind
from flatline.engine.ports import Headers, OpenFrame, Record
from flatline.engine.wire import topics
from flatline.engine.wire.alert import Alert, Resolution, SamplePosition, encode_alert
from flatline.engine.wire.frame import Frame, decode_frame
from flatline.engine.wire.log_clock import LogClock
from flatline.engine.wire.rejected import encode_rejected, rejected_key
from flatline.engine.wire.score import Scores, encode_scores
from flatline.models.codecs.columns import widen

# Ended sources are searched for at this interval, not with every record.
_FORGET_EVERY_MS = 60_000
_RECORD: Final = "record"


class Output(NamedTuple):
    """A record to append as a result of folding; `alert` and `scores` are its decoded form."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers = ()
    alert: Alert | None = None
    scores: Scores | None = None


def decoded(record: Record) -> Frame:
    """Return the frame of a record without checking its writer, for replays and recordings.

    It raises `RecordRejected` if the value is not a frame.
    """
    return decode_frame(record.value, widen)


class Partition:
    """State of one partition.

    Attributes
    ----------
    open_frame
        Decodes the frame of a record or rejects it; a role sets one that verifies the writer.
    next_offset
        Offset of the first record that has not been folded. It and `lost` depend on the log, not
        on the contents of its records, so the digest omits both.
    lost
        Number of records that the log dropped before they were read, since this value was made.
    cells, sources, counters
        State of the fleet and of the writers, and counts of the records by outcome.
    marks
        Time of the last received frame of each writer, by its node's clock.
    clock
        Log clock derived from the append times of the records.
    time_ms, passed_ms
        Append time that is accepted now, and append time that passed while the log was available:
        during an outage no VM counts as silent.
    """

    open_frame: OpenFrame

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.open_frame = decoded
        self.next_offset = 0
        self.lost = 0
        self.cells: dict[str, Cell] = {}
        self.sources: dict[str, Source] = {}
        self.marks: dict[str, int] = {}
        self.counters = Counters()
        self.clock = LogClock()
        self.time_ms = 0
        self.passed_ms = 0
        self.forgot_ms = 0
        # Sources with waiting frames: few, and visited with every record.
        self.queued: set[str] = set()
        # Total size of the frames that wait; derived from `queued`.
        self.waiting_bytes = 0
        # Cells that folded or queued a frame with this record: only they can have become due by it.
        self._touched: set[str] = set()
        # Culprits of `FoldFailed` that are set aside for this record.
        self._given_up: set[str] = set()

    def waiting(self) -> int:
        """Return the number of frames that wait for a gap in their source's sequence."""
        return sum(len(self.sources[key].waiting) for key in self.queued)

    def fold(
        self,
        record: Record,
        frame: Frame | None = None,
        *,
        given_up: Collection[str] = (),
    ) -> list[Output]:
        """Fold one record; return the resulting records, oldest first.

        Records below `next_offset` were folded before and change nothing. `frame` is the decoded
        value, where the caller has it: a replay makes frames without bytes. `given_up` names
        culprits of `FoldFailed` to set aside this time.

        Raises
        ------
        FoldFailed
            Folding raised, and the state may be half changed: restore it.
        """
        if record.offset < self.next_offset:
            return []
        self._given_up = set(given_up)
        try:
            return self._fold(record, frame)
        except FoldFailed:
            raise
        except Exception as error:
            raise FoldFailed(_RECORD, error) from error

    def _fold(self, record: Record, frame: Frame | None) -> list[Output]:
        # The start of the log is unknown before its first record.
        if self.next_offset:
            self.lost += record.offset - self.next_offset
        self.next_offset = record.offset + 1
        self.counters.received += 1
        rejection: RecordRejected | None = None
        if _RECORD not in self._given_up:
            try:
                frame = self.open_frame(record) if frame is None else frame
            except RecordRejected as error:
                rejection = error
        outputs = self._pass_time(record, frame)
        # Advance time first: a window whose allowed lateness is over must not take the next
        # window's frame.
        outputs += self._close_slots(self.cells)
        self._touched.clear()
        if _RECORD in self._given_up:
            outputs += self._set_aside(None, record.value, record)
            return outputs
        if rejection is not None:
            outputs += self._refuse(record.value, record, rejection)
        elif frame is not None:
            outputs += self._take(frame, record)
        outputs += self._release_waiting(record)
        if self.time_ms - self.forgot_ms >= _FORGET_EVERY_MS:
            self.forgot_ms = self.time_ms
            forget_ended(
                self.sources,
                self.marks,
                time_ms=self.time_ms,
                configuration=self.configuration,
            )
            for name in [name for name, cell in self.cells.items() if cell.is_empty()]:
                del self.cells[name]
        return outputs

    def _pass_time(self, record: Record, frame: Frame | None) -> list[Output]:
        """Advance the accepted append time; a gap in it is an outage."""
        limit_ms = round(self.configuration.clock_step_s * 1000)
        if record.time_ms - self.time_ms > limit_ms:
            intervals = [cell.interval_ms() for cell in self.cells.values()]
            limit_ms = max(limit_ms, 2 * max(intervals, default=0))
        is_tick = frame is not None and frame.header.role == "shell"
        tick_ms = frame.header.event_time_ns // 1_000_000 if frame is not None and is_tick else None
        before_ms = self.clock.time_ms
        jump_ms = self.clock.read(record.time_ms, limit_ms=limit_ms, tick_ms=tick_ms)
        self.time_ms = self.clock.time_ms
        if not before_ms:
            return []
        self.passed_ms += min(max(0, self.time_ms - before_ms), limit_ms)
        is_unsure = self.clock.is_unsure(limit_ms=limit_ms)
        for cell in self.cells.values():
            cell.passed_ms = self.passed_ms
            cell.is_unsure = is_unsure
        if jump_ms > 0 or self.clock.apart_ms > 0:
            inhibition_ms = round(self.configuration.lifecycle_hold_s * 1000)
            for cell in self.cells.values():
                cell.outage_ms = max(cell.outage_ms, self.time_ms + inhibition_ms)
        return self._step_back(-jump_ms) if jump_ms < 0 else []

    def _step_back(self, by_ms: int) -> list[Output]:
        """Set the state back to the accepted time, which went back by `by_ms`, and report this."""
        from_ms = self.time_ms + by_ms
        self.forgot_ms = min(self.forgot_ms, self.time_ms)
        for source in self.sources.values():
            source.seen_ms = min(source.seen_ms, self.time_ms)
            for waiting in source.waiting:
                waiting.time_ms = min(waiting.time_ms, self.time_ms)
        outputs: list[Output] = []
        for name in sorted(self.cells):
            cell = self.cells[name]
            step_back(cell, from_ms=from_ms, to_ms=self.time_ms)
            outputs += self._settled(cell, [log_stepped(cell, by_ms, time_ms=self.time_ms)])
        return outputs

    def _take(self, frame: Frame, record: Record) -> list[Output]:
        header = frame.header
        arrival = Arrival(frame, record.value, self.time_ms)
        cell = self.cells.get(header.cell)
        key = source_key(frame)
        # A gap that an outage of the log kept open is not an out-of-order arrival.
        is_calm = cell is not None and not cell.is_unsure and self.time_ms >= cell.outage_ms
        if cell is not None and is_calm and key in self.queued:
            most_ms = round(self.configuration.reorder_s * 1000)
            cell.out_of_order.take(min(most_ms, out_of_order_ms(self.sources[key], arrival)))
        refusal = stale_command(frame, appended_ms=record.time_ms) or refusal_of(
            self.sources, self.marks, frame, time_ms=self.time_ms
        )
        if refusal is not None:
            return self._refuse(record.value, record, refusal)
        waits = self._early(key) if cell is not None and cell.out_of_order.late_ms else None
        before = len(self.sources[key].waiting) if key in self.sources else 0
        is_next = order(self.sources, arrival, self.counters, waits)
        source = self.sources[key]
        if is_next:
            note_mark(self.marks, key, source)
            return self._fold_frame(frame, record.value, record)
        if len(source.waiting) > before:
            note_mark(self.marks, key, source)
            self.waiting_bytes += len(record.value)
            self.queued.add(key)
            node = None if cell is None else cell.nodes.get(header.node)
            if node is not None and header.run == node.run:
                # A new frame that waits for its turn proves that its node still sends. A repeated
                # frame proves nothing: any reader of the log can send a copy, and a dead node would
                # seem alive indefinitely.
                node.seen_ms = self.passed_ms
        return []

    def _early(self, key: str) -> Callable[[Waiting], bool]:
        """Return a function that states whether a source's next frame must wait for its window."""
        name, node = key.split("\x00")[:2]

        def is_early_now(waiting: Waiting) -> bool:
            cell = self.cells.get(name)
            # If this node has no sample for the open window, and the window awaited only this node,
            # the window can close now.
            self._touched.add(name)
            return cell is not None and is_early(
                cell, node, waiting.sample, self._now(), since_ms=waiting.time_ms
            )

        return is_early_now

    def _release_waiting(self, record: Record) -> list[Output]:
        """Fold frames that are due, and close the windows that they fill."""
        outputs: list[Output] = []
        while True:
            folded = 0
            for key in sorted(self.queued):
                count, said = self._release(key, record)
                folded += count
                outputs += said
            outputs += self._close_slots(self._touched)
            if not folded:
                return outputs

    def _release(self, key: str, record: Record) -> tuple[int, list[Output]]:
        """Fold the due frames of one source; return their number and the resulting records."""
        source, folded = self.sources[key], 0
        said: list[Output] = []
        before = self.counters.missing
        for waiting in release(
            source,
            self.counters,
            time_ms=self.time_ms,
            configuration=self.configuration,
            waits=self._early(key),
            crowded=self.waiting_bytes > MAX_WAITING_BYTES,
        ):
            missing, before = self.counters.missing - before, self.counters.missing
            self.waiting_bytes -= len(waiting.value)
            frame = decode_frame(waiting.value, widen)
            said += self._fold_frame(
                frame, waiting.value, record, missing=missing, arrived_ms=waiting.time_ms
            )
            folded += 1
        if not source.waiting:
            self.queued.discard(key)
        return folded, said

    def _fold_frame(
        self,
        frame: Frame,
        value: bytes,
        record: Record,
        *,
        missing: int = 0,
        arrived_ms: int | None = None,
    ) -> list[Output]:
        """Fold a frame that is due; `record` is the one that is being folded now."""
        header = frame.header
        culprit = f"frame {source_key(frame)} {header.sequence}"
        if culprit in self._given_up:
            return self._set_aside(frame, value, record)
        excess = None if header.role == "shell" else excess_of(self.cells, frame)
        if excess is not None:
            return self._refuse(value, record, RecordRejected("too_many", excess))
        self.counters.processed += 1
        if header.role == "shell":
            return []
        try:
            return self._fold_into_cell(frame, missing=missing, arrived_ms=arrived_ms)
        except Exception as error:
            raise FoldFailed(culprit, error) from error

    def _refuse(self, value: bytes, record: Record, rejection: RecordRejected) -> list[Output]:
        """Publish a refused value, with the reason, to the topic of rejected records."""
        self.counters.rejected += 1
        return [_rejected(value, record, rejection)]

    def _set_aside(self, frame: Frame | None, value: bytes, record: Record) -> list[Output]:
        """Reject a value that could not be folded; report it, unless `frame` is None."""
        self.counters.rejected += 1
        self.counters.poison += 1
        if frame is None:
            detail = f"a record of {len(value)} bytes failed twice and is skipped"
            return [_rejected(value, record, RecordRejected("poison", detail))]
        header = frame.header
        detail = (
            f"frame {header.sequence} of {header.role} run {header.run} of node {header.node} "
            "failed twice and is skipped"
        )
        said = [_rejected(value, record, RecordRejected("poison", detail))]
        cell = self.cells.get(header.cell)
        if cell is not None:
            position = SamplePosition(
                node=header.node, role=header.role, run=header.run, sequence=header.sequence
            )
            said += self._report_skipped(cell, position, detail)
        return said

    def _report_skipped(self, cell: Cell, position: SamplePosition, detail: str) -> list[Output]:
        finding = Finding(
            scope="cell",
            subject=cell.name,
            kind=Kind.RECORD_SKIPPED,
            firing=True,
            severity=Kind.RECORD_SKIPPED.fault.severity,
            suggestion=Kind.RECORD_SKIPPED.fault.suggestion,
            confidence=1.0,
            onset_ms=self.time_ms,
            position=position,
            sentence=(
                f"Cell {cell.name}: {detail}. This is an error in Flatline. Report it with the "
                "record, which is in flatline.rejected.v1."
            ),
            node=position.node,
            key=notice_key(Kind.RECORD_SKIPPED, cell.name),
        )
        return self._settled(cell, [finding])

    def _fold_into_cell(
        self, frame: Frame, *, missing: int, arrived_ms: int | None
    ) -> list[Output]:
        header = frame.header
        self._touched.add(header.cell)
        cell = self.cells.get(header.cell)
        if cell is None:
            cell = self._new_cell(header.cell, site=header.site, zone=header.zone)
        outputs = self._closed_minute(cell)
        fold_frame(
            cell,
            frame,
            self._now(),
            arrived_ms=self.time_ms if arrived_ms is None else arrived_ms,
            counters=self.counters,
            missing=missing,
        )
        return outputs

    def _close_slots(self, names: Iterable[str]) -> list[Output]:
        outputs: list[Output] = []
        for name in sorted(names):
            cell = self.cells.get(name)
            if cell is None:
                continue
            culprit = f"cell {name}"
            try:
                outputs += self._judged(cell)
            except Exception as error:
                if culprit not in self._given_up:
                    raise FoldFailed(culprit, error) from error
                # All state of the cell is dropped, because the error may have left it half changed.
                outputs += self._begin_anew(cell)
        return outputs

    def _judged(self, cell: Cell) -> list[Output]:
        """Close the minute that a cell's last window ended, and its window if that is due."""
        outputs = self._closed_minute(cell)
        if not is_due(cell, self._now()):
            return outputs
        cell.ahead = self._ahead(cell) if cell.out_of_order.late_ms else {}
        outputs += [_alert_output(cell, alert) for alert in judge(cell, self._now())]
        return outputs

    def _closed_minute(self, cell: Cell) -> list[Output]:
        """Return the summary of the minute that the cell's last window ended, if one did."""
        # The alerts of the window must not wait for the summary. So the summary is made with the
        # next record, before the cell takes another sample.
        return [
            Output(topics.SCORES.name, cell.name.encode(), encode_scores(scores), scores=scores)
            for scores in close_minute(cell, self.configuration)
        ]

    def _begin_anew(self, cell: Cell) -> list[Output]:
        """Replace a cell that cannot be judged by an empty one, and end its alerts."""
        # No record causes the error, so skipping one would not help. Learned state is lost, and
        # without a day of history no action is taken in the cell.
        self.counters.poison += 1
        reason = "the state of its cell was reset after an error"
        ended = [
            Ended(
                incident,
                Resolution(reason=reason),
                f"{incident.alert.name or incident.alert.subject}: {reason}, so it is unknown "
                "whether the fault continues.",
            )
            for _, incident in sorted(cell.incidents.items())
            if incident.alert.state != "resolved"
        ]
        outputs = self._settled(cell, ended)
        fresh = self._new_cell(cell.name, site=cell.site, zone=cell.zone)
        position = SamplePosition(node="-", role="shell", run="-", sequence=self.time_ms)
        detail = "judging its state failed twice, so its state is reset"
        return [*outputs, *self._report_skipped(fresh, position, detail)]

    def _now(self) -> Now:
        return Now(self.time_ms, self.configuration)

    def _settled(self, cell: Cell, outcomes: Iterable[Outcome]) -> list[Output]:
        """Apply outcomes that closing a window did not produce; return their alerts as records."""
        return [_alert_output(cell, alert) for alert in settle(cell, outcomes, self._now())]

    def _new_cell(self, name: str, *, site: str, zone: str) -> Cell:
        cell = Cell(name, site=site, zone=zone, forest=new_forest())
        cell.passed_ms = self.passed_ms
        cell.closed_ms = self.time_ms
        self.cells[name] = cell
        return cell

    def _ahead(self, cell: Cell) -> dict[str, list[bytes]]:
        """Return the waiting samples by node: they may show that a silence judged now has ended."""
        waiting: dict[str, list[bytes]] = {}
        for key in sorted(self.queued):
            name, node = key.split("\x00")[:2]
            if name == cell.name:
                sampled = [one.value for one in self.sources[key].waiting if one.sample.mono_ns]
                waiting.setdefault(node, []).extend(sampled)
        return waiting


def _alert_output(cell: Cell, alert: Alert) -> Output:
    value, headers = encode_alert(alert)
    return Output(topics.ALERTS.name, cell.name.encode(), value, headers, alert)


def _rejected(value: bytes, record: Record, rejection: RecordRejected) -> Output:
    kept = encode_rejected(
        value,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=rejection.reason,
        detail=rejection.detail,
    )
    return Output(topics.REJECTED.name, rejected_key(record.key), kept)

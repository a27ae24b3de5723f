"""Turns frames of one partition into rows of the history: samples, minutes, and hours to close.

A `NodeState` holds the state of a node. All state can be serialised and restored. The same frames
always give the same rows, so if frames are read again, rows are overwritten with equal ones.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import FoldFailed, RecordRejected
from flatline.engine.history.history_rates import COUNTERS, vm_metrics
from flatline.engine.history.rollups import Window
from flatline.engine.history.rows import (
    info_points,
    node_series,
    node_values,
    pool_series,
    pool_values,
    telegraf_points,
    telegraf_series,
    vm_texts,
)
from flatline.engine.ports import OpenFrame, Record
from flatline.engine.stream.counters import Counters
from flatline.engine.wire.frame import Frame, VmRows, decode_frame, uuids_of
from flatline.engine.wire.measurement import (
    NODE,
    NODE_FIELDS,
    POOL,
    POOL_METRICS,
    VM,
    VM_METRICS,
    Field,
    Measurement,
)
from flatline.engine.wire.points import Points, Series, kept
from flatline.engine.wire.runs import Runs

MINUTE_S: Final = 60
HOUR_S: Final = 3600
_MS: Final = 1_000_000
# The open minute of a node is written after two minutes without a frame, although it may still
# grow: sampling intervals may be as long as 5 min, and a node may stay silent.
_SILENT_MS: Final = 120_000
# An hour is rolled up this long after its end, because frames may arrive late. If a frame arrives
# even later, the hour is rolled up again.
_LATENESS_MS: Final = 120_000

# The most names that are kept. Up to this number, names of VMs that left are kept too, because a VM
# may return, as after a migration.
_NAMES_KEPT: Final = 200_000
# The culprit where the record itself cannot be folded.
_RECORD: Final = "record"

Floats = NDArray[np.float64]


class Hour(NamedTuple):
    """An hour of the rows of one family of measurements in one cell, to be rolled up."""

    family: str
    cell: str
    begin_s: int


class _Group:
    """The series of one family of measurements on one node: their tags, and the open minute."""

    def __init__(self, family: tuple[Measurement, ...], fields: tuple[Field, ...]) -> None:
        self.raw, self.minute = family[0].name, family[1].name
        self.fields = fields
        self.series: Series | None = None
        self.window: Window | None = None

    def roster(self, series: Series, indices: NDArray[np.int64]) -> Iterator[Points]:
        """Change the roster; yield the open minute of the old one first."""
        yield from self.close()
        self.series = series
        if self.window is not None:
            self.window = self.window.moved(indices)

    def add(self, values: Floats, *, time_ns: int) -> Iterator[Points]:
        """Yield the rows of a sample, and the previous minute where a new one begins."""
        if self.series is None:
            return
        begin_s = time_ns // 1_000_000_000 // MINUTE_S * MINUTE_S
        if self.window is None or self.window.begin_s != begin_s:
            yield from self.close()
            self.window = Window.empty(begin_s, metrics=len(self.fields), size=len(self.series))
        self.window.add(values)
        times = np.full(len(self.series), time_ns, np.int64)
        columns = {field.name: values[row] for row, field in enumerate(self.fields)}
        yield Points(self.raw, self.series, times, columns)

    def close(self) -> Iterator[Points]:
        """Yield the open minute in its present state; later samples may yield it again."""
        if self.window is None or self.series is None or not len(self.series):
            return
        times = np.full(len(self.series), self.window.begin_s * 1_000_000_000, np.int64)
        yield Points(self.minute, self.series, times, self.window.columns(self.fields))


class Source(NamedTuple):
    """The last frame of a node; if a sample is split into several frames, `part` numbers them."""

    run: str
    sequence: int
    event_time_ns: int
    part: int


@dataclass(slots=True, eq=False)
class NodeState:
    """State of one node, or of one part of the node if its samples are split into several frames.

    Attributes
    ----------
    run, mono_ns
        Collector's run and monotonic time of the last frame that was folded.
    uuids
        The roster; `counters` are in its order.
    heard_ms
        Append time of the last frame; `given_out` is whether open minutes were written since.
    """

    cell: str
    node: str
    part: int = 0
    run: str = ""
    mono_ns: int = 0
    uuids: bytes = b""
    counters: Counters = field(default_factory=lambda: Counters(COUNTERS))
    heard_ms: int = 0
    given_out: bool = True
    pools: tuple[str, ...] = ()
    vms: _Group = field(default_factory=lambda: _Group(VM, VM_METRICS))
    own: _Group = field(default_factory=lambda: _Group(NODE, NODE_FIELDS))
    storage: _Group = field(default_factory=lambda: _Group(POOL, POOL_METRICS))
    telegraf: dict[str, Series] = field(default_factory=dict)

    def groups(self) -> tuple[_Group, ...]:
        """Return the series of the VMs, of the node itself and of its pools, in this order."""
        return self.vms, self.own, self.storage


def decoded(record: Record) -> Frame:
    """Return the frame of a record without checking its writer, for recordings.

    Raises
    ------
    RecordRejected
        The record is not a frame.
    """
    return decode_frame(record.value)


class FrameFold:
    """State of one partition, whose frames are folded in order.

    Attributes
    ----------
    open_frame
        Returns the frame of a record, or rejects the record. Roles set a function that verifies the
        writer of the frame.
    next_offset
        Records below it have been folded and give no rows again.
    time_ms
        Append time of the newest record.
    names
        VM names by UUID text, from inventories.
    open_hours
        Hours for which rows were written since their last roll-up.
    runs
        By cell and node, the collector's runs, of which the frames of only one are used.
    repeated, rivals, beyond_int64, unreadable
        Repeated frames, frames of other collectors, counters that no store can hold, and records
        that are not frames.
    """

    open_frame: OpenFrame

    def __init__(self) -> None:
        self.open_frame = decoded
        self.next_offset = 0
        self.time_ms = 0
        self.names: dict[str, str] = {}
        self.node_states: dict[tuple[str, str, int], NodeState] = {}
        self.sources: dict[tuple[str, str], Source] = {}
        self.runs: dict[tuple[str, str], Runs] = {}
        self.open_hours: set[Hour] = set()
        self.repeated = 0
        self.rivals = 0
        self.beyond_int64 = 0
        self.unreadable = 0

    def fold_record(self, record: Record, *, given_up: Collection[str] = ()) -> list[Points]:
        """Return the rows of one record without the culprits in `given_up`; see `FoldFailed`.

        Raises
        ------
        FoldFailed
            Folding raised, and the state may be partly changed: the caller must restore it.
        """
        if record.offset < self.next_offset:
            return []
        self.next_offset = record.offset + 1
        for culprit in given_up:
            self.drop_node(culprit)
        try:
            if _RECORD in given_up:
                return self.pass_time(record.time_ms)
            try:
                frame = self.open_frame(record)
            except RecordRejected:
                # The engine reads the same record and publishes it to `rejected`.
                self.unreadable += 1
                return self.pass_time(record.time_ms)
            return self.fold(frame, time_ms=record.time_ms)
        except FoldFailed:
            raise
        except Exception as error:
            raise FoldFailed(_RECORD, error) from error

    def fold(self, frame: Frame, *, time_ms: int) -> list[Points]:
        """Return the rows of one frame, and those of the windows that it closes.

        Parameters
        ----------
        time_ms
            Append time of the frame.

        Raises
        ------
        FoldFailed
            The open minutes of a silent node could not be closed. Any other exception is a failure
            of this frame. After both, the state may be partly changed: the caller must restore it.
        """
        points = self.pass_time(time_ms)
        header = frame.header
        if header.role != "collector":
            return points
        runs = self.runs.setdefault((header.cell, header.node), Runs())
        if not runs.takes(header, now_ms=self.time_ms):
            # The counters of two collectors in turn would give wrong rates, so only the frames of
            # one are used. The engine reports the other collector.
            self.rivals += 1
            return points
        source, is_new = self._source(frame)
        key = (header.cell, header.node, source.part)
        node_state = self.node_states.get(key)
        if node_state is None:
            node_state = self.node_states[key] = NodeState(*key)
            node_state.own.series = node_series(cell=header.cell, node=header.node)
        time_ns = header.event_time_ns // _MS * _MS
        points += self._learn_names(node_state, frame, time_ns)
        if frame.rows.uuids:
            points += self._take_roster(node_state, frame.rows)
            times = np.full(len(frame.rows), time_ns, np.int64)
            raw, beyond = telegraf_points(frame.rows, node_state.telegraf, times)
            self.beyond_int64 += beyond
            points += raw
        if not is_new:
            # The rows above are written again, which changes nothing in the store. But a repeated
            # frame must not count a second time in rates and minutes.
            self.repeated += 1
            return points
        self.sources[header.cell, header.node] = source
        if frame.rows.uuids or frame.node or frame.pools:
            dt_s = (
                (header.mono_ns - node_state.mono_ns) / 1e9
                if header.run == node_state.run
                else None
            )
            points += self._take_samples(node_state, frame, dt_s=dt_s, time_ns=time_ns)
            node_state.run, node_state.mono_ns = header.run, header.mono_ns
            node_state.heard_ms, node_state.given_out = self.time_ms, False
        return points

    def _source(self, frame: Frame) -> tuple[Source, bool]:
        """Return what is now the node's last frame, and whether `frame` is new."""
        header = frame.header
        last = self.sources.get((header.cell, header.node))
        if last is None or last.run != header.run:
            return Source(header.run, header.sequence, header.event_time_ns, 0), True
        if header.sequence <= last.sequence:
            return last, False
        same_sample = bool(frame.rows.uuids) and header.event_time_ns == last.event_time_ns
        part = last.part + 1 if same_sample else 0
        return Source(header.run, header.sequence, header.event_time_ns, part), True

    def pass_time(self, time_ms: int) -> list[Points]:
        """Advance the time, and return the open minutes of nodes that have become silent.

        `time_ms` is an append time; one before the present time does not set the time back.

        Raises
        ------
        FoldFailed
            The open minutes of a node could not be closed. The state may be partly changed: the
            caller must restore it.
        """
        self.time_ms = max(self.time_ms, time_ms)
        points: list[Points] = []
        for key, node_state in self.node_states.items():
            if not node_state.given_out and self.time_ms - node_state.heard_ms > _SILENT_MS:
                node_state.given_out = True
                try:
                    points += [one for group in node_state.groups() for one in group.close()]
                except Exception as error:
                    raise FoldFailed(f"node {key}", error) from error
        return points

    def drop_node(self, culprit: str) -> None:
        """Drop the state of the node that a failed fold named; its next frame starts afresh.

        `culprit` is that of `FoldFailed`. One that names no node of this fold changes nothing.
        """
        for key in [key for key in self.node_states if culprit == f"node {key}"]:
            del self.node_states[key]

    def due_hours(self) -> list[Hour]:
        """Return the ended hours that wait for their roll-up, oldest first.

        They stay in `open_hours` until the caller removes them.
        """
        return sorted(
            (
                hour
                for hour in self.open_hours
                if (hour.begin_s + HOUR_S) * 1000 + _LATENESS_MS <= self.time_ms
            ),
            key=lambda hour: (hour.begin_s, hour.cell, hour.family),
        )

    def _learn_names(self, node_state: NodeState, frame: Frame, time_ns: int) -> Iterator[Points]:
        points = info_points(
            frame.inventory, cell=node_state.cell, node=node_state.node, time_ns=time_ns
        )
        if points is None:
            return
        names = points.fields["name"]
        changed = False
        for vm, name in zip(points.series.tags["vm"], names, strict=True):
            if name and self.names.get(vm) != name:
                self.names[vm] = str(name)
                changed = True
        if len(self.names) > _NAMES_KEPT:
            here = {vm for one in self.node_states.values() for vm in vm_texts(one.uuids)}
            self.names = {vm: name for vm, name in self.names.items() if vm in here}
        if changed:
            node_state.telegraf = self._telegraf(node_state, vm_texts(node_state.uuids))
        yield points

    def _telegraf(self, node_state: NodeState, vms: tuple[str, ...]) -> dict[str, Series]:
        return telegraf_series(vms, cell=node_state.cell, node=node_state.node, names=self.names)

    def _take_roster(self, node_state: NodeState, rows: VmRows) -> Iterator[Points]:
        if rows.uuids == node_state.uuids:
            return
        old = {vm: place for place, vm in enumerate(uuids_of(node_state.uuids))}
        moved = np.array([old.get(vm, -1) for vm in uuids_of(rows.uuids)], np.int64)
        vms = vm_texts(rows.uuids)
        size = len(vms)
        series = Series(
            {"cell": [node_state.cell] * size, "node": [node_state.node] * size, "vm": vms}
        )
        yield from node_state.vms.roster(series, moved)
        node_state.counters = node_state.counters.moved(moved)
        node_state.uuids = rows.uuids
        node_state.telegraf = self._telegraf(node_state, vms)

    def _take_samples(
        self, node_state: NodeState, frame: Frame, *, dt_s: float | None, time_ns: int
    ) -> Iterator[Points]:
        rows = frame.rows
        begin_s = time_ns // 1_000_000_000 // HOUR_S * HOUR_S
        if rows.uuids:
            grown = node_state.counters.take(rows)
            yield from node_state.vms.add(vm_metrics(rows, grown=grown, dt_s=dt_s), time_ns=time_ns)
            self.open_hours.add(Hour(VM[0].name, node_state.cell, begin_s))
        if frame.node:
            own = kept(node_values(frame.node, vms=len(rows)))
            yield from node_state.own.add(own, time_ns=time_ns)
            self.open_hours.add(Hour(NODE[0].name, node_state.cell, begin_s))
        if frame.pools:
            names = tuple(pool.name for pool in frame.pools)
            if names != node_state.pools:
                moved = np.array(
                    [
                        node_state.pools.index(name) if name in node_state.pools else -1
                        for name in names
                    ],
                    np.int64,
                )
                series = pool_series(names, cell=node_state.cell, node=node_state.node)
                yield from node_state.storage.roster(series, moved)
                node_state.pools = names
            yield from node_state.storage.add(kept(pool_values(frame.pools)), time_ns=time_ns)
            self.open_hours.add(Hour(POOL[0].name, node_state.cell, begin_s))

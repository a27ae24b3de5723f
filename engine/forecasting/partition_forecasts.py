"""Forecasts from one partition of frames: no log, no loop, no clock.

Steps end by the append time of the records, so that the same records give the same forecasts. A VM
that moves to another node of the partition keeps its learned state.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import FoldFailed, RecordRejected
from flatline.engine.forecasting.demand import Demand
from flatline.engine.ports import OpenFrame, Record
from flatline.engine.wire.forecast import MAX_VMS, METRICS, Forecasts, encode_forecasts
from flatline.engine.wire.frame import UUID_BYTES, Frame, decode_frame, uuids_of
from flatline.engine.wire.log_clock import LogClock
from flatline.engine.wire.runs import Runs
from flatline.engine.wire.score import CLASS_EDGES, CLASSES
from flatline.engine.wire.topics import FORECASTS
from flatline.models.codecs.columns import widen
from flatline.models.forecaster import Forecaster

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

STEP_S: Final = 60
_STEP_MS: Final = STEP_S * 1000
_PER_VM: Final = len(METRICS)
# For how long the learned state of a missing node or VM is kept; after a longer absence, the VM
# starts without learned state.
_KEEP_S: Final = 86_400
_DAY_STEPS: Final = 86_400 // STEP_S

# The sampling interval is five minutes at most. If the append time jumps by more than ten minutes,
# there was a gap, or the clock of the log is wrong.
_GAP_MS: Final = 600_000
# Names in `FoldFailed` of what a fold failed at; the other names are those of nodes (`_culprit`).
_RECORD: Final = "record"
_PROFILES: Final = "profiles"


def compile_kernels() -> None:
    """Compile the forecast kernel: takes seconds, so call it before joining a group."""
    Forecaster(1, step_s=STEP_S).fold(np.zeros(1), 1)


class Output(NamedTuple):
    """A record to append."""

    topic: str
    key: bytes
    value: bytes


class Node:
    """State of one node, or of one part if the VMs of a node need several frames."""

    def __init__(self, *, site: str, zone: str, cell: str, name: str) -> None:
        self.site, self.zone, self.cell, self.name = site, zone, cell, name
        self.demand = Demand()
        self.forecaster = Forecaster(_PER_VM, step_s=STEP_S)
        self.heard = 0


def decoded(record: Record) -> Frame:
    """Return the frame of a record without checking its writer, for recordings.

    Raises
    ------
    RecordRejected
        The record is not a frame.
    """
    return decode_frame(record.value, widen)


class PartitionForecasts:
    """State of one partition.

    Attributes
    ----------
    open_frame
        Returns the frame of a record, or rejects it; the role sets one that verifies the writer.
    next_offset
        The first record that has not been folded.
    clock, time_ms
        The log clock of the partition, and its accepted time.
    number
        The open step: its end in s since the epoch, divided by `STEP_S`; 0 for none.
    nodes
        By cell and name; parts of one node are numbered.
    runs
        By cell and name, the run of the collector whose frames are used.
    departed
        By VM that left its node: the step in which it left, and its rows of learned state.
    profiles
        By metric and workload class: the common profile of the mature series of the class.
    counts
        Records by outcome: folded, repeated, rejected, other.
    """

    open_frame: OpenFrame

    def __init__(self) -> None:
        self.open_frame = decoded
        self.next_offset = 0
        self.clock = LogClock()
        self.time_ms = 0
        self.number = 0
        self.nodes: dict[tuple[str, str], Node] = {}
        self.runs: dict[tuple[str, str], Runs] = {}
        self.departed: dict[bytes, tuple[int, F32]] = {}
        self.profiles: dict[tuple[str, str], F32] = {}
        self.counts = {"folded": 0, "repeated": 0, "rejected": 0, "other": 0}

    def fold(self, record: Record, *, given_up: Collection[str] = ()) -> list[Output]:
        """Fold one record and return its outputs. Records folded before change nothing.

        `given_up` names what this record failed at before (`FoldFailed`): the record itself is
        skipped, or the state of that part is dropped.

        Raises
        ------
        FoldFailed
            Folding raised an error. The state may be partly changed: the caller must restore it.
        """
        if record.offset < self.next_offset:
            return []
        self.next_offset = record.offset + 1
        for culprit in given_up:
            self._begin_anew(culprit)
        try:
            return self._fold(record, is_skipped=_RECORD in given_up)
        except FoldFailed:
            raise
        except Exception as error:
            raise FoldFailed(_RECORD, error) from error

    def _begin_anew(self, culprit: str) -> None:
        """Drop the state that `culprit` names: that of a node, or the class profiles."""
        for key in [key for key in self.nodes if culprit == _culprit(key)]:
            del self.nodes[key]
        if culprit == _PROFILES:
            self.profiles.clear()
            self.departed.clear()

    def _fold(self, record: Record, *, is_skipped: bool) -> list[Output]:
        outputs = self._pass_time(record.time_ms)
        if is_skipped:
            self.counts["rejected"] += 1
            return outputs
        try:
            frame = self.open_frame(record)
        except RecordRejected:
            # The engine writes the record to the topic `rejected`, with the reason.
            self.counts["rejected"] += 1
            return outputs
        if frame.header.role != "collector" or not (len(frame.rows) or frame.node):
            self.counts["other"] += 1
            return outputs
        self._take(frame)
        return outputs

    def _pass_time(self, time_ms: int) -> list[Output]:
        self.clock.read(time_ms, limit_ms=_GAP_MS)
        self.time_ms = self.clock.time_ms
        number = self.time_ms // _STEP_MS + 1
        if not self.number:
            self.number = number
        if number < self.number:
            self._step_back(number)
        if number == self.number:
            return []
        closed, self.number = self.number, number
        outputs: list[Output] = []
        for key in sorted(self.nodes):
            try:
                outputs += self._close(self.nodes[key], closed)
            except Exception as error:
                raise FoldFailed(_culprit(key), error) from error
            if (number - self.nodes[key].heard) * STEP_S > _KEEP_S:
                del self.nodes[key]
                self.runs.pop(key, None)
        if number // _DAY_STEPS != closed // _DAY_STEPS:
            try:
                self._teach()
            except Exception as error:
                raise FoldFailed(_PROFILES, error) from error
            self.departed = {
                vm: kept
                for vm, kept in self.departed.items()
                if (number - kept[0]) * STEP_S <= _KEEP_S
            }
        return outputs

    def _step_back(self, number: int) -> None:
        """Return to an earlier step, after the clock of the log was ahead and was corrected."""
        self.number = number
        for node in self.nodes.values():
            node.heard = min(node.heard, number)
            node.forecaster.number = min(node.forecaster.number, number - 1)
        self.departed = {vm: (min(at, number), rows) for vm, (at, rows) in self.departed.items()}

    def _take(self, frame: Frame) -> None:
        header = frame.header
        runs = self.runs.setdefault((header.cell, header.node), Runs())
        if not runs.takes(header, now_ms=self.time_ms):
            self.counts["repeated"] += 1
            return
        node = self._node(frame)
        if node.demand.is_repeat(frame):
            self.counts["repeated"] += 1
            return
        self.counts["folded"] += 1
        if frame.rows.uuids != node.demand.roster:
            self._follow(node, frame.rows.uuids)
        node.demand.take(frame)
        node.heard = self.number

    def _node(self, frame: Frame) -> Node:
        """Return the node, or part of a node, of a frame: one without gauges has further VMs."""
        header = frame.header
        key, part = (header.cell, header.node), 0
        first = self.nodes.get(key)
        if not frame.node and first is not None and first.demand.run == header.run:
            while key in self.nodes and self.nodes[key].demand.mono_ns == header.mono_ns:
                if self.nodes[key].demand.sequence >= header.sequence:
                    break
                part += 1
                key = (header.cell, f"{header.node}#{part}")
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(
                site=header.site, zone=header.zone, cell=header.cell, name=header.node
            )
        return node

    def _follow(self, node: Node, roster: bytes) -> None:
        """Reorder the learned state to `roster`: save that of departed VMs, look up new VMs."""
        before = node.demand
        node.demand, indices = before.followed(roster)
        old = node.forecaster
        stayed = {place for place in indices.tolist() if place >= 0}
        for place, vm in enumerate(uuids_of(before.roster)):
            if place not in stayed:
                rows = old.state[place * _PER_VM : (place + 1) * _PER_VM]
                self.departed[vm] = (self.number, rows.copy())
        first = np.where(indices >= 0, indices * _PER_VM, -1)
        of_vms = np.where(first[:, None] >= 0, first[:, None] + np.arange(_PER_VM), -1)
        own = len(before) * _PER_VM + np.arange(_PER_VM)
        node.forecaster = old.rearranged(np.concatenate([of_vms.reshape(-1), own]))
        for place, vm in enumerate(uuids_of(roster)):
            kept = self.departed.pop(vm, None) if indices[place] < 0 else None
            if kept is not None:
                node.forecaster.state[place * _PER_VM : (place + 1) * _PER_VM] = kept[1]

    def _close(self, node: Node, number: int) -> list[Output]:
        """Fold the ended step of a node and return the forecasts."""
        means = node.demand.close()
        self._start_new(node, means)
        made = node.forecaster.fold(means.reshape(-1), number)
        if np.isnan(made).all():
            return []
        shaped = made.reshape(-1, _PER_VM, *made.shape[1:]).astype("<f4")
        outputs = []
        for at in range(0, max(len(node.demand), 1), MAX_VMS):
            part = slice(at, min(at + MAX_VMS, len(node.demand)))
            is_first = at == 0 and not np.isnan(shaped[-1]).all()
            forecasts = Forecasts(
                site=node.site,
                zone=node.zone,
                cell=node.cell,
                node=node.name,
                time_ms=number * _STEP_MS,
                step_s=STEP_S,
                uuids=node.demand.roster[part.start * UUID_BYTES : part.stop * UUID_BYTES],
                values=shaped[part].tobytes(),
                node_values=shaped[-1].tobytes() if is_first else b"",
            )
            outputs.append(Output(FORECASTS.name, node.cell.encode(), encode_forecasts(forecasts)))
        return outputs

    def _start_new(self, node: Node, means: F64) -> None:
        """Initialise new series from the profile of their class."""
        if not self.profiles:
            return
        new = node.forecaster.is_new().reshape(-1, _PER_VM) & ~np.isnan(means)
        for vm in np.flatnonzero(new[:-1].any(axis=1)):
            kind = _class(means[vm, 0] / node.demand.vcpus[vm])
            for row in np.flatnonzero(new[vm]):
                profile = self.profiles.get((METRICS[row], kind))
                if profile is not None:
                    node.forecaster.start(np.array([vm * _PER_VM + row]), profile)

    def _teach(self) -> None:
        """Update the class profiles, once a day."""
        members: dict[str, list[tuple[Node, int]]] = {}
        for key in sorted(self.nodes):
            node = self.nodes[key]
            levels = node.forecaster.level().reshape(-1, _PER_VM)[:, 0]
            for vm in range(len(node.demand)):
                kind = _class(float(levels[vm]) / float(node.demand.vcpus[vm]))
                members.setdefault(kind, []).append((node, vm))
        for kind, vms in members.items():
            for row, metric in enumerate(METRICS):
                rows = np.stack([node.forecaster.state[vm * _PER_VM + row] for node, vm in vms])
                gathered = Forecaster(0, step_s=STEP_S)
                gathered.state = rows
                profile = gathered.profile(np.arange(len(rows)))
                if profile is not None:
                    self.profiles[metric, kind] = profile


def _culprit(key: tuple[str, str]) -> str:
    """Return the name by which `FoldFailed` refers to a node."""
    return f"node {key[0]}/{key[1]}"


def _class(share: float) -> str:
    if np.isnan(share):
        return CLASSES[0]
    return CLASSES[int(np.searchsorted(CLASS_EDGES, share, side="right"))]

"""Frames with every field hostile, through engine, forecaster and historian, with good ones."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.fuzzed import hostile_frame
from benchmarks.workloads import fleet_frame
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Output, Partition
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.errors import RecordRejected
from flatline.engine.forecasting import forecast_state
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.history import history_state as history_state
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Record
from flatline.engine.wire import topics
from flatline.engine.wire.frame import Frame, VmRows, decode_frame, encode_frame
from flatline.engine.wire.rejected import decode_rejected
from flatline.models.codecs.columns import widen

# The key of one node is compromised; the frames of the others are the good ones.
_VICTIM: Final = "node-0"
_HONEST: Final = ("node-1", "node-2")
_VMS: Final = 6
_HOSTILE_A_FRAME: Final = 10
# Frames of one site; then a new one begins, so that its full limits do not hide later errors.
_AT_ONE_SITE: Final = 5_000
# Seconds between two samples, so that minutes, hours and days pass as well.
_STEPS_S: Final = (2, 10, 60, 300)
_CELL: Final = "cell-1"
_SAMPLE: Final = fleet_frame(_VMS)
_EMPTY: Final = msgspec.structs.replace(_SAMPLE, rows=VmRows.empty())
_EPOCH_MS: Final = 1_790_000_000_000
# Longer than any wait for a gap or a window.
_SETTLE_S: Final = 120


@dataclass
class Tally:
    """Outcome of a run's records."""

    hostile: int = 0
    rejected: int = 0
    deaths: int = 0
    good: int = 0
    good_lost: int = 0
    first_death: str = ""

    def died(self, who: str, error: Exception) -> None:
        """Count a role that raised, and keep the first message."""
        self.deaths += 1
        self.first_death = self.first_death or f"{who}: {type(error).__name__}: {error}"

    def add(self, other: "Tally") -> None:
        """Add the outcome of another run."""
        for name in ("hostile", "rejected", "deaths", "good", "good_lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_death = self.first_death or other.first_death


class _Site:
    """One site's roles, and the path of a frame through each of them."""

    def __init__(self, tally: Tally, *, seed: int) -> None:
        self._tally = tally
        self._rng = np.random.default_rng(seed)
        self._step_s = random.Random(seed).choice(_STEPS_S)
        self._frame: Frame | None = None
        self._offset = 0
        self._now_ms = _EPOCH_MS
        self._begin()
        rows = _SAMPLE.rows
        self._rows = {node: _of(rows, self._rng.bytes(16 * _VMS)) for node in (_VICTIM, *_HONEST)}

    def _begin(self) -> None:
        self._partition = Partition(Configuration())
        self._forecaster, self._historian = PartitionForecasts(), FrameFold()
        for one in (self._partition, self._forecaster, self._historian):
            one.open_frame = self._opened

    def _opened(self, _record: Record) -> Frame:
        # Decoded once for all three roles, with the same result as in each.
        if self._frame is None:
            raise RecordRejected("malformed", "it is not a frame")
        return self._frame

    def play(self, hostile: int) -> None:
        """Advance time with good frames, and `hostile` hostile ones among them."""
        slot, sent = 0, 0
        while sent < hostile:
            for node in (_VICTIM, *_HONEST):
                good = self._good(node, slot)
                self._give(good, is_good=node != _VICTIM)
                for _ in range(min(_HOSTILE_A_FRAME, hostile - sent)):
                    self._give(self._hostile(good), is_hostile=True)
                    sent += 1
            slot += 1
            self._now_ms += self._step_s * 1000
        for _ in range(_SETTLE_S):
            self._now_ms += 1000
            self._give(_tick(self._now_ms))
        self._settle(slot - 1)

    def _good(self, node: str, slot: int) -> Frame:
        header = msgspec.structs.replace(
            _EMPTY.header,
            node=node,
            sequence=slot,
            event_time_ns=self._now_ms * 1_000_000,
            mono_ns=1 + slot * self._step_s * 10**9,
            interval_ms=self._step_s * 1000,
        )
        return msgspec.structs.replace(_EMPTY, header=header, rows=self._rows[node])

    def _hostile(self, good: Frame) -> Frame:
        """Return a frame of an unknown node, or of the one with the compromised key."""
        chance = self._rng.random()
        uuids = self._rows[_HONEST[0]].uuids if chance < 0.3 else good.rows.uuids
        header = msgspec.structs.replace(good.header, node=_VICTIM)
        named = msgspec.structs.replace(good, header=header, rows=_of(good.rows, uuids))
        frame = hostile_frame(self._rng, named, cell=None)
        if chance < 0.2 or chance > 0.6:
            return frame
        # Dated now, and a first frame: otherwise most would be rejected before they are folded.
        header = msgspec.structs.replace(
            frame.header,
            event_time_ns=good.header.event_time_ns,
            sequence=int(self._rng.integers(4)),
            mono_ns=int(self._rng.integers(1, 4)) * good.header.mono_ns,
        )
        return msgspec.structs.replace(frame, header=header)

    def _give(self, frame: Frame, *, is_good: bool = False, is_hostile: bool = False) -> None:
        value = encode_frame(frame)
        record = Record(
            topic=topics.FRAMES.name, partition=0, offset=self._offset, time_ms=self._now_ms,
            key=frame.header.cell.encode(), value=value,
        )  # fmt: skip
        self._offset += 1
        try:
            self._frame = decode_frame(value, widen)
        except RecordRejected:
            self._frame = None
        self._tally.good += is_good
        self._tally.hostile += is_hostile
        counted = self._counts()
        steps: tuple[tuple[str, Callable[[Record], Any]], ...] = (
            ("engine", self._partition.fold),
            ("forecaster", self._forecaster.fold),
            ("historian", self._historian.fold_record),
        )
        for who, step in steps:
            try:
                outputs = step(record)
            except Exception as error:  # noqa: BLE001 - any escape at all is a death
                self._tally.died(who, error)
                # Its state may be partially changed.
                self._begin()
                return
            if who == "engine":
                self._tally.rejected += sum(_refused(outputs, value)) and not is_good
                self._tally.good_lost += is_good and any(_refused(outputs, value))
        if is_good:
            self._tally.good_lost += sum(self._counts()[name] > counted[name] for name in counted)

    def _counts(self) -> dict[str, int]:
        """Return the counters that a good frame may not increase."""
        engine, forecaster, historian = self._partition, self._forecaster, self._historian
        return {
            "engine": engine.counters.duplicate + engine.counters.late,
            "forecaster": forecaster.counts["rejected"] + forecaster.counts["repeated"],
            "historian": historian.repeated + historian.rivals + historian.unreadable,
        }

    def _settle(self, last: int) -> None:
        """Compare the result with the frames sent, and every state with its restored copy."""
        tally, partition = self._tally, self._partition
        nodes = partition.cells[_CELL].nodes if _CELL in partition.cells else {}
        for node in _HONEST:
            tally.good_lost += node not in nodes or nodes[node].sequence != last
        tally.good_lost += not partition.counters.balanced(partition.waiting())
        try:
            chunks, manifest = take_snapshot(partition)
            same = digest(restore(chunks, manifest, Configuration())) == digest(partition)
            again = forecast_state.restore_state(*forecast_state.take_state(self._forecaster))
            same = same and forecast_state.digest(again) == forecast_state.digest(self._forecaster)
            history_state.restore(*history_state.take_state(self._historian))
        except Exception as error:  # noqa: BLE001 - a state that cannot be saved ends its role
            tally.died("snapshot", error)
        else:
            tally.deaths += not same


def _refused(outputs: list[Output], value: bytes) -> Iterator[bool]:
    """Yield for each rejected record whether it is this one."""
    mine = ""
    for output in outputs:
        if output.topic == topics.REJECTED.name:
            mine = mine or sha256(value).hexdigest()
            yield decode_rejected(output.value).sha256 == mine


def _of(rows: VmRows, uuids: bytes) -> VmRows:
    """Return rows with the UUIDs of other VMs."""
    return VmRows(
        uuids=uuids,
        integers=rows.integers,
        missing=rows.missing,
        gauges=rows.gauges,
        vcpus=rows.vcpus,
    )


def _tick(now_ms: int) -> Frame:
    header = msgspec.structs.replace(
        _EMPTY.header,
        cell="-",
        node="engine",
        role="shell",
        sequence=(now_ms - _EPOCH_MS) // 1000,
        event_time_ns=now_ms * 1_000_000,
    )
    return Frame(header=header, rows=VmRows.empty())


def fuzz_frames(count: int, *, seed: int) -> Tally:
    """Send `count` hostile frames to sites one after the other; return the outcome."""
    tally = Tally()
    for number, first in enumerate(range(0, count, _AT_ONE_SITE)):
        site = _Site(tally, seed=seed * 1_000_003 + number)
        site.play(min(_AT_ONE_SITE, count - first))
    return tally

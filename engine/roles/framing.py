"""Turns a sample into frames for the log: sequence numbers, inventory and a bounded buffer.

Nothing here waits for the log or calls the hypervisor; `engine.roles.collect` does.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import structlog
from msgspec.structs import replace

from flatline.engine import instruments
from flatline.engine.wire import limits, vcpus
from flatline.engine.wire.envelope import MAX_RECORD_BYTES
from flatline.engine.wire.frame import (
    Event,
    Frame,
    Header,
    InventoryItem,
    PoolSample,
    VmRows,
    decode_frame,
    encode_frame,
)

# A packed row has at most 284 B, so this many rows and the events and inventory in the same frame
# stay below the size limit of a record (`envelope.MAX_RECORD_BYTES`).
ROWS_PER_FRAME: Final = 2048
# The inventory item of a VM (name, tenant, disks) takes some 300 B, so 512 items add 150 kB to the
# rows of a frame.
ITEMS_PER_FRAME: Final = 512

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """The configuration of a collector; see `engine.settings.Collect` for units and reasons."""

    site: str
    zone: str
    cell: str
    node: str
    interval_s: float
    buffer_s: float = 900.0
    buffer_bytes: int = 256 << 20
    inventory_every_s: float = 600.0


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame to be sent to the log.

    `since_ns` is when it was made, by the collector's own monotonic clock; the header contains the
    node's clock, which may have another origin.
    """

    sequence: int
    since_ns: int
    rows: int
    value: bytes


@dataclass(slots=True)
class Content:
    """The content of the next frames, before it is split into frames."""

    event_time_ns: int
    mono_ns: int
    rows: VmRows
    node: dict[str, float]
    events: list[Event] = field(default_factory=list)
    inventory: list[InventoryItem] = field(default_factory=list)
    pools: tuple[PoolSample, ...] = ()


class Source:
    """One run of the collector as seen by the engine: its sequence and its own events."""

    def __init__(self, config: CollectConfig, run: str) -> None:
        self._config = config
        self._run = run
        self._sequence = 0
        self._limit_bytes = MAX_RECORD_BYTES
        self._events_total = 0
        self._events: list[Event] = []

    def note(self, kind: str, *, time_ns: int, detail: dict[str, str]) -> None:
        """Keep an event of the collector itself for the next frame.

        `kind` is one of `engine.wire.metrics.EVENT_KINDS`, and `time_ns` is wall time.
        """
        self._events_total += 1
        self._events.append(
            Event(id=f"{self._run}/{self._events_total}", kind=kind, time_ns=time_ns, detail=detail)
        )

    def drain(self) -> list[Event]:
        """Return the events noted since the last call."""
        events, self._events = self._events, []
        return events

    def frames(self, content: Content, *, now_ns: int) -> list[EncodedFrame]:
        """Return `content` as frames, in order; several if one would be too large.

        `now_ns` becomes their `since_ns`. A frame that is too large and cannot be split is dropped.
        """
        cuts = row_cuts(content.rows)
        parts = max(
            len(cuts),
            _pieces(len(content.inventory), ITEMS_PER_FRAME),
            _pieces(len(content.events), ITEMS_PER_FRAME),
            1,
        )
        cuts += [slice(0, 0)] * (parts - len(cuts))
        return [
            EncodedFrame(frame.header.sequence, now_ns, len(frame.rows), value)
            for index, cut in enumerate(cuts)
            for frame, value in self._part(content, index, content.rows.select(cut))
        ]

    def _part(self, content: Content, index: int, rows: VmRows) -> list[tuple[Frame, bytes]]:
        items = slice(index * ITEMS_PER_FRAME, (index + 1) * ITEMS_PER_FRAME)
        frame = Frame(
            header=self._header(content),
            rows=rows,
            events=tuple(map(_fitting_event, content.events[items])),
            inventory=tuple(map(_fitting_item, content.inventory[items])),
            # The values of the node are only in the first frame.
            node=content.node if index == 0 else {},
            pools=content.pools if index == 0 else (),
        )
        return self._numbered(frame)

    def cut_smaller(
        self, refused: EncodedFrame, behind: Sequence[EncodedFrame]
    ) -> list[EncodedFrame]:
        """Return a refused frame and those behind it, split into frames that the log accepts.

        Numbering continues from the refused frame. No later frame has been sent yet, so the engine
        sees no gap. Frames made from now on obey the same size limit. A frame that cannot be split
        any further is dropped.
        """
        self._limit_bytes = min(self._limit_bytes, len(refused.value) - 1)
        self._sequence = refused.sequence
        return [
            EncodedFrame(frame.header.sequence, old.since_ns, len(frame.rows), value)
            for old in (refused, *behind)
            for frame, value in self._numbered(decode_frame(old.value))
        ]

    def _numbered(self, frame: Frame) -> list[tuple[Frame, bytes]]:
        """Give a frame the next sequence number; split it until each part fits the log's limit."""
        frame = replace(frame, header=replace(frame.header, sequence=self._sequence))
        try:
            value = encode_frame(frame)
            why = f"{len(value)} bytes, the log accepts {self._limit_bytes}"
        except ValueError as error:
            value, why = None, str(error)
        if value is not None and len(value) <= self._limit_bytes:
            self._sequence += 1
            return [(frame, value)]
        halves = _halves(frame)
        if halves is None:
            _log.error("A frame could not be encoded and was dropped.", why=why)
            instruments.FRAMES_DROPPED.labels(self._config.node, "oversized").inc()
            return []
        return [piece for half in halves for piece in self._numbered(half)]

    def _header(self, content: Content) -> Header:
        config = self._config
        return Header(
            site=config.site,
            zone=config.zone,
            cell=config.cell,
            node=config.node,
            role="collector",
            run=self._run,
            sequence=self._sequence,
            event_time_ns=content.event_time_ns,
            mono_ns=content.mono_ns,
            interval_ms=round(config.interval_s * 1000),
        )


def _halves(frame: Frame) -> tuple[Frame, Frame] | None:
    """Return the content of a frame as two frames, None if it cannot be split."""
    rows, events, inventory = frame.rows, frame.events, frame.inventory
    if len(rows) > 1 or len(events) > 1 or len(inventory) > 1:
        row, event, item = (-(-len(part) // 2) for part in (rows, events, inventory))
        return (
            replace(
                frame,
                rows=rows.select(slice(0, row)),
                events=events[:event],
                inventory=inventory[:item],
            ),
            replace(
                frame,
                rows=rows.select(slice(row, len(rows))),
                events=events[event:],
                inventory=inventory[item:],
                node={},
                pools=(),
            ),
        )
    # One VM, with its event, its inventory item or the values of its node.
    if sum(map(bool, (len(rows), events, inventory, frame.node or frame.pools))) > 1:
        first = replace(frame, events=(), inventory=())
        second = replace(frame, rows=VmRows.empty(), node={}, pools=())
        if not (events or inventory):
            first, second = (
                replace(first, node={}, pools=()),
                replace(frame, rows=VmRows.empty(), events=(), inventory=()),
            )
        elif not (len(rows) or frame.node or frame.pools):
            first, second = replace(frame, inventory=()), replace(frame, events=())
        return first, second
    return None


def row_cuts(rows: VmRows) -> list[slice]:
    """Return ranges of VM rows (for `VmRows.select`), one for each frame, as few as possible."""
    cuts, start = [], 0
    bounds = None if rows.vcpus is None else rows.vcpus.bounds()
    while start < len(rows):
        stop = min(len(rows), start + ROWS_PER_FRAME)
        if bounds is not None:
            most = bounds[start] + vcpus.MAX_FRAME_VCPUS
            stop = min(stop, max(start + 1, int(np.searchsorted(bounds, most, "right")) - 1))
        cuts.append(slice(start, stop))
        start = stop
    return cuts


def _fitting_event(event: Event) -> Event:
    """Return an event with its texts cut to the length that readers accept.

    Guests and owners can cause texts of any length.
    """
    if all(len(text) <= limits.MAX_TEXT for text in event.detail.values()):
        return event
    detail = {name: limits.clipped(text) for name, text in event.detail.items()}
    return msgspec.structs.replace(event, detail=detail)


def _fitting_item(item: InventoryItem) -> InventoryItem:
    """Return an inventory item within the limits of readers.

    A truncated tenant or group would name another one, so it becomes unknown. Of a VM with more
    devices than a reader accepts, only the first ones are kept, so its dependencies are incomplete.
    """
    texts = (item.name, item.tenant, item.group, item.flavor)
    devices = (*item.disks.items(), *item.nics.items())
    longest = max(len(text or "") for text in (*texts, *(one for pair in devices for one in pair)))
    if longest <= limits.MAX_TEXT and len(devices) <= limits.MAX_DEVICES:
        return item
    return msgspec.structs.replace(
        item,
        name=limits.clipped(item.name),
        tenant=None if item.tenant is None or len(item.tenant) > limits.MAX_TEXT else item.tenant,
        group=None if item.group is None or len(item.group) > limits.MAX_TEXT else item.group,
        flavor=None if item.flavor is None else limits.clipped(item.flavor),
        disks=_fitting_devices(item.disks),
        nics=_fitting_devices(item.nics),
    )


def _fitting_devices(devices: dict[str, str]) -> dict[str, str]:
    few = list(devices.items())[: limits.MAX_DEVICES]
    return {limits.clipped(name): limits.clipped(text) for name, text in few}


def _pieces(count: int, size: int) -> int:
    return -(-count // size)


class InventoryChanges:
    """Selects the inventory items to send: those that changed, and periodically all of them.

    `now_ns` is the collector's monotonic time.
    """

    def __init__(self, every_s: float) -> None:
        self._every_ns = round(every_s * 1e9)
        self._roster: bytes | None = None
        self._reported: dict[bytes, InventoryItem] = {}
        self._all_due_ns: int | None = None

    def due(self, roster: bytes, *, now_ns: int) -> bool:
        """Return whether to query the inventory: the VMs changed, or the period has passed.

        `roster` is `VmRows.uuids` of the present sample.
        """
        changed, self._roster = roster != self._roster, roster
        return changed or self._all_due_ns is None or now_ns >= self._all_due_ns

    def changed(
        self, inventory: tuple[InventoryItem, ...] | None, *, now_ns: int
    ) -> list[InventoryItem]:
        """Return the items to send: all of them when due, else those that changed.

        An `inventory` of None was not queried: no item is sent.
        """
        if inventory is None:
            return []
        everything = self._all_due_ns is None or now_ns >= self._all_due_ns
        if everything:
            self._all_due_ns = now_ns + self._every_ns
        fresh = [item for item in inventory if everything or self._reported.get(item.vm) != item]
        self._reported = {item.vm: item for item in inventory}
        return fresh

    def forget(self) -> None:
        """Make the whole inventory due at the next sample."""
        self._all_due_ns = None


class Buffer:
    """Frames that wait for the log, limited by age and bytes; the oldest is dropped first."""

    def __init__(self, config: CollectConfig) -> None:
        self._node = config.node
        self._keep_ns = round(config.buffer_s * 1e9)
        self._keep_bytes = config.buffer_bytes
        self._frames: deque[EncodedFrame] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._frames)

    def close(self) -> None:
        """Let `take` return None once the buffer is empty."""
        self._closed = True
        self._filled.set()

    def finished(self) -> bool:
        """Return whether the buffer is empty and closed."""
        return self._closed and not self._frames

    def make_room(self, *, now_ns: int) -> int:
        """Drop frames beyond the limits of age and bytes; return how many.

        `now_ns` is by the same clock as `EncodedFrame.since_ns`.
        """
        dropped = 0
        while self._frames:
            old = now_ns - self._frames[0].since_ns > self._keep_ns
            if not old and self._bytes <= self._keep_bytes:
                break
            self._forget_oldest("age" if old else "bytes")
            dropped += 1
        return dropped

    def _forget_oldest(self, reason: str) -> None:
        self._count(-len(self._frames.popleft().value))
        instruments.FRAMES_DROPPED.labels(self._node, reason).inc()

    def put(self, frame: EncodedFrame) -> None:
        """Add the newest frame."""
        self._frames.append(frame)
        self._count(len(frame.value))
        self._filled.set()

    def put_back(self, frame: EncodedFrame) -> None:
        """Return a frame that was taken but not confirmed by the log."""
        self._frames.appendleft(frame)
        self._count(len(frame.value))
        self._filled.set()

    def take_all(self) -> list[EncodedFrame]:
        """Return all frames, oldest first, and empty the buffer."""
        frames = list(self._frames)
        self._frames.clear()
        self._count(-sum(len(frame.value) for frame in frames))
        return frames

    async def take(self) -> EncodedFrame | None:
        """Return the oldest frame as soon as there is one, None if closed and empty."""
        while not self._frames:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._count(-len(frame.value))
        return frame

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        instruments.BUFFERED_FRAMES.labels(self._node).set(len(self._frames))
        instruments.BUFFERED_BYTES.labels(self._node).set(self._bytes)

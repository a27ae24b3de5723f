"""The frame: the VMs of one node at one moment, and its events.

A frame is one record on `flatline.frames.v1`, keyed by cell. Columns are packed
(`engine.wire.table`). The rest is a msgpack map, so that fields can be added.
"""

from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.wire import limits, metrics
from flatline.engine.wire.envelope import MAX_RECORD_BYTES, decode_msgpack
from flatline.engine.wire.table import PackedTable, Widen, pack, unpack
from flatline.engine.wire.vcpus import NO_TIMES, VcpuRows, pack_vcpus, unpack_vcpus

UUID_BYTES: Final = 16

# The broker accepts batches up to 1,048,588 bytes (message.max.bytes). A node with more VMs than
# this sends several frames, each with a range of its VMs.
MAX_FRAME_ROWS: Final = 4096

# Rosters repeat from frame to frame, so the result of their check is cached. The size suffices for
# the nodes of several cells.
_ROSTERS_KEPT: Final = 256

# The role of the writer of a frame. "shell" is the process that runs the engine: it writes ticks.
# "owner" is a person or program that calls `flatline event`.
Role = Literal["collector", "agent", "owner", "shell"]


class VmRows:
    """Rows of a frame as arrays; one column per VM, rows in the order of `engine.wire.metrics`.

    Attributes
    ----------
    uuids
        `n` VM UUIDs, 16 bytes each, concatenated: comparing two rosters is one comparison.
    integers
        Shape (len(INTEGERS), n), uint64; 0 where `missing`.
    missing
        Shape (len(INTEGERS), n), bool; None where nothing is missing. A missing value is unknown,
        never zero.
    gauges
        Shape (len(GAUGES), n), float32; NaN is missing.
    vcpus
        Time that each vCPU of each VM ran or waited; None if the source does not report it.
    """

    __slots__ = ("gauges", "integers", "missing", "uuids", "vcpus")

    def __init__(
        self,
        *,
        uuids: bytes,
        integers: NDArray[np.uint64],
        missing: NDArray[np.bool_] | None,
        gauges: NDArray[np.float32],
        vcpus: VcpuRows | None = None,
    ) -> None:
        self.uuids = uuids
        self.integers = integers
        self.missing = missing
        self.gauges = gauges
        # An empty set of vCPU times becomes None, so that these rows equal those of a frame without
        # vCPU columns.
        self.vcpus = vcpus if vcpus is not None and len(vcpus.times_ns) else None

    def __len__(self) -> int:
        return len(self.uuids) // UUID_BYTES

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VmRows):
            return NotImplemented
        return (
            self.uuids == other.uuids
            and np.array_equal(self.integers, other.integers)
            and np.array_equal(self.present(), other.present())
            and np.array_equal(self.gauges, other.gauges, equal_nan=True)
            and self.vcpus == other.vcpus
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def empty(cls) -> "VmRows":
        """Return rows without VMs."""
        return cls(
            uuids=b"",
            integers=np.zeros((len(metrics.INTEGERS), 0), np.uint64),
            missing=None,
            gauges=np.zeros((len(metrics.GAUGES), 0), np.float32),
        )

    def present(self) -> NDArray[np.bool_]:
        """Return a mask of the measured values, shape (len(INTEGERS), n)."""
        if self.missing is None:
            return np.ones(self.integers.shape, np.bool_)
        return ~self.missing

    def vm(self, column: int) -> bytes:
        """Return the UUID of one VM, 16 bytes; `column` counts from 0."""
        return self.uuids[column * UUID_BYTES : (column + 1) * UUID_BYTES]

    def select(self, columns: slice) -> "VmRows":
        """Return the rows of a contiguous range of VMs, sharing memory."""
        start, stop, _ = columns.indices(len(self))
        return VmRows(
            uuids=self.uuids[start * UUID_BYTES : stop * UUID_BYTES],
            integers=self.integers[:, start:stop],
            missing=None if self.missing is None else self.missing[:, start:stop],
            gauges=self.gauges[:, start:stop],
            vcpus=None if self.vcpus is None else self.vcpus.select(start, stop),
        )


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event on a node; `id` is assigned by the source and never reused.

    `kind` is one of `metrics.EVENT_KINDS`. `vm` is None for events of the node itself.
    """

    id: limits.Text
    kind: limits.Word
    time_ns: limits.TimeNs
    vm: limits.Uuid | None = None
    detail: limits.Details = {}


class PoolSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A storage pool as measured by one node; None is not measured."""

    name: limits.Text
    capacity_bytes: limits.Bytes | None = None
    available_bytes: limits.Bytes | None = None
    latency_s: limits.Seconds | None = None


class InventoryItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The definition of a VM and its `flatline` metadata element.

    An unknown `tenant` or `group` (None) makes the VM not actionable, whatever `actionable` says.
    `disks` maps each target device to its pool, and `nics` maps each card to its network.
    `guest_agent` is whether the VM has a channel on which a guest agent may answer.
    """

    vm: limits.Uuid
    name: limits.Text
    tenant: limits.Text | None = None
    group: limits.Text | None = None
    flavor: limits.Text | None = None
    actionable: bool = False
    vcpus: limits.Vcpus | None = None
    memory_bytes: limits.Bytes | None = None
    disks: limits.Devices = {}
    nics: limits.Devices = {}
    panic_device: bool = False
    watchdog: bool = False
    balloon_period_s: limits.PeriodS = 0
    guest_agent: bool = False


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The writer of a frame, its time, and its position in the writer's sequence.

    A source is (node, role, run). `sequence` counts from 0 within a run without gaps, so a gap that
    a reader finds means lost frames. Durations are computed from `mono_ns`; `event_time_ns` is from
    the node's wall clock, which may be wrong.
    """

    site: limits.Name
    zone: limits.Name
    cell: limits.Name
    node: limits.Name
    role: Role
    run: limits.Name
    sequence: limits.Count
    event_time_ns: limits.TimeNs
    mono_ns: limits.MonoNs
    interval_ms: limits.IntervalMs


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One report of a node. A frame without rows and events is a tick."""

    header: Header
    rows: VmRows
    events: tuple[Event, ...] = ()
    inventory: tuple[InventoryItem, ...] = ()
    node: dict[str, float] = {}
    pools: tuple[PoolSample, ...] = ()


class FrameValue(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The frame as stored in the log: msgpack, columns packed."""

    header: Header
    v: Literal[1] = 1
    uuids: bytes = b""
    integers: PackedTable = PackedTable()
    gauges: PackedTable = PackedTable()
    vcpu_counts: bytes = b""
    vcpu_times: PackedTable = NO_TIMES
    events: Annotated[tuple[Event, ...], Meta(max_length=limits.MAX_LISTED)] = ()
    inventory: Annotated[tuple[InventoryItem, ...], Meta(max_length=limits.MAX_LISTED)] = ()
    node: limits.Gauges = {}
    pools: Annotated[tuple[PoolSample, ...], Meta(max_length=limits.MAX_POOLS)] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FrameValue)


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of `frame` for the log.

    Gauges are packed as their 32-bit patterns, in the same way as integers.

    Raises
    ------
    ValueError
        More than `MAX_FRAME_ROWS` rows, `MAX_FRAME_VCPUS` vCPUs or `MAX_RECORD_BYTES` bytes: the
        caller splits by VM range before it encodes.
    """
    rows = frame.rows
    if len(rows) > MAX_FRAME_ROWS:
        raise ValueError(
            f"{len(rows)} rows in one frame, at most {MAX_FRAME_ROWS} are allowed: split it first"
        )
    vcpu_counts, vcpu_times = pack_vcpus(rows.vcpus)
    value = _encoder.encode(
        FrameValue(
            header=frame.header,
            uuids=rows.uuids,
            integers=pack(metrics.INTEGER_COLUMNS, rows.integers, rows.missing),
            gauges=pack(metrics.GAUGE_COLUMNS, rows.gauges.view(np.uint32).astype(np.uint64), None),
            vcpu_counts=vcpu_counts,
            vcpu_times=vcpu_times,
            events=frame.events,
            inventory=frame.inventory,
            node=frame.node,
            pools=frame.pools,
        )
    )
    if len(value) > MAX_RECORD_BYTES:
        raise ValueError(
            f"a frame of {len(value)} bytes, at most {MAX_RECORD_BYTES} are allowed: split it"
        )
    return value


def decode_frame(value: bytes, widen: Widen | None = None) -> Frame:
    """Return the frame that `value` encodes; columns of unknown names are ignored.

    Where Numba may be imported, `widen` is `models.codecs.columns.widen`, which is four times as
    fast as NumPy.

    Raises
    ------
    RecordRejected
        `value` is not a frame: oversized, truncated, malformed, of an unknown version, or with
        impossible values.
    """
    wire = decode_msgpack(value, _decoder)
    size, rest = divmod(len(wire.uuids), UUID_BYTES)
    if rest:
        raise RecordRejected(
            "malformed", f"{len(wire.uuids)} bytes of UUIDs, which is not a multiple of 16"
        )
    if size > MAX_FRAME_ROWS:
        raise RecordRejected("oversized", f"{size} rows, at most {MAX_FRAME_ROWS} are allowed")
    integers, missing = unpack(metrics.INTEGER_COLUMNS, wire.integers, size, widen)
    patterns, absent = unpack(metrics.GAUGE_COLUMNS, wire.gauges, size, widen)
    gauges = patterns.astype(np.uint32).view(np.float32)
    if absent is not None:
        gauges[absent] = np.nan
    _check_rows(wire, gauges)
    vcpus = unpack_vcpus(wire.vcpu_counts, wire.vcpu_times, size, widen)
    return Frame(
        header=wire.header,
        rows=VmRows(
            uuids=wire.uuids, integers=integers, missing=missing, gauges=gauges, vcpus=vcpus
        ),
        events=wire.events,
        inventory=wire.inventory,
        node=wire.node,
        pools=wire.pools,
    )


def _check_rows(wire: FrameValue, gauges: NDArray[np.float32]) -> None:
    """Reject values that no collector writes, so that the engine need not check them again."""
    if np.isinf(gauges).any():
        raise RecordRejected("bad_value", "a gauge of a VM is infinite")
    if not _is_roster(wire.uuids):
        raise RecordRejected("bad_value", "a VM occurs twice among the rows")


@lru_cache(maxsize=_ROSTERS_KEPT)
def _is_roster(uuids: bytes) -> bool:
    """Return whether every VM occurs only once."""
    return len(set(uuids_of(uuids))) == len(uuids) // UUID_BYTES


def uuids_of(roster: bytes) -> list[bytes]:
    """Return the UUIDs of a roster, 16 bytes each, in their order."""
    return [roster[at : at + UUID_BYTES] for at in range(0, len(roster), UUID_BYTES)]

"""Time that each vCPU ran or waited for a core: a frame column with one value per vCPU.

VMs have different numbers of vCPUs, so the times of all VMs are concatenated in one packed column.
A second field holds the number of vCPUs of each VM, in one byte, or in two where one is too small.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.metrics import Columns, Metric
from flatline.engine.wire.table import PackedTable, Widen, pack, unpack

# Largest number of vCPUs of a VM whose times are reported: the limit of qemu's x86 machine q35 up
# to 8.x. Distributions commonly allow 240 to 710.
MAX_VM_VCPUS: Final = 1024
# An average of 16 vCPUs for each of the 2,048 VMs that a collector puts in a frame. The times of
# these vCPUs take at most 262 kB, so one record can hold them together with the VMs' rows.
MAX_FRAME_VCPUS: Final = 32_768
# Unit of the times in a frame: 1 µs. Each wake-up of a vCPU takes longer, so it changes the time.
QUANTUM_NS: Final = 1_000

# Collectors report whole microseconds: nanoseconds would take another byte per vCPU.
_TIME_COLUMNS: Final = Columns((Metric("vcpu_time_ns", QUANTUM_NS),))
# `FrameValue.vcpu_times` has this same object as its default: msgspec omits a default only if it is
# the identical object.
NO_TIMES: Final = PackedTable()

Flags = NDArray[np.bool_]


class VcpuRows:
    """Cumulative time of each vCPU, in the order of a frame's VMs and of their vCPUs.

    Attributes
    ----------
    counts
        Shape (n,), uint16: how many elements of `times_ns` belong to each VM; 0 is unknown.
    times_ns
        Shape (counts.sum(),), uint64: for how long each vCPU has run or waited for a core since its
        VM's `instance` began, in multiples of `QUANTUM_NS`; 0 where `missing`.
    missing
        Same shape, bool; None if nothing is missing. A vCPU that is not plugged in is missing if
        one with a higher number is plugged in. So the index of a time is the number of its vCPU.
    """

    __slots__ = ("counts", "missing", "times_ns")

    def __init__(
        self, *, counts: NDArray[np.uint16], times_ns: NDArray[np.uint64], missing: Flags | None
    ) -> None:
        self.counts = counts
        self.times_ns = times_ns
        self.missing = missing

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VcpuRows):
            return NotImplemented
        return (
            np.array_equal(self.counts, other.counts)
            and np.array_equal(self.times_ns, other.times_ns)
            and np.array_equal(self.absent(), other.absent())
        )

    __hash__ = None  # type: ignore[assignment]

    def absent(self) -> Flags:
        """Return a mask of the missing times, of the shape of `times_ns`; True is missing."""
        return np.zeros(self.times_ns.shape, np.bool_) if self.missing is None else self.missing

    def bounds(self) -> NDArray[np.int64]:
        """Return shape (n + 1,): the start of each VM's times, and the end of the last one's."""
        bounds = np.zeros(len(self.counts) + 1, np.int64)
        np.cumsum(self.counts, out=bounds[1:])
        return bounds

    def select(self, start: int, stop: int) -> "VcpuRows":
        """Return the times of the VMs from `start` to before `stop`, sharing memory."""
        bounds = self.bounds()
        times = slice(int(bounds[start]), int(bounds[max(start, stop)]))
        return VcpuRows(
            counts=self.counts[start:stop],
            times_ns=self.times_ns[times],
            missing=None if self.missing is None else self.missing[times],
        )


def pack_vcpus(vcpus: VcpuRows | None) -> tuple[bytes, PackedTable]:
    """Return the counts and the packed times; both empty where no time is known.

    Raises
    ------
    ValueError
        More than `MAX_FRAME_VCPUS` times, or a VM with more than `MAX_VM_VCPUS`.
    """
    if vcpus is None or not len(vcpus.times_ns):
        return b"", NO_TIMES
    most = int(vcpus.counts.max())
    if len(vcpus.times_ns) > MAX_FRAME_VCPUS or most > MAX_VM_VCPUS:
        raise ValueError(
            f"{len(vcpus.times_ns)} vCPUs in one frame and {most} in one VM, at most "
            f"{MAX_FRAME_VCPUS} and {MAX_VM_VCPUS} are allowed: split the frame"
        )
    missing = None if vcpus.missing is None else vcpus.missing[None]
    counts = vcpus.counts.astype("u1" if most < 256 else "<u2").tobytes()
    return counts, pack(_TIME_COLUMNS, vcpus.times_ns[None], missing)


def unpack_vcpus(
    counts: bytes, times: PackedTable, size: int, widen: Widen | None = None
) -> VcpuRows | None:
    """Return the times in a frame of `size` VMs, None if it has none.

    Raises
    ------
    RecordRejected
        `oversized` if the counts exceed `MAX_VM_VCPUS` or `MAX_FRAME_VCPUS`; this is checked before
        any time is unpacked. Otherwise as in `engine.wire.table.unpack`.
    """
    if not size or not counts:
        return None
    if len(counts) not in (size, 2 * size):
        raise RecordRejected("malformed", f"{len(counts)} bytes of vCPU counts for {size} VMs")
    counted = np.frombuffer(counts, "u1" if len(counts) == size else "<u2").astype(np.uint16)
    most, total = int(counted.max()), int(counted.sum(dtype=np.int64))
    if most > MAX_VM_VCPUS:
        raise RecordRejected(
            "oversized", f"a VM of {most} vCPUs, at most {MAX_VM_VCPUS} are allowed"
        )
    if total > MAX_FRAME_VCPUS:
        raise RecordRejected(
            "oversized", f"{total} vCPUs in a frame, at most {MAX_FRAME_VCPUS} are allowed"
        )
    times_ns, missing = unpack(_TIME_COLUMNS, times, total, widen)
    return VcpuRows(
        counts=counted,
        times_ns=times_ns[0],
        missing=None if missing is None else missing[0],
    )

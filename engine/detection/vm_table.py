"""Store one node's VMs as arrays: one row of the VM table per VM, in roster order.

Each kernel has an array of its own in which a field is contiguous (`models.kernels.blocks`); one
structured array would interleave the fields of a VM.

While the roster is unchanged, the columns of a frame are copied directly. When it changes, each row
is copied with its learned state to its new position, or to the table of another node.
"""

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire.frame import UUID_BYTES
from flatline.models.kernels import (
    aggregates_layout,
    baseline,
    hours,
    ingest,
    screening,
    silence_model,
    standstill,
    trends,
)
from flatline.models.kernels.blocks import BLOCK_ROWS, blocks_for
from flatline.models.protocol import fill

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Indices = NDArray[np.intp]

# Float figures of each row, float64, in seconds and cores.
FLOATS: Final = (
    "history_s",
    "epoch_s",
    "cpu",
    "cpu_last",
    "cpu_recent",
    "cpu_before",
    "cpu_nats",
    "busiest",
    "busiest_last",
    "busiest_recent",
    "busiest_before",
    "delay",
    "contention",
    "balloon_still_s",
    "balloon_period_s",
    "life_share",
    "disk_share",
    "tx_share",
    "tx_still_s",
    "alive_s",
    "read_rate",
    "known_s",
    "forest_score",
    "used_last",
    "used_recent",
    "used_before",
)
# Integer figures of each row, int64; -1 is unknown.
INTEGERS: Final = (
    "instance",
    "state",
    "vcpus",
    "vcpus_busy",
    "job_active",
    "balloon_last",
    "balloon_moved",
    "balloon_fresh",
    "moved",
    "run_samples",
    "run_sequence",
    "onset_ms",
    "disk_samples",
    "disk_sequence",
    "disk_onset_ms",
    "alive_samples",
    "moving",
    "migrated",
    "delay_ns",
    "vcpu_mover",
    "device_set",
    "lived_onset_ms",
    "lived_ms",
    "lived_longest_ms",
    "lived_samples",
    "lived_moved_ms",
)
F: Final = {name: row for row, name in enumerate(FLOATS)}
I: Final = {name: row for row, name in enumerate(INTEGERS)}  # noqa: E741 - reads as F does

# Values that are summed up over each minute. `MINUTE_ROWS` are their rows in `baseline.OUT`.
MINUTE: Final = (
    "cpu_cores",
    "cpu_cores_expected",
    "cpu_cores_error",
    "disk_rd_bytes_per_s",
    "disk_wr_bytes_per_s",
    "net_tx_bytes_per_s",
    "worst_z",
)
MINUTE_ROWS: Final = np.array([baseline.OUT[name] for name in MINUTE])


class VmTable:
    """State of one node's VMs.

    Attributes
    ----------
    roster
        UUIDs of the rows in use, concatenated; rows beyond are padding.
    floats, integers
        Shape (len(FLOATS), rows) and (len(INTEGERS), rows).
    levels
        Shape (aggregates_layout.LEVELS, rows): number of samples with the CPU in each band.
    counted, life, disk
        Kernel results of the last sample. Rows of `counted` are as `baseline.OUT`, rows of `life`
        (silence of all signals) and `disk` (silence of the disks) as `silence_model.OUT`.
    vitals, recent, signs
        State, windows and last results of `models.kernels.aggregates`, one VM after the other.
    others_gaps, whole_gaps, exit_gaps
        Models of how long all vCPUs but the busiest, all vCPUs, and KVM's interrupts stand still
        while the guest is alive (`models.kernels.standstill`).
    others, whole, exits
        Results of these models for the last sample: rows as `silence_model.OUT`.
    stills
        Shape (3, rows), int8: whether all vCPUs but the busiest, all vCPUs, and the interrupts
        stood still in the last sample: `standstill.STILL`, `MOVED` or `UNKNOWN`.
    vcpu_counts, vcpu_times
        Number of vCPU times last reported for each row, and these times, one row after the
        other.
    kvm
        Shape (2, rows): last counts of injected interrupts and of exits for I/O,
        `standstill.NO_TIME` if unknown.
    trends, means, hours, shows
        State, means and last results (`shows`) of `models.kernels.trends`, and the state `hours` of
        `models.kernels.hours`, one VM after the other.
    foreign
        VMs of this roster that still belong to another node.
    hold
        Shape (rows,), uint8: the silence of this row has an external explanation.
    sums, sum_counts
        Shape (len(MINUTE), rows): sums of the current minute and their counts.
    taken
        Scratch memory for the frame being folded; no content outlasts the frame.
    flags, found
        Result of the screening of the window (`models.kernels.screening`): bits of each row, and
        the number of rows with each bit; no content outlasts the window.
    """

    def __init__(self, roster: bytes) -> None:
        blocks = max(1, blocks_for(len(roster) // UUID_BYTES))
        table = blocks * BLOCK_ROWS
        self.roster = roster
        self.baseline = baseline.new_state(blocks)
        self.previous = baseline.new_previous(blocks)
        self.gaps = silence_model.new_state(blocks)
        self.disk_gaps = silence_model.new_state(blocks)
        self.floats = np.zeros((len(FLOATS), table))
        self.integers = np.zeros((len(INTEGERS), table), np.int64)
        self.levels = np.zeros((aggregates_layout.LEVELS, table), np.float32)
        self.counted = np.full((baseline.OUT_ROWS, table), np.nan, np.float32)
        self.life = np.zeros((silence_model.OUT_ROWS, table), np.float32)
        self.disk = np.zeros((silence_model.OUT_ROWS, table), np.float32)
        self.hold = np.zeros(table, np.uint8)
        self.vitals = aggregates_layout.new_state(table)
        self.recent = aggregates_layout.new_recent(table)
        self.signs = np.zeros((table, aggregates_layout.OUT_ROWS))
        self.others_gaps = silence_model.new_state(blocks)
        self.whole_gaps = silence_model.new_state(blocks)
        self.exit_gaps = silence_model.new_state(blocks)
        self.others = np.zeros((silence_model.OUT_ROWS, table), np.float32)
        self.whole = np.zeros((silence_model.OUT_ROWS, table), np.float32)
        self.exits = np.zeros((silence_model.OUT_ROWS, table), np.float32)
        self.stills = np.full((3, table), standstill.UNKNOWN, np.int8)
        self.vcpu_counts = np.zeros(table, np.int64)
        self.vcpu_times = np.zeros(0, np.uint64)
        self.kvm = np.full((2, table), standstill.NO_TIME, np.uint64)
        self.trends = trends.new_state(table)
        self.means = trends.new_means(table)
        self.hours = hours.new_state(table)
        self.shows = np.zeros((table, trends.OUT_ROWS))
        self.sums = np.zeros((len(MINUTE), table))
        self.sum_counts = np.zeros((len(MINUTE), table))
        self.taken = ingest.new_taken(table)
        self.flags = np.zeros(table, np.uint16)
        self.found = np.zeros(screening.BITS, np.int64)
        unknown = ("instance", "state", "vcpus", "vcpus_busy", "job_active", "delay_ns")
        for name in (*unknown, "vcpu_mover", "device_set"):
            self.integers[I[name]] = -1
        self.floats[F["cpu"]] = np.nan
        self.floats[F["busiest"]] = np.nan
        self.floats[F["forest_score"]] = np.nan
        # VMs listed here that still belong to another node, as during a migration.
        self.foreign: set[bytes] = set()
        self.indices = {
            roster[start : start + UUID_BYTES]: start // UUID_BYTES
            for start in range(0, len(roster), UUID_BYTES)
        }

    def __len__(self) -> int:
        return len(self.roster) // UUID_BYTES

    def vm(self, index: int) -> bytes:
        """Return the UUID of the VM in row `index` (from 0), 16 bytes."""
        return self.roster[index * UUID_BYTES : (index + 1) * UUID_BYTES]

    def figure(self, name: str, index: int) -> float:
        """Return one float of one row; `name` is one of `FLOATS`, `index` is from 0."""
        return float(self.floats[F[name], index])

    def number(self, name: str, index: int) -> int:
        """Return one integer of one row; `name` is one of `INTEGERS`, `index` is from 0."""
        return int(self.integers[I[name], index])

    def sign(self, name: str, index: int) -> float:
        """Return one result of the last sample's totals for one row, by `aggregates_layout.OUT`."""
        return float(self.signs[index, aggregates_layout.OUT[name]])

    def which(self, bit: int) -> NDArray[np.bool_]:
        """Return, per row in use, whether the screening of the window set this bit.

        `bit` is the number of a bit in `models.kernels.screening`, such as `SUSPECT`, not a mask.
        """
        seen: NDArray[np.bool_] = (self.flags[: len(self)] & (1 << bit)) != 0
        return seen

    def row(self, name: str) -> F64:
        """Return a view of one of `FLOATS` for all rows, shape (rows,), padding included."""
        row: F64 = self.floats[F[name]]
        return row

    def numbers(self, name: str) -> I64:
        """Return a view of one of `INTEGERS` for all rows, shape (rows,), padding included."""
        row: I64 = self.integers[I[name]]
        return row

    def take(self, indices: Indices, source: "VmTable", source_rows: Indices) -> None:
        """Copy VMs of `source`, with their learned state, into this table.

        Parameters
        ----------
        indices
            Shape (n,): rows of this table, overwritten.
        source_rows
            Shape (n,): rows of `source`, in the same order.
        """
        to_block, to_row = indices // BLOCK_ROWS, indices % BLOCK_ROWS
        from_block, from_row = source_rows // BLOCK_ROWS, source_rows % BLOCK_ROWS
        theirs = source.to_arrays()
        own, given = self.times_by_row(), source.times_by_row()
        for name, target in self.to_arrays().items():
            if name in _BLOCKED:
                target[to_block, :, to_row] = theirs[name][from_block, :, from_row]
            elif name in BY_ROW:
                target[indices] = theirs[name][source_rows]
            elif name != "vcpu_times":
                target[..., indices] = theirs[name][..., source_rows]
        if len(source.vcpu_times) or len(self.vcpu_times):
            for position, index in zip(indices.tolist(), source_rows.tolist(), strict=True):
                own[position] = given[index]
            self.vcpu_times = np.concatenate(own)

    def times_by_row(self) -> list[NDArray[np.uint64]]:
        """Return the vCPU times in ns of each row, padding included, as views."""
        return np.split(self.vcpu_times, np.cumsum(self.vcpu_counts)[:-1])

    def adopt(self, position: int, source: "VmTable", index: int) -> None:
        """Take over a VM from another node: the guest continues, but its counters restart.

        The next change of its instance is therefore not a boot. `position` is its row in this
        table, `index` its row in `source`.
        """
        at = np.array([position], np.intp)
        self.take(at, source, np.array([index], np.intp))
        self.end_run(at)
        self.integers[I["migrated"], position] = 1
        self.previous[:, position] = baseline.NO_PREVIOUS
        self.kvm[:, position] = standstill.NO_TIME
        self.times_by_row()[position][:] = standstill.NO_TIME
        self.integers[I["delay_ns"], position] = -1
        self.integers[I["device_set"], position] = -1
        self.floats[F["balloon_still_s"], position] = 0.0
        self.floats[F["contention"], position] = 0.0

    def begin_boot(self, rows: Indices) -> None:
        """Begin a boot epoch of these rows: reset what moved before and end running silences."""
        for name in ("moved", "balloon_moved", "balloon_fresh", "alive_samples"):
            self.integers[I[name], rows] = 0
        for name in ("epoch_s", "balloon_still_s", "alive_s"):
            self.floats[F[name], rows] = 0.0
        self.end_run(rows)

    def end_run(self, rows: Indices) -> None:
        """End the running silence of these rows without learning it as usual."""
        block, index = rows // BLOCK_ROWS, rows % BLOCK_ROWS
        for model, out in (
            (self.gaps, self.life),
            (self.disk_gaps, self.disk),
            (self.others_gaps, self.others),
            (self.whole_gaps, self.whole),
            (self.exit_gaps, self.exits),
        ):
            model[block, silence_model.RUN, index] = 0.0
            model[block, silence_model.HELD, index] = 0.0
            out[:, rows] = 0.0
        self.integers[I["run_samples"], rows] = 0
        self.integers[I["disk_samples"], rows] = 0
        self.integers[I["vcpu_mover"], rows] = standstill.NO_MOVER
        self.stills[:, rows] = standstill.UNKNOWN
        for name in _OF_RUN:
            self.vitals[rows, aggregates_layout.FIELD[name]] = 0.0
        self.signs[rows] = 0.0

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays by name, without the roster; they are not copies."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, roster: bytes, arrays: Mapping[str, NDArray[np.generic]]) -> "VmTable":
        """Return the table that `to_arrays` stored, able to continue bit for bit.

        Arrays that an earlier release did not store begin empty.

        Raises
        ------
        ValueError
            The roster is invalid, or an array does not fit such rows.
        """
        table = cls(roster)
        if len(b"".join(table.indices)) != len(roster) or len(roster) % UUID_BYTES:
            raise ValueError("the VM list names a VM twice, or holds a partial UUID")
        table.vcpu_times = np.zeros(len(arrays.get("vcpu_times", ())), np.uint64)
        if len(arrays.get("counted", ())) == _ROWS_BEFORE:
            arrays = {**arrays, "counted": arrays["counted"][_ROWS_KEPT]}
        for name in _ARRAYS:
            if name in arrays:
                fill(getattr(table, name)[: len(arrays[name])], arrays[name], name=name)
        counts = table.vcpu_counts.tolist()
        if min(counts) < 0 or sum(counts) != len(table.vcpu_times):
            raise ValueError(
                f"{len(table.vcpu_times)} vCPU times do not fit the rows of the VM table"
            )
        return table


# Fields of the aggregate evidence that describe the running silence.
_OF_RUN: Final = (
    *("run", "run_s", "held", "shared", "suspected"),
    *("disk_run", "disk_run_s", "disk_hung"),
)
_BLOCKED: Final = ("baseline", "gaps", "disk_gaps", "others_gaps", "whole_gaps", "exit_gaps")
# Arrays whose first axis is the VM, so that all fields of a VM are together.
BY_ROW: Final = ("vitals", "recent", "signs", "trends", "means", "hours", "shows")
_ARRAYS: Final = (
    *_BLOCKED,
    *BY_ROW,
    "previous",
    "floats",
    "integers",
    "levels",
    "counted",
    "life",
    "disk",
    "hold",
    "sums",
    "sum_counts",
    "others",
    "whole",
    "exits",
    "stills",
    "vcpu_counts",
    "vcpu_times",
    "kvm",
)
# An earlier release stored further rows of `counted`, which had no reader.
_ROWS_BEFORE: Final = 19
_ROWS_KEPT: Final = np.array([*range(9), 10, 17, 18])


def follow_roster(table: VmTable, roster: bytes) -> VmTable:
    """Return rows in the order of `roster`; VMs of this node keep their learned state.

    `roster` holds distinct UUIDs of 16 bytes, concatenated. VMs that `table` lacks begin empty, and
    those that `roster` lacks are dropped.
    """
    moved = VmTable(roster)
    here = [
        (index, table.indices[vm]) for vm, index in moved.indices.items() if vm in table.indices
    ]
    if here:
        targets, origins = np.array(here, np.intp).T
        moved.take(targets, table, origins)
    moved.foreign = {vm for vm in table.foreign if vm in moved.indices}
    return moved


def without(table: VmTable, vms: Collection[bytes]) -> VmTable:
    """Return rows without the given VMs (UUIDs); the others keep their learned state."""
    return follow_roster(table, b"".join(vm for vm in table.indices if vm not in vms))

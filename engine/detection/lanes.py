"""Store one node's VMs as arrays: one lane (row of the VM table) per VM, in roster order.

With an unchanged roster the columns of a frame are copied directly. Another roster copies each
lane, with its learned state, to its new place or to another node.
"""

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.wire.frame import UUID_BYTES
from models.kernels import (
    baseline,
    gaps,
    glance,
    hours,
    intake,
    standstill,
    trends,
    vitals_layout,
)
from models.kernels.lanes import LANES, blocks_for
from models.protocol import fill

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Indices = NDArray[np.intp]

# Float figures of each lane, float64, in seconds and cores.
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
# Integer figures of each lane, int64; -1 is unknown.
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

# Sums of a minute. `MINUTE_ROWS` are their rows in `baseline.OUT`.
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


class Lanes:
    """State of one node's VMs.

    Attributes
    ----------
    roster
        UUIDs of the lanes in use, concatenated; lanes beyond are padding.
    floats, integers
        Shape (len(FLOATS), lanes) and (len(INTEGERS), lanes).
    levels
        Shape (vitals_layout.LEVELS, lanes): number of samples with the CPU in each band.
    counted, life, disk
        Kernel results of the last sample: rows as `baseline.OUT`, `gaps.OUT`.
    vitals, recent, signs
        State, windows and last results of `models.kernels.vitals`, one VM after the other.
    others_gaps, whole_gaps, exit_gaps
        Models of how long all vCPUs but the busiest, all vCPUs, and KVM's interrupts stand still
        while the guest is alive (`models.kernels.standstill`).
    others, whole, exits
        Results of these models for the last sample: rows as `gaps.OUT`.
    stills
        Shape (3, lanes), int8: whether the others, all of them and the interrupts stood still in
        the last sample, as `standstill.STILL`.
    vcpu_counts, vcpu_times
        Number of vCPU times last reported for each lane, and these times, one lane after the
        other.
    kvm
        Shape (2, lanes): injected interrupts and exits for I/O, `standstill.NO_TIME` unknown.
    trends, means, hours, shows
        The same of `models.kernels.trends`, hours by `models.kernels.hours`.
    foreign
        VMs of this roster that still belong to another node.
    hold
        Shape (lanes,), uint8: the silence of this lane has an external explanation.
    sums, sum_counts
        Shape (len(MINUTE), lanes): sums of the current minute and their counts.
    taken
        Scratch memory for the frame being folded; no content outlasts the frame.
    finds, found
        Result of the slot's screening (`models.kernels.glance`): bits of each lane, and the
        number of lanes with each bit; no content outlasts the slot.
    """

    def __init__(self, roster: bytes) -> None:
        blocks = max(1, blocks_for(len(roster) // UUID_BYTES))
        lanes = blocks * LANES
        self.roster = roster
        self.baseline = baseline.new_state(blocks)
        self.previous = baseline.new_previous(blocks)
        self.gaps = gaps.new_state(blocks)
        self.disk_gaps = gaps.new_state(blocks)
        self.floats = np.zeros((len(FLOATS), lanes))
        self.integers = np.zeros((len(INTEGERS), lanes), np.int64)
        self.levels = np.zeros((vitals_layout.LEVELS, lanes), np.float32)
        self.counted = np.full((baseline.OUT_ROWS, lanes), np.nan, np.float32)
        self.life = np.zeros((gaps.OUT_ROWS, lanes), np.float32)
        self.disk = np.zeros((gaps.OUT_ROWS, lanes), np.float32)
        self.hold = np.zeros(lanes, np.uint8)
        self.vitals = vitals_layout.new_state(lanes)
        self.recent = vitals_layout.new_recent(lanes)
        self.signs = np.zeros((lanes, vitals_layout.OUT_ROWS))
        self.others_gaps = gaps.new_state(blocks)
        self.whole_gaps = gaps.new_state(blocks)
        self.exit_gaps = gaps.new_state(blocks)
        self.others = np.zeros((gaps.OUT_ROWS, lanes), np.float32)
        self.whole = np.zeros((gaps.OUT_ROWS, lanes), np.float32)
        self.exits = np.zeros((gaps.OUT_ROWS, lanes), np.float32)
        self.stills = np.full((3, lanes), standstill.UNKNOWN, np.int8)
        self.vcpu_counts = np.zeros(lanes, np.int64)
        self.vcpu_times = np.zeros(0, np.uint64)
        self.kvm = np.full((2, lanes), standstill.NO_TIME, np.uint64)
        self.trends = trends.new_state(lanes)
        self.means = trends.new_means(lanes)
        self.hours = hours.new_state(lanes)
        self.shows = np.zeros((lanes, trends.OUT_ROWS))
        self.sums = np.zeros((len(MINUTE), lanes))
        self.sum_counts = np.zeros((len(MINUTE), lanes))
        self.taken = intake.new_taken(lanes)
        self.finds = np.zeros(lanes, np.uint16)
        self.found = np.zeros(glance.BITS, np.int64)
        unknown = ("instance", "state", "vcpus", "vcpus_busy", "job_active", "delay_ns")
        for name in (*unknown, "vcpu_mover", "device_set"):
            self.integers[I[name]] = -1
        self.floats[F["cpu"]] = np.nan
        self.floats[F["busiest"]] = np.nan
        self.floats[F["forest_score"]] = np.nan
        # VMs listed here that still belong to another node, as during a migration.
        self.foreign: set[bytes] = set()
        self.places = {
            roster[start : start + UUID_BYTES]: start // UUID_BYTES
            for start in range(0, len(roster), UUID_BYTES)
        }

    def __len__(self) -> int:
        return len(self.roster) // UUID_BYTES

    def vm(self, lane: int) -> bytes:
        """Return the UUID of the VM in a lane."""
        return self.roster[lane * UUID_BYTES : (lane + 1) * UUID_BYTES]

    def figure(self, name: str, lane: int) -> float:
        """Return one float of one lane."""
        return float(self.floats[F[name], lane])

    def number(self, name: str, lane: int) -> int:
        """Return one integer of one lane."""
        return int(self.integers[I[name], lane])

    def sign(self, name: str, lane: int) -> float:
        """Return one result of the last sample's totals for one lane, by `vitals_layout.OUT`."""
        return float(self.signs[lane, vitals_layout.OUT[name]])

    def which(self, bit: int) -> NDArray[np.bool_]:
        """Return, per lane in use, whether the slot's screening set this bit."""
        seen: NDArray[np.bool_] = (self.finds[: len(self)] & (1 << bit)) != 0
        return seen

    def row(self, name: str) -> F64:
        """Return the live row of one float."""
        row: F64 = self.floats[F[name]]
        return row

    def numbers(self, name: str) -> I64:
        """Return the live row of one integer."""
        row: I64 = self.integers[I[name]]
        return row

    def take(self, places: Indices, source: "Lanes", lanes: Indices) -> None:
        """Copy `lanes` of `source`, with their learned state, to `places` here."""
        to_block, to_lane = places // LANES, places % LANES
        from_block, from_lane = lanes // LANES, lanes % LANES
        theirs = source.to_arrays()
        own, given = self.times_by_lane(), source.times_by_lane()
        for name, target in self.to_arrays().items():
            if name in _BLOCKED:
                target[to_block, :, to_lane] = theirs[name][from_block, :, from_lane]
            elif name in BY_LANE:
                target[places] = theirs[name][lanes]
            elif name != "vcpu_times":
                target[..., places] = theirs[name][..., lanes]
        if len(source.vcpu_times) or len(self.vcpu_times):
            for place, lane in zip(places.tolist(), lanes.tolist(), strict=True):
                own[place] = given[lane]
            self.vcpu_times = np.concatenate(own)

    def times_by_lane(self) -> list[NDArray[np.uint64]]:
        """Return the vCPU times of each lane, as views."""
        return np.split(self.vcpu_times, np.cumsum(self.vcpu_counts)[:-1])

    def adopt(self, place: int, source: "Lanes", lane: int) -> None:
        """Take over a VM from another node: the guest continues, but its counters restart.

        Therefore its next instance is not a boot.
        """
        at = np.array([place], np.intp)
        self.take(at, source, np.array([lane], np.intp))
        self.end_run(at)
        self.integers[I["migrated"], place] = 1
        self.previous[:, place] = baseline.NO_PREVIOUS
        self.kvm[:, place] = standstill.NO_TIME
        self.times_by_lane()[place][:] = standstill.NO_TIME
        self.integers[I["delay_ns"], place] = -1
        self.integers[I["device_set"], place] = -1
        self.floats[F["balloon_still_s"], place] = 0.0
        self.floats[F["contention"], place] = 0.0

    def begin_boot(self, lanes: Indices) -> None:
        """Begin a boot epoch: reset what moved before and end running silences."""
        for name in ("moved", "balloon_moved", "balloon_fresh", "alive_samples"):
            self.integers[I[name], lanes] = 0
        for name in ("epoch_s", "balloon_still_s", "alive_s"):
            self.floats[F[name], lanes] = 0.0
        self.end_run(lanes)

    def end_run(self, lanes: Indices) -> None:
        """End the running silence of these lanes without learning it as usual."""
        block, lane = lanes // LANES, lanes % LANES
        for model, out in (
            (self.gaps, self.life),
            (self.disk_gaps, self.disk),
            (self.others_gaps, self.others),
            (self.whole_gaps, self.whole),
            (self.exit_gaps, self.exits),
        ):
            model[block, gaps.RUN, lane] = 0.0
            model[block, gaps.HELD, lane] = 0.0
            out[:, lanes] = 0.0
        self.integers[I["run_samples"], lanes] = 0
        self.integers[I["disk_samples"], lanes] = 0
        self.integers[I["vcpu_mover"], lanes] = standstill.NO_MOVER
        self.stills[:, lanes] = standstill.UNKNOWN
        for name in (
            "run",
            "run_s",
            "held",
            "shared",
            "suspected",
            "disk_run",
            "disk_run_s",
            "disk_hung",
        ):
            self.vitals[lanes, vitals_layout.FIELD[name]] = 0.0
        self.signs[lanes] = 0.0

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays by name, without the roster; they are not copies."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, roster: bytes, arrays: Mapping[str, NDArray[np.generic]]) -> "Lanes":
        """Return the lanes that `to_arrays` came from, able to continue bit for bit.

        Arrays that an earlier release did not store begin empty.

        Raises
        ------
        ValueError
            The roster is invalid, or an array does not fit such lanes.
        """
        lanes = cls(roster)
        if len(b"".join(lanes.places)) != len(roster) or len(roster) % UUID_BYTES:
            raise ValueError("the VM list names a VM twice, or holds a partial UUID")
        lanes.vcpu_times = np.zeros(len(arrays.get("vcpu_times", ())), np.uint64)
        if len(arrays.get("counted", ())) == _ROWS_BEFORE:
            arrays = {**arrays, "counted": arrays["counted"][_ROWS_KEPT]}
        for name in _ARRAYS:
            if name in arrays:
                fill(getattr(lanes, name)[: len(arrays[name])], arrays[name], name=name)
        told = lanes.vcpu_counts.tolist()
        if min(told) < 0 or sum(told) != len(lanes.vcpu_times):
            raise ValueError(
                f"{len(lanes.vcpu_times)} vCPU times do not fit the rows of the VM table"
            )
        return lanes


_OF_RUN: Final = (
    *("run", "run_s", "held", "shared", "suspected"),
    *("disk_run", "disk_run_s", "disk_hung"),
)
_BLOCKED: Final = ("baseline", "gaps", "disk_gaps", "others_gaps", "whole_gaps", "exit_gaps")
# One VM after the other, with all fields of a VM together.
BY_LANE: Final = ("vitals", "recent", "signs", "trends", "means", "hours", "shows")
_ARRAYS: Final = (
    *_BLOCKED,
    *BY_LANE,
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


def follow_roster(lanes: Lanes, roster: bytes) -> Lanes:
    """Return lanes in the order of `roster`; VMs of this node keep their learned state."""
    moved = Lanes(roster)
    here = [(place, lanes.places[vm]) for vm, place in moved.places.items() if vm in lanes.places]
    if here:
        targets, origins = np.array(here, np.intp).T
        moved.take(targets, lanes, origins)
    moved.foreign = {vm for vm in lanes.foreign if vm in moved.places}
    return moved


def without(lanes: Lanes, vms: Collection[bytes]) -> Lanes:
    """Return lanes without the given VMs; the others keep their learned state."""
    return follow_roster(lanes, b"".join(vm for vm in lanes.places if vm not in vms))

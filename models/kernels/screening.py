"""Screen all VMs of a node: select those that need further examination.

Each test is cheap and sets one bit. Together they select every VM in which the examination may find
a fault. A window without events therefore costs one pass, for any size of the fleet.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

import flatline.models.kernels.aggregates_layout as at
from flatline.models.kernels import trends
from flatline.models.kernels._jit import inlined, kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U16 = NDArray[np.uint16]

# Bits of a row, and indices in `counts`. Only totals are known of the VM; it may have a fault. Only
# for VMs known by totals: its silence has just begun; it is alive.
ONLY_AGGREGATES, SUSPECT, YOUNG, MOVING = 0, 1, 2, 3
# Slow faults, which develop over hours.
LEAK, FLOOD, RUNAWAY, BOOTED = 4, 5, 6, 7
# Recently fell silent: the disks of the VM, its sending, all its signals.
FELL_DISK, FELL_TX, FELL_LIFE = 8, 9, 10
# The VM is missing in the last sample; it has been missing for a long time.
UNSEEN, ABSENT = 11, 12
# Its writing falls hour by hour.
SLOWED = 13
BITS: Final = 14


class Rows(NamedTuple):
    """Row numbers in the rows' floats and integers, and the number of the state `crashed`."""

    cpu: int
    cpu_before: int
    cpu_nats: int
    busiest: int
    balloon_still_s: int
    balloon_period_s: int
    tx_still_s: int
    tx_share: int
    epoch_s: int
    vcpus_busy: int
    balloon_moved: int
    balloon_fresh: int
    moved: int
    run_samples: int
    disk_samples: int
    state: int
    crashed: int


class Limits(NamedTuple):
    """Index of each limit; names are those of `Configuration`.

    `totals_alert_nats` follows from `totals_alert_rate`.
    """

    cpu_cap_nats: int
    one_core_nats: int
    balloon_nats_per_period: int
    balloon_cap_nats: int
    silence_alert_nats: int
    alert_nats: int
    hung_s: int
    hung_level_nats: int
    hung_cpu_ratio: int
    boot_stuck_s: int
    totals_alert_samples: int
    totals_alert_nats: int
    totals_hung_samples: int
    totals_shared_samples: int
    totals_active_share: int
    totals_shared_nats: int
    leak_rises: int
    leak_growth: int
    flood_buckets: int
    gate_window_s: int
    shared_nats: int


_R: Final = Rows(*range(len(Rows._fields)))
_L: Final = Limits(*range(len(Limits._fields)))
_RISES, _GROWTH = trends.OUT["rises"], trends.OUT["growth"]
_CLOSED, _BOOTED = trends.OUT["closed"], trends.OUT["booted"]
_FLOOD, _CORES = trends.OUT["flood"], trends.OUT["runaway_cores"]
_SLOWED_HOURS = trends.OUT["slowed_hours"]


@inlined
def _bit(number: int, holds: bool) -> int:
    return 1 << number if holds else 0


@inlined
def _single(limits: F64, row: int) -> np.float32:
    """Return a limit as float32, the type of the values compared with it."""
    return np.float32(limits[row])


@inlined
def _is_silent(floats: F64, integers: I64, life: F32, rows: I64, limits: F64, index: int) -> bool:
    """Return whether silence, CPU and balloon may add up to an alert."""
    nats = life[1, index]
    moved, fresh = integers[rows[_R.balloon_moved], index], integers[rows[_R.balloon_fresh], index]
    if integers[rows[_R.run_samples], index] < 2 or not nats >= _single(
        limits, _L.silence_alert_nats
    ):
        return False
    if fresh != 0 and moved >= 2:
        return False
    level = np.minimum(floats[rows[_R.cpu_nats], index], limits[_L.cpu_cap_nats])
    most = np.maximum(level, limits[_L.one_core_nats])
    period = np.maximum(floats[rows[_R.balloon_period_s], index], 0.1)
    still = floats[rows[_R.balloon_still_s], index] / period * limits[_L.balloon_nats_per_period]
    most = most + (np.minimum(still, limits[_L.balloon_cap_nats]) if moved >= 2 else 0.0)
    return bool(np.float64(nats) + most >= limits[_L.alert_nats])


@inlined
def _is_hung(floats: F64, disk: F32, rows: I64, limits: F64, index: int) -> bool:
    if not disk[0, index] >= _single(limits, _L.hung_s):
        return False
    if not floats[rows[_R.cpu_nats], index] >= limits[_L.hung_level_nats]:
        return False
    most = limits[_L.hung_cpu_ratio] * floats[rows[_R.cpu_before], index]
    return bool(floats[rows[_R.cpu], index] <= most)


@inlined
def _is_suspect_by_aggregates(signs: F64, limits: F64, index: int) -> bool:
    if signs[index, at.O_DISK_HUNG] >= limits[_L.totals_hung_samples]:
        return True
    if not signs[index, at.O_KNOWN] > 0.0:
        return False
    score = (signs[index, at.O_SILENCE] + signs[index, at.O_CPU]) + signs[index, at.O_MEMORY]
    enough = signs[index, at.O_RUN] >= limits[_L.totals_alert_samples]
    return bool(enough and score >= limits[_L.totals_alert_nats])


@inlined
def _of_aggregates(signs: F64, limits: F64, index: int) -> int:
    """Return the bits of a VM known by totals only: silence just begun, alive."""
    run = signs[index, at.O_RUN]
    young = run >= 1.0 and run <= limits[_L.totals_shared_samples]
    young = young and signs[index, at.O_ACTIVE] >= limits[_L.totals_active_share]
    young = young and signs[index, at.O_SILENCE] >= limits[_L.totals_shared_nats]
    moving = signs[index, at.O_KNOWN] > 0.0 and run == 0.0
    return _bit(ONLY_AGGREGATES, True) | _bit(YOUNG, young) | _bit(MOVING, moving)


@inlined
def _of_hours(shows: F64, limits: F64, is_aggregate: bool, index: int) -> int:
    leak = shows[index, _RISES] >= limits[_L.leak_rises]
    leak = leak and shows[index, _GROWTH] >= limits[_L.leak_growth]
    booted = is_aggregate and shows[index, _BOOTED] > 0.0 and shows[index, _CLOSED] > 0.0
    found = _bit(LEAK, leak) | _bit(FLOOD, shows[index, _FLOOD] >= limits[_L.flood_buckets])
    found |= _bit(RUNAWAY, shows[index, _CORES] > 0.0) | _bit(BOOTED, booted)
    return found | _bit(SLOWED, shows[index, _SLOWED_HOURS] > 0.0)


@inlined
def _fell(
    floats: F64, integers: I64, life: F32, disk: F32, rows: I64, limits: F64, dt_s: float,
    index: int,
) -> int:  # fmt: skip
    """Return the bits of signals that fell silent within the window of common causes (gate)."""
    window_s = max(limits[_L.gate_window_s], 3.0 * dt_s)
    short, nats = np.float32(window_s), _single(limits, _L.shared_nats)
    by_disk = integers[rows[_R.disk_samples], index] >= 2
    by_disk = by_disk and disk[0, index] <= short and disk[1, index] >= nats
    # One sample more than for disks: the silence of a node or cell may prove to be that of a pool,
    # whose members on other nodes are one sample behind.
    by_life = integers[rows[_R.run_samples], index] >= 3
    by_life = by_life and life[0, index] <= short and life[1, index] >= nats
    still = floats[rows[_R.tx_still_s], index]
    by_tx = still >= 2.0 * dt_s and still <= window_s
    # Sending has no gap model. Instead, the VM must have sent in nearly every sample before; its
    # share of samples with sent bytes has decayed since.
    by_tx = by_tx and floats[rows[_R.tx_share], index] >= 0.8 * math.exp(-still / 60.0)
    return _bit(FELL_DISK, by_disk) | _bit(FELL_TX, by_tx) | _bit(FELL_LIFE, by_life)


@kernel
def screen(
    floats: F64,
    integers: I64,
    life: F32,
    disk: F32,
    signs: F64,
    shows: F64,
    rows: I64,
    limits: F64,
    dt_s: float,
    absent_s: float,
    size: int,
    flags: U16,
    counts: I64,
) -> None:
    """Screen every row in use.

    Parameters
    ----------
    floats, integers, life, disk, signs, shows
        State of `engine.detection.vm_table.VmTable` after the last sample.
    rows, limits
        Row numbers and limits in the order of `Rows` and `Limits`.
    dt_s
        Time between the node's last two samples.
    absent_s
        Time without samples after which a VM is `ABSENT`.
    size
        Number of rows in use.
    flags
        Shape (≥ size,), overwritten up to `size`: the bits of each row.
    counts
        Shape (BITS,), overwritten: number of rows with each bit.
    """
    counts[:] = 0
    for index in range(size):
        moved = integers[rows[_R.balloon_moved], index]
        busiest = floats[rows[_R.busiest], index]
        is_aggregate = integers[rows[_R.vcpus_busy], index] < 0 and busiest != busiest and moved < 2
        found = 0
        if is_aggregate:
            found |= _of_aggregates(signs, limits, index)
            suspect = _is_suspect_by_aggregates(signs, limits, index)
        else:
            suspect = _is_silent(floats, integers, life, rows, limits, index)
            suspect = suspect or _is_hung(floats, disk, rows, limits, index)
        stuck = floats[rows[_R.epoch_s], index] >= limits[_L.boot_stuck_s]
        stuck = stuck and integers[rows[_R.moved], index] == 0 and moved < 2
        suspect = suspect or stuck or integers[rows[_R.state], index] == rows[_R.crashed]
        found |= _bit(SUSPECT, suspect) | _of_hours(shows, limits, is_aggregate, index)
        found |= _fell(floats, integers, life, disk, rows, limits, dt_s, index)
        unseen_s = signs[index, at.O_UNSEEN]
        found |= _bit(UNSEEN, unseen_s > 0.0) | _bit(ABSENT, unseen_s >= absent_s)
        flags[index] = np.uint16(found)
        for bit in range(BITS):
            counts[bit] += (found >> bit) & 1

"""A frame into rows in whole-array steps: the twin of `models.kernels.ingest`."""

import numpy as np

from flatline.engine.detection.vm_table import MINUTE_ROWS, VmTable
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import INTEGER_ROW, VM_STATES
from flatline.models.kernels import baseline, ingest

_COUNTERS = [
    INTEGER_ROW[name]
    for name in ("cpu_time_ns", "block_rd_bytes", "block_wr_bytes", "net_tx_bytes")
]
_RUNNING = [VM_STATES.index(name) for name in ("running", "blocked", "crashed")]


def take_rows(table: VmTable, rows: VmRows, *, has_interval: bool) -> None:
    """Replace `engine.detection.rates._take_rows`."""
    size, taken, present = len(rows), table.taken, rows.present()

    def numbers(name: str, unknown: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        row = INTEGER_ROW[name]
        return np.where(present[row], rows.integers[row].astype(np.int64), unknown)

    for name in ("state", "vcpus", "vcpus_busy", "job_active"):
        table.numbers(name)[:size] = numbers(name, -1)
    measured = present[_COUNTERS]
    taken.counters[:, :size] = rows.integers[_COUNTERS]
    taken.flags[:] = baseline.FLAG_SAME_EPOCH
    taken.flags[:size] += (measured * np.array([[1], [2], [4], [8]], np.uint8)).sum(
        axis=0, dtype=np.uint8
    )
    stored, instance = table.numbers("instance")[:size], numbers("instance", -1)
    other = (instance >= 0) & (stored >= 0) & (instance != stored)
    previous = table.previous[:, :size]
    valid = measured & (previous != baseline.NO_PREVIOUS)
    broken = other | (valid & (rows.integers[_COUNTERS] < previous)).any(axis=0)
    stored[...] = np.where(instance >= 0, instance, stored)
    previous[:, broken] = baseline.NO_PREVIOUS
    table.numbers("delay_ns")[:size][broken] = -1
    migrated = table.numbers("migrated")[:size]
    booted = broken & (migrated == 0)
    began = np.where(booted, ingest.NEW_BOOT, ingest.NEW_EPOCH)
    taken.epochs[:size] = np.where(broken, began, ingest.SAME_EPOCH)
    migrated[other] = 0
    table.begin_boot(np.flatnonzero(booted))
    if not has_interval:
        table.previous[...] = baseline.NO_PREVIOUS
        table.numbers("delay_ns")[...] = -1
    taken.running[:size] = np.isin(table.numbers("state")[:size], _RUNNING)
    taken.judged[:size] = taken.running[:size] & has_interval
    taken.measured[:size] = measured[0]
    taken.known[:] = taken.measured & taken.judged
    row = INTEGER_ROW["balloon_rss_kib"]
    taken.memory[:size] = np.where(present[row], rows.integers[row], np.nan)
    taken.updated[:size] = numbers("balloon_last_update_s", 0)
    delayed = present[INTEGER_ROW["vcpu_delay_ns"]].any()
    taken.delay[:size] = numbers("vcpu_delay_ns" if delayed else "vcpu_wait_ns", -1)


def note_rates(table: VmTable, *, has_interval: bool) -> None:
    """Replace `ingest.note_rates`."""
    taken = table.taken
    taken.rates[...] = np.where(taken.judged, table.counted[:4], np.nan)
    if has_interval:
        values = table.counted[MINUTE_ROWS]
        valid = ~np.isnan(values)
        table.sums += np.where(valid, values, 0.0)
        table.sum_counts += valid

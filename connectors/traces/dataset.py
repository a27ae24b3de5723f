"""A dataset on disk: its VMs, the operations on them, and its samples by time window.

A dataset is a path prefix. `PREFIX_traces.csv.gz` holds gauges (t, vm, cpu_pct, mem_active_mb,
disk_read_kbs, disk_write_kbs, net_rx_kbs, net_tx_kbs), sorted by t; or `PREFIX_stream.csv.gz` holds
cumulative counters in order of arrival (recv_t, t, vm, cpu_time_ns, disk_rd_bytes, disk_wr_bytes,
net_rx_bytes, net_tx_bytes, mem_kb). `PREFIX_vms.csv` (vm, host, ncpu, mem_capacity_mb) names the
VMs; `PREFIX_lifecycle.csv` (vm, t, operation) may be absent. The ground truth of the faults,
`PREFIX_events.csv`, is never opened here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.traces.table import (
    MAX_NAME,
    Block,
    number,
    read_blocks,
    read_rows,
)
from flatline.connectors.traces.windows import (
    RATES,
    Samples,
    Window,
    WindowCounts,
    interval_of,
    windows,
)
from flatline.engine.errors import SettingsError
from flatline.engine.seconds import not_seconds

F64 = NDArray[np.float64]

OPERATIONS: Final = ("reboot", "power_off", "power_on", "live_migration")
_GAUGES: Final = (
    "cpu_pct",
    "mem_active_mb",
    "disk_read_kbs",
    "disk_write_kbs",
    "net_rx_kbs",
    "net_tx_kbs",
)
# In the order of `RATES`.
_COUNTERS: Final = (
    "cpu_time_ns",
    "mem_kb",
    "disk_rd_bytes",
    "disk_wr_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
)
# Limit of `engine.wire.frame` for a collector. It reveals times in the wrong form: times in ms from
# 0, or rounded to a few digits, look like samples that are further apart.
MAX_INTERVAL_S: Final = 3600
# Collectors sample at most once a second. Times in minutes, hours or days look like samples that
# are closer together than this limit.
MIN_INTERVAL_S: Final = 0.5
_TABLE: Final = ("vm", "host", "ncpu", "mem_capacity_mb")
_KIB: Final = 1024.0
_MIB: Final = 1024.0**2
# The most memory that the inventory of a frame accepts.
_MOST_MIB: Final = 2**40


class TraceVm(NamedTuple):
    """One VM of a dataset; `memory_bytes` None is unknown."""

    id: str
    host: str
    vcpus: int
    memory_bytes: int | None


class Operation(NamedTuple):
    """An operation of the platform on a VM, and its time (s since the epoch).

    `vm` is an index into `Dataset.vms`, `name` one of `OPERATIONS`.
    """

    time_s: float
    vm: int
    name: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The dataset of a prefix; opening it reads only enough samples to derive the interval.

    Attributes
    ----------
    vms
        By host, then by id: a host's VMs are neighbours in every array of a window.
    hosts
        Name and range of VMs of each host, in that order.
    samples
        Path of the traces or the stream.
    is_stream
        True for counters in order of arrival, False for gauges.
    interval_s
        Nominal interval between a VM's samples.
    """

    name: str
    samples: Path
    is_stream: bool
    vms: tuple[TraceVm, ...]
    hosts: tuple[tuple[str, slice], ...]
    operations: tuple[Operation, ...]
    interval_s: float

    def windows(self, counts: WindowCounts | None = None) -> Iterator[Window]:
        """Yield the samples by time window, oldest first, as rates in the units of `RATES`.

        Parameters
        ----------
        counts
            Updated with the outcome of each row, if given.

        Raises
        ------
        SettingsError
            An unusable row: not a number, an unknown VM, out of order, a time in another unit.
        """
        return windows(
            self._samples(),
            vcpus=np.array([vm.vcpus for vm in self.vms], np.float64),
            interval_s=self.interval_s,
            is_stream=self.is_stream,
            counts=WindowCounts() if counts is None else counts,
        )

    def _samples(self) -> Iterator[Samples]:
        return read_samples(self.samples, self.vms, is_stream=self.is_stream)


def open_dataset(prefix: str | Path) -> Dataset:
    """Return the dataset of a path prefix.

    Raises
    ------
    SettingsError
        Files are missing, hold unusable data, or have too few samples to derive the interval.
    """
    prefix = str(prefix)
    samples, is_stream = _samples_path(prefix)
    vms = read_vms(_table_beside(samples))
    indices = {vm.id: index for index, vm in enumerate(vms)}
    blocks = read_samples(samples, vms, is_stream=is_stream)
    first = next(blocks, None)
    if first is None:
        raise SettingsError(f"{samples} holds no samples.")
    interval_s = interval_of(chain([first], blocks))
    if interval_s is None:
        raise SettingsError(
            f"{samples}: no VM has two samples, so the sampling interval is unknown."
        )
    if interval_s > MAX_INTERVAL_S:
        raise SettingsError(
            f"{samples}: samples of a VM are {interval_s:,.0f} s apart, at most {MAX_INTERVAL_S:,} "
            "s are allowed. Check that t is in seconds and written with all its digits."
        )
    if interval_s < MIN_INTERVAL_S:
        raise SettingsError(
            f"{samples}: samples of a VM are {interval_s:.2g} s apart, at least {MIN_INTERVAL_S:g} "
            "s are required. Check that t is in seconds, not in minutes, hours or days."
        )
    return Dataset(
        name=Path(prefix).name,
        samples=samples,
        is_stream=is_stream,
        vms=vms,
        hosts=_host_ranges(vms),
        operations=_read_operations(Path(f"{prefix}_lifecycle.csv"), indices),
        interval_s=interval_s,
    )


def read_samples(path: Path, vms: tuple[TraceVm, ...], *, is_stream: bool) -> Iterator[Samples]:
    """Yield the checked rows of a file of samples in blocks, in the units of `RATES`.

    A counter stays cumulative; a gauge is already a rate.

    Parameters
    ----------
    path
        The traces or, if `is_stream`, the stream.
    vms
        The VMs of the table; `Samples.vm` holds indices into them.

    Raises
    ------
    SettingsError
        See `Dataset.windows`, or the file cannot be read.
    """
    ids = np.array([vm.id.encode() for vm in vms])
    order = np.argsort(ids)
    columns = ("recv_t", "t", *_COUNTERS) if is_stream else ("t", *_GAUGES)
    last_s = -np.inf
    for block in read_blocks(path, name="vm", numbers=columns, name_bytes=ids.itemsize):
        vm = _places(path, block, ids, order)
        times = block.numbers[: 2 if is_stream else 1]
        arrived, taken = times[0], times[-1]
        _check_times(path, block, columns[: len(times)], last_s)
        last_s = float(arrived[-1])
        values = block.numbers[len(times) :]
        vcpus = np.array([one.vcpus for one in vms], np.float64)[vm]
        if is_stream:
            values = values * np.array([[1e-9], [_KIB], [1.0], [1.0], [1.0], [1.0]])
        else:
            values = values * np.array([[0.01], [_MIB], [_KIB], [_KIB], [_KIB], [_KIB]])
            values[0] *= vcpus
        yield Samples(arrived_s=arrived, time_s=taken, vm=vm, values=values)


def _places(
    path: Path, block: Block, ids: NDArray[np.bytes_], order: NDArray[np.intp]
) -> NDArray[np.intp]:
    found = np.searchsorted(ids, block.names, sorter=order)
    indices = order[np.minimum(found, len(ids) - 1)]
    wrong = ids[indices] != block.names
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        name = block.names[index].decode(errors="replace")
        raise SettingsError(
            f"{path}, near line {block.first_line + index}: VM {name!r} is not in the table "
            f"of VMs, {_table_beside(path)}."
        )
    return indices


def _check_times(path: Path, block: Block, columns: tuple[str, ...], last_s: float) -> None:
    for row, column in enumerate(columns):
        times = block.numbers[row]
        if not_seconds(float(times.min())) is None and not_seconds(float(times.max())) is None:
            continue
        index = next(i for i, time_s in enumerate(times.tolist()) if not_seconds(time_s))
        value = float(times[index])
        shown = f"{value}" if np.isfinite(value) else "empty or not a finite number"
        raise SettingsError(
            f"{path}, near line {block.first_line + index}: {column} is {shown}, "
            f"{not_seconds(value)}."
        )
    arrived = block.numbers[0]
    back = np.diff(arrived, prepend=last_s) < 0
    if back.any():
        index = int(np.flatnonzero(back)[0])
        before = last_s if index == 0 else float(arrived[index - 1])
        raise SettingsError(
            f"{path}, near line {block.first_line + index}: {columns[0]} decreases from "
            f"{before:.3f} to {float(arrived[index]):.3f}. Rows must be sorted by it."
        )


def _samples_path(prefix: str) -> tuple[Path, bool]:
    tried = []
    for name, is_stream in (("traces", False), ("stream", True)):
        for suffix in (".csv.gz", ".csv"):
            path = Path(f"{prefix}_{name}{suffix}")
            if path.exists():
                return path, is_stream
            tried.append(path.name)
    hint = ""
    for name in ("_traces.csv", "_stream.csv"):
        if name in prefix:
            hint = f" Use the part before that suffix: {prefix[: prefix.rindex(name)]}"
    raise SettingsError(f"{prefix} is not a dataset: none of {', '.join(tried)} exists.{hint}")


def _table_beside(path: Path) -> Path:
    """Return the path of the table of VMs, PREFIX_vms.csv, for a file such as PREFIX_traces.csv."""
    return path.with_name(f"{path.name.rpartition('_')[0]}_vms.csv")


def read_vms(path: Path) -> tuple[TraceVm, ...]:
    """Return the VMs of a table, by host and then by id.

    Raises
    ------
    SettingsError
        The table is missing or empty, or has an unusable row.
    """
    if not path.exists():
        raise SettingsError(
            f"{path} does not exist. PREFIX_vms.csv is required and lists the VMs, with the "
            f"columns {', '.join(_TABLE)}."
        )
    found: dict[str, TraceVm] = {}
    for line, row in read_rows(path, _TABLE):
        vm, host = row["vm"], row["host"]
        for column, name in (("vm", vm), ("host", host)):
            if not 0 < len(name) <= MAX_NAME:
                raise SettingsError(
                    f"{path}, line {line}: {column} has {len(name)} characters, must have 1 to"
                    f" {MAX_NAME}. Shorten it here and in the samples."
                )
        if vm in found:
            raise SettingsError(f"{path}, line {line}: VM {vm!r} occurs twice.")
        vcpus = number(path, line, "ncpu", row["ncpu"])
        if not 1 <= vcpus <= 4096 or vcpus != int(vcpus):
            raise SettingsError(f"{path}, line {line}: ncpu is {row['ncpu']!r}, must be 1 to 4096.")
        text = row["mem_capacity_mb"]
        memory = None
        if text:
            capacity = number(path, line, "mem_capacity_mb", text)
            if not 0 <= capacity <= _MOST_MIB:
                raise SettingsError(
                    f"{path}, line {line}: mem_capacity_mb is {text}, must be 0 to {_MOST_MIB:,}. "
                    "Leave it empty if it is unknown."
                )
            memory = round(capacity * _MIB)
        found[vm] = TraceVm(vm, host, int(vcpus), memory)
    if not found:
        raise SettingsError(f"{path} lists no VM.")
    return tuple(sorted(found.values(), key=lambda vm: (vm.host, vm.id)))


def _host_ranges(vms: tuple[TraceVm, ...]) -> tuple[tuple[str, slice], ...]:
    starts = [i for i, vm in enumerate(vms) if i == 0 or vm.host != vms[i - 1].host]
    stops = [*starts[1:], len(vms)]
    return tuple((vms[a].host, slice(a, b)) for a, b in zip(starts, stops, strict=True))


def _read_operations(path: Path, indices: dict[str, int]) -> tuple[Operation, ...]:
    if not path.exists():
        return ()
    found = []
    for line, row in read_rows(path, ("vm", "t", "operation")):
        if row["vm"] not in indices:
            raise SettingsError(
                f"{path}, line {line}: VM {row['vm']!r} is not in the table of VMs, "
                f"{_table_beside(path)}."
            )
        if row["operation"] not in OPERATIONS:
            raise SettingsError(
                f"{path}, line {line}: operation is {row['operation']!r}. Known operations: "
                f"{', '.join(OPERATIONS)}."
            )
        time_s = number(path, line, "t", row["t"])
        if wrong := not_seconds(time_s):
            raise SettingsError(f"{path}, line {line}: t is {row['t']}, {wrong}.")
        found.append(Operation(time_s, indices[row["vm"]], row["operation"]))
    return tuple(sorted(found))


__all__ = ["OPERATIONS", "RATES", "Dataset", "Operation", "TraceVm", "Window", "open_dataset"]

"""Summarise each minute of a cell for the history: expected and actual values of each VM."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Final

import msgspec
import numpy as np

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration, configuration_hash
from flatline.engine.detection.coverage import coverage
from flatline.engine.detection.vm_table import MINUTE, VmTable
from flatline.engine.wire.score import CLASS_EDGES, CLASSES, FEATURES, NodeMinute, Scores

# Maximum number of VMs in one record. A VM takes 64 bytes and the name of its group: with names of
# 150 bytes, a record stays below `envelope.MAX_RECORD_BYTES`.
PART_VMS: Final = 4096


def close_minute(cell: Cell, configuration: Configuration) -> list[Scores]:
    """Return the scores of the minute that the last window ended; empty while it lasts.

    The call then begins the next minute. A minute of many VMs is split into several records, each
    with up to `PART_VMS` VMs.
    """
    begins_ms = cell.closed_ms - cell.closed_ms % round(configuration.minute_s * 1000)
    closed = cell.counts.minute_ms
    # Before its first window a cell has no minute.
    if not cell.counts.windows or closed == begins_ms:
        return []
    cell.counts.minute_ms = begins_ms
    if not closed:
        return []
    _forget_unseen(cell, since_ms=cell.closed_ms - round(configuration.resolved_kept_s * 1000))
    names = sorted(cell.tables)
    count = sum(len(cell.tables[name]) for name in names)
    parts = _shared_out(names, [len(cell.tables[name]) for name in names]) if count else []
    found: list[Scores] = []
    for part in parts:
        scores = Scores(
            site=cell.site,
            cell=cell.name,
            minute_ms=closed,
            uuids=b"".join(cell.tables[name].roster for name in part),
            values=_values(cell, part),
            classes=tuple(kind for name in part for kind in _classes(cell.tables[name])),
            node_load={
                name: cell.nodes[name].gauges["cpu_busy_ratio"]
                for name in part
                if "cpu_busy_ratio" in cell.nodes[name].gauges
            },
            nodes={name: _node(cell, name) for name in part},
            configuration=configuration_hash(configuration),
            coverage=_covered(cell, part, configuration),
            cell_vms=count if len(parts) > 1 else msgspec.UNSET,
        )
        if not found:
            scores = msgspec.structs.replace(
                scores,
                pool_vms=_counts(map(attrgetter("pools"), cell.vms.values())),
                network_vms=_counts(map(attrgetter("networks"), cell.vms.values())),
            )
        found.append(scores)
    for table in cell.tables.values():
        table.row("forest_score")[...] = np.nan
        table.sums[...] = 0.0
        table.sum_counts[...] = 0.0
    return found


def _forget_unseen(cell: Cell, *, since_ms: int) -> None:
    """Drop VMs that no sample ever showed and that nothing has named since `since_ms`."""
    unseen = [
        uuid
        for uuid, vm in cell.vms.items()
        if not vm.node and vm.known_ms < since_ms and uuid not in cell.watched
    ]
    if unseen:
        cell.forget_vms(unseen)


def _shared_out(names: list[str], sizes: list[int]) -> list[list[str]]:
    """Group successive nodes into parts of up to `PART_VMS` VMs; a larger node is its own part."""
    parts: list[list[str]] = [[]]
    vms = 0
    for name, size in zip(names, sizes, strict=True):
        if parts[-1] and vms + size > PART_VMS:
            parts.append([])
            vms = 0
        parts[-1].append(name)
        vms += size
    return parts


def _covered(cell: Cell, part: list[str], configuration: Configuration) -> bytes:
    covered = (coverage(cell, cell.nodes[name], cell.tables[name], configuration) for name in part)
    return b"".join(one.tobytes() for one in covered)


def _values(cell: Cell, part: list[str]) -> bytes:
    columns = [_features(cell.tables[name]) for name in part if len(cell.tables[name])]
    if not columns:
        return b""
    return np.ascontiguousarray(np.concatenate(columns, axis=1), "<f4").tobytes()


def _counts(names: Iterable[tuple[str, ...]]) -> dict[str, int]:
    """Return the count of each name, sorted, because a restored cell has another order of VMs."""
    return dict(sorted(Counter(chain.from_iterable(names)).items()))


def _node(cell: Cell, name: str) -> NodeMinute:
    table, gauges = cell.tables[name], cell.nodes[name].gauges
    groups = {(vm.tenant, vm.group) for vm in map(cell.vms.__getitem__, table.indices) if vm.group}
    return NodeMinute(
        vms=len(table),
        cores=gauges.get("cpu_cores"),
        memory_available_bytes=gauges.get("memory_available_bytes"),
        groups=tuple(sorted(f"{tenant}/{group}" for tenant, group in groups)),
    )


def _features(table: VmTable) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return shape (len(FEATURES), n): means over the minute, NaN where no value was known."""
    size = len(table)
    counts = table.sum_counts[:, :size]
    means = np.where(counts > 0, table.sums[:, :size] / np.maximum(counts, 1), np.nan)
    by_name = dict(zip(MINUTE, means, strict=True))
    # Three standard deviations of a normal error with this mean absolute value.
    by_name["cpu_cores_band"] = by_name.pop("cpu_cores_error") * 3.76
    by_name["silence_nats"] = table.life[1, :size].astype(np.float64)
    by_name["fault_nats"] = np.maximum(table.life[1, :size], table.disk[1, :size]).astype(float)
    by_name["forest_score"] = table.row("forest_score")[:size]
    rows = np.full((len(FEATURES), size), np.nan, np.float32)
    for row, name in enumerate(FEATURES):
        rows[row] = by_name[name]
    return rows


def class_indices(table: VmTable) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return, per row in use, the index in `CLASSES` of its VM's class by mean CPU share."""
    size = len(table)
    mean = table.baseline[:, 0].reshape(-1)[:size]
    share = mean / np.maximum(table.numbers("vcpus")[:size], 1)
    return np.searchsorted(CLASS_EDGES, share, side="right")


def _classes(table: VmTable) -> list[str]:
    return [CLASSES[index] for index in class_indices(table)]

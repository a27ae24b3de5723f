"""Per closed minute and cell: what was expected of each VM and what came, for history."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from engine.detection.cell import Cell
from engine.detection.configuration import Configuration, configuration_hash
from engine.detection.coverage import coverage
from engine.detection.lanes import MINUTE, Lanes
from engine.wire.score import FEATURES, NodeMinute, Scores

_CLASSES = ("idle", "steady", "busy")
# Mean CPU shares at which the next class begins.
_EDGES: Final = (0.02, 0.4)
CLASS_EDGES: Final = np.array(_EDGES)


def close_minute(cell: Cell, *, time_ms: int, configuration: Configuration) -> Scores | None:
    """Return the minute that has ended by `time_ms`, None while it lasts; begin the next."""
    minute_ms = round(configuration.minute_s * 1000)
    now = time_ms - time_ms % minute_ms
    closed, cell.totals.minute_ms = cell.totals.minute_ms, now
    if not closed or closed == now:
        return None
    uuids: list[bytes] = []
    columns: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []
    covered: list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]] = []
    classes: list[str] = []
    load: dict[str, float] = {}
    for name in sorted(cell.lanes):
        lanes, node = cell.lanes[name], cell.nodes[name]
        if len(lanes):
            uuids.append(lanes.roster)
            columns.append(_features(lanes))
            covered.append(coverage(cell, node, lanes, np.arange(len(lanes)), configuration))
            classes += _classes(lanes)
        if "cpu_busy_ratio" in node.gauges:
            load[name] = node.gauges["cpu_busy_ratio"]
        lanes.row("forest_score")[...] = np.nan
        lanes.sums[...] = 0.0
        lanes.sum_counts[...] = 0.0
    if not uuids:
        return None
    values = np.concatenate(columns, axis=1)
    return Scores(
        site=cell.site,
        cell=cell.name,
        minute_ms=closed,
        uuids=b"".join(uuids),
        values=np.ascontiguousarray(values, "<f4").tobytes(),
        classes=tuple(classes),
        node_load=load,
        nodes={name: _node(cell, name) for name in sorted(cell.lanes)},
        pool_vms=_counts(pool for vm in cell.vms.values() for pool in vm.pools),
        network_vms=_counts(net for vm in cell.vms.values() for net in vm.networks),
        configuration=configuration_hash(configuration),
        coverage=np.concatenate(covered).tobytes(),
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name stands there, in their order: a restored cell has another one."""
    return dict(sorted(Counter(names).items()))


def _node(cell: Cell, name: str) -> NodeMinute:
    lanes, gauges = cell.lanes[name], cell.nodes[name].gauges
    members = (cell.vms[lanes.vm(lane)] for lane in range(len(lanes)))
    return NodeMinute(
        vms=len(lanes),
        cores=gauges.get("cpu_cores"),
        memory_available_bytes=gauges.get("memory_available_bytes"),
        groups=tuple(sorted({f"{vm.tenant}/{vm.group}" for vm in members if vm.group})),
    )


def _features(lanes: Lanes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return shape (len(FEATURES), n): means over the minute, NaN where nothing was known."""
    size = len(lanes)
    counts = lanes.sum_counts[:, :size]
    means = np.where(counts > 0, lanes.sums[:, :size] / np.maximum(counts, 1), np.nan)
    by_name = dict(zip(MINUTE, means, strict=True))
    # Three standard deviations of a normal error with this mean absolute value.
    by_name["cpu_cores_band"] = by_name.pop("cpu_cores_error") * 3.76
    by_name["silence_nats"] = lanes.life[1, :size].astype(np.float64)
    by_name["fault_nats"] = np.maximum(lanes.life[1, :size], lanes.disk[1, :size]).astype(float)
    by_name["forest_score"] = lanes.row("forest_score")[:size]
    rows = np.full((len(FEATURES), size), np.nan, np.float32)
    for row, name in enumerate(FEATURES):
        rows[row] = by_name[name]
    return rows


def class_indices(lanes: Lanes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return, per lane, which workload class a VM belongs to now: by its mean CPU share."""
    size = len(lanes)
    mean = lanes.baseline[:, 0].reshape(-1)[:size]
    share = mean / np.maximum(lanes.numbers("vcpus")[:size], 1)
    steady, busy = _EDGES
    return (share >= steady).astype(np.int64) + (share >= busy)


def _classes(lanes: Lanes) -> list[str]:
    return [_CLASSES[index] for index in class_indices(lanes)]


CLASS_COUNT = len(_CLASSES)

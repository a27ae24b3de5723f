"""A usage snapshot from hourly rows of the history: the queries, and how to read their results."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.capacity.report import Report, ScopeRow
from flatline.engine.capacity.usage_snapshot import NodeUse, PoolUse, UsageSnapshot, VmUse
from flatline.engine.ports import Answer, Query
from flatline.engine.wire.measurement import CAPACITY, DAY_S
from flatline.engine.wire.points import Points, Series

F64 = NDArray[np.float64]

# Use is measured over a month, which includes a month-end. Older use may be from other hardware.
WINDOW_DAYS: Final = 30
# An estimate of growth needs a longer history.
GROWTH_DAYS: Final = 180
_HOUR_S: Final = 3600
# A node or VM without an hourly row in the last day counts as removed.
_PRESENT_S: Final = DAY_S
_NS: Final = 1_000_000_000

# The percentiles of a VM are computed from its hourly ones, such as the 95th percentile of hourly
# 95th percentiles. The result is rather too high than too low.
_VM: Final = (
    ("cpu_cores_p95", "p95"),
    ("memory_used_bytes_p99", "p99"),
    ("memory_rss_bytes_p99", "p99"),
    ("cpu_cores_mean", "mean"),
    ("cpu_delay_cores_mean", "mean"),
    ("disk_rd_bytes_per_s_mean", "mean"),
    ("disk_wr_bytes_per_s_mean", "mean"),
    ("net_rx_bytes_per_s_mean", "mean"),
    ("net_tx_bytes_per_s_mean", "mean"),
)
_INFO: Final = (("name", "last"), ("flavor", "last"), ("vcpus", "last"), ("memory_bytes", "last"))
_NODE: Final = (
    ("cpu_cores_last", "last"),
    ("memory_total_bytes_last", "last"),
    ("cpu_busy_ratio_p95", "p95"),
    ("memory_available_bytes_min", "min"),
)
_NODE_DAY: Final = (("cpu_busy_ratio_p95", "max"), ("memory_available_bytes_min", "min"))
_POOL: Final = (("capacity_bytes_last", "last"), ("available_bytes_last", "last"))


def usage_queries(*, now_s: int) -> dict[str, Query]:
    """Return the queries for a usage snapshot as of `now_s`, by the names `usage_of` expects.

    `now_s` is in s since the epoch.
    """
    end_ns = now_s * _NS
    window_ns = (now_s - WINDOW_DAYS * DAY_S) * _NS
    day = now_s - now_s % DAY_S
    growth_ns = (day - GROWTH_DAYS * DAY_S) * _NS
    recent_ns = (now_s - _PRESENT_S) // _HOUR_S * _HOUR_S * _NS

    def ask(
        measurement: str,
        select: tuple[tuple[str, str], ...],
        group_by: tuple[str, ...],
        begin_ns: int,
        every_s: int | None = None,
    ) -> Query:
        return Query(
            measurement=measurement,
            select=select,
            begin_ns=begin_ns,
            end_ns=end_ns,
            group_by=group_by,
            every_s=every_s,
        )

    seen = (("cpu_cores_count", "sum"),)
    return {
        "vm": ask("flatline_vm_1h", _VM, ("vm",), window_ns),
        "place": ask("flatline_vm_1h", seen, ("node", "vm"), recent_ns, _HOUR_S),
        "info": ask("flatline_vm_info", _INFO, ("vm",), window_ns),
        "node": ask("flatline_node_1h", _NODE, ("cell", "node"), window_ns),
        "node_seen": ask("flatline_node_1h", (("vms_count", "sum"),), ("node",), recent_ns),
        "node_day": ask("flatline_node_1h", _NODE_DAY, ("node",), growth_ns, DAY_S),
        "pool": ask("flatline_pool_1h", _POOL, ("cell", "pool"), window_ns),
        "pool_day": ask("flatline_pool_1h", (_POOL[1],), ("cell", "pool"), growth_ns, DAY_S),
    }


def usage_of(answers: Mapping[str, Sequence[Answer]], *, zones: Mapping[str, str]) -> UsageSnapshot:
    """Return the usage snapshot from the results of `usage_queries`.

    Parameters
    ----------
    answers
        Results by the names of the queries; each name must be there.
    zones
        Zone of each cell by name; a cell that it lacks gets an empty zone.
    """
    node_days = _by_day(answers["node_day"])
    present = {answer.tags[0] for answer in answers["node_seen"]}
    nodes = [
        _node_use(answer, node_days, zones)
        for answer in answers["node"]
        if answer.tags[1] in present
    ]
    indices: dict[str, tuple[int, str]] = {}
    for answer in answers["place"]:
        node, vm = answer.tags
        indices[vm] = max(indices.get(vm, (0, "")), (answer.time_ns, node))
    infos = {answer.tags[0]: answer.values for answer in answers["info"]}
    vms = [
        _vm_use(answer, indices[answer.tags[0]][1], infos.get(answer.tags[0], (None,) * 4))
        for answer in answers["vm"]
        if answer.tags[0] in indices
    ]
    pool_days = _by_day(answers["pool_day"])
    pools = [use for answer in answers["pool"] if (use := _pool_use(answer, pool_days))]
    return UsageSnapshot(nodes=nodes, vms=vms, pools=pools, days=float(WINDOW_DAYS))


def capacity_points(found: Report, *, time_s: int) -> Points:
    """Return the resource rows of the report as rows of the history; NaN is unknown.

    `time_s` is the time of the rows, in s since the epoch.
    """
    rows = found.scopes
    tags = {name: [getattr(row, name) for row in rows] for name in CAPACITY.tags}
    fields = {field.name: _column(rows, field.name) for field in CAPACITY.fields}
    return Points.of(CAPACITY.name, Series(tags), [time_s * _NS] * len(rows), fields)


def _column(rows: Sequence[ScopeRow], name: str) -> F64:
    values = [getattr(row, name) for row in rows]
    return np.array([np.nan if value is None else float(value) for value in values])


def _number(value: float | int | str | None) -> float | None:
    return None if value is None else float(value)


def _text(value: float | int | str | None) -> str | None:
    return None if value is None else str(value)


def _by_day(answers: Sequence[Answer]) -> dict[tuple[str, ...], dict[int, tuple[float, ...]]]:
    days: dict[tuple[str, ...], dict[int, tuple[float, ...]]] = {}
    for answer in answers:
        values = tuple(np.nan if value is None else float(value) for value in answer.values)
        days.setdefault(answer.tags, {})[answer.time_ns // (DAY_S * _NS)] = values
    return days


def _daily(days: Mapping[int, tuple[float, ...]], column: int) -> F64:
    """Return one value a day, oldest first; NaN for a day without data."""
    if not days:
        return np.empty(0)
    span = range(min(days), max(days) + 1)
    return np.array([days[day][column] if day in days else np.nan for day in span])


def _node_use(
    answer: Answer,
    node_days: Mapping[tuple[str, ...], Mapping[int, tuple[float, ...]]],
    zones: Mapping[str, str],
) -> NodeUse:
    cell, node = answer.tags
    cores, memory, busy, available = map(_number, answer.values)
    days = node_days.get((node,), {})
    return NodeUse(
        node=node,
        cell=cell,
        zone=zones.get(cell, ""),
        cores=cores,
        memory_bytes=memory,
        cpu_p95_cores=None if busy is None or cores is None else busy * cores,
        memory_p99_bytes=None if available is None or memory is None else memory - available,
        daily_cores=np.empty(0) if cores is None else _daily(days, 0) * cores,
        daily_memory_bytes=np.empty(0) if memory is None else memory - _daily(days, 1),
    )


def _vm_use(answer: Answer, node: str, info: Sequence[float | int | str | None]) -> VmUse:
    cpu, used, resident, mean, waited, *io = map(_number, answer.values)
    name, flavor, vcpus, memory = info
    wanted = (mean or 0.0) + (waited or 0.0)
    known_io = [value for value in io if value is not None]
    return VmUse(
        vm=answer.tags[0],
        node=node,
        name=_text(name) or "",
        flavor=_text(flavor),
        vcpus=_number(vcpus),
        memory_bytes=_number(memory),
        cpu_p95_cores=cpu,
        memory_p99_bytes=resident if used is None else used,
        waiting_ratio=None if waited is None or wanted <= 0.0 else waited / wanted,
        io_bytes_per_s=sum(known_io) if known_io else None,
    )


def _pool_use(
    answer: Answer, pool_days: Mapping[tuple[str, ...], Mapping[int, tuple[float, ...]]]
) -> PoolUse | None:
    capacity, available = map(_number, answer.values)
    if capacity is None or available is None:
        return None
    daily = _daily(pool_days.get(answer.tags, {}), 0)
    return PoolUse(
        pool=answer.tags[1],
        cell=answer.tags[0],
        capacity_bytes=capacity,
        used_bytes=capacity - available,
        daily_used_bytes=capacity - daily,
    )

"""Shared by the history's benchmarks and its tests with real stores: a fleet's log, and counts."""

import time
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.influxdb.history import InfluxHistory
from flatline.connectors.simulator.hypervisor import SimulatedHypervisor
from flatline.connectors.simulator.plan import WorldPlan
from flatline.connectors.simulator.world import World
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Record
from flatline.engine.wire.frame import Frame, Header, decode_frame, encode_frame
from flatline.engine.wire.measurement import MEASUREMENTS
from flatline.engine.wire.points import MISSING, Column, Points, Series
from flatline.engine.wire.topics import FRAMES

# Number of values of each field.
Counts = dict[tuple[str, str], int]

_INVENTORY_EVERY = 60


def recent_hours(hours: float) -> int:
    """Return the start in ns of a span of `hours` that ended with a full hour."""
    return (time.time_ns() // 3_600_000_000_000) * 3_600_000_000_000 - round(hours * 3.6e12)


def fleet_records(
    plan: WorldPlan, *, begin_ns: int, seconds: float, interval_s: float = 10.0
) -> Iterator[Record]:
    """Yield the frames of a simulated fleet as records of one partition."""
    world = World(plan)
    eyes = [SimulatedHypervisor(world, name) for name in world.topology.nodes]
    offset = 0
    for sequence in range(round(seconds / interval_s)):
        world.advance(round((sequence + 1) * interval_s * 1e9))
        at_ns = begin_ns + round(sequence * interval_s * 1e9)
        for node, eye in enumerate(eyes):
            sample = eye.observe()
            topology = world.topology
            reported = sequence % _INVENTORY_EVERY == 0
            here = world.roster(node).indices if reported else ()
            frame = Frame(
                header=Header(
                    site=plan.site,
                    zone=topology.zone(node),
                    cell=topology.cells[topology.node_cell[node]],
                    node=topology.nodes[node],
                    role="collector",
                    run="run",
                    sequence=sequence,
                    event_time_ns=at_ns + node * 1_000_000,
                    mono_ns=sample.mono_ns,
                    interval_ms=round(interval_s * 1000),
                ),
                rows=sample.rows,
                inventory=tuple(topology.item(int(index)) for index in here),
                node=dict(sample.node),
                pools=sample.pools,
            )
            yield Record(
                topic=FRAMES.name,
                partition=0,
                offset=offset,
                time_ms=at_ns // 1_000_000 + 5,
                key=frame.header.cell.encode(),
                value=encode_frame(frame),
            )
            offset += 1


def produced(records: Iterable[Record]) -> Counts:
    """Return the number of distinct values of an uninterrupted fold, without hours."""
    fold = FrameFold()
    keys: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    numbers = _Numbers()
    for record in records:
        for points in fold.fold(decode_frame(record.value), time_ms=record.time_ms):
            rows = numbers.of(points)
            for name, column in points.fields.items():
                keys.setdefault((points.measurement, name), []).append(rows[_known(column)])
    return {key: len(np.unique(np.concatenate(parts))) for key, parts in keys.items()}


class _Numbers:
    """A number for each series and time: rows with the same number overwrite each other."""

    def __init__(self) -> None:
        self._tags: dict[tuple[str, ...], int] = {}
        self._rosters: dict[int, tuple[Series, NDArray[np.int64]]] = {}

    def of(self, points: Points) -> NDArray[np.int64]:
        series = points.series
        known = self._rosters.get(id(series))
        if known is None:
            rows = zip(*series.tags.values(), strict=True)
            places = [self._tags.setdefault(tags, len(self._tags)) for tags in rows]
            # The series is kept as well, so that no other one gets its id.
            known = self._rosters[id(series)] = series, np.array(places, np.int64)
        # 2^40 ms are 34 years: enough for a run, and leaves bits for 8 million series.
        return (known[1] << 40) + (points.time_ns // 1_000_000 & ((1 << 40) - 1))


def _known(column: Column) -> NDArray[np.bool_]:
    if not isinstance(column, np.ndarray):
        return np.array([value is not None for value in column])
    return np.isfinite(column) if column.dtype.kind == "f" else column != MISSING


async def stored(history: InfluxHistory, wanted: Counts) -> Counts:
    """Return the number of values of the same fields in InfluxDB."""
    found: Counts = {}
    for measurement in {name for name, _ in wanted}:
        bucket = MEASUREMENTS[measurement].bucket
        text = f'SELECT count(*) FROM "{bucket}"."{measurement}" WHERE time > 0'
        for series in await history.query(text):
            for column, value in zip(series["columns"], series["values"][0], strict=True):
                if column != "time":
                    found[measurement, column.removeprefix("count_")] = value or 0
    return {key: found.get(key, 0) for key in wanted}

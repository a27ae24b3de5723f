"""Cost of writing and querying the history, on a real InfluxDB of the lab.

A point is a line with its fields. The same frames are written through Flatline's lines and through
the client's `Point` objects. The server's own limit is measured with prepared bodies.
"""

import asyncio
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from influxdb_client import InfluxDBClient, Point
from influxdb_client.client.write_api import SYNCHRONOUS

from benchmarks.history_runs import fleet_records, recent_hours
from benchmarks.report import report
from deploy.lab.influx_server import Influx
from flatline.connectors.influxdb.config import BATCH_LINES, InfluxConfig
from flatline.connectors.influxdb.history import InfluxHistory, bodies
from flatline.connectors.influxdb.setup import set_up
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Query, Record
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.measurement import MINUTE_STATISTICS, VM_METRICS, rolled_up
from flatline.engine.wire.points import MISSING, Points, Series
from flatline.models.codecs.columns import widen
from flatline.models.codecs.lines import write_lines

SPEED_UP_GOAL = 15.0
# A site's frames for a measurable time: 1,000 VMs, 2 min at 10 s.
PLAN = WorldPlan(seed=9, cells=1, nodes_per_cell=5, vms_per_node=200)
SECONDS = 120.0
DAYS = 30
# From five-minute rows the server reads 8.6 million points for the answer: about a minute.
MONTH_TIMEOUT_S = 600.0


def folded(records: list[Record]) -> list[Points]:
    """Return the rows of encoded frames."""
    fold = FrameFold()
    points: list[Points] = []
    for record in records:
        points += fold.fold(decode_frame(record.value, widen), time_ms=record.time_ms)
    return points


def as_objects(points: Points) -> list[Point]:
    """Return rows as the client's objects, as in its manual."""
    objects = []
    columns = [(name, np.asarray(column).tolist()) for name, column in points.fields.items()]
    tags = list(points.series.tags.items())
    for row, time_ns in enumerate(points.time_ns.tolist()):
        point = Point(points.measurement).time(time_ns)
        for name, texts in tags:
            point = point.tag(name, texts[row])
        for name, values in columns:
            if values[row] == values[row] and values[row] not in (MISSING, None):
                point = point.field(name, values[row])
        objects.append(point)
    return objects


def timed(call: Callable[[], int]) -> tuple[int, float, float]:
    """Return points, CPU seconds of this process and wall seconds."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    count = call()
    return count, time.process_time() - cpu_s, time.perf_counter() - wall_s


async def written(history: InfluxHistory, records: list[Record]) -> int:
    """Write frames, twenty at a time as the historian does, and return the number of points."""
    fold = FrameFold()
    count = 0
    for at in range(0, len(records), 20):
        points: list[Points] = []
        for record in records[at : at + 20]:
            points += fold.fold(decode_frame(record.value, widen), time_ms=record.time_ms)
        refused = await history.write(points)
        count += sum(map(len, points)) - len(refused)
    return count


def ways(config: InfluxConfig) -> list[dict[str, str | int | float | bool | None]]:
    """Measure each way to write the same frames."""
    records = list(fleet_records(PLAN, begin_ns=recent_hours(2.0), seconds=SECONDS))
    history = InfluxHistory(config, write_lines=write_lines)
    asyncio.run(written(history, records[:5]))  # compiled, connected
    own = timed(lambda: asyncio.run(written(history, records)))

    client = InfluxDBClient(
        url=config.url, token=config.read_token(), org=config.org, enable_gzip=True
    )
    api = client.write_api(write_options=SYNCHRONOUS)

    def through_objects() -> int:
        objects = [one for points in folded(records) for one in as_objects(points)]
        for at in range(0, len(objects), BATCH_LINES):
            api.write(config.bucket("raw"), config.org, objects[at : at + BATCH_LINES])
        return len(objects)

    theirs = timed(through_objects)
    ready = [
        bytes(body.text) for bucket, body in bodies(folded(records), write_lines) if bucket == "raw"
    ]
    lines = sum(body.count(b"\n") for body in ready)

    def through_bodies() -> int:
        for body in ready:
            history._post("raw", body)  # noqa: SLF001 - the request alone, without the lines
        return lines

    limit = timed(through_bodies)
    client.close()
    asyncio.run(history.__aexit__(None, None, None))
    named = {
        "flatline, frame to acknowledged": own,
        "client's Point objects, frame to acknowledged": theirs,
        "ready bodies, compressed and sent": limit,
    }
    return [
        {
            "way": name,
            "points": count,
            "points_per_s_per_core_of_the_client": count / cpu_s,
            "points_per_s_on_the_wall": count / wall_s,
            "times_the_point_api": (count / cpu_s) / (theirs[0] / theirs[1]),
        }
        for name, (count, cpu_s, wall_s) in named.items()
    ]


async def month(config: InfluxConfig, *, vms: int, days: int) -> dict[str, float]:
    """Return the seconds of p95 per VM over `days` of 5-min rows and of hourly rows."""
    rng = np.random.default_rng(5)
    series = Series({"vm": [f"{n:036d}" for n in range(vms)], "cell": ["c"] * vms})
    begin_ns = recent_hours(24.0 * days - 12.0)
    took: dict[str, float] = {}
    async with InfluxHistory(config, write_lines=write_lines) as history:
        for name, step_s, fields in (
            ("flatline_vm_1m", 300, rolled_up(VM_METRICS[:1], MINUTE_STATISTICS)),
            ("flatline_vm_1h", 3600, rolled_up(VM_METRICS[:1], MINUTE_STATISTICS)),
        ):
            batch: list[Points] = []
            for step in range((days * 86_400 - 43_200) // step_s):
                columns = {
                    field.name: rng.lognormal(0.0, 1.0, vms)
                    for field in fields
                    if field.kind == "float"
                }
                at_ns = begin_ns + step * step_s * 1_000_000_000
                batch.append(Points.of(name, series, np.full(vms, at_ns), columns))
                if len(batch) == 40:
                    await history.write(batch)
                    batch = []
            await history.write(batch)
            query = Query(
                measurement=name,
                select=(("cpu_cores_mean", "p95"),),
                begin_ns=begin_ns,
                end_ns=begin_ns + days * 86_400_000_000_000,
                group_by=("vm",),
            )
            started = time.perf_counter()
            answers = await history.ask(query)
            took[name] = time.perf_counter() - started
            if len(answers) != vms:
                raise AssertionError(f"{len(answers)} answers of {vms} VMs")
    return took


def historian(server: Influx) -> InfluxConfig:
    """Return the historian's settings for a server, after setting it up."""
    admin = InfluxConfig(url=server.url, org=server.org, token=server.token)
    return InfluxConfig(url=server.url, org=server.org, token=set_up(admin).historian)


def main() -> None:
    """Measure and report."""
    folder = Path(tempfile.mkdtemp())
    try:
        with Influx(folder / "ways") as server:
            rows = ways(historian(server))
        # On a separate server: otherwise the answer would include the fleet above.
        with Influx(folder / "month") as server:
            config = replace(historian(server), timeout_s=MONTH_TIMEOUT_S)
            took = asyncio.run(month(config, vms=1000, days=DAYS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for row in rows:
        row["p95_of_1000_vms_30_days_from_5_min_s"] = took["flatline_vm_1m"]
        row["from_hours_s"] = took["flatline_vm_1h"]
        row["peak_mib"] = peak_mib
    report(
        "history",
        claim=f"Frames of {PLAN.vms} VMs to points in InfluxDB: goal {SPEED_UP_GOAL:g} times the"
        " points a core of the client's Point objects",
        rows=rows,
        goals_met=float(rows[0]["times_the_point_api"] or 0) >= SPEED_UP_GOAL,
    )


if __name__ == "__main__":
    main()

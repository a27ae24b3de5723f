"""Write an hour of 1,000 VMs to a real InfluxDB that is killed and stays down for five minutes.

Engine, historian and the fleet's frames are separate processes on one embedded log, as on a site.
The hour is played in eight minutes, so the outage covers more than half of it. Requirements: no
value is missing afterwards, the historian's memory does not grow while it waits, and the engine is
not affected. The engine's cost is the CPU time of its own thread, compared with that of an engine
that folds the same records at the same times from a log without a historian: so other load on the
machine and the cost of each record affect both equally.
"""

import asyncio
import multiprocessing
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.history_runs import fleet_records, produced, recent_hours, stored
from benchmarks.report import Figure, report
from deploy.lab.influx_server import Influx
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.influxdb.config import InfluxConfig
from flatline.connectors.influxdb.history import InfluxHistory
from flatline.connectors.influxdb.setup import set_up
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.ports import Record
from flatline.engine.roles.detect import DetectConfig, Detector
from flatline.engine.roles.health import Health
from flatline.engine.roles.record import RecordConfig, Recorder
from flatline.models.codecs.lines import write_lines

PLAN: Final = WorldPlan(seed=9, cells=1, nodes_per_cell=5, vms_per_node=200)
# An hour, and enough to close it.
SECONDS: Final = 3740.0
PLAYED_IN_S: Final = 480.0
KILLED_AFTER_S: Final = 90.0
DOWN_S: Final = 300.0
# The first records meet empty state and cold caches.
WARM_S: Final = 30.0
# By then half an hour of records waits, and a shared machine processes them slowly.
CATCH_UP_S: Final = 900.0
MEMORY_GOAL_MIB: Final = 50.0
P99_GOAL: Final = 0.05


class _TimedDetector(Detector):
    """The engine, recording in a file when it folded each record and the cost."""

    def __init__(self, reported: Path, **given: object) -> None:
        super().__init__(**given)  # type: ignore[arg-type]
        self._reported = reported.open("w", buffering=1)

    async def _fold(self, record: Record) -> None:
        began_s, cpu_s = time.monotonic(), time.thread_time()
        await super()._fold(record)
        self._reported.write(f"{began_s} {time.thread_time() - cpu_s}\n")


async def _engine(folder: Path, reported: Path) -> None:
    clock = SystemClock()
    compile_kernels()
    async with EmbeddedLog(EmbeddedConfig(folder=folder), clock=clock) as log:
        config = DetectConfig(site=PLAN.site, node="here", run="bench", tick_s=None)
        await _TimedDetector(
            reported, log=log, config=config, clock=clock, health=Health(clock)
        ).run()


async def _historian(folder: Path, config: InfluxConfig) -> None:
    clock = SystemClock()
    async with (
        EmbeddedLog(EmbeddedConfig(folder=folder), clock=clock) as log,
        InfluxHistory(config, write_lines=write_lines) as history,
    ):
        await Recorder(
            log=log, history=history, config=RecordConfig(), clock=clock, health=Health(clock)
        ).run()


def _engine_process(folder: Path, reported: Path) -> None:
    asyncio.run(_engine(folder, reported))


def _historian_process(folder: Path, config: InfluxConfig) -> None:
    asyncio.run(_historian(folder, config))


class _Memory(NamedTuple):
    at_s: float
    mib: float


def _resident_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return float(found[1]) / 1024 if found else 0.0


async def _play(
    folders: Sequence[Path], records: Sequence[Record], server: Influx, historian_pid: int
) -> tuple[list[_Memory], float, float]:
    """Append the hour to each log, kill the server meanwhile; return memory and the outage."""
    killed_s = up_s = 0.0
    memory: list[_Memory] = []
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        logs = [
            await stack.enter_async_context(EmbeddedLog(EmbeddedConfig(folder=one), clock=clock))
            for one in folders
        ]
        began_s = time.monotonic()
        for number, record in enumerate(records):
            due_s = began_s + PLAYED_IN_S * number / len(records)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            for log in logs:
                await log.append(
                    record.topic, key=record.key, value=record.value, time_ms=record.time_ms
                )
            now_s = time.monotonic()
            if not memory or now_s - memory[-1].at_s > 0.2:
                memory.append(_Memory(now_s, _resident_mib(historian_pid)))
            if not killed_s and now_s - began_s > KILLED_AFTER_S:
                await asyncio.to_thread(server.kill)
                killed_s = time.monotonic()
            if killed_s and not up_s and now_s - killed_s > DOWN_S:
                await asyncio.to_thread(lambda: server.start().wait())
                up_s = time.monotonic()
    return memory, killed_s, up_s


async def _until_stored(config: InfluxConfig, wanted: dict[tuple[str, str], int]) -> int:
    """Return how many values are missing once no more arrive."""
    deadline_s = time.monotonic() + CATCH_UP_S
    async with InfluxHistory(config, write_lines=write_lines) as reader:
        while True:
            found = await stored(reader, wanted)
            missing = sum(abs(wanted[key] - found[key]) for key in wanted)
            if not missing or time.monotonic() > deadline_s:
                return missing
            await asyncio.sleep(2.0)


def _series(server: Influx) -> int:
    """Return the server's own count of series in the history's buckets."""
    buckets = {
        one["id"]
        for one in server.call("GET", "/api/v2/buckets")["buckets"]
        if one["name"].startswith("flatline_")
    }
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [
        re.fullmatch(r'storage_bucket_series_num\{bucket="(\w+)"\} (\S+)', line) for line in lines
    ]
    return round(sum(float(one[2]) for one in found if one is not None and one[1] in buckets))


def _p99_ms(reported: Path, within: Callable[[float], bool]) -> tuple[float, float]:
    """Return median and p99 of the engine's cost of a record, in ms of CPU."""
    table = np.loadtxt(reported)
    began_s = table[0, 0]
    chosen = [cost for at, cost in table if at - began_s > WARM_S and within(at)]
    median, p99 = np.quantile(chosen, [0.5, 0.99])
    return float(median) * 1e3, float(p99) * 1e3


def _outage(folder: Path, server: Influx) -> dict[str, Figure]:
    admin = InfluxConfig(url=server.url, org=server.org, token=server.token)
    config = InfluxConfig(url=server.url, org=server.org, token=set_up(admin).historian)
    records = list(fleet_records(PLAN, begin_ns=recent_hours(2.0), seconds=SECONDS))
    wanted = produced(records)
    spawn = multiprocessing.get_context("spawn")
    log, alone = folder / "log", folder / "alone"
    reported = {one: folder / f"{one.name}.txt" for one in (log, alone)}
    for one in reported:
        asyncio.run(_made(one))
    engines = [
        spawn.Process(target=_engine_process, args=pair, daemon=True) for pair in reported.items()
    ]
    historian = spawn.Process(target=_historian_process, args=(log, config), daemon=True)
    processes = [*engines, historian]
    for process in processes:
        process.start()
    try:
        while not all(file.exists() for file in reported.values()):
            time.sleep(0.5)
        assert historian.pid is not None
        memory, killed_s, up_s = asyncio.run(_play(list(reported), records, server, historian.pid))
        missing = asyncio.run(_until_stored(config, wanted))
        series = _series(server)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    before = max(mib for at, mib in memory if at < killed_s)
    during = max(mib for at, mib in memory if at >= killed_s)
    costs = {one: _p99_ms(file, lambda at: killed_s <= at < up_s) for one, file in reported.items()}
    disk_bytes = server.settled_disk_bytes()
    return {
        "frames": len(records),
        "values_produced": sum(wanted.values()),
        "values_missing": missing,
        "down_s": up_s - killed_s,
        "historian_mib_before": before,
        "historian_mib_more": during - before,
        "engine_median_ms": costs[log][0],
        "alone_median_ms": costs[alone][0],
        "engine_p99_ms": costs[log][1],
        "alone_p99_ms": costs[alone][1],
        "series_per_vm": series / PLAN.vms,
        "disk_bytes_per_vm_sample": disk_bytes / (PLAN.vms * SECONDS / 10.0),
    }


async def _made(folder: Path) -> None:
    """Create the log before three processes open it."""
    async with EmbeddedLog(EmbeddedConfig(folder=folder), clock=SystemClock()):
        pass


def main() -> None:
    """Measure and report."""
    folder = Path(tempfile.mkdtemp())
    try:
        with Influx(folder / "influx") as server:
            row = _outage(folder, server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    changed = float(row["engine_p99_ms"] or 0) / float(row["alone_p99_ms"] or 1) - 1
    row["engine_p99_changed"] = changed
    report(
        "history_outage",
        claim=f"{PLAN.vms} VMs, an hour; the store is killed and down {DOWN_S:g} s: nothing is"
        f" missing, memory + <= {MEMORY_GOAL_MIB:g} MiB, the engine's p99 is <= {P99_GOAL:.0%}"
        " above that of an engine without a historian",
        rows=[row],
        goals_met=row["values_missing"] == 0
        and float(row["historian_mib_more"] or 0) <= MEMORY_GOAL_MIB
        and changed <= P99_GOAL,
    )


if __name__ == "__main__":
    main()

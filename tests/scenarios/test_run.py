"""`flatline run`: a whole site in one process, until it receives a signal."""

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.lab.kafka_jars import PATIENCE
from flatline.connectors.clock import LoopClock, SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.cli import all_in_one
from flatline.engine.ports import Query
from flatline.engine.roles.health import Health
from flatline.engine.settings import Settings
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.topics import FRAMES
from flatline.engine.wiring import Process, compile_engine
from flatline.engine.wiring_history import open_queries
from flatline.engine.wiring_planning import compile_forecaster

PARTITIONS = 2
NODES = 8
# Compiling the kernels takes most of it.
PATIENCE_S = 240.0 * PATIENCE


async def sources(folder: Path) -> set[tuple[str, str]]:
    """Return role and node of all writers of frames."""
    found: set[tuple[str, str]] = set()
    config = EmbeddedConfig(folder=folder, partitions=PARTITIONS)
    async with EmbeddedLog(config, clock=SystemClock()) as log:
        for partition in range(PARTITIONS):
            for record in await log.read_to_end(FRAMES.name, partition, offset=0):
                header = decode_frame(record.value).header
                found.add((header.role, header.node))
    return found


@pytest.mark.slow
def test_a_site_in_one_process_runs_every_role_and_ends_on_a_signal(tmp_path: Path) -> None:
    settings = [f"log.partitions={PARTITIONS}", "collect.interval_s=1", f"state.folder={tmp_path}"]
    words = [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flatline", "run", *words],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    deadline = threading.Timer(PATIENCE_S, process.kill)
    deadline.start()
    try:
        assert process.stderr is not None
        starting = 1 + NODES  # one planner, and an agent on each node
        for line in process.stderr:
            starting -= "starts under policy demo" in line
            if not starting:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()
    written = asyncio.run(sources(tmp_path / "log"))
    assert {node for role, node in written if role == "collector"} == {
        f"c{cell}-n{node}" for cell in range(4) for node in range(2)
    }


@pytest.mark.slow
def test_planners_find_forecasts_in_the_history_of_a_site_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def compiled(settings: Settings) -> None:
        # Virtual time does not wait for a thread that compiles.
        compile_engine(settings)
        compile_forecaster(settings)

    monkeypatch.setattr(all_in_one, "_compiled", compiled)
    settings = Settings.model_validate(
        {"state": {"folder": tmp_path}, "log": {"kind": "embedded", "partitions": PARTITIONS}}
    )

    async def main() -> set[tuple[str, ...]]:
        clock = LoopClock(epoch_ms=1_800_000_000_000)
        here = Process(settings, clock, Health(clock))
        site = asyncio.create_task(all_in_one._run_simulated(here, seed=1))
        await asyncio.sleep(300)
        site.cancel()
        await asyncio.gather(site, return_exceptions=True)
        query = Query(
            measurement="flatline_forecast",
            select=(("mean", "last"), ("hi90", "last")),
            begin_ns=0,
            end_ns=(clock.now_ms() + 2 * 86_400_000) * 1_000_000,  # rows are dated ahead
            group_by=("metric", "horizon_s", "vm"),
        )
        async with open_queries(here) as history:
            return {answer.tags for answer in await history.ask(query)}

    found = virtual_time.run(main())
    kinds = {(metric, horizon_s, "vm" if vm else "node") for metric, horizon_s, vm in found}
    for horizon_s in ("300", "1800"):
        for subject in ("vm", "node"):
            assert ("cpu_cores", horizon_s, subject) in kinds

"""`flatline run`: a whole site in one process, in real time, until it is told to end."""

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from connectors.clock import SystemClock
from connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from engine.wire.frame import decode_frame
from engine.wire.topics import FRAMES

PARTITIONS = 2
NODES = 8
# Compiling the kernels takes most of it on a loaded machine.
PATIENCE_S = 240.0


async def sources(folder: Path) -> set[tuple[str, str]]:
    """Return role and node of everything that wrote a frame."""
    found: set[tuple[str, str]] = set()
    config = EmbeddedConfig(folder=folder, partitions=PARTITIONS)
    async with EmbeddedLog(config, clock=SystemClock()) as log:
        for partition in range(PARTITIONS):
            for record in await log.read_to_end(FRAMES.name, partition, offset=0):
                header = decode_frame(record.value).header
                found.add((header.role, header.node))
    return found


@pytest.mark.slow
def test_a_site_in_one_process_runs_every_role_and_ends_when_told(tmp_path: Path) -> None:
    settings = [f"log.partitions={PARTITIONS}", "collect.interval_s=1", f"state.folder={tmp_path}"]
    words = [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "run", *words],
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

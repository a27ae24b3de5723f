"""A node has only the wheel and the node's lock, and both of its roles run."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.libvirt_lab import Lab
from deploy.lab.node_install import install_node
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.ports import Record
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.journal import decode_entry
from flatline.engine.wire.topics import FRAMES, JOURNAL, Topic

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

# Imports and the first connection on a shared machine.
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
UNWANTED = {"models", "numba", "llvmlite", "river", "faust"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_node(tmp_path_factory.mktemp("node"))


class Running:
    """A role as a separate process; its imports and output go to one file."""

    def __init__(self, python: Path, role: str, state: Path, setting: str) -> None:
        state.mkdir()
        self.output = state / f"{role}.out"
        given = (f"state.folder={state}", "log.kind=embedded", "log.partitions=1", setting)
        flags = [word for one in given for word in ("--set", one)]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [str(python.with_name("flatline")), role, *flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=state,
                env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": ""},
            )

    def said(self) -> str:
        """Return its output, without the list of imports."""
        lines = self.output.read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("import time:"))

    def imported(self) -> set[str]:
        lines = self.output.read_text().splitlines()
        named = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
        return {name.removeprefix("flatline.").split(".")[0] for name in named}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_LIMIT_S)


@pytest.fixture
def running() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for role in started:
        role.process.kill()
        role.process.wait()


def first_record(topic: Topic, state: Path) -> Record:
    """Return the role's first record, as another process of the same machine reads it."""

    async def read() -> Record:
        config = EmbeddedConfig(folder=state / "log", partitions=1)
        async with (
            asyncio.timeout(START_LIMIT_S),
            EmbeddedLog(config, clock=SystemClock()) as log,
            log.tail(topic.name, 0, offset=0) as batches,
        ):
            async for batch in batches:
                return batch[0]
        raise AssertionError

    return asyncio.run(read())


def test_collect_runs_from_a_node_install_and_ends_cleanly(
    python: Path, hypervisors: Lab, tmp_path: Path, running: list[Running]
) -> None:
    state = tmp_path / "state"
    process = Running(python, "collect", state, f"collect.libvirt_uri={hypervisors.uri('a')}")
    running.append(process)
    frame = decode_frame(first_record(FRAMES, state).value)
    assert process.stop() == 0, process.said()
    assert frame.node["hypervisor_reachable"] == 1.0
    assert "connectors" in process.imported()
    assert not process.imported() & UNWANTED


def test_act_runs_from_a_node_install_and_ends_cleanly(
    python: Path, hypervisors: Lab, tmp_path: Path, running: list[Running]
) -> None:
    state = tmp_path / "state"
    process = Running(python, "act", state, f"act.libvirt_uri={hypervisors.uri('a')}")
    running.append(process)
    entry = decode_entry(first_record(JOURNAL, state).value)
    assert process.stop() == 0, process.said()
    assert entry.kind == "start"
    assert "connectors" in process.imported()
    assert not process.imported() & UNWANTED

"""A `flatline` process from outside: its imports, its output, and its end."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

# A loaded machine needs seconds to start an interpreter; this is far longer.
PATIENCE_S = 60.0

HEAVY = ("flatline.models", "numba", "river", "faust")


def environment(tmp_path: Path) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FLATLINE_")}
    return {**ours, "FLATLINE_STATE__FOLDER": str(tmp_path / "state")}


@contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flatline", *words],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(tmp_path),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[bytes], words: str) -> list[dict[str, object]]:
    """Return the log lines up to the first one that contains `words`."""
    assert process.stderr is not None
    lines: list[dict[str, object]] = []
    end_s = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        # A process that keeps repeating other lines must end as well.
        while selector.select(end_s - time.monotonic()) and time.monotonic() < end_s:
            line = process.stderr.readline()
            if not line:
                break
            lines.append(json.loads(line))
            if words in str(lines[-1]["event"]):
                return lines
    raise AssertionError(f"{words!r} was not said: {lines}")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_role_ends_cleanly_on_a_signal(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with running(tmp_path, "plan", "--set", "site.node=n1") as process:
        first = read_until(process, "Planner n1 starts")[0]
        assert first["node"] == "n1"
        assert first["level"] == "info"
        assert first["event"] == "plan starts."
        process.send_signal(number)
        read_until(process, f"{number.name} received")
        assert process.wait(PATIENCE_S) == code


def test_a_running_role_answers_its_probes(tmp_path: Path) -> None:
    with running(tmp_path, "plan", "--set", "http.port=0") as process:
        (served,) = [
            line for line in read_until(process, "Planner") if "served" in str(line["event"])
        ]
        answers = {}
        for path in ("/livez", "/metrics"):
            connection = HTTPConnection("127.0.0.1", int(str(served["port"])), timeout=PATIENCE_S)
            connection.request("GET", path)
            response = connection.getresponse()
            answers[path] = response.status, response.read().decode()
            connection.close()
        assert answers["/livez"] == (200, "ok\n")
        assert "flatline_plan_orders_total" in answers["/metrics"][1]


def test_a_role_without_a_broker_waits_and_says_so(tmp_path: Path) -> None:
    kafka = ["--set", "log.kind=kafka", "--set", "log.kafka.bootstrap=127.0.0.1:1"]
    with running(tmp_path, "plan", *kafka) as process:
        lines = read_until(process, "is unavailable")
        assert "127.0.0.1:1" in str(lines[-1])
        read_until(process, "is unavailable")
        assert process.poll() is None


@pytest.mark.parametrize("command", ["collect", "act"])
def test_what_runs_on_a_node_loads_no_model_and_no_engine(tmp_path: Path, command: str) -> None:
    # The role is opened and run for a moment, so that late imports count too.
    program = f"""
import asyncio, sys
from flatline.engine.settings import load_settings
from flatline.engine.wiring import act_opener, authority, collect_opener, open_log, process
from flatline.engine.wiring import simulated_nodes
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.plan import WorldPlan

async def main():
    settings, _ = load_settings()
    here = process(settings)
    node = simulated_nodes(build_world(WorldPlan(seed=1), here.clock))[0]
    connect = lambda: open_log(here)
    openers = dict(
        collect=lambda: collect_opener(here, connect, node, authority(settings).frames),
        act=lambda: act_opener(here, connect, node, authority(settings)),
    )
    async with openers[{command!r}]()() as role:
        task = asyncio.create_task(role.run())
        await asyncio.wait({{task}}, timeout=0.5)
        task.cancel()
        await asyncio.wait({{task}})

asyncio.run(main())
import flatline.connectors.kafka.log
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "command", "reported"),
    [
        ("numba", "engine", "numba is not installed here: pip install flatline"),
        ("libvirt", "collect", "pip install 'flatline[libvirt]'"),
    ],
)
def test_a_library_that_is_missing_is_named_with_what_brings_it(
    tmp_path: Path, name: str, command: str, reported: str
) -> None:
    program = f"""
import sys
import time
sys.modules[{name!r}] = None
sys.argv = ["flatline", {command!r}]
from flatline.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert reported in done.stderr

"""Cost of a collector for its node: 200 VMs every 5 s, from libvirt's answer to the log.

Each VM's answer is one recorded from libvirt (`tests/unit/connectors/libvirt/data`), with growing
counters. The log is the embedded one in a folder. libvirt's own cost of collecting the statistics
is not included: the bulk call waits, on another thread.
"""

import asyncio
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from random import Random

from benchmarks.report import report
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.libvirt.binding import StatValue
from flatline.connectors.libvirt.decoding import Reading, VcpuTimes, decode
from flatline.engine.roles.framing import CollectConfig, Content, Source
from flatline.engine.wire.topics import FRAMES

VMS = 200
INTERVAL_S = 5.0
GOAL_PERCENT = 2.0
ROUNDS = 60
RECORDED = (
    Path(__file__).parent.parent
    / "tests"
    / "unit"
    / "connectors"
    / "libvirt"
    / "data"
    / "domain_stats.json"
)
# Fields that are levels; all other numbers of the recording are counters.
_LEVELS = ("balloon.", "dirtyrate.", "state.", "count", "current", "maximum", "capacity")


def answers(rounds: int) -> list[list[Reading]]:
    """Return libvirt's answers in each round, by VM."""
    stats: dict[str, StatValue] = json.loads(RECORDED.read_text())["healthy"][0]["stats"]
    random = Random(20261123)
    fleet = [dict(stats) for _ in range(VMS)]
    heard = []
    for _ in range(rounds):
        for vm in fleet:
            for name, value in vm.items():
                if type(value) is int and not any(level in name for level in _LEVELS):
                    vm[name] = value + random.randrange(1_000_000)
        heard.append(
            [
                Reading(vm=bytes(14) + number.to_bytes(2), instance=number, stats=dict(vm))
                for number, vm in enumerate(fleet)
            ]
        )
    return heard


async def collect(heard: list[list[Reading]], folder: Path) -> dict[str, list[float]]:
    """Return ms of CPU a round, by activity."""
    source = Source(
        CollectConfig(site="bench", zone="z", cell="c", node="n", interval_s=INTERVAL_S), "0" * 16
    )
    took: dict[str, list[float]] = {"decode": [], "frame": [], "append": []}
    previous: dict[bytes, VcpuTimes] = {}
    async with EmbeddedLog(EmbeddedConfig(folder=folder), clock=SystemClock()) as log:
        for number, readings in enumerate(heard, start=1):
            mono_ns = round(number * INTERVAL_S * 1e9)
            marks = [time.process_time()]
            rows, previous = decode(readings, previous, mono_ns=mono_ns)
            marks.append(time.process_time())
            content = Content(time.time_ns(), mono_ns, rows, node={"hypervisor_reachable": 1.0})
            frames = source.frames(content, now_ns=mono_ns)
            marks.append(time.process_time())
            for frame in frames:
                await log.append(FRAMES.name, key=b"c", value=frame.value)
            marks.append(time.process_time())
            for name, (begun, ended) in zip(took, pairwise(marks), strict=True):
                took[name].append((ended - begun) * 1e3)
    return took


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        took = asyncio.run(collect(answers(ROUNDS), Path(folder)))
    medians = {name: statistics.median(rounds) for name, rounds in took.items()}
    medians["all"] = statistics.median(map(sum, zip(*took.values(), strict=True)))
    rows: list[dict[str, str | int | float | bool | None]] = [
        {
            "part": name,
            "vms": VMS,
            "cpu_ms_per_round": cpu_ms,
            "core_percent": cpu_ms / 1e3 / INTERVAL_S * 100,
        }
        for name, cpu_ms in medians.items()
    ]
    report(
        "collector",
        claim=f"CPU of a collector, {VMS} VMs every {INTERVAL_S:g} s, without libvirt's own:"
        f" at most {GOAL_PERCENT:g} % of a core",
        rows=rows,
        goals_met=float(rows[-1]["core_percent"] or 0) <= GOAL_PERCENT,
    )


if __name__ == "__main__":
    main()

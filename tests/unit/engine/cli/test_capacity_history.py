"""`flatline capacity` on the history: reads hours, prints a report, writes its rows back."""

import asyncio
import json
from pathlib import Path

import pytest

from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.parquet.history import ParquetHistory
from flatline.engine.capacity.usage_from_history import GROWTH_DAYS, usage_of, usage_queries
from flatline.engine.ports import Answer, Query
from flatline.engine.wire.measurement import DAY_S
from flatline.engine.wire.topics import FRAMES
from tests.unit.engine.capacity.hours_by_hand import NOW_S, rows
from tests.unit.engine.cli.conftest import Flatline
from tests.unit.engine.fleet_by_hand import Fleet, Machine


@pytest.fixture
def kept(state: Path) -> Path:
    """Return the folder of a history; the log beside it has frames with the zone."""

    async def write() -> None:
        clock = SystemClock()
        async with ParquetHistory(state / "history", clock=clock) as history:
            assert await history.write(rows()) == ()
        config = EmbeddedConfig(folder=state / "log", partitions=8)
        async with EmbeddedLog(config, clock=clock) as log:
            for record in Fleet({"n0": [Machine("a")]}).step():
                await log.append(FRAMES.name, key=record.key, value=record.value)

    asyncio.run(write())
    return state / "history"


def test_report_is_made_of_the_history_and_stored_in_it(flatline: Flatline, kept: Path) -> None:
    said = flatline("capacity", "report", "--format", "json", "--store")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    lines = {(row["scope"], row["subject"], row["resource"]): row for row in found["scopes"]}
    cpu = lines["cell", "cell", "cpu"]
    # One of two nodes is kept in reserve; 29.5 % of 16 cores are used, 95 % of the time.
    assert cpu["usable"] == 8.0
    assert cpu["used"] == pytest.approx(16 * 0.295, rel=0.03)
    assert cpu["oversubscription_ratio"] == pytest.approx(0.25)
    assert ("zone", "zone", "memory") in lines
    disk = lines["pool", "cell/fast", "disk"]
    assert disk["days_to_full"] == pytest.approx(40, abs=2)
    findings = {vm["name"]: vm["finding"] for vm in found["vms"]}
    assert findings == {"spare": "idle", "web": "oversized"}
    assert found["cells"][0]["contended_nodes"] == ["n0", "n1"]

    async def stored() -> dict[tuple[str, ...], tuple[object, ...]]:
        async with ParquetHistory(kept, clock=SystemClock()) as history:
            answers = await history.ask(
                Query(
                    measurement="flatline_capacity",
                    select=(("usable", "last"), ("days_to_full", "last")),
                    begin_ns=(NOW_S - 60) * 1_000_000_000,
                    end_ns=(NOW_S + 86_400) * 1_000_000_000,
                    group_by=("scope", "subject", "resource"),
                )
            )
            return {answer.tags: answer.values for answer in answers}

    rows_now = asyncio.run(stored())
    assert len(rows_now) == len(lines)
    assert rows_now["cell", "cell", "cpu"][0] == 8.0
    assert rows_now["pool", "cell/fast", "disk"][1] == disk["days_to_full"]


def test_whatif_is_answered_from_the_history(flatline: Flatline, kept: Path) -> None:
    said = flatline("capacity", "whatif", "--lost", "n0", "--format", "json")
    answer = json.loads(said.out)
    assert answer["placements"] == {"n1": 1}
    come = flatline("capacity", "whatif", "--vms", "3", "--flavor", "m1", "--in", "zone:zone")
    assert "3 of 3 VMs can be placed" in come.out


def test_a_history_without_hours_is_reported_with_what_to_do(
    flatline: Flatline, state: Path
) -> None:
    async def make() -> None:
        async with EmbeddedLog(
            EmbeddedConfig(folder=state / "log", partitions=8), clock=SystemClock()
        ):
            pass

    asyncio.run(make())
    said = flatline("capacity", "report")
    assert said.code == 2
    assert "flatline history" in " ".join(said.err.split())


def test_a_vm_that_moved_is_counted_where_it_is_now() -> None:
    asked = usage_queries(now_s=NOW_S)
    assert asked["node_day"].every_s == DAY_S
    assert asked["pool_day"].end_ns - asked["pool_day"].begin_ns >= GROWTH_DAYS * DAY_S * 10**9
    empty: dict[str, list[Answer]] = {name: [] for name in asked}
    empty["vm"] = [Answer(("v",), 0, (1.0, None, 5.0, 0.5, None, None, None, None, None))]
    empty["place"] = [Answer(("n0", "v"), 1, (60,)), Answer(("n1", "v"), 2, (60,))]
    found = usage_of(empty, zones={})
    assert [(vm.node, vm.memory_p99_bytes, vm.waiting_ratio) for vm in found.vms] == [
        ("n1", 5.0, None)
    ]

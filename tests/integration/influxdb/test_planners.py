"""Queries for planners: every one of the page and the dashboards returns rows.

Both stores give the same answers to every usual question.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from deploy.grafana.dashboards import ALERTS_OF_VM, files
from deploy.grafana.planners_page import PAGE
from deploy.grafana.usual_queries import EXAMPLE_NODE, EXAMPLE_VM, USUAL
from flatline.connectors.clock import SystemClock
from flatline.connectors.influxdb.config import InfluxConfig
from flatline.connectors.influxdb.history import InfluxHistory
from flatline.connectors.parquet.history import ParquetHistory
from flatline.engine.capacity.report import report
from flatline.engine.capacity.usage_from_history import usage_of, usage_queries
from flatline.engine.ports import Answer
from flatline.engine.wire.measurement import MEASUREMENTS
from flatline.engine.wire.points import Column, Points, Series
from flatline.models.codecs.lines import write_lines
from tests.unit.engine.capacity.hours_by_hand import NOW_S
from tests.unit.engine.capacity.hours_by_hand import rows as rows_of_hours

pytestmark = [pytest.mark.influxdb, pytest.mark.asyncio]

TAG_VALUES = {
    "vm": (EXAMPLE_VM, "99999999-2222-3333-4444-555555555555"),
    "subject": (EXAMPLE_VM, EXAMPLE_NODE),
    "node": (EXAMPLE_NODE, "node-2"),
    "state": ("firing",),
    "metric": ("cpu_cores",),
    "horizon_s": ("1800",),
}
ROWS = 90


def some_rows(name: str, *, end_ns: int, rng: np.random.Generator) -> Points:
    """Return rows of a measurement over the last hour and a half, every field known."""
    measurement = MEASUREMENTS[name]
    tags = {}
    for tag in measurement.tags:
        values = TAG_VALUES.get(tag, (f"{tag}-1", f"{tag}-2"))
        tags[tag] = [values[row % len(values)] for row in range(ROWS)]
    # No two rows at one time: which of them is the last would be undefined.
    times = end_ns - 60_000_000_000 * np.arange(1, ROWS + 1)
    fields: dict[str, Column] = {}
    for field in measurement.fields:
        if field.kind == "float":
            fields[field.name] = rng.lognormal(2.0, 2.0, ROWS)
        elif field.kind == "integer":
            fields[field.name] = rng.integers(0, 10**12, ROWS)
        else:
            fields[field.name] = [f"{field.name} {row}" for row in range(ROWS)]
    return Points.of(name, Series(tags), times, fields)


@pytest.fixture
def rows(rng: np.random.Generator) -> list[Points]:
    end_ns = time.time_ns() // 60_000_000_000 * 60_000_000_000
    return [some_rows(name, end_ns=end_ns, rng=rng) for name in MEASUREMENTS]


@pytest_asyncio.fixture
async def filled(
    configure: Callable[..., InfluxConfig], rows: list[Points]
) -> AsyncIterator[InfluxHistory]:
    async with InfluxHistory(configure(), write_lines=write_lines) as history:
        assert await history.write(rows) == ()
        yield history


def alike(one: list[Answer], other: list[Answer]) -> bool:
    return [answer[:2] for answer in one] == [answer[:2] for answer in other] and all(
        a == b
        or (
            isinstance(a, float)
            and isinstance(b, float | int)
            and np.isclose(a, b, rtol=1e-12, atol=0.0)
        )
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left.values, right.values, strict=True)
    )


async def test_both_stores_answer_every_usual_query_alike(
    filled: InfluxHistory, rows: list[Points], tmp_path: Path
) -> None:
    async with ParquetHistory(tmp_path / "history", clock=SystemClock()) as embedded:
        assert await embedded.write(rows) == ()
        for usual in USUAL:
            query = usual.ending_at(int(rows[0].time_ns.max()) + 1)
            answers = await embedded.ask(query)
            assert answers, usual.text
            assert alike(answers, await filled.ask(query)), usual.text


async def test_capacity_is_the_same_from_both_stores(
    configure: Callable[..., InfluxConfig], tmp_path: Path
) -> None:
    async with (
        ParquetHistory(tmp_path / "history", clock=SystemClock()) as embedded,
        InfluxHistory(configure(), write_lines=write_lines) as influx,
    ):
        usages = []
        for history in (embedded, influx):
            assert await history.write(rows_of_hours()) == ()
            asked = usage_queries(now_s=NOW_S).items()
            answers = {name: await history.ask(query) for name, query in asked}
            assert all(answers.values())
            usages.append(usage_of(answers, zones={"cell": "zone"}))
    here, there = (msgspec.to_builtins(report(usage)) for usage in usages)
    assert here["vms"]
    assert list(flat(there)) == [
        value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-9)
        for value in flat(here)
    ]


def flat(value: object) -> Iterator[object]:
    """Return the leaves of a report in order."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from flat(part)
    else:
        yield value


async def test_every_query_of_the_page_returns_rows(filled: InfluxHistory) -> None:
    queries = re.findall(r"```sql\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert len(queries) == len(USUAL)
    for query in queries:
        series = await filled.query(query)
        assert series, query
        assert all(one["values"] for one in series), query


async def test_every_query_of_the_dashboards_returns_rows(filled: InfluxHistory) -> None:
    queries = [
        match.encode().decode("unicode_escape")
        for name, text in files().items()
        if name.endswith(".json")
        for match in re.findall(r'"query": "((?:SELECT|SHOW)(?:[^"\\]|\\.)*)"', text)
    ]
    assert ALERTS_OF_VM in queries
    assert len(queries) >= 20
    for query in queries:
        filled_in = (
            query.replace("$timeFilter", "time >= now() - 1d")
            .replace("$__interval", "60s")
            .replace("$vm", EXAMPLE_VM)
        )
        assert "$" not in filled_in
        assert await filled.query(filled_in), query

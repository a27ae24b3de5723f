"""The history without a server keeps every promise of both ports."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from flatline.connectors.clock import SystemClock
from flatline.connectors.parquet.history import ParquetHistory
from flatline.engine.ports import Query
from tests.contracts.history.suite import QueryContract, SinkContract, begin_ns, vm_points


class TestParquet(SinkContract, QueryContract):
    @pytest_asyncio.fixture
    async def history(self, tmp_path: Path) -> AsyncIterator[ParquetHistory]:
        async with ParquetHistory(tmp_path / "history", clock=SystemClock()) as history:
            yield history


def file_count(folder: Path) -> int:
    return len(list(folder.rglob("*.parquet")))


@pytest.mark.asyncio
async def test_many_small_files_become_one_and_no_row_is_lost(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path, clock=SystemClock())
    begin = begin_ns()
    for number in range(60):
        times = begin + np.array([number, number + 1]) * 1_000_000_000
        values = {"cpu_cores": np.array([number, number + 1.0])}
        await history.write([vm_points(values, times, ["a", "a"])])
    assert file_count(tmp_path) < 30
    query = Query(
        measurement="flatline_vm",
        select=(("cpu_cores", "count"), ("cpu_cores", "sum")),
        begin_ns=begin,
        end_ns=begin + 100_000_000_000,
    )
    (answer,) = await history.ask(query)
    assert answer.values == (61, sum(range(61)))

"""A damaged or foreign file costs its own rows and nothing else."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from structlog.testing import capture_logs

from flatline.connectors.clock import SystemClock
from flatline.connectors.parquet.history import ParquetHistory
from flatline.engine.errors import HistoryUnreachable
from flatline.engine.ports import Query
from flatline.engine.wire.points import Points, Series

MINUTE_NS = 60_000_000_000
Damage = Callable[[Path], object]


def begin_ns() -> int:
    return (time.time_ns() // (3600 * 10**9) - 3) * 3600 * 10**9


def points(number: int, begin: int, *, vm: str = "v") -> Points:
    series = Series({"cell": ["c"], "node": ["n"], "vm": [vm]})
    time_ns = [begin + number * MINUTE_NS // 60]
    return Points.of("flatline_vm_1m", series, time_ns, {"cpu_cores_mean": np.array([1.0])})


def question(begin: int) -> Query:
    return Query(
        measurement="flatline_vm_1m",
        select=(("cpu_cores_mean", "count"),),
        begin_ns=begin,
        end_ns=begin + 3600 * 10**9,
    )


def count(history: ParquetHistory, begin: int) -> int:
    answers = asyncio.run(history.ask(question(begin)))
    return int(answers[0].values[0] or 0) if answers else 0


def flipped(seed: int) -> Damage:
    def flip(path: Path) -> None:
        rng = np.random.default_rng(seed)
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        places = rng.integers(0, len(content), 12)
        content[places] = rng.integers(0, 256, 12)
        path.write_bytes(content.tobytes())

    return flip


def foreign(select: str) -> Damage:
    return lambda path: duckdb.sql(f"COPY ({select}) TO '{path}' (FORMAT parquet)")


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut(0.5),
    "cut at its end": cut(0.99),
    "text": lambda path: path.write_text("not a table\n" * 100),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a time in words": foreign("SELECT 'now' AS time, 1.0::DOUBLE AS cpu_cores_mean"),
    "a figure in words": foreign(f"SELECT {begin_ns()} AS time, 'much' AS cpu_cores_mean"),
    "no time": foreign("SELECT 1.0::DOUBLE AS cpu_cores_mean, 'v' AS vm"),
    "a list": foreign(f"SELECT {begin_ns()} AS time, [1.0] AS cpu_cores_mean"),
    "the name of the file": foreign(f"SELECT {begin_ns()} AS time, 1.0 AS a, 'x' AS FileName"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_named_when_it_is_read(tmp_path: Path, damage: str) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin), points(0, begin, vm="w")]))
    asyncio.run(history.write([points(1, begin)]))
    bad = sorted(tmp_path.rglob("*.parquet"))[0]
    DAMAGES[damage](bad)
    with capture_logs() as lines:
        assert count(history, begin) == 1
        assert asyncio.run(history.write([points(2, begin)])) == ()
        assert count(history, begin) == 2
    reported = [line for line in lines if "was set aside" in line["event"]]
    assert [line["file"] for line in reported] == [str(bad)]
    assert bad.with_suffix(".damaged").exists()
    assert not bad.exists()


@pytest.mark.parametrize("damage", ["cut", "a figure in words", "no time"])
def test_a_damaged_file_does_not_stop_the_merging_of_files(tmp_path: Path, damage: str) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))
    [bad] = tmp_path.rglob("*.parquet")
    DAMAGES[damage](bad)
    with capture_logs() as lines:
        for number in range(1, 28):
            assert asyncio.run(history.write([points(number, begin)])) == ()
        assert count(history, begin) == 27
    assert [line["file"] for line in lines if "was set aside" in line["event"]] == [str(bad)]
    assert len(list(tmp_path.rglob("*.parquet"))) < 20


def test_what_else_a_file_has_changes_no_answer(tmp_path: Path) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))
    [path] = tmp_path.rglob("*.parquet")
    others = tmp_path / "others"
    duckdb.sql(f"COPY (SELECT *, 1 AS moment, 2 AS v0 FROM '{path}') TO '{others}'(FORMAT parquet)")
    others.rename(path)
    assert asyncio.run(history.write([points(1, begin)])) == ()
    answers = asyncio.run(history.ask(question(begin)))
    assert [answer.values for answer in answers] == [(2,)]


@pytest.mark.parametrize("figure", ["nan", "inf", "-inf"])
def test_a_figure_of_a_file_that_is_none_is_not_known(tmp_path: Path, figure: str) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))
    [path] = tmp_path.rglob("*.parquet")
    foreign(f"SELECT {begin}::BIGINT AS time, '{figure}'::DOUBLE AS cpu_cores_mean")(path)
    assert count(history, begin) == 0


def test_a_file_of_a_name_that_sorts_last_hides_no_later_one(tmp_path: Path) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))
    [path] = tmp_path.rglob("*.parquet")
    shutil.copy(path, path.with_name(f"{'9' * 20}-1-1.parquet"))
    assert asyncio.run(history.write([points(1, begin), points(2, begin)])) == ()
    assert count(history, begin) == 3


@pytest.mark.parametrize("seed", range(6))
def test_whatever_bytes_change_nothing_but_errors_of_the_history_come_out(
    tmp_path: Path, seed: int
) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    for number in range(3):
        asyncio.run(history.write([points(number, begin)]))
    flipped(seed)(sorted(tmp_path.rglob("*.parquet"))[1])
    assert 2 <= count(history, begin) <= 3
    assert asyncio.run(history.write([points(9, begin)])) == ()
    assert 3 <= count(history, begin) <= 4


def test_files_and_folders_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))
    [ours] = tmp_path.rglob("*.parquet")
    partition, measurement = ours.parent, ours.parent.parent
    strangers = [
        partition / "copy of it.parquet",
        partition / "1-2-3.parquet",
        measurement / "notes.txt",
        tmp_path / "README",
    ]
    for path in strangers:
        path.write_text("somebody's")
    folders = [partition / f"{1:020d}-1-1.parquet", measurement / "20240230T00", measurement / "x"]
    for folder in folders:
        folder.mkdir()
    with capture_logs() as lines:
        for number in range(1, 4):
            assert asyncio.run(history.write([points(number, begin)])) == ()
        assert count(history, begin) == 4
    assert all(path.read_text() == "somebody's" for path in strangers)
    assert all(folder.is_dir() for folder in folders)
    passed = {line["file"] for line in lines if "is skipped" in line["event"]}
    assert passed == {str(path) for path in (*strangers[:2], folders[0])}


def test_an_old_partition_with_a_stranger_in_it_stops_no_writing(tmp_path: Path) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    old = tmp_path / "flatline_vm_1m" / "20200101T00"
    old.mkdir(parents=True)
    (old / "keep.txt").write_text("somebody's")
    (old / f"{1:020d}-1-1.parquet").write_bytes(b"")
    asyncio.run(history.write([points(0, begin)]))
    assert [path.name for path in old.iterdir()] == ["keep.txt"]


def test_a_file_that_may_not_be_renamed_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    for number in range(2):
        asyncio.run(history.write([points(number, begin)]))
    bad = sorted(tmp_path.rglob("*.parquet"))[0]
    bad.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with capture_logs() as lines:
        assert count(history, begin) == 1
    assert [line["file"] for line in lines] == [str(bad)]
    assert bad.exists()


def test_a_folder_that_cannot_be_read_is_the_historys_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(HistoryUnreachable, match="Permission denied"):
        count(history, begin)
    with pytest.raises(HistoryUnreachable, match="Permission denied"):
        asyncio.run(history.write([points(1, begin)]))


@pytest.mark.parametrize("raised", [duckdb.OutOfMemoryException, duckdb.InternalException])
def test_what_is_no_files_fault_sets_none_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    asyncio.run(history.write([points(0, begin)]))

    def fail(*_: object) -> str:
        raise raised("not now")

    monkeypatch.setattr("flatline.connectors.parquet.history.to_sql", fail)
    with pytest.raises(HistoryUnreachable, match="not now"):
        count(history, begin)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_rows_that_no_file_can_hold_are_reported_and_the_others_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB accepts every row that `Points` permits; one that it rejected would be reported."""
    from flatline.connectors.parquet import history as module

    begin, history = begin_ns(), ParquetHistory(tmp_path, clock=SystemClock())
    copy = module._copy

    def picky(database: duckdb.DuckDBPyConnection, query: str, *rest: object) -> None:
        if database.sql("SELECT count(*) FROM chosen WHERE vm = 'bad'").fetchall()[0][0]:
            raise duckdb.ConversionException("a row that cannot be")
        copy(database, query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_copy", picky)
    batch = [points(k, begin, vm="bad" if k in (2, 5) else "v") for k in range(7)]
    refused = asyncio.run(history.write(batch))
    assert [(row.points, row.row) for row in refused] == [(2, 0), (5, 0)]
    assert all("a row that cannot be" in row.reason for row in refused)
    assert all(b"vm=bad" in row.text for row in refused)
    assert count(history, begin) == 5
    shutil.rmtree(tmp_path)

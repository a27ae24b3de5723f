"""The promises of `HistorySink` and `HistoryQuery`; all stores give bit-identical answers."""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pytest

from flatline.engine.ports import Answer, HistoryQuery, HistorySink, Query
from flatline.engine.wire.measurement import RETENTION_S, VM_METRICS
from flatline.engine.wire.points import MISSING, Column, Points, Series, kept

MINUTE_NS = 60_000_000_000
STATISTICS = ("count", "sum", "mean", "min", "max", "first", "last", "p50", "p95", "p99")
AWKWARD = (
    "plain",
    "two words",
    "a,b=c",
    'quo"ted',
    "back\\slash\\",
    "line\nbreak\r",
    "emoji 🦆 ünïcode",
    "trailing ",
    "half \ud800 pair",
    "it's",
    "#comment",
)


def begin_ns() -> int:
    """Return the start of a past full hour that every bucket still keeps."""
    return (time.time_ns() // 3_600_000_000_000 - 3) * 3_600_000_000_000


def vm_points(values: dict[str, np.ndarray], times: np.ndarray, vms: list[str]) -> Points:
    size = len(times)
    series = Series({"vm": vms, "cell": ["c1"] * size, "node": ["n1"] * size})
    return Points.of("flatline_vm", series, times, values)


def naive(values: np.ndarray, statistic: str) -> float | int | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    if statistic.startswith("p"):
        place = int(np.floor(len(known) * float(statistic[1:]) / 100.0 + 0.5)) - 1
        return float(np.sort(known)[place]) if place >= 0 else None
    named = {
        "count": len(known),
        "sum": float(known.sum()),
        "mean": float(known.mean()),
        "min": float(known.min()),
        "max": float(known.max()),
        "first": float(known[0]),
        "last": float(known[-1]),
    }
    return named[statistic]


def same(found: tuple[object, ...], wanted: list[float | int | None]) -> bool:
    return len(found) == len(wanted) and all(
        (one is None) == (other is None)
        and (one is None or np.isclose(float(one), float(other), rtol=1e-12, atol=0))  # type: ignore[arg-type]
        for one, other in zip(found, wanted, strict=True)
    )


class Store(HistorySink, HistoryQuery, Protocol):
    """A store that takes rows and answers queries."""


@pytest.mark.asyncio
class SinkContract:
    """Subclasses provide a fixture `history`; without `HistoryQuery` also `stored`."""

    async def stored(self, history: HistorySink, query: Query) -> Sequence[Answer]:
        """Return the rows in the store; `query` selects each row's own values."""
        assert isinstance(history, HistoryQuery)
        return await history.ask(query)

    async def test_rows_come_back_as_they_were_written(
        self, history: HistorySink, rng: np.random.Generator
    ) -> None:
        begin, size = begin_ns(), 200
        exact = kept(rng.normal(size=size) * 10.0 ** rng.integers(-8, 17, size))
        exact[::7] = np.nan
        times = begin + np.arange(size) * 1_000_000
        refused = await history.write([vm_points({"cpu_cores": exact}, times, ["vm-1"] * size)])
        assert refused == ()
        found = await self.stored(
            history,
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", ""),),
                begin_ns=begin,
                end_ns=begin + MINUTE_NS,
                group_by=("vm",),
            ),
        )
        assert found == [
            Answer(("vm-1",), int(at), (float(value),))
            for at, value in zip(times, exact, strict=True)
            if not np.isnan(value)
        ]

    async def test_a_row_that_is_written_again_is_there_once(self, history: HistorySink) -> None:
        begin = begin_ns()
        times = begin + np.arange(50) * 1_000_000_000
        for value in (1.0, 2.0, 3.0):
            await history.write([vm_points({"cpu_cores": np.full(50, value)}, times, ["a"] * 50)])
        found = await self.stored(
            history,
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", ""),),
                begin_ns=begin,
                end_ns=begin + 100 * 1_000_000_000,
            ),
        )
        assert [answer.values for answer in found] == [(3.0,)] * 50

    async def test_awkward_texts_break_nothing(self, history: HistorySink) -> None:
        begin, size = begin_ns(), len(AWKWARD)
        series = Series(
            {
                "cell": ["c, ="] * size,
                "kind": list(AWKWARD),
                "scope": ["vm"] * size,
                "state": ["firing"] * size,
                "subject": list(AWKWARD),
            }
        )
        fields: dict[str, Column] = {"sentence": list(AWKWARD), "onset_ms": np.arange(size)}
        refused = await history.write([Points.of("flatline_alert", series, [begin] * size, fields)])
        assert refused == ()
        found = await self.stored(
            history,
            Query(
                measurement="flatline_alert",
                select=(("onset_ms", ""), ("sentence", "")),
                begin_ns=begin,
                end_ns=begin + 1,
                where={"cell": "c, ="},
                group_by=("subject",),
            ),
        )
        reported = {answer.values[0]: answer for answer in found}
        assert sorted(reported) == list(range(size))  # type: ignore[type-var]
        for row, text in enumerate(AWKWARD):
            plain = text.encode(errors="replace").decode()
            assert reported[row].values[1] == plain
            assert reported[row].tags == (series.tags["subject"][row],)
        one = await self.stored(
            history,
            Query(
                measurement="flatline_alert",
                select=(("onset_ms", ""),),
                begin_ns=begin,
                end_ns=begin + 1,
                where={"subject": "it's"},
            ),
        )
        assert [answer.values for answer in one] == [(AWKWARD.index("it's"),)]

    async def test_what_is_no_number_is_unknown(self, history: HistorySink) -> None:
        begin = begin_ns()
        values = np.array([1.0, np.nan, np.inf, -np.inf, 1e300])
        await history.write(
            [vm_points({"cpu_cores": values}, begin + np.arange(5), [f"v{n}" for n in range(5)])]
        )
        found = await self.stored(
            history,
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", ""),),
                begin_ns=begin,
                end_ns=begin + 10,
                group_by=("vm",),
            ),
        )
        assert [(answer.tags, answer.values) for answer in found] == [
            (("v0",), (1.0,)),
            (("v4",), (1e300,)),
        ]

    async def test_integers_keep_every_digit(self, history: HistorySink) -> None:
        begin = begin_ns()
        numbers = np.array([2**63 - 1, -(2**63) + 1, 0, MISSING, 2**53 + 1], np.int64)
        series = Series({"vm": [f"v{n}" for n in range(5)], "host": ["h"] * 5})
        points = Points.of("libvirt_cpu", series, [begin] * 5, {"cpu_time": numbers})
        await history.write([points])
        found = await self.stored(
            history,
            Query(
                measurement="libvirt_cpu",
                select=(("cpu_time", ""),),
                begin_ns=begin,
                end_ns=begin + 1,
                group_by=("vm",),
            ),
        )
        assert {answer.tags[0]: answer.values[0] for answer in found} == {
            "v0": 2**63 - 1,
            "v1": -(2**63) + 1,
            "v2": 0,
            "v4": 2**53 + 1,
        }

    async def test_rows_older_than_is_kept_are_refused_alone(self, history: HistorySink) -> None:
        begin = begin_ns()
        old = begin - (RETENTION_S["raw"] + 8 * 86_400) * 1_000_000_000
        times = np.array([begin, old, begin + 1, old + 1])
        batch = [vm_points({"cpu_cores": np.arange(4.0)}, times, ["a", "b", "c", "d"])]
        refused = await history.write(batch)
        assert sorted((row.points, row.row) for row in refused) == [(0, 1), (0, 3)]
        assert all(row.reason and row.text for row in refused)
        found = await self.stored(
            history,
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", ""),),
                begin_ns=old - 1,
                end_ns=begin + 10,
                group_by=("vm",),
            ),
        )
        assert [answer.tags for answer in found] == [("a",), ("c",)]

    async def test_no_rows_are_no_error(self, history: HistorySink) -> None:
        assert await history.write([]) == ()


@pytest.mark.asyncio
class QueryContract:
    """Subclasses provide a fixture `history`, which takes rows as well."""

    @pytest.mark.parametrize("every_s", [None, 60, 3600], ids=["whole", "minutes", "hour"])
    async def test_statistics_are_those_of_the_naive_way(
        self, history: Store, rng: np.random.Generator, every_s: int | None
    ) -> None:
        begin = begin_ns()
        vms = [f"vm-{number}" for number in range(4)]
        times = np.repeat(begin + np.arange(40) * 10_000_000_000, len(vms))
        labels = vms * 40
        values = {field.name: kept(rng.lognormal(3.0, 3.0, len(times))) for field in VM_METRICS[:3]}
        values["cpu_ratio"][rng.random(len(times)) < 0.4] = np.nan
        values["cpu_ratio"][:16] = np.nan
        values["vcpu_busiest_ratio"][:] = np.nan
        await history.write([vm_points(values, times, labels)])
        select = tuple((name, statistic) for name in values for statistic in STATISTICS)
        found = await history.ask(
            Query(
                measurement="flatline_vm",
                select=select,
                begin_ns=begin,
                end_ns=begin + 3_600_000_000_000,
                group_by=("vm",),
                every_s=every_s,
            )
        )
        step = 10**18 if every_s is None else every_s * 1_000_000_000
        wanted: dict[tuple[tuple[str, ...], int], list[float | int | None]] = {}
        for vm in vms:
            mine = np.array(labels) == vm
            windows = np.zeros(len(times), np.int64) if every_s is None else times // step
            for window in np.unique(windows[mine]):
                chosen = mine & (windows == window)
                at = begin if every_s is None else int(window) * step
                wanted[(vm,), at] = [naive(values[name][chosen], how) for name, how in select]
        assert [(answer.tags, answer.time_ns) for answer in found] == sorted(wanted)
        for answer in found:
            assert same(answer.values, wanted[answer.tags, answer.time_ns]), answer

    async def test_bounds_are_from_and_before(self, history: Store) -> None:
        begin = begin_ns()
        times = begin + np.arange(4) * MINUTE_NS
        await history.write([vm_points({"cpu_cores": np.arange(4.0)}, times, ["a"] * 4)])
        found = await history.ask(
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", ""),),
                begin_ns=begin + MINUTE_NS,
                end_ns=begin + 3 * MINUTE_NS,
            )
        )
        assert [answer.values for answer in found] == [(1.0,), (2.0,)]

    async def test_tags_choose_and_tell_apart(self, history: Store) -> None:
        begin = begin_ns()
        series = Series(
            {"vm": ["a", "a", "b", ""], "cell": ["x", "y", "x", "x"], "node": ["n"] * 4}
        )
        values = {"cpu_cores": np.array([1.0, 2.0, 4.0, 8.0])}
        await history.write([Points.of("flatline_vm", series, [begin] * 4, values)])
        found = await history.ask(
            Query(
                measurement="flatline_vm",
                select=(("cpu_cores", "sum"),),
                begin_ns=begin,
                end_ns=begin + 1,
                where={"cell": "x"},
                group_by=("vm",),
            )
        )
        assert [(answer.tags, answer.values) for answer in found] == [
            (("",), (8.0,)),
            (("a",), (1.0,)),
            (("b",), (4.0,)),
        ]

    async def test_what_was_never_written_has_no_answer(self, history: Store) -> None:
        begin = begin_ns()
        assert (
            await history.ask(
                Query(
                    measurement="flatline_node_1h",
                    select=(("cpu_busy_ratio_p95", "max"),),
                    begin_ns=begin,
                    end_ns=begin + MINUTE_NS,
                    group_by=("node",),
                )
            )
            == []
        )

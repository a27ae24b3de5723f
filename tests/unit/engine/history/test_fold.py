"""Unusual frames become a correct row or none, and never another VM's."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from flatline.engine.history.history_fold import FrameFold
from flatline.engine.ports import Record
from flatline.engine.wire.frame import Frame, InventoryItem, decode_frame
from flatline.engine.wire.metrics import INTEGER_ROW
from flatline.engine.wire.points import MISSING, Points
from tests.unit.engine.fleet_by_hand import EPOCH_MS, Fleet, Machine, uuid_of


def folded(fold: FrameFold, frames: Iterable[Frame]) -> Iterator[Points]:
    for frame in frames:
        yield from fold.fold(frame, time_ms=frame.header.event_time_ns // 1_000_000)


def named(records: Iterable[Record], names: dict[str, str]) -> Iterator[Frame]:
    """Add an inventory with the machines' names to the frames."""
    reported = tuple(InventoryItem(vm=uuid_of(key), name=name) for key, name in names.items())
    for record in records:
        yield msgspec.structs.replace(decode_frame(record.value), inventory=reported)


def rows(points: Iterable[Points], measurement: str) -> list[dict[str, Any]]:
    return [
        {name: texts[row] for name, texts in one.series.tags.items()}
        | {name: column[row] for name, column in one.fields.items()}
        for one in points
        if one.measurement == measurement
        for row in range(len(one))
    ]


def test_a_renamed_vm_goes_on_under_its_uuid() -> None:
    fleet, fold = Fleet({"n0": [Machine("a")]}), FrameFold()
    before = list(folded(fold, named(fleet.run(2), {"a": "web"})))
    after = list(folded(fold, named(fleet.run(2), {"a": "shop"})))
    assert {row["domain_name"] for row in rows(before, "libvirt_cpu")} == {"web"}
    assert {row["domain_name"] for row in rows(after, "libvirt_cpu")} == {"shop"}
    minutes = rows(before, "flatline_vm") + rows(after, "flatline_vm")
    assert len({row["vm"] for row in minutes}) == 1
    # The rate continues across the new name.
    assert not np.isnan([row["cpu_cores"] for row in rows(after, "flatline_vm")]).any()


def test_a_vm_that_reuses_a_name_takes_nothing_over_from_the_one_before() -> None:
    fleet, fold = Fleet({"n0": [Machine("a", cpu_ns=9e15)]}), FrameFold()
    before = list(folded(fold, named(fleet.run(2), {"a": "web"})))
    fleet.nodes["n0"] = [Machine("b", cpu_ns=9e15 + 1e12)]
    after = list(folded(fold, named(fleet.run(2), {"b": "web"})))
    first, second = rows(before, "libvirt_cpu"), rows(after, "libvirt_cpu")
    assert {row["domain_name"] for row in first + second} == {"web"}
    assert {row["vm"] for row in first}.isdisjoint(row["vm"] for row in second)
    cores = [row["cpu_cores"] for row in rows(after, "flatline_vm") if row["vm"] == second[0]["vm"]]
    assert np.isnan(cores[0])
    assert np.allclose(cores[1:], 0.5)


def test_a_counter_beyond_int64_is_left_out_alone_and_counted() -> None:
    fleet, fold = Fleet({"n0": [Machine("a"), Machine("b")]}), FrameFold()
    frame = decode_frame(fleet.frame("n0").value)
    frame.rows.integers[INTEGER_ROW["cpu_time_ns"], 1] = 2**63
    found = rows(fold.fold(frame, time_ms=EPOCH_MS), "libvirt_cpu")
    assert [row["cpu_time"] == MISSING for row in found] == [False, True]
    assert fold.beyond_int64 == 1

"""An impossible state of forecaster or historian counts as damaged, for any error in it."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from flatline.engine.errors import SnapshotDamaged
from flatline.engine.forecasting.forecast_state import StateValue, restore_state, take_state
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.history import history_state as historian
from flatline.engine.history.history_fold import FrameFold
from flatline.engine.stream.snapshot_format import packed, unpacked
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.stored import Array, array_of, stored
from flatline.models.forecaster import Forecaster
from flatline.models.kernels import forecast_row
from tests.unit.engine.fleet_by_hand import Fleet, Machine

Arrays = dict[str, Array]
Harm = Callable[[dict[str, Any], Arrays], None]


def told() -> StateValue:
    """Return a forecaster's state of two VMs."""
    state = PartitionForecasts()
    for record in Fleet({"n0": [Machine("a"), Machine("b", cores=1.0)]}).run(40):
        state.fold(record)
    return msgspec.msgpack.decode(unpacked(*take_state(state)), type=StateValue)


def shaped(name: str, *shape: int) -> Harm:
    return lambda demand, forecaster: demand.update({name: stored(np.zeros(shape))})


def fewer_series(demand: dict[str, Any], forecaster: Arrays) -> None:
    forecaster["state"] = stored(array_of(forecaster["state"])[:-1])


def narrow(demand: dict[str, Any], forecaster: Arrays) -> None:
    forecaster["state"] = stored(array_of(forecaster["state"])[:, :-1])


def other_step(demand: dict[str, Any], forecaster: Arrays) -> None:
    forecaster["steps"] = stored(np.array([7, 1], np.int64))


def no_state(demand: dict[str, Any], forecaster: Arrays) -> None:
    del forecaster["state"]


@pytest.mark.parametrize(
    "harm",
    [shaped("counters", 1, 1), shaped("vcpus", 9), fewer_series, narrow, other_step, no_state],
)
def test_a_forecaster_s_array_that_does_not_fit_is_damage(harm: Harm) -> None:
    value = told()
    harm(value.nodes[0].demand, value.nodes[0].forecaster)
    taken = packed(msgspec.msgpack.encode(value), next_offset=7, time_ms=0)
    with pytest.raises(SnapshotDamaged, match="an older one is used instead"):
        restore_state(*taken)


@pytest.mark.parametrize("field", [forecast_row.STATE, forecast_row.CELL])
@pytest.mark.parametrize("place", [-1.0, 1e6, np.nan])
def test_a_forecast_that_waits_names_no_place_outside_its_row(field: int, place: float) -> None:
    forecaster = Forecaster(1, step_s=60)
    for step in range(1, 40):
        forecaster.fold(np.array([1.0]), step)
    assert Forecaster.from_arrays(forecaster.to_arrays()).number == 39
    start = forecaster.plan.start[0]
    forecaster.state[0, start + forecast_row.NEAR_COUNT + field] = place
    with pytest.raises(ValueError, match="names an index that is not below"):
        Forecaster.from_arrays(forecaster.to_arrays())


@pytest.mark.parametrize("field", ["instances", "device_sets", "before", "uuids", "windows"])
def test_a_historian_s_array_that_does_not_fit_is_damage(field: str) -> None:
    fold = FrameFold()
    for record in Fleet({"n0": [Machine("a"), Machine("b")]}).run(3):
        list(fold.fold(decode_frame(record.value), time_ms=record.time_ms))
    fold.next_offset = 7
    value = historian._decoder.decode(unpacked(*historian.take_state(fold)))
    index = value.node_states[0]
    harmed: Any = bytes(8) if field != "windows" else ((0, bytes(8)), *index.windows[1:])
    index = msgspec.structs.replace(index, **{field: harmed})
    value = msgspec.structs.replace(value, node_states=(index,))
    taken = packed(msgspec.msgpack.encode(value), next_offset=7, time_ms=0)
    with pytest.raises(SnapshotDamaged, match="an older one is used instead"):
        historian.restore(*taken)

"""The forecaster's loop in addition to the pure partition; on a loop of `virtual_time`."""

import asyncio
from contextlib import suppress

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.forecasting.forecast_state import digest
from flatline.engine.forecasting.partition_forecasts import PartitionForecasts
from flatline.engine.roles.forecasting import ForecastConfig, Foreteller
from flatline.engine.roles.health import Health
from flatline.engine.stream.snapshot_store import stored_snapshots
from flatline.engine.wire.topics import FORECASTER, FORECASTS, FRAMES, SNAPSHOTS
from tests.unit.engine.fleet_by_hand import EPOCH_MS, Fleet, Machine

CONFIG = ForecastConfig(group="flatline-forecast", snapshot_every_s=300.0)


class Running:
    def __init__(self, log, clock):
        self.role = Foreteller(log=log, config=CONFIG, clock=clock, health=Health(clock))
        self.task = asyncio.create_task(self.role.run())

    async def folded(self, end):
        for _ in range(1000):
            if self.role.partitions and self.role.partitions[0].next_offset >= end:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not folded up to {end}")

    async def kill(self):
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def played(scene):
    async def play():
        clock = LoopClock(epoch_ms=EPOCH_MS)
        async with EmbeddedLog(EmbeddedConfig(partitions=1), clock=clock) as log:
            await scene(log, clock)

    virtual_time.run(play())


async def append(log, records):
    for record in records:
        await log.append(FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms)


def records_of(minutes):
    return Fleet({"n0": [Machine("a"), Machine("b", cores=1.0)]}).run(minutes)


def test_killed_forecaster_goes_on_and_publishes_the_same_values():
    records = records_of(40)
    whole = PartitionForecasts()
    expected = [output.value for record in records for output in whole.fold(record)]

    async def scene(log, clock):
        await append(log, records[:60])
        first = Running(log, clock)
        await first.folded(60)
        assert await stored_snapshots(log, 0, group=CONFIG.group, topic=FORECASTER, offset=0)
        # If size decided the retention, these would displace the engine's.
        assert not await log.read_to_end(SNAPSHOTS.name, 0, offset=0)
        await first.kill()
        await append(log, records[60:])
        second = Running(log, clock)
        await second.folded(len(records))
        assert digest(second.role.partitions[0]) == digest(whole)
        await second.kill()
        stored = [one.value for one in await log.read_to_end(FORECASTS.name, 0, offset=0)]
        # A kill leads to repetitions, but loses nothing.
        assert set(stored) == set(expected)

    played(scene)


def test_a_damaged_generation_is_passed_over_for_the_one_before():
    records = records_of(30)

    async def scene(log, clock):
        first = Running(log, clock)
        for end in (30, 60, len(records)):
            await append(log, records[end - 30 : end])
            await first.folded(end)
        await first.kill()
        kept = await stored_snapshots(log, 0, group=CONFIG.group, topic=FORECASTER, offset=0)
        assert len(kept) >= 2
        newest = kept[0].record.value
        # A generation whose chunks never arrived: only its manifest is in the log.
        await log.append(
            FORECASTER.name,
            key=b"manifest",
            value=newest,
            headers=(("group", CONFIG.group.encode()), ("generation", b"torn"), ("index", b"9")),
            partition=0,
        )
        second = Running(log, clock)
        await second.folded(len(records))
        assert second.role.partitions[0].time_ms == records[-1].time_ms
        await second.kill()

    played(scene)

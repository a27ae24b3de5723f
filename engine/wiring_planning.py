"""The wiring of what planners read: what the forecaster is given.

A part of `engine.wiring`, which would be too long with it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.roles.run import Opener, Role
from engine.wiring import Connect, Process


def forecast_opener(process: Process, connect: Connect) -> Opener:
    """Return what opens the forecaster, with all cells whose partitions fall to it."""
    from engine.roles.forecast import ForecastConfig, Foreteller

    forecast = process.settings.forecast
    config = ForecastConfig(group=forecast.group, snapshot_every_s=forecast.snapshot_every_s)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        async with connect() as log:
            health = process.health.of("forecast")
            yield Foreteller(log=log, config=config, clock=process.clock, health=health)

    return opened

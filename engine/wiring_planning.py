"""Wires the inputs of planners: the forecaster, and the usage snapshot from the history.

Split from `engine.wiring`, which would be too long with it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flatline.engine.capacity.report import Report
from flatline.engine.capacity.usage_from_history import capacity_points, usage_of, usage_queries
from flatline.engine.capacity.usage_snapshot import UsageSnapshot
from flatline.engine.errors import RecordRejected
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.kernel_cache import compile_kept
from flatline.engine.ports import Log
from flatline.engine.roles.run import Opener, Role
from flatline.engine.settings import Settings
from flatline.engine.wire.frame import decode_frame
from flatline.engine.wire.topics import FRAMES
from flatline.engine.wiring import Connect, Process, frame_opener, kernel_folder, state_keys
from flatline.engine.wiring_history import open_history, open_queries


def compile_forecaster(settings: Settings | None = None) -> None:
    """Compile the forecaster's kernels, or load them from the kernel cache.

    A compilation takes seconds and blocks the calling thread. `settings` are as in
    `compile_engine`.
    """
    from flatline.engine.forecasting.partition_forecasts import compile_kernels

    compile_kept(compile_kernels, kernel_folder(settings) / "forecast")


def forecast_opener(process: Process, connect: Connect, frames: FrameKeyring) -> Opener:
    """Return the opener of the forecaster, with all cells whose partitions are assigned to it.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        There is no site key to check frames with; or the key that signs its state cannot be
        created, can be read by other users or is not a valid key.
    """
    from flatline.engine.roles.forecasting import ForecastConfig, Foreteller

    forecast = process.settings.forecast
    config = ForecastConfig(group=forecast.group, snapshot_every_s=forecast.snapshot_every_s)
    open_frame = frame_opener(process, frames, reader="forecaster")
    keys = state_keys(process.settings, process.clock)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        # The kernels are compiled before the forecaster joins its group, or loaded if an earlier
        # start has compiled them.
        compile_forecaster(process.settings)
        async with connect() as log:
            health = process.health.of("forecast")
            yield Foreteller(
                log=log,
                config=config,
                clock=process.clock,
                health=health,
                open_frame=open_frame,
                state_keys=keys,
            )

    return opened


# Number of records that are read from the end of each partition. All nodes report within seconds,
# so these contain frames of every cell.
_LATEST_FRAMES = 1_000


async def usage_from_history(process: Process, log: Log) -> UsageSnapshot:
    """Return the usage snapshot of the history; the zone of each cell is from its latest frames.

    Raises
    ------
    HistoryError, LogError
        The history or the log cannot be read.
    SettingsError
        The store of the history cannot be queried.
    """
    asked = usage_queries(now_s=process.clock.now_ms() // 1000)
    async with open_queries(process) as history:
        answers = {name: await history.ask(query) for name, query in asked.items()}
    zones: dict[str, str] = {}
    for partition in range(log.partitions(FRAMES.name)):
        bounds = await log.bounds(FRAMES.name, partition)
        start = max(bounds.earliest, bounds.end - _LATEST_FRAMES)
        for record in await log.read_to_end(FRAMES.name, partition, offset=start):
            try:
                header = decode_frame(record.value).header
            except RecordRejected:
                continue  # the engine counts and reports rejected records
            if header.role == "collector":
                zones[header.cell] = header.zone
    return usage_of(answers, zones=zones)


async def store_report(process: Process, found: Report) -> int:
    """Write a report's lines to the history, and return the number of lines that it accepted.

    Raises
    ------
    HistoryError
        It cannot be written.
    """
    points = capacity_points(found, time_s=process.clock.now_ms() // 1000)
    async with open_history(process) as history:
        refused = await history.write([points])
    return len(points) - len(refused)

"""Wires the history: the store that settings name, and the input of the historian.

Split from `engine.wiring`, which would be too long with it.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from flatline.engine.errors import SettingsError
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.keyring import keep_secret
from flatline.engine.ports import HistoryQuery, HistorySink
from flatline.engine.roles.run import Opener, Role
from flatline.engine.settings import Settings
from flatline.engine.wire.measurement import DAY_S, Bucket
from flatline.engine.wiring import Connect, Process, frame_opener, state_keys

if TYPE_CHECKING:
    from flatline.connectors.influxdb.config import InfluxConfig


def open_history(process: Process) -> AbstractAsyncContextManager[HistorySink]:
    """Return the store of the history as a context manager; settings choose it."""
    settings = process.settings
    if settings.history.kind == "embedded":
        from flatline.connectors.parquet.history import ParquetHistory

        return ParquetHistory(
            settings.history_folder, clock=process.clock, retention_s=retention_of(settings)
        )
    from flatline.connectors.influxdb.history import InfluxHistory
    from flatline.models.codecs.lines import write_lines

    return InfluxHistory(influx_config(settings), write_lines=write_lines)


@asynccontextmanager
async def open_queries(process: Process) -> AsyncIterator[HistoryQuery]:
    """Open the store of the history to query it.

    Raises
    ------
    SettingsError
        The store cannot be queried.
    """
    async with open_history(process) as store:
        if not isinstance(store, HistoryQuery):
            kind = process.settings.history.kind
            raise SettingsError(
                f"history.kind is {kind!r}, which answers no queries: read the history where"
                " that store puts it."
            )
        yield store


def retention_of(settings: Settings) -> dict[Bucket, int]:
    """Return the retention of each bucket in seconds."""
    history = settings.history
    return {
        "raw": history.raw_days * DAY_S,
        "minute": history.minute_days * DAY_S,
        "long": history.long_days * DAY_S,
    }


def influx_config(settings: Settings, *, token: str | None = None) -> "InfluxConfig":
    """Return the configuration of the InfluxDB adapter.

    `token` replaces the token in the file of the settings; None: the adapter reads that file.
    """
    from flatline.connectors.influxdb.config import InfluxConfig

    influx = settings.history.influxdb
    file = influx.token_file or settings.state.folder / "influxdb" / "historian.token"
    return InfluxConfig(
        url=influx.url,
        org=influx.org,
        database=influx.database,
        token=token,
        token_file=None if token else file,
        ca_file=influx.ca_file,
        timeout_s=influx.timeout_s,
        retention_s=retention_of(settings),
    )


def set_up_history(settings: Settings, *, admin_token: str) -> tuple[str, ...]:
    """Create the storage for the history, and return one sentence for each created object.

    Raises
    ------
    HistoryError
        InfluxDB does not answer, or the token lacks the rights.
    StateUnwritable
        The tokens cannot be saved.
    """
    if settings.history.kind == "embedded":
        return ()  # its folders are created with the first row
    from flatline.connectors.influxdb.setup import set_up

    made = set_up(influx_config(settings, token=admin_token))
    folder = settings.state.folder / "influxdb"
    tokens = {
        settings.history.influxdb.token_file or folder / "historian.token": made.historian,
        folder / "planner.token": made.planner,
    }
    kept = [f"{path} holds its token." for path, text in tokens.items() if keep_secret(path, text)]
    return (*made.done, *kept)


def history_opener(process: Process, connect: Connect, frames: FrameKeyring) -> Opener:
    """Return the opener of the historian.

    Raises
    ------
    SettingsError, StateUnwritable, KeyDamaged
        There is no site key to check frames with; or the key that signs its state cannot be
        created, can be read by other users or is not a valid key.
    """
    from flatline.engine.roles.record import RecordConfig, Recorder

    history = process.settings.history
    # Rows are gathered for 30 s where each write makes a Parquet file, because many files make
    # queries slow. InfluxDB gets a request every 2 s.
    config = RecordConfig(group=history.group, gather_s=30.0 if history.kind == "embedded" else 2.0)

    open_frame = frame_opener(process, frames, reader="historian", compiled=False)
    keys = state_keys(process.settings, process.clock)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        if history.kind == "embedded":
            from flatline.connectors.parquet.files import require_writable

            require_writable(process.settings.history_folder)
        async with connect() as log, open_history(process) as store:
            yield Recorder(
                log=log,
                history=store,
                config=config,
                clock=process.clock,
                health=process.health.of("history"),
                open_frame=open_frame,
                state_keys=keys,
            )

    return opened

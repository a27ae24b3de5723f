"""The loop of the forecaster: frames in, forecasts out, and its own state.

The forecaster has its own consumer group and process. No other role waits for it, and it may be
down for as long as the log keeps frames. If it is killed, its successor may repeat forecasts, with
the same values (`engine.stream.consumer`).
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from flatline.engine import instruments
from flatline.engine.forecasting.forecast_state import restore_state, take_state
from flatline.engine.forecasting.partition_forecasts import (
    Output,
    PartitionForecasts,
    compile_kernels,
    decoded,
)
from flatline.engine.ports import Clock, Log, OpenFrame
from flatline.engine.roles.appending import append_or_give_up
from flatline.engine.roles.health import Health
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.stream.consumer import Consumer, Saving
from flatline.engine.wire.topics import FORECASTER, FRAMES

_MAX_RECORDS: Final = 200
_POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class ForecastConfig:
    """The configuration of the forecaster.

    Attributes
    ----------
    group
        Members of one group share the partitions.
    snapshot_every_s
        Append time between two generations (snapshots) of one partition.
    """

    group: str
    snapshot_every_s: float


class Foreteller:
    """Forecasts the partitions assigned to it, until cancelled.

    Parameters
    ----------
    open_frame
        Verifies the writer of a frame and decodes it; the default trusts every writer, for tests.
    state_keys
        Signs the state and decides which states are trusted; None trusts every writer, for tests.
    """

    def __init__(
        self,
        *,
        log: Log,
        config: ForecastConfig,
        clock: Clock,
        health: Health,
        open_frame: OpenFrame = decoded,
        state_keys: StateKeys | None = None,
    ) -> None:
        self._log = log
        self._config = config
        self._health = health
        self._consumer: Consumer[PartitionForecasts, list[Output]] = Consumer(
            log,
            role="forecaster",
            saving=Saving(
                new=PartitionForecasts,
                take=take_state,
                restore=restore_state,
                group=config.group,
                topic=FORECASTER,
                every_s=config.snapshot_every_s,
                keys=state_keys,
            ),
            step=PartitionForecasts.fold,
            open_frame=open_frame,
        )

    @property
    def partitions(self) -> dict[int, PartitionForecasts]:
        """State of the partitions assigned now, by number."""
        return self._consumer.states

    async def run(self) -> None:
        """Forecast until cancelled.

        Raises
        ------
        LogError
            The log refused or was lost; the caller opens the role again.
        SnapshotTooNew
            A later release wrote the newest state.
        """
        # Kernels compile before the role joins its group: during the first frame, compilation could
        # take longer than the session timeout of the group.
        compile_kernels()
        async with self._log.subscribe(FRAMES.name, group=self._config.group) as subscription:
            while True:
                delivery = await subscription.poll(max_records=_MAX_RECORDS, wait_s=_POLL_S)
                await self._consumer.assign(delivery)
                for record in delivery.records:
                    for output in await self._consumer.fold(record) or ():
                        if await append_or_give_up(
                            self._log, output.topic, key=output.key, value=output.value
                        ):
                            instruments.FORECASTS.inc()
                await self._consumer.save_due(subscription)
                self._health.progress("forecast")
                # Appends may return without waiting; probes and other roles must get their turn.
                await asyncio.sleep(0)

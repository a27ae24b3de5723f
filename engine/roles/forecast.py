"""The loop of the forecaster: frames in, forecasts out, and its own state.

It has its own group and process: no other role waits for it, and it may be down for as long as the
log keeps frames. The results of a record are in the log before a snapshot says that the record was
folded; a kill repeats forecasts, with the same values.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

import structlog

from engine.forecasting.foretell import Foretelling, Output, compile_kernels, decoded
from engine.forecasting.foretell_state import restore_state, take_state
from engine.ports import Clock, Delivery, Log, OpenFrame, Record, Subscription
from engine.roles import instruments
from engine.roles.appending import append_or_give_up
from engine.roles.generations import StateKeys, append_generation, newest_state
from engine.roles.health import Health
from engine.roles.refolding import Refolding
from engine.wire.topics import FORECASTER, FRAMES

_MAX_RECORDS: Final = 200
_POLL_S: Final = 0.5

_log = structlog.get_logger()


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


@dataclass(slots=True)
class _Held:
    """One partition that is assigned to this process now."""

    state: Foretelling
    saved_ms: int
    generations: list[int] = field(default_factory=list)


class Foreteller:
    """Forecasts the partitions assigned to it, until cancelled.

    Parameters
    ----------
    open_frame
        Verifies the writer of a frame and decodes it; the default trusts every writer, for tests.
    state_keys
        Sign the state and say which states are trusted; None trusts every writer, for tests.
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
        self._state_keys = state_keys
        self._open_frame = open_frame
        self._config = config
        self._clock = clock
        self._health = health
        self._held: dict[int, _Held] = {}
        self._generation = -1
        self._refolding: Refolding[Foretelling, list[Output]] = Refolding(
            log, "forecaster", self._load, Foretelling.fold
        )

    @property
    def partitions(self) -> dict[int, Foretelling]:
        """State of the partitions assigned now, by number."""
        return {number: held.state for number, held in self._held.items()}

    async def run(self) -> None:
        """Forecast until cancelled.

        Raises
        ------
        LogError
            The log refused or was lost; the caller opens the role again.
        SnapshotTooNew
            A later release wrote the newest state.
        """
        # At the first frame, compilation could take longer than the session timeout of the group.
        compile_kernels()
        async with self._log.subscribe(FRAMES.name, group=self._config.group) as subscription:
            while True:
                delivery = await subscription.poll(max_records=_MAX_RECORDS, wait_s=_POLL_S)
                await self._assign(delivery)
                for record in delivery.records:
                    held = self._held.get(record.partition)
                    if held is None:
                        continue
                    for output in await self._fold(held, record):
                        if await append_or_give_up(
                            self._log, output.topic, key=output.key, value=output.value
                        ):
                            instruments.FORECASTS.inc()
                    held.saved_ms = held.saved_ms or held.state.time_ms
                await self._save_due(subscription)
                self._health.progress("forecast")
                # Appends may return without waiting; probes and other roles must get their turn.
                await asyncio.sleep(0)

    async def _fold(self, held: _Held, record: Record) -> list[Output]:
        """Fold a record, without the parts that failed twice."""
        held.state, outputs = await self._refolding.fold(held.state, record)
        return outputs

    async def _assign(self, delivery: Delivery) -> None:
        """Hold exactly the assigned partitions; the state of a lost one may be stale."""
        if delivery.generation != self._generation:
            self._generation = delivery.generation
            self._held.clear()
        for number in self._held.keys() - delivery.assigned:
            del self._held[number]
        for number in sorted(delivery.assigned - self._held.keys()):
            state = await self._load(number)
            offsets = [state.next_offset] if state.next_offset else []
            self._held[number] = _Held(state, state.time_ms, offsets)

    async def _load(self, number: int) -> Foretelling:
        state = await newest_state(
            self._log,
            number,
            group=self._config.group,
            topic=FORECASTER,
            restore=restore_state,
            keys=self._state_keys,
        )
        if state is None:
            state = Foretelling()
            state.open_frame = self._open_frame
            return state
        state.open_frame = self._open_frame
        _log.info(
            "The forecaster continues from its saved state.",
            partition=number,
            next_offset=state.next_offset,
        )
        return state

    async def _save_due(self, subscription: Subscription) -> None:
        every_ms = self._config.snapshot_every_s * 1000
        for number, held in self._held.items():
            if held.saved_ms and held.state.time_ms - held.saved_ms >= every_ms:
                await self._save(subscription, number, held)

    async def _save(self, subscription: Subscription, number: int, held: _Held) -> None:
        """Write one whole generation, then let a successor start at the one before it."""
        taken = take_state(held.state)
        # After a failure the next attempt is at the next due time.
        held.saved_ms = held.state.time_ms
        if not await append_generation(
            self._log,
            number,
            group=self._config.group,
            generation=taken.name,
            chunks=taken.chunks,
            manifest=taken.manifest,
            topic=FORECASTER,
            keys=self._state_keys,
        ):
            return
        held.generations = [*held.generations[-1:], held.state.next_offset]
        if len(held.generations) == 2:
            await subscription.commit({number: held.generations[0]})

"""The collector: one bulk sample of a node per interval, sent to the log as frames.

Two loops run without waiting for each other. One samples at a fixed interval and puts frames into a
bounded buffer. The other appends the buffered frames to the log, in order. Dropped frames are
counted, and the next frame reports them. The collector judges nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from flatline.engine import instruments
from flatline.engine.errors import (
    HypervisorUnreachable,
    LogProducerBroken,
    LogUnreachable,
    RecordTooLarge,
)
from flatline.engine.ports import Clock, Hypervisor, Log, NodeSample, SignFrame
from flatline.engine.roles.framing import (
    Buffer,
    CollectConfig,
    Content,
    EncodedFrame,
    InventoryChanges,
    Source,
)
from flatline.engine.roles.health import Health, as_sentence
from flatline.engine.roles.opening import unsigned
from flatline.engine.stream.backoff import Backoff
from flatline.engine.wire.frame import Event, InventoryItem, VmRows
from flatline.engine.wire.topics import FRAMES

# A node with thousands of VMs needs seconds for one bulk call. A hypervisor that has not answered
# for this time, and for nine tenths of an interval, counts as unreachable until it answers.
PATIENCE_S: Final = 5.0
# A hypervisor or log that restarts is available again within seconds. One that stays unreachable is
# tried every 10 s, which costs almost nothing.
_FIRST_BACKOFF_S: Final = 1.0
_LAST_BACKOFF_S: Final = 10.0
# How long to flush the buffer to the log at the end of the process. systemd kills after 90 s, and a
# person who stops a collector waits for it.
LEAVE_S: Final = 5.0
# Time synchronisation moves a wall clock by milliseconds all the time; only a larger step back is
# reported.
WALL_SLACK_NS: Final = 1_000_000_000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer of the hypervisor: a sample, and the inventory if it was due."""

    sample: NodeSample
    inventory: tuple[InventoryItem, ...] | None


class Collector:
    """Samples one node and sends its frames to the log, until cancelled.

    Parameters
    ----------
    hypervisor
        The node, opened.
    connect
        Opens the log; called again after the log failed. Entering it may raise `LogUnreachable`:
        then sampling continues, and the log is tried again later.
    run
        Names this run of the process: sequence numbers count within it.
    sign
        Signs a frame when it is sent, so that a delayed frame is signed with the current key.
    """

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        connect: Callable[[], AbstractAsyncContextManager[Log]],
        config: CollectConfig,
        clock: Clock,
        health: Health,
        run: str,
        sign: SignFrame = unsigned,
    ) -> None:
        self._sign = sign
        self._hypervisor = hypervisor
        self._connect = connect
        self._config = config
        self._clock = clock
        self._health = health
        self._run = run
        self._buffer = Buffer(config)
        self._source = Source(config, run)
        self._inventory = InventoryChanges(config.inventory_every_s)
        self._pending: asyncio.Task[_Answer] | None = None
        self._asked_ns = 0
        self._retry_ns = 0
        self._backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        self._reachable: bool | None = None
        self._reported_lost = False
        self._last_wall_ns = 0
        self._dropped_total = 0

    async def run(self) -> None:
        """Sample and send until cancelled; then flush the buffer to the log, for a limited time.

        Raises
        ------
        LogRefused
            The log does not accept frames from this principal; waiting does not help.
        """
        self._health.expect("hypervisor")
        self._health.expect("log")
        sampling = asyncio.create_task(self._sample_for_ever(), name="collect: sampling")
        sending = asyncio.create_task(self._send_for_ever(), name="collect: sending")
        try:
            # Neither task ends by itself; if one does, it raised an error.
            await asyncio.wait({sampling, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sampling.cancel()
            if self._pending is not None:
                self._pending.cancel()
            self._buffer.close()
            await asyncio.wait({sampling, sending}, timeout=LEAVE_S)
            if not sending.done():
                _log.warning(
                    "The collector stops with frames that did not reach the log.",
                    node=self._config.node,
                    frames=len(self._buffer),
                )
                sending.cancel()
                await asyncio.wait({sending})
        for task in (sampling, sending):
            if not task.cancelled():
                task.result()

    async def _sample_for_ever(self) -> None:
        interval_ns = round(self._config.interval_s * 1e9)
        due_ns = self._clock.mono_ns()
        while True:
            await self._sample(due_ns)
            due_ns += interval_ns
            behind_ns = self._clock.mono_ns() - due_ns
            if behind_ns > 0:
                # Slots that have passed are skipped. If they were sampled late, two samples would
                # follow each other quickly, and their rates would span less than the interval.
                missed = behind_ns // interval_ns + 1
                instruments.SLOTS_MISSED.labels(self._config.node).inc(missed)
                due_ns += missed * interval_ns
            await asyncio.sleep((due_ns - self._clock.mono_ns()) / 1e9)

    async def _sample(self, due_ns: int) -> None:
        """Put the frames of one slot into the buffer; none while a slow answer is awaited."""
        node = self._config.node
        now_ns = self._clock.mono_ns()
        instruments.LATE_SECONDS.labels(node).observe(max(0.0, (now_ns - due_ns) / 1e9))
        sample = await self._observe(now_ns)
        if sample is not None:
            instruments.SAMPLE_SECONDS.labels(node).observe((self._clock.mono_ns() - now_ns) / 1e9)
            self._put(self._content(sample))
        elif self._reachable is False:
            instruments.SLOTS_MISSED.labels(node).inc()
            self._put(self._blind())
        else:
            instruments.SLOTS_MISSED.labels(node).inc()

    async def _observe(self, now_ns: int) -> _Answer | None:
        """Return the answer of the hypervisor, None if there is none in this slot.

        A call that takes longer than the slot continues in its own task. No second call is started
        while it runs, and the times of the following slots do not shift.
        """
        if self._pending is None:
            if now_ns < self._retry_ns:
                return None
            self._asked_ns = now_ns
            self._pending = asyncio.create_task(self._ask(), name="collect: sample")
        # The wait is shorter than the interval: an answer at its very end would delay the next
        # slot.
        await asyncio.wait({self._pending}, timeout=0.9 * self._config.interval_s)
        if not self._pending.done():
            waited_s = (self._clock.mono_ns() - self._asked_ns) / 1e9
            if waited_s > max(PATIENCE_S, 0.9 * self._config.interval_s):
                self._lost(f"The hypervisor has not answered for {waited_s:.0f} s.")
            return None
        task, self._pending = self._pending, None
        try:
            sample = task.result()
        except HypervisorUnreachable as error:
            pause_s = self._backoff.failed()
            self._retry_ns = self._clock.mono_ns() + round(pause_s * 1e9)
            self._lost(f"{as_sentence(error)} Retrying in {pause_s:.0f} s.")
            return None
        self._found()
        return sample

    async def _ask(self) -> _Answer:
        sample = await self._hypervisor.sample()
        due = self._inventory.due(sample.rows.uuids, now_ns=self._clock.mono_ns())
        return _Answer(sample, await self._hypervisor.inventory() if due else None)

    def _lost(self, sentence: str) -> None:
        self._reachable = False
        instruments.HYPERVISOR_REACHABLE.labels(self._config.node).set(0)
        self._health.waiting("hypervisor", sentence)

    def _found(self) -> None:
        if self._reachable is False:
            self._inventory.forget()
        self._reachable = True
        self._retry_ns = 0
        self._backoff.worked()
        instruments.HYPERVISOR_REACHABLE.labels(self._config.node).set(1)
        self._health.progress("hypervisor")

    def _content(self, answer: _Answer) -> Content:
        sample = answer.sample
        self._check_wall(sample.event_time_ns)
        return Content(
            event_time_ns=sample.event_time_ns,
            mono_ns=sample.mono_ns,
            rows=sample.rows,
            node={"hypervisor_reachable": 1.0, **sample.node},
            inventory=self._inventory.changed(answer.inventory, now_ns=self._clock.mono_ns()),
            pools=sample.pools,
        )

    def _blind(self) -> Content:
        """Return content without VMs, which reports that the hypervisor does not answer."""
        return Content(
            event_time_ns=self._wall_ns(),
            mono_ns=self._clock.mono_ns(),
            rows=VmRows.empty(),
            node={"hypervisor_reachable": 0.0},
        )

    def _put(self, content: Content) -> None:
        now_ns = self._clock.mono_ns()
        if dropped := self._buffer.make_room(now_ns=now_ns):
            # The dropped frames may have held the only copy of an inventory item, so the whole
            # inventory is sent again.
            self._inventory.forget()
            self._dropped_total += dropped
            self._note("frames_dropped", frames=dropped, frames_total=self._dropped_total)
        content.events += self._hypervisor.drain_events()
        self._report_reachability(content.events)
        content.events += self._source.drain()
        for encoded in self._source.frames(content, now_ns=now_ns):
            self._buffer.put(encoded)

    def _report_reachability(self, events: list[Event]) -> None:
        """Report the loss and return of the hypervisor, unless its own events report them."""
        for event in events:
            if event.kind in {"hypervisor_lost", "hypervisor_back"}:
                self._reported_lost = event.kind == "hypervisor_lost"
        if self._reachable is False and not self._reported_lost:
            self._note("hypervisor_lost")
        elif self._reachable and self._reported_lost:
            self._note("hypervisor_back")
        self._reported_lost = not self._reachable

    def _note(self, kind: str, **detail: int) -> None:
        texts = {name: str(value) for name, value in detail.items()}
        self._source.note(kind, time_ns=self._wall_ns(), detail=texts)

    def _wall_ns(self) -> int:
        return self._clock.now_ms() * 1_000_000

    def _check_wall(self, wall_ns: int) -> None:
        if wall_ns < self._last_wall_ns - WALL_SLACK_NS:
            _log.warning(
                "The wall clock of the node went back. Durations use the monotonic clock, so only "
                "the times in messages are affected.",
                node=self._config.node,
                back_s=round((self._last_wall_ns - wall_ns) / 1e9, 3),
            )
        self._last_wall_ns = wall_ns

    async def _send_for_ever(self) -> None:
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        while not self._buffer.finished():
            try:
                async with self._connect() as log:
                    self._health.progress("log")
                    backoff.worked()
                    await self._send(log)
            except (LogUnreachable, LogProducerBroken) as error:
                pause_s = backoff.failed()
                self._health.waiting("log", f"{as_sentence(error)} Retrying in {pause_s:.0f} s.")
                await asyncio.sleep(pause_s)

    async def _send(self, log: Log) -> None:
        """Append frames to `log` in order; return when the buffer is closed and empty."""
        config = self._config
        key = config.cell.encode()
        while (frame := await self._buffer.take()) is not None:
            try:
                headers = self._sign(key, frame.value)
                await log.append(FRAMES.name, key=key, value=frame.value, headers=headers)
            except RecordTooLarge as error:
                self._cut_smaller(frame, str(error))
                continue
            except BaseException:
                # The frame may be in the log or not, so it is sent again. A duplicate is harmless,
                # because the engine identifies a frame by its source and sequence.
                self._buffer.put_back(frame)
                raise
            self._health.progress("log")
            instruments.FRAMES_SENT.labels(config.node).inc()
            instruments.SAMPLES_SENT.labels(config.node).inc(frame.rows)

    def _cut_smaller(self, frame: EncodedFrame, why: str) -> None:
        """Split waiting frames into parts that the log accepts."""
        _log.warning(
            "The log rejects frames of this size. Frames are split into smaller ones from now on.",
            node=self._config.node,
            bytes=len(frame.value),
            reason=why,
        )
        # A frame that cannot be split is dropped and may have held the only copy of an inventory
        # item, so the whole inventory is sent again.
        self._inventory.forget()
        for piece in self._source.cut_smaller(frame, self._buffer.take_all()):
            self._buffer.put(piece)

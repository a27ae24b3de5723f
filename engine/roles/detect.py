"""The loop of the engine: frames in; alerts, scores and rejected records out; and snapshots.

The role never seeks in its input: the group starts at the offset of the older of two snapshots, and
records that the newer one already contains are skipped. The results of a record are in the log
before a snapshot says that the record was folded. A kill therefore repeats alerts (with the same
ids) and loses none.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import UNSET

from engine.detection.compiled import compile_kernels
from engine.detection.configuration import Configuration
from engine.detection.coverage import witnesses_of
from engine.detection.partition import Output, Partition, decoded
from engine.detection.snapshot import encode_manifest, take_snapshot
from engine.ports import Clock, Delivery, Log, OpenFrame, Record, SignFrame, Subscription
from engine.roles import instruments
from engine.roles.appending import append_or_give_up
from engine.roles.generations import StateKeys, append_generation, load
from engine.roles.health import Health
from engine.roles.opening import unsigned
from engine.roles.refolding import Refolding
from engine.wire.alert import WITNESSES, may_be_reset
from engine.wire.frame import Frame, Header, VmRows, encode_frame
from engine.wire.order import signed
from engine.wire.rejected import decode_rejected
from engine.wire.score import Scores
from engine.wire.topics import FRAMES, REJECTED

# The most records of one poll: a tenth of a second of work, so that ticks and probes are on time.
_MAX_RECORDS: Final = 200
_POLL_S: Final = 0.5
_TICK_CELL: Final = "-"
_TICK_KEY: Final = b"tick"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """The configuration of the engine.

    Attributes
    ----------
    node, run
        Name this process and this run of it: its ticks are a source of their own.
    group
        Members of one group share the partitions.
    snapshot_every_s
        Append time between two generations (snapshots) of one partition.
    tick_s
        An idle partition gets a tick (heartbeat) this often, so that silence is data; None writes
        none, for replays of records that contain their ticks.
    """

    site: str
    node: str
    run: str
    group: str = "engine"
    snapshot_every_s: float = 180.0
    tick_s: float | None = 1.0
    configuration: Configuration = field(default_factory=Configuration)


@dataclass(slots=True)
class _Held:
    """One partition that is assigned to this process now."""

    state: Partition
    heard_ns: int
    saved_ms: int
    generations: list[int] = field(default_factory=list)
    exported: dict[str, int] = field(default_factory=dict)


class Detector:
    """Folds and judges the partitions assigned to it, until cancelled.

    Parameters
    ----------
    open_frame
        Verifies the writer of a frame and decodes it; the default trusts every writer, for tests.
    sign
        Signs the ticks.
    key
        Signs alerts and scores; None leaves them unsigned, and planners reject them.
    state_keys
        Sign the snapshots and say which ones are trusted; None trusts every writer, for tests.

    Attributes
    ----------
    partitions
        State of the partitions assigned now, by number.
    """

    def __init__(
        self,
        *,
        log: Log,
        config: DetectConfig,
        clock: Clock,
        health: Health,
        open_frame: OpenFrame = decoded,
        sign: SignFrame = unsigned,
        key: Ed25519PrivateKey | None = None,
        state_keys: StateKeys | None = None,
    ) -> None:
        self._log = log
        self._open_frame = open_frame
        self._sign = sign
        self._key = key
        self._state_keys = state_keys
        self._config = config
        self._clock = clock
        self._health = health
        self._held: dict[int, _Held] = {}
        self._generation = -1
        self._ticks: dict[int, int] = {}
        self._heard: dict[str, tuple[int, list[tuple[str, ...]]]] = {}
        self._refolding: Refolding[Partition, list[Output]] = Refolding(
            log, "engine", self._load, Partition.fold
        )
        # A role may be reopened within one process; each time it is a new source.
        self._run = f"{config.run}.{clock.mono_ns():x}"

    @property
    def partitions(self) -> dict[int, Partition]:
        """State of the partitions assigned now, by number."""
        return {number: held.state for number, held in self._held.items()}

    async def run(self) -> None:
        """Detect until cancelled.

        Raises
        ------
        LogError
            The log refused or was lost; the caller opens the role again.
        SnapshotTooNew
            A later release wrote the newest snapshot.
        """
        compile_kernels()
        async with self._log.subscribe(FRAMES.name, group=self._config.group) as subscription:
            while True:
                delivery = await subscription.poll(max_records=_MAX_RECORDS, wait_s=_POLL_S)
                await self._assign(delivery)
                for record in delivery.records:
                    held = self._held.get(record.partition)
                    if held is not None:
                        await self._fold(held, record)
                await self._let_time_pass()
                await self._save_due(subscription)
                self._export()
                self._health.progress("engine")
                # Appends may return without waiting; probes and other roles must get their turn.
                await asyncio.sleep(0)

    async def _assign(self, delivery: Delivery) -> None:
        """Hold exactly the assigned partitions; the state of a lost one may be stale."""
        if delivery.generation != self._generation:
            self._generation = delivery.generation
            self._held.clear()
        for number in self._held.keys() - delivery.assigned:
            del self._held[number]
        for number in sorted(delivery.assigned - self._held.keys()):
            state = await self._load(number)
            self._held[number] = _Held(
                state=state,
                heard_ns=self._clock.mono_ns(),
                saved_ms=state.time_ms,
                generations=[state.next_offset] if state.next_offset else [],
                exported=_counts(state),
            )

    async def _fold(self, held: _Held, record: Record) -> None:
        held.heard_ns = self._clock.mono_ns()
        for output in await self._outputs(held, record):
            await self._append(output)
        if not held.saved_ms:
            held.saved_ms = held.state.time_ms

    async def _outputs(self, held: _Held, record: Record) -> list[Output]:
        """Fold a record, without the parts that failed twice; return its results."""
        held.state, outputs = await self._refolding.fold(held.state, record)
        return outputs

    async def _load(self, number: int) -> Partition:
        state = await load(
            self._log,
            number,
            group=self._config.group,
            configuration=self._config.configuration,
            keys=self._state_keys,
        )
        state.open_frame = self._open_frame
        return state

    async def _append(self, output: Output) -> None:
        headers = output.headers
        said = output.alert is not None or output.scores is not None
        if said and self._key is not None:
            headers += signed(output.value, self._key)
        await append_or_give_up(
            self._log, output.topic, key=output.key, value=output.value, headers=headers
        )
        if output.scores is not None:
            self._export_coverage(output.scores)
        if output.topic == REJECTED.name:
            reason = decode_rejected(output.value).reason
            instruments.RECORDS_REJECTED.labels(FRAMES.name, reason).inc()
        alert = output.alert
        if alert is None:
            return
        instruments.ALERTS.labels(alert.kind, alert.state).inc()
        _log.info(
            alert.sentence,
            vm=alert.subject if alert.scope == "vm" else None,
            node=alert.node,
            cell=alert.cell,
            incident=alert.id,
            kind=alert.kind,
            state=alert.state,
        )

    async def _let_time_pass(self) -> None:
        """Append a tick to each partition that was idle, so that replay needs no clock."""
        if self._config.tick_s is None:
            return
        now_ns = self._clock.mono_ns()
        for number, held in self._held.items():
            if now_ns - held.heard_ns < self._config.tick_s * 1e9:
                continue
            held.heard_ns = now_ns
            value = self._tick(number)
            await self._log.append(
                FRAMES.name,
                key=_TICK_KEY,
                value=value,
                headers=self._sign(_TICK_KEY, value),
                partition=number,
            )

    def _tick(self, number: int) -> bytes:
        sequence = self._ticks.get(number, 0)
        self._ticks[number] = sequence + 1
        header = Header(
            site=self._config.site,
            zone=_TICK_CELL,
            cell=_TICK_CELL,
            node=self._config.node,
            role="shell",
            run=self._run,
            sequence=sequence,
            event_time_ns=self._clock.now_ms() * 1_000_000,
            mono_ns=self._clock.mono_ns(),
            interval_ms=1000,
        )
        return encode_frame(Frame(header=header, rows=VmRows.empty()))

    async def _save_due(self, subscription: Subscription) -> None:
        every_ms = self._config.snapshot_every_s * 1000
        for number, held in self._held.items():
            if held.saved_ms and held.state.time_ms - held.saved_ms >= every_ms:
                await self._save(subscription, number, held)

    async def _save(self, subscription: Subscription, number: int, held: _Held) -> None:
        """Write one whole generation, then let a successor start at the one before it."""
        chunks, manifest = take_snapshot(held.state)
        # After a failure the next attempt is at the next due time.
        held.saved_ms = held.state.time_ms
        if not await append_generation(
            self._log,
            number,
            group=self._config.group,
            generation=manifest.generation,
            chunks=chunks,
            manifest=encode_manifest(manifest),
            keys=self._state_keys,
        ):
            return
        held.generations = [*held.generations[-1:], manifest.next_offset]
        if len(held.generations) == 2:
            await subscription.commit({number: held.generations[0]})
        instruments.SNAPSHOT_BYTES.labels(str(number)).set(sum(map(len, chunks)))

    def _export_coverage(self, scores: Scores) -> None:
        """Count the VMs of a cell by the witnesses that are available if they die."""
        heard = [witnesses_of(found) for found in scores.covered()[:, 0].tolist()]
        if scores.cell_vms is not UNSET:
            # A minute may take several records.
            minute_ms, others = self._heard.get(scores.cell, (0, []))
            heard = [*others, *heard] if minute_ms == scores.minute_ms else heard
            self._heard[scores.cell] = (scores.minute_ms, heard)
        for witness in WITNESSES:
            count = sum(witness in names for names in heard)
            instruments.WITNESSED_VMS.labels(scores.cell, witness).set(count)
        orderable = sum(may_be_reset(names) for names in heard)
        instruments.ORDERABLE_VMS.labels(scores.cell, "yes").set(orderable)
        instruments.ORDERABLE_VMS.labels(scores.cell, "no").set(len(heard) - orderable)

    def _export(self) -> None:
        for number, held in self._held.items():
            now = _counts(held.state)
            for name, count in now.items():
                grown = count - held.exported.get(name, 0)
                if grown > 0:
                    instruments.RECORDS.labels(name).inc(grown)
            held.exported = now
            instruments.WAITING_FRAMES.labels(str(number)).set(held.state.waiting())


def _counts(state: Partition) -> dict[str, int]:
    counters = state.counters
    return {
        "processed": counters.processed,
        "duplicate": counters.duplicate,
        "late": counters.late,
        "rejected": counters.rejected,
        "shed": counters.shed,
        "clock_backwards": counters.clock_backwards,
        "missing": counters.missing,
        "foreign": counters.foreign,
        "rival": counters.rival,
        "lost": state.lost,
    }

"""The loop of the engine: frames in; alerts, scores and rejected records out; and snapshots.

If the process is killed, its successor may repeat alerts, with the same ids. No alert is lost
(`engine.stream.consumer`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import UNSET

from flatline.engine import instruments
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.detection.configuration import CONTINUED, Configuration, configuration_hash
from flatline.engine.detection.coverage import witnesses_of
from flatline.engine.detection.partition import Output, Partition, decoded
from flatline.engine.detection.snapshot import restore, take_snapshot
from flatline.engine.errors import SnapshotDamaged
from flatline.engine.ports import Clock, Delivery, Log, OpenFrame, Record, SignFrame, Subscription
from flatline.engine.roles.appending import append_or_give_up
from flatline.engine.roles.health import Health
from flatline.engine.roles.opening import unsigned
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.stream.consumer import Consumer, Saving
from flatline.engine.stream.snapshot_format import Manifest
from flatline.engine.wire.alert import WITNESSES, may_be_reset
from flatline.engine.wire.frame import Frame, Header, VmRows, encode_frame
from flatline.engine.wire.order import signed
from flatline.engine.wire.rejected import decode_rejected
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import FRAMES, REJECTED, SNAPSHOTS

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
        Name this process and this run of it; together they identify the source of its ticks.
    group
        Members of one group share the partitions.
    snapshot_every_s
        Append time between two generations (snapshots) of one partition.
    tick_s
        An idle partition gets a tick (heartbeat) this often, so that the log clock advances during
        silence. None writes no ticks, for replays of records that already contain them.
    """

    site: str
    node: str
    run: str
    group: str = "engine"
    snapshot_every_s: float = 180.0
    tick_s: float | None = 1.0
    configuration: Configuration = field(default_factory=Configuration)


class Detector:
    """Folds and judges the partitions assigned to it, until cancelled.

    Parameters
    ----------
    open_frame
        Verifies the writer of a frame and decodes it; the default trusts every writer, for tests.
    sign
        Signs the ticks that the engine writes.
    key
        Signs alerts and scores; None leaves them unsigned, and planners reject them.
    state_keys
        Signs snapshots and decides which ones are trusted; None trusts every writer, for tests.

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
        self._sign = sign
        self._key = key
        self._config = config
        self._clock = clock
        self._health = health
        # By partition: the time of its last record or tick, and the counts last exported as
        # metrics.
        self._heard_ns: dict[int, int] = {}
        self._exported: dict[int, dict[str, int]] = {}
        self._ticks: dict[int, int] = {}
        self._heard: dict[str, tuple[int, list[tuple[str, ...]]]] = {}
        self._consumer: Consumer[Partition, list[Output]] = Consumer(
            log,
            role="engine",
            saving=saving(config, state_keys),
            step=Partition.fold,
            open_frame=open_frame,
        )
        # A role may be reopened within one process; each time it is a new source of ticks.
        self._run = f"{config.run}.{clock.mono_ns():x}"

    @property
    def partitions(self) -> dict[int, Partition]:
        """State of the partitions assigned now, by number."""
        return self._consumer.states

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
                    await self._fold(record)
                await self._let_time_pass()
                await self._save_due(subscription)
                self._export()
                self._health.progress("engine")
                # Appends may return without waiting; probes and other roles must get their turn.
                await asyncio.sleep(0)

    async def _assign(self, delivery: Delivery) -> None:
        for number in await self._consumer.assign(delivery):
            self._heard_ns[number] = self._clock.mono_ns()
            self._exported[number] = _counts(self.partitions[number])

    async def _fold(self, record: Record) -> None:
        self._heard_ns[record.partition] = self._clock.mono_ns()
        for output in await self._consumer.fold(record) or ():
            await self._append(output)

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
        for number in self.partitions:
            if now_ns - self._heard_ns[number] < self._config.tick_s * 1e9:
                continue
            self._heard_ns[number] = now_ns
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
        for number, size in (await self._consumer.save_due(subscription)).items():
            instruments.SNAPSHOT_BYTES.labels(str(number)).set(size)

    def _export_coverage(self, scores: Scores) -> None:
        """Count the VMs of a cell by the witnesses that would be available if they died."""
        heard = [witnesses_of(found) for found in scores.covered()[:, 0].tolist()]
        if scores.cell_vms is not UNSET:
            # The scores of one minute may be in several records, whose VMs are counted together.
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
        for number, state in self.partitions.items():
            now, before = _counts(state), self._exported[number]
            for name, count in now.items():
                grown = count - before.get(name, 0)
                if grown > 0:
                    instruments.RECORDS.labels(name).inc(grown)
            self._exported[number] = now
            instruments.WAITING_FRAMES.labels(str(number)).set(state.waiting())


def saving(config: DetectConfig, keys: StateKeys | None) -> Saving[Partition]:
    """Return how the engine saves its state; a snapshot of another configuration is skipped.

    Without `keys`, snapshots are not signed, and those of any writer are trusted.
    """
    wanted = {configuration_hash(config.configuration)}
    if configuration_hash(config.configuration) == configuration_hash(Configuration()):
        wanted |= CONTINUED

    def restored(chunks: Sequence[bytes], manifest: Manifest) -> Partition:
        if manifest.configuration not in wanted:
            raise SnapshotDamaged(
                f"Snapshot {manifest.generation} was made under another configuration and is"
                " skipped."
            )
        return restore(chunks, manifest, config.configuration)

    return Saving(
        new=lambda: Partition(config.configuration),
        take=take_snapshot,
        restore=restored,
        group=config.group,
        topic=SNAPSHOTS,
        every_s=config.snapshot_every_s,
        keys=keys,
    )


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

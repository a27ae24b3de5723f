"""The same records on any log, and the result of an engine on that log."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.lab.kafka_jars import PATIENCE
from flatline.connectors.clock import SystemClock
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.simulator.plan import Incident, WorldPlan, pool_name
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest
from flatline.engine.ports import Log, Record
from flatline.engine.roles.detect import DetectConfig, Detector
from flatline.engine.roles.health import Health
from flatline.engine.wire.alert import decode_alert
from flatline.engine.wire.topics import ALERTS, FRAMES
from tests.simulation.site_records import Site

# Seconds of append time between snapshots: many in one replay, so that a killed engine starts from
# different ones.
SNAPSHOT_EVERY_S = 15.0
# A replay of 1,000 records takes 2 s; nothing arrives after this.
PATIENCE_S = 60.0 * PATIENCE

PLAN = WorldPlan(
    seed=11,
    cells=2,
    nodes_per_cell=2,
    vms_per_node=10,
    incidents=(
        Incident(kind="panic_spin", at_s=120, vms=(3,)),
        Incident(kind="pool_stall", at_s=150, pool=pool_name(cell=1, pool=0), duration_s=60),
        Incident(kind="owner_reboot", at_s=200, vms=(7,)),
    ),
)


class Outcome(NamedTuple):
    """The result of an engine: each published state once, and the digest of its own state."""

    alerts: tuple[tuple[str, int, str], ...]
    digest: str


def recorded() -> list[Record]:
    """Return the frames and ticks of five minutes of a site in which a guest panics."""
    return list(Site(PLAN).run(300))


async def copy(records: Sequence[Record], log: Log) -> None:
    """Append the records with their original times."""
    for record in records:
        await log.append(
            record.topic,
            key=record.key,
            value=record.value,
            partition=record.partition,
            time_ms=record.time_ms,
        )


async def make_frames_topic(config: KafkaConfig) -> None:
    """Make the topic of frames keep its writers' times, for a copy, and old records."""
    admin = AIOKafkaAdminClient(bootstrap_servers=config.bootstrap)
    await admin.start()
    try:
        settings = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
        name = config.topic_prefix + FRAMES.name
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs=settings)])
    finally:
        await admin.close()


class MortalDetector(Detector):
    """An engine that stops at one record, where it is then killed.

    It writes no ticks of its own: the copy contains the original ones.
    """

    def __init__(self, log: Log, *, until: int) -> None:
        clock = SystemClock()
        config = DetectConfig(
            site="site", node="engine", run="run", snapshot_every_s=SNAPSHOT_EVERY_S, tick_s=None
        )
        super().__init__(log=log, config=config, clock=clock, health=Health(clock))
        self._until = until
        self.arrived = asyncio.Event()

    async def _fold(self, record: Record) -> None:
        await super()._fold(record)
        if self.partitions[record.partition].next_offset >= self._until:
            self.arrived.set()
            await asyncio.get_running_loop().create_future()


async def fold(log: Log, *, until: int) -> Partition:
    """Return the state of a new engine after it has folded `until` records of the log."""
    engine = MortalDetector(log, until=until)
    running = asyncio.create_task(engine.run())
    arrived = asyncio.create_task(engine.arrived.wait())
    try:
        await asyncio.wait(
            {running, arrived}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert arrived.done(), f"record {until} was not folded within {PATIENCE_S} s"
        return engine.partitions[0]
    finally:
        for task in (running, arrived):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def published(log: Log) -> tuple[tuple[str, int, str], ...]:
    """Return each state of each alert once, in the order in which it first appeared."""
    records = await log.read_to_end(ALERTS.name, 0, offset=0)
    alerts = [decode_alert(record.value) for record in records]
    return tuple(dict.fromkeys((alert.id, alert.transition, alert.state) for alert in alerts))


async def outcome(log: Log, records: Sequence[Record], *, kills: Sequence[int] = ()) -> Outcome:
    """Return the outcome of the records, with engines killed at the points `kills`."""
    await copy(records, log)
    for point in kills:
        await fold(log, until=point)
    state = await fold(log, until=len(records))
    return Outcome(await published(log), digest(state))

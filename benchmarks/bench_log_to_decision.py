"""From the log to decisions, on a real broker: the remaining share of a client's speed.

The log holds frames of one cell of eight nodes. Each variant reads all of them. The measure is the
CPU of this process from its first record to its last, so the broker's CPU and waiting are not
included. The bare client and the empty Faust agent read the same bytes and discard them.
"""

import asyncio
import logging
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import faust
import msgspec
import numpy as np
import structlog
from faust.types import StreamT

from benchmarks.report import report
from benchmarks.workloads import fleet_frame
from deploy.lab.kafka_broker import Cluster
from flatline.connectors.clock import SystemClock
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from flatline.connectors.kafka.reading import FETCH_BYTES, make_consumer
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.detection.partition import decoded
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.roles.detect import DetectConfig, Detector
from flatline.engine.roles.health import Health
from flatline.engine.roles.opening import FrameOpener
from flatline.engine.wire import metrics
from flatline.engine.wire.frame import Frame, VmRows, decode_frame, encode_frame
from flatline.engine.wire.topics import FRAMES
from flatline.models.codecs.columns import widen
from flatline.models.kernels import baseline
from flatline.models.kernels.blocks import BLOCK_ROWS, blocks_for

NODES = 8
# Each case: VMs a frame, frames. At about 1 GB/s a client reads them in a fraction of a second.
CASES = ((200, 1_600), (1_000, 640))
ROUNDS = 3
PLAIN_GOAL, FAUST_GOAL = 0.80, 0.70
INTERVAL_NS = 2_000_000_000
# Longer than the slowest variant on the slowest machine.
LIMIT_S = 60.0

CELL = b"cell-1"
# Nodes sign frames and the engine checks them, as on a site.
KEYS = FrameKeyring.in_memory(SystemClock(), secret=bytes(range(32)))

_COUNTERS = [
    metrics.INTEGER_ROW[name]
    for name in ("cpu_time_ns", "block_rd_bytes", "block_wr_bytes", "net_tx_bytes")
]


class Case(msgspec.Struct, frozen=True):
    """Frames in the log, and the address of the broker."""

    config: KafkaConfig
    vms: int
    frames: int


class Liveness:
    """CPU of this process from the first record to the last."""

    def __init__(self, frames: int) -> None:
        self._missing = frames
        self._counted = 0
        self._began_s: float | None = None
        self._took_s = 0.0
        self.done = asyncio.Event()

    def saw(self, count: int) -> None:
        """Record that records came; the first ones start the clock and are not counted."""
        if self._began_s is None:
            self._began_s = time.process_time()
        else:
            self._counted += count
        self._missing -= count
        if self._missing <= 0 and not self.done.is_set():
            self._took_s = time.process_time() - self._began_s
            self.done.set()

    async def frame_s(self) -> float:
        """Return seconds of CPU a frame, once all have arrived."""
        async with asyncio.timeout(LIMIT_S):
            await self.done.wait()
        return self._took_s / self._counted


def fleet(vms: int, frames: int) -> list[bytes]:
    """Return the frames of nodes whose VMs all live: every active counter keeps growing."""
    rng = np.random.default_rng(20261123)
    start = fleet_frame(vms)
    counters = len(metrics.COUNTERS)
    quanta = np.array([[max(metric.quantum, 1000)] for metric in metrics.COUNTERS])
    moving = (start.rows.integers[:counters] > 0).astype(np.int64)
    nodes = [(rng.bytes(16 * vms), start.rows.integers.copy()) for _ in range(NODES)]
    values = []
    for number in range(frames):
        sequence, node = divmod(number, NODES)
        uuids, integers = nodes[node]
        growth = rng.integers(1, 50, (counters, vms)) * quanta * moving
        integers[:counters] += growth.astype(np.uint64)
        header = msgspec.structs.replace(
            start.header,
            node=f"node-{node}",
            sequence=sequence,
            mono_ns=sequence * INTERVAL_NS,
            event_time_ns=start.header.event_time_ns + sequence * INTERVAL_NS,
        )
        rows = VmRows(uuids=uuids, integers=integers, missing=None, gauges=start.rows.gauges)
        values.append(encode_frame(Frame(header=header, rows=rows, node=start.node)))
    return values


async def prepare(bootstrap: str, vms: int, frames: int) -> Case:
    """Append the frames to separate topics, eight at a time like eight nodes."""
    config = KafkaConfig(
        bootstrap=bootstrap, topic_prefix=f"{uuid.uuid4().hex[:8]}.", create_topics=True
    )
    values = fleet(vms, frames)
    signers = [KEYS.signer("node", f"node-{node}") for node in range(NODES)]
    async with KafkaLog(config) as log:
        for begin in range(0, frames, NODES):
            await asyncio.gather(
                *(
                    log.append(FRAMES.name, key=CELL, value=value, headers=sign(CELL, value))
                    for sign, value in zip(signers, values[begin : begin + NODES], strict=True)
                )
            )
    return Case(config, vms, frames)


async def read_bare(case: Case, handle: Callable[[bytes], object] = len) -> float:
    """Return seconds of CPU of aiokafka alone, or with `handle` applied to each value."""
    watch = Liveness(case.frames)
    consumer = make_consumer(case.config, group_id=f"bare-{uuid.uuid4().hex}")
    await consumer.start()
    try:
        consumer.subscribe([case.config.topic_prefix + FRAMES.name])
        while not watch.done.is_set():
            batches = await consumer.getmany(timeout_ms=500, max_records=200)
            for batch in batches.values():
                for record in batch:
                    handle(record.value)
                watch.saw(len(batch))
    finally:
        await consumer.stop()
    return await watch.frame_s()


async def read_and_fold(case: Case) -> float:
    """Return the same with each frame decoded and its counters folded, without detection."""
    blocks = blocks_for(case.vms)
    states = [(baseline.new_state(blocks), baseline.new_previous(blocks)) for _ in range(NODES)]
    out = np.empty((baseline.OUT_ROWS, blocks * BLOCK_ROWS), np.float32)
    flags, weights = np.zeros(blocks * BLOCK_ROWS, np.uint8), baseline.constants(2.0)
    flags[: case.vms] = 0x8F
    counters = np.zeros((4, blocks * BLOCK_ROWS), np.uint64)

    def handle(value: bytes) -> None:
        frame = decode_frame(value, widen)
        counters[:, : case.vms] = frame.rows.integers[_COUNTERS]
        state, previous = states[int(frame.header.node.removeprefix("node-"))]
        baseline.fold_counters(state, previous, counters, flags, weights, out)

    return await read_bare(case, handle)


async def read_faust(case: Case) -> float:
    """Return seconds of CPU of a Faust agent that does nothing, configured like Flatline's."""
    watch = Liveness(case.frames)
    with tempfile.TemporaryDirectory() as folder:
        app = faust.App(
            f"empty-{uuid.uuid4().hex}",
            autodiscover=False,
            broker=f"kafka://{case.config.bootstrap}",
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=FETCH_BYTES,
            datadir=folder,
            key_serializer="raw",
            value_serializer="raw",
            reply_create_topic=False,
            # Faust would wait at the end for events that are not acknowledged.
            stream_wait_empty=False,
            store="memory://",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
        )
        topic = app.topic(case.config.topic_prefix + FRAMES.name, key_type=bytes, value_type=bytes)

        async def take(stream: StreamT[bytes]) -> None:
            async for _ in cast(faust.Stream[bytes], stream).noack().events():
                watch.saw(1)

        app.agent(topic, concurrency=1, name="empty")(take)
        app.finalize()
        await app.start()
        try:
            return await watch.frame_s()
        finally:
            await app.stop()


@asynccontextmanager
async def detecting(log: KafkaLog, watch: Liveness, *, checking: bool) -> AsyncIterator[None]:
    """Run the engine's role on `log` for the length of the block."""
    clock = SystemClock()
    opener = FrameOpener(KEYS.reader(), reader="bench", clock=clock, widen=widen)
    detector = Detector(
        log=log,
        config=DetectConfig(
            site="bench", node="bench", run="0", group=uuid.uuid4().hex, tick_s=None
        ),
        clock=clock,
        health=Health(clock),
        open_frame=opener if checking else decoded,
    )
    task = asyncio.create_task(detector.run())

    async def sample() -> None:
        seen = 0
        while not task.done():
            now = sum(part.counters.received for part in detector.partitions.values())
            if now > seen:
                watch.saw(now - seen)
                seen = now
            await asyncio.sleep(0.005)

    looking = asyncio.create_task(sample())
    try:
        yield
    finally:
        for running in (task, looking):
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def read_flatline(case: Case, kind: type[KafkaLog], *, checking: bool = True) -> float:
    """Return seconds of CPU of the engine, from the log to its decisions."""
    watch = Liveness(case.frames)
    config = replace(case.config, create_topics=False)
    async with kind(config) as log, detecting(log, watch, checking=checking):
        return await watch.frame_s()


CONTESTANTS: dict[str, Callable[[Case], Awaitable[float]]] = {
    "bare aiokafka": read_bare,
    "aiokafka, decode and kernel": read_and_fold,
    "Flatline, plain": lambda case: read_flatline(case, KafkaLog),
    "Flatline, plain, MAC not checked": lambda case: read_flatline(case, KafkaLog, checking=False),
    "empty Faust agent": read_faust,
    "Flatline, Faust": lambda case: read_flatline(case, FaustKafkaLog),
}
# Reference of each variant, and the promised share of its speed.
GOALS = {
    "Flatline, plain": ("bare aiokafka", PLAIN_GOAL),
    "Flatline, Faust": ("empty Faust agent", FAUST_GOAL),
}


async def measure(bootstrap: str) -> list[dict[str, str | int | float | bool | None]]:
    """Return a row for each frame size and variant: medians of alternating rounds."""
    rows: list[dict[str, str | int | float | bool | None]] = []
    for vms, frames in CASES:
        case = await prepare(bootstrap, vms, frames)
        took: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for _ in range(ROUNDS):
            for name, read in CONTESTANTS.items():
                took[name].append(await read(case))
        medians = {name: statistics.median(each) for name, each in took.items()}
        for name, frame_s in medians.items():
            peer, goal = GOALS.get(name, (None, None))
            rows.append(
                {
                    "vms_per_frame": vms,
                    "contestant": name,
                    "us_per_frame": frame_s * 1e6,
                    "vm_samples_per_s": round(vms / frame_s),
                    "beside": peer,
                    "share_of_it": None if peer is None else medians[peer] / frame_s,
                    "goal": goal,
                }
            )
    return rows


def main() -> None:
    """Measure and report."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    compile_kernels()
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "kafka")
        with cluster:
            rows = asyncio.run(measure(cluster.bootstrap))
        cluster.remove()
    report(
        "log_to_decision",
        claim=f"From a real broker to decisions, CPU of one process: {PLAIN_GOAL:.0%} of the bare"
        f" client's speed, {FAUST_GOAL:.0%} of an empty Faust agent's",
        rows=rows,
        goals_met=all(
            row["goal"] is None or float(row["share_of_it"] or 0) >= float(row["goal"])
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()

"""The collector's records in the log, for any behaviour of the log, the node and its clock."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from benchmarks import workloads
from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.errors import HypervisorStuck, LogRefused, LogUnreachable, RecordTooLarge
from flatline.engine.ports import Headers, NodeSample, Position
from flatline.engine.roles import framing
from flatline.engine.roles.collect import Collector
from flatline.engine.roles.framing import CollectConfig
from flatline.engine.roles.health import Health
from flatline.engine.wire import vcpus
from flatline.engine.wire.frame import Event, Frame, InventoryItem, VmRows, decode_frame
from flatline.engine.wire.topics import FRAMES
from flatline.engine.wire.vcpus import VcpuRows

NODE = "c0-n0"
EPOCH_MS = 1_767_261_600_000


class Node:
    """A simulated node whose calls a test can delay or fail."""

    def __init__(self, fleet: Fleet) -> None:
        self.inner = fleet.hypervisor(NODE)
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.wall_offset_s = 0
        self.calls_at_once = 0
        self.most_at_once = 0

    async def __aenter__(self) -> "Node":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def sample(self) -> NodeSample:
        self.calls_at_once += 1
        self.most_at_once = max(self.most_at_once, self.calls_at_once)
        try:
            await asyncio.sleep(self.delay_s)
            if self.error is not None:
                raise self.error
            seen = await self.inner.sample()
        finally:
            self.calls_at_once -= 1
        return NodeSample(
            event_time_ns=seen.event_time_ns + self.wall_offset_s * 10**9,
            mono_ns=seen.mono_ns,
            rows=seen.rows,
            node=seen.node,
            pools=seen.pools,
        )

    def drain_events(self) -> tuple[Event, ...]:
        return self.inner.drain_events()

    async def inventory(self) -> tuple[InventoryItem, ...]:
        return await self.inner.inventory()


class Log(EmbeddedLog):
    """A log in memory that becomes unreachable or rejects on demand, with a limit in bytes."""

    error: Exception | None = None
    limit = 1 << 30

    async def append(
        self,
        topic: str,
        *,
        key: bytes,
        value: bytes,
        headers: Headers = (),
        partition: int | None = None,
        time_ms: int | None = None,
    ) -> Position:
        if self.error is not None:
            raise self.error
        if len(value) > self.limit:
            raise RecordTooLarge(f"{len(value)} bytes are too large")
        return await super().append(
            topic, key=key, value=value, headers=headers, partition=partition, time_ms=time_ms
        )


class Bench:
    """One collector on a simulated node, its log, and a method to run it for a while."""

    def __init__(self, log: Log, **config: float) -> None:
        clock = LoopClock(epoch_ms=EPOCH_MS)
        self.fleet = build_world(WorldPlan(seed=1, vms_per_node=8), clock)
        self.node = Node(self.fleet)
        self.log = log
        self.health = Health(clock)
        self.connections = 0
        self.collector = Collector(
            hypervisor=self.node,
            connect=self.connect,
            config=CollectConfig(
                site="s",
                zone="z",
                cell="c0",
                node=NODE,
                **{"interval_s": 2.0, **config},  # type: ignore[arg-type]
            ),
            clock=clock,
            health=self.health,
            run="run-1",
        )
        self.task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Log]:
        self.connections += 1
        if isinstance(self.log.error, LogUnreachable):
            raise self.log.error
        yield self.log

    async def go(self, seconds: float) -> None:
        """Run the collector for `seconds`."""
        if self.task is None:
            self.task = asyncio.create_task(self.collector.run())
        await asyncio.wait({self.task}, timeout=seconds)

    async def end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def frames(self) -> list[Frame]:
        records = await self.log.read_to_end(FRAMES.name, 0, offset=0)
        return [decode_frame(record.value) for record in records]


def play(scene: Callable[[Bench], Coroutine[Any, Any, None]], **config: float) -> None:
    """Play `scene` in virtual time."""

    async def main() -> None:
        async with Log(EmbeddedConfig(), clock=LoopClock(epoch_ms=EPOCH_MS)) as log:
            await scene(Bench(log, **config))

    virtual_time.run(main())


def sequences(frames: list[Frame]) -> list[int]:
    return [frame.header.sequence for frame in frames]


def events(frames: list[Frame], kind: str) -> list[Event]:
    return [event for frame in frames for event in frame.events if event.kind == kind]


def test_frames_come_on_a_fixed_cadence_without_gaps() -> None:
    async def scene(bench: Bench) -> None:
        bench.node.delay_s = 0.3
        await bench.go(9.9)
        frames = await bench.frames()
        assert sequences(frames) == [0, 1, 2, 3, 4]
        times = [frame.header.mono_ns for frame in frames]
        assert [after - before for before, after in pairwise(times)] == [2 * 10**9] * 4
        assert all(len(frame.rows) == 8 for frame in frames)
        assert {frame.header.run for frame in frames} == {"run-1"}
        assert bench.health.ready().ok
        await bench.end()

    play(scene)


def test_inventory_comes_at_once_then_when_it_changed_or_the_period_is_over() -> None:
    async def scene(bench: Bench) -> None:
        await bench.go(9)
        newcomer = bench.fleet.vm(8)
        moving = asyncio.create_task(
            bench.fleet.actuator("c0-n1").migrate(newcomer, target=NODE, within_s=60.0)
        )
        await bench.go(60)
        await moving
        reported = [frame.inventory for frame in await bench.frames()]
        assert [len(items) for items in reported if items] == [8, 1, 9]
        assert len(reported[0]) == 8
        assert [items[0].vm for items in reported if len(items) == 1] == [newcomer]
        assert [index for index, items in enumerate(reported) if len(items) == 9] == [30]
        await bench.end()

    play(scene, inventory_every_s=60.0)


def test_rows_are_also_split_where_their_vcpus_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framing, "ROWS_PER_FRAME", 6)
    monkeypatch.setattr(vcpus, "MAX_FRAME_VCPUS", 6)
    plain = workloads.fleet_rows(9)
    counts = np.array([4, 2, 1, 5, 9, 0, 0, 6, 1], np.uint16)
    rows = VmRows(
        uuids=plain.uuids,
        integers=plain.integers,
        missing=plain.missing,
        gauges=plain.gauges,
        vcpus=VcpuRows(counts=counts, times_ns=np.ones(28, np.uint64), missing=None),
    )
    cuts = [(cut.start, cut.stop) for cut in framing.row_cuts(rows)]
    # A single VM is never split: the codec rejects its frame, and the others are sent.
    assert cuts == [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9)]
    without = rows.select(slice(5, 7))
    assert framing.row_cuts(without) == [slice(0, 2)]


def test_more_rows_than_one_frame_holds_are_split_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framing, "ROWS_PER_FRAME", 3)
    monkeypatch.setattr(framing, "ITEMS_PER_FRAME", 5)

    async def scene(bench: Bench) -> None:
        await bench.go(1)
        frames = await bench.frames()
        assert sequences(frames) == [0, 1, 2]
        assert [len(frame.rows) for frame in frames] == [3, 3, 2]
        assert [len(frame.inventory) for frame in frames] == [5, 3, 0]
        assert [bool(frame.node) for frame in frames] == [True, False, False]
        whole = await bench.node.inner.sample()
        assert b"".join(frame.rows.uuids for frame in frames) == whole.rows.uuids
        await bench.end()

    play(scene)


def test_sampling_goes_on_while_the_log_is_away_and_nothing_is_lost() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("The broker gives no answer.")
        await bench.go(120.5)
        assert await bench.frames() == []
        assert bench.health.ready().sentences == (
            "log is waiting: The broker gives no answer. Retrying in 10 s.",
        )
        assert bench.connections < 20
        bench.log.error = None
        await bench.go(11)
        frames = await bench.frames()
        assert sequences(frames) == list(range(66))
        assert not events(frames, "frames_dropped")
        assert bench.health.ready().ok
        await bench.end()

    play(scene)


def test_a_log_that_breaks_in_mid_run_is_opened_again() -> None:
    async def scene(bench: Bench) -> None:
        await bench.go(5)
        bench.log.error = LogUnreachable("It fell over.")
        await bench.go(5)
        bench.log.error = None
        await bench.go(10)
        assert sequences(await bench.frames()) == list(range(10))
        await bench.end()

    play(scene)


def test_the_oldest_frames_go_when_the_log_stays_away_and_each_is_reported() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("The broker gives no answer.")
        await bench.go(100.5)
        bench.log.error = None
        await bench.go(20)
        frames = await bench.frames()
        first = sequences(frames)[0]
        assert sequences(frames) == list(range(first, 61))
        reported = events(frames, "frames_dropped")
        lost_unseen = {event.detail["frames_total"] for event in reported}
        assert max(int(total) for total in lost_unseen) == first
        assert first == pytest.approx(36, abs=8)
        assert len(frames[-1].inventory) in {0, 8}
        assert any(frame.inventory for frame in frames)
        await bench.end()

    play(scene, buffer_s=30.0)


def test_the_buffer_is_bounded_by_bytes_too() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("The broker gives no answer.")
        await bench.go(300.5)
        bench.log.error = None
        await bench.go(11)
        frames = await bench.frames()
        assert 3 <= len(frames) < 40
        assert events(frames, "frames_dropped")
        await bench.end()

    play(scene, buffer_bytes=20_000)


def test_an_unreachable_hypervisor_is_reported_in_every_frame_and_by_two_events() -> None:
    async def scene(bench: Bench) -> None:
        await bench.go(5)
        bench.fleet.world.unreachable[0] = True
        await bench.go(40)
        (waits,) = bench.health.ready().sentences
        assert waits.startswith("hypervisor is waiting: node c0-n0 does not answer. Retrying in ")
        bench.fleet.world.unreachable[0] = False
        await bench.go(20)
        frames = await bench.frames()
        assert len(frames) == 33
        seen = [frame.node["hypervisor_reachable"] for frame in frames]
        blind = [frame for frame in frames if frame.node["hypervisor_reachable"] == 0.0]
        assert seen == sorted(seen[:3], reverse=True) + [0.0] * len(blind) + [1.0] * (
            30 - len(blind)
        )
        assert 20 <= len(blind) <= 26
        assert all(len(frame.rows) == 0 for frame in blind)
        assert len(events(frames, "hypervisor_lost")) == 1
        assert len(events(frames, "hypervisor_back")) == 1
        assert bench.health.ready().ok
        await bench.end()

    play(scene)


def test_a_call_that_hangs_keeps_the_cadence_and_gets_no_second_one_beside_it() -> None:
    async def scene(bench: Bench) -> None:
        await bench.go(3)
        bench.node.delay_s = 33
        await bench.go(30)
        bench.node.delay_s = 0
        await bench.go(20)
        frames = await bench.frames()
        times = [frame.header.mono_ns / 1e9 for frame in frames if not len(frame.rows)]
        steps = {round(b - a, 3) for a, b in pairwise(times)}
        assert steps == {2.0}
        assert bench.node.most_at_once == 1
        assert len(events(frames, "hypervisor_lost")) == 1
        assert len(events(frames, "hypervisor_back")) == 1
        await bench.end()

    play(scene)


def test_a_hypervisor_that_only_a_new_process_reaches_ends_the_collector() -> None:
    async def scene(bench: Bench) -> None:
        bench.node.error = HypervisorStuck("Four calls hang.")
        await bench.go(5)
        assert bench.task is not None
        with pytest.raises(HypervisorStuck):
            await bench.task

    play(scene)


def test_a_log_that_refuses_ends_the_collector_with_its_reason() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogRefused("The broker does not know this user.")
        await bench.go(5)
        assert bench.task is not None
        with pytest.raises(LogRefused, match="does not know this user"):
            await bench.task

    play(scene)


def test_a_collector_that_is_ended_carries_its_buffer_to_the_log_first() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("It restarts.")
        await bench.go(2.5)
        bench.log.error = None
        await bench.end()
        assert sequences(await bench.frames()) == [0, 1]

    play(scene)


def test_frames_that_never_reach_the_log_are_reported_at_the_end() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("It is gone.")
        await bench.go(5)
        with capture_logs() as logs:
            await bench.end()
        assert [entry["frames"] for entry in logs if "frames" in entry] == [3]

    play(scene)


def test_a_wall_clock_that_goes_back_is_reported_once_and_durations_stay_right() -> None:
    async def scene(bench: Bench) -> None:
        await bench.go(3)
        bench.node.wall_offset_s = -3600
        with capture_logs() as logs:
            await bench.go(6)
        reported = [entry for entry in logs if "wall clock of the node went back" in entry["event"]]
        assert [entry["back_s"] for entry in reported] == [3598.0]
        frames = await bench.frames()
        assert frames[2].header.event_time_ns < frames[1].header.event_time_ns
        assert frames[2].header.mono_ns - frames[1].header.mono_ns == 2 * 10**9
        await bench.end()

    play(scene)


def test_a_log_that_takes_little_gets_all_vms_in_smaller_frames_without_a_gap() -> None:
    async def scene(bench: Bench) -> None:
        bench.log.error = LogUnreachable("away")
        await bench.go(21)  # some wait, all of them too large
        bench.log.error, bench.log.limit = None, 1600
        await bench.go(60)
        frames = await bench.frames()
        assert sequences(frames) == list(range(len(frames)))
        by_time: dict[int, set[bytes]] = {}
        for frame in frames:
            vms = by_time.setdefault(frame.header.event_time_ns, set())
            vms |= {frame.rows.vm(column) for column in range(len(frame.rows))}
        assert len(by_time) == 41
        assert {len(vms) for vms in by_time.values()} == {8}
        assert len({item.vm for frame in frames for item in frame.inventory}) == 8
        assert bench.health.ready().ok
        await bench.end()

    play(scene)

"""A record that the log will never accept is split or dropped, and blocks no other."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import workloads
from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.errors import RecordTooLarge
from flatline.engine.ports import Headers, Position
from flatline.engine.roles.appending import append_or_give_up
from flatline.engine.roles.framing import CollectConfig, Content, EncodedFrame, Source
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import Journal, Outbox
from flatline.engine.stream.snapshot_format import Manifest, Snapshot, encode_manifest
from flatline.engine.stream.snapshot_store import append_snapshot
from flatline.engine.wire.frame import Event, InventoryItem, PoolSample, VmRows, decode_frame
from flatline.engine.wire.rejected import Rejected, decode_rejected
from flatline.engine.wire.topics import ALERTS, JOURNAL, REJECTED, SNAPSHOTS

EPOCH_MS = 1_790_000_000_000


class SmallLog(EmbeddedLog):
    """A log whose topics accept records up to `limits`."""

    limits: dict[str, int] = {}  # noqa: RUF012
    tries = 0

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
        self.tries += 1
        if len(value) > self.limits.get(topic, 1 << 30):
            raise RecordTooLarge(f"{len(value)} bytes are too large")
        return await super().append(
            topic, key=key, value=value, headers=headers, partition=partition, time_ms=time_ms
        )

    async def rejected(self) -> list[Rejected]:
        records = await self.read_to_end(REJECTED.name, 0, offset=0)
        return [decode_rejected(record.value) for record in records]


def play(scene: Callable[[SmallLog, LoopClock], Coroutine[Any, Any, None]]) -> None:
    async def played() -> None:
        clock = LoopClock(epoch_ms=EPOCH_MS)
        async with SmallLog(EmbeddedConfig(folder=None, partitions=1), clock=clock) as log:
            await scene(log, clock)

    virtual_time.run(played())


@pytest.mark.parametrize("kept", [True, False])
def test_what_stands_behind_a_record_that_is_too_large_is_said(kept: bool) -> None:
    async def scene(log: SmallLog, clock: LoopClock) -> None:
        log.limits = {JOURNAL.name: 2000} | ({} if kept else {REJECTED.name: 10})
        health = Health(clock)
        outbox = Outbox(log, health=health)
        journal = Journal(outbox, clock=clock, writer="w", cell="c")
        saying = asyncio.create_task(outbox.run())
        journal.write("refusal", "One.")
        journal.write("refusal", "Two" + "!" * 5000)
        journal.write("refusal", "Three.")
        assert await outbox.emptied(within_s=5)
        assert log.tries <= 4
        saying.cancel()
        await asyncio.wait({saying})
        records = await log.read_to_end(JOURNAL.name, 0, offset=0)
        assert [b"One." in r.value or b"Three." in r.value for r in records] == [True, True]
        reported = await log.rejected()
        assert [(r.topic, r.reason) for r in reported] == (
            [(JOURNAL.name, "oversized")] if kept else []
        )
        assert all(
            record.detail.startswith("The log rejects this record permanently: ")
            for record in reported
        )
        assert all(len(record.head) == 256 and record.length > 5000 for record in reported)

    play(scene)


def test_a_role_that_appends_as_it_goes_passes_it_over() -> None:
    async def scene(log: SmallLog, _: LoopClock) -> None:
        log.limits = {ALERTS.name: 100}
        assert not await append_or_give_up(log, ALERTS.name, key=b"c", value=bytes(101))
        assert await append_or_give_up(log, ALERTS.name, key=b"c", value=bytes(100))
        [reported] = await log.rejected()
        assert (reported.topic, reported.length) == (ALERTS.name, 101)
        log.limits[REJECTED.name] = 0
        assert not await append_or_give_up(log, ALERTS.name, key=b"c", value=bytes(101))

    play(scene)


def test_a_state_that_cannot_be_saved_is_reported_and_not_half_a_generation() -> None:
    async def scene(log: SmallLog, _: LoopClock) -> None:
        manifest = Manifest(generation="n", next_offset=0, time_ms=0, chunks=(), configuration="")
        size = len(encode_manifest(manifest))
        log.limits = {SNAPSHOTS.name: size}
        for chunks, saved in (([bytes(size)], True), ([b"1", bytes(size + 1), b"3"], False)):
            snapshot = Snapshot(chunks, manifest)
            assert saved == await append_snapshot(
                log, 0, group="g", topic=SNAPSHOTS, snapshot=snapshot
            )
        records = await log.read_to_end(SNAPSHOTS.name, 0, offset=0)
        assert [len(record.value) for record in records] == [size, size, 1]

    play(scene)


CONFIG = CollectConfig(site="s", zone="z", cell="c", node="n", interval_s=10.0)


def content(vms: int, events: int, items: int, *, with_node: bool) -> Content:
    rows = workloads.fleet_rows(vms) if vms else VmRows.empty()
    names = [bytes([number % 250]) * 16 for number in range(items)]
    return Content(
        event_time_ns=1,
        mono_ns=1,
        rows=rows,
        node={"cpu_busy_ratio": 0.5} if with_node else {},
        events=[Event(id=f"e{n}", kind="started", time_ns=n, vm=bytes(16)) for n in range(events)],
        inventory=[InventoryItem(vm=name, name=f"vm {name[0]}") for name in names],
        pools=(PoolSample(name="p"),) if with_node else (),
    )


def said(frames: list[EncodedFrame]) -> tuple[Any, ...]:
    """Return the combined content of frames, in their order."""
    decoded = [decode_frame(frame.value) for frame in frames]
    return (
        b"".join(frame.rows.uuids for frame in decoded),
        [frame.rows.integers[:, at].tolist() for frame in decoded for at in range(len(frame.rows))],
        [event.id for frame in decoded for event in frame.events],
        [item.name for frame in decoded for item in frame.inventory],
        [frame.node for frame in decoded if frame.node],
        [frame.pools for frame in decoded if frame.pools],
    )


@given(
    slots=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 9), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    share=st.floats(0.05, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_frames_in_pieces_say_the_same_under_numbers_without_a_gap(slots, share: float) -> None:
    source = Source(CONFIG, "run")
    frames = [
        frame
        for vms, events, items, with_node in slots
        for frame in source.frames(content(vms, events, items, with_node=with_node), now_ns=7)
    ]
    # One VM's row with its frame around it fits.
    limit = max(1500, int(share * max(len(frame.value) for frame in frames)))
    sent, waiting = [], list(frames)
    while waiting:
        frame = waiting.pop(0)
        if len(frame.value) <= limit:
            sent.append(frame)
        else:
            waiting = source.cut_smaller(frame, waiting)
            assert all(len(piece.value) < len(frame.value) for piece in waiting)
    assert said(sent) == said(frames)
    numbers = [decode_frame(frame.value).header.sequence for frame in sent]
    assert numbers == list(range(len(sent))) == [frame.sequence for frame in sent]
    assert {frame.since_ns for frame in sent} == {7}
    later = source.frames(content(9, 4, 9, with_node=True), now_ns=8)
    assert later[0].sequence == len(sent)


def test_what_cannot_be_cut_is_given_up_and_leaves_no_gap() -> None:
    source = Source(CONFIG, "run")
    [frame] = source.frames(content(1, 0, 0, with_node=False), now_ns=7)
    assert source.cut_smaller(frame, []) == []
    [small] = source.frames(content(0, 0, 0, with_node=True), now_ns=8)
    assert small.sequence == 0

"""The states that a role accepts, on a topic of states that any client may write."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from structlog.testing import capture_logs

from flatline.connectors.clock import LoopClock, ManualClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.parquet.history import ParquetHistory
from flatline.connectors.simulator import virtual_time
from flatline.engine import instruments
from flatline.engine.action.keys import TrustedKeys
from flatline.engine.detection.snapshot import take_snapshot
from flatline.engine.errors import SnapshotTooNew
from flatline.engine.ports import Record
from flatline.engine.roles.detect import DetectConfig, Detector, saving
from flatline.engine.roles.forecasting import ForecastConfig, Foreteller
from flatline.engine.roles.health import Health
from flatline.engine.roles.record import RecordConfig, Recorder
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.stream.snapshot_format import FORMAT, Snapshot, encode_manifest
from flatline.engine.stream.snapshot_store import (
    CHUNK,
    MANIFEST,
    append_snapshot,
    headers_of,
    newest_state,
)
from flatline.engine.wire.measurement import DAY_S, Bucket
from flatline.engine.wire.order import key_id
from flatline.engine.wire.topics import FORECASTER, FRAMES, SNAPSHOTS
from tests.signing import ENGINE_KEY, FOREIGN_KEY, TRUSTED
from tests.unit.engine.detection.frames_by_hand import FAST, cell

GROUP: Final = "engine"
NOBODY: Final = TrustedKeys.of(planners=[], agents=[])
KEYS: Final = StateKeys(ENGINE_KEY, NOBODY)
KEPT_S: Final[dict[Bucket, int]] = {"raw": DAY_S, "minute": DAY_S, "long": DAY_S}
STRANGER: Final = StateKeys(FOREIGN_KEY, NOBODY)

Scene = Callable[[EmbeddedLog], Coroutine[Any, Any, None]]


@cache
def states() -> tuple[list[Record], Snapshot, Snapshot]:
    """Return the records of a cell, and an engine's state after half and after all of them."""
    bench, _ = cell(4)
    kept: list[Snapshot] = []
    for _ in range(2):
        bench.run(20.0)
        kept.append(take_snapshot(bench.partition))
    return bench.records, kept[0], kept[1]


def end_of(state: Snapshot) -> int:
    return state.manifest.next_offset


def changed(state: Snapshot, **fields: Any) -> Snapshot:
    """Return a state with changed fields in its manifest."""
    return Snapshot(state.chunks, msgspec.structs.replace(state.manifest, **fields))


def of_tomorrow(state: Snapshot) -> Snapshot:
    return changed(state, format=FORMAT + 1, release="9.0.0")


async def write(
    log: EmbeddedLog,
    state: Snapshot,
    *,
    keys: StateKeys | None = KEYS,
    group: str = GROUP,
    partition: int = 0,
) -> None:
    await append_snapshot(log, partition, group=group, topic=SNAPSHOTS, snapshot=state, keys=keys)


def found(scene: Scene, *, keys: StateKeys = KEYS) -> tuple[int, dict[str, int]]:
    """Return the offset of the accepted state, and the counts of rejected ones by reason."""
    reasons = ("bad_signature", "expired_key", "bad_value", "unusable")

    def counted() -> dict[str, int]:
        metric = instruments.SNAPSHOTS_PASSED_OVER
        return {one: int(metric.labels(SNAPSHOTS.name, one)._value.get()) for one in reasons}

    async def play() -> int:
        async with EmbeddedLog(EmbeddedConfig(partitions=2), clock=ManualClock()) as log:
            for record in states()[0]:
                await log.append(FRAMES.name, key=record.key, value=record.value, partition=0)
            await scene(log)
            config = DetectConfig(site="s", node="n", run="r", configuration=FAST)
            state = await newest_state(
                log,
                0,
                group=GROUP,
                topic=SNAPSHOTS,
                restore=saving(config, keys).restore,
                keys=keys,
            )
            return 0 if state is None else state.next_offset

    before = counted()
    offset = virtual_time.run(play())
    after = counted()
    return offset, {one: after[one] - before[one] for one in reasons if after[one] > before[one]}


def test_a_state_that_its_writer_signed_is_gone_on_from() -> None:
    _, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half)
        await write(log, whole)

    assert found(scene) == (end_of(whole), {})


@pytest.mark.parametrize("keys", [None, STRANGER], ids=["unsigned", "a stranger's"])
@pytest.mark.parametrize("forge", [lambda state: state, of_tomorrow], ids=["state", "too new"])
def test_a_state_that_nobody_trusted_signed_is_passed_over_for_the_one_before(
    keys: StateKeys | None, forge: Callable[[Snapshot], Snapshot]
) -> None:
    _, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half)
        await write(log, forge(whole), keys=keys)

    with capture_logs() as logs:
        assert found(scene) == (end_of(half), {"bad_signature": 1})
    reported = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert len(reported) == 1
    assert "1 snapshots are skipped because no trusted key signed them" in reported[0]


def test_without_any_that_is_signed_the_engine_begins_with_the_frames() -> None:
    async def scene(log: EmbeddedLog) -> None:
        for state in states()[1:]:
            await write(log, of_tomorrow(state), keys=None)

    assert found(scene) == (0, {"bad_signature": 2})


def test_another_engine_s_state_counts_once_its_key_is_trusted() -> None:
    _, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half, keys=STRANGER)
        await write(log, whole)

    assert found(scene, keys=StateKeys(FOREIGN_KEY, NOBODY))[0] == end_of(half)
    assert found(scene, keys=StateKeys(FOREIGN_KEY, TRUSTED))[0] == end_of(whole)


def test_a_state_that_nobody_signed_counts_in_the_days_of_an_upgrade_alone() -> None:
    _, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half, keys=None)
        await write(log, whole, keys=STRANGER)

    upgrade = StateKeys(ENGINE_KEY, NOBODY, takes_unsigned=True)
    assert found(scene, keys=upgrade) == (end_of(half), {"bad_signature": 1})
    assert found(scene) == (0, {"bad_signature": 2})


def test_a_state_that_was_signed_after_its_key_ended_is_passed_over() -> None:
    ended = TrustedKeys.of(planners=[], agents=[], until_ms={key_id(ENGINE_KEY.public_key()): 0})

    async def scene(log: EmbeddedLog) -> None:
        await write(log, states()[2])

    assert found(scene, keys=StateKeys(ENGINE_KEY, ended)) == (0, {"expired_key": 1})


async def moved(log: EmbeddedLog, *, partition: int, group: str) -> None:
    """Write the generation of another place again, as the state of partition 0."""
    for record in await log.read_to_end(SNAPSHOTS.name, partition, offset=0):
        reported = tuple(one for one in record.headers if one[0] != "group")
        await log.append(
            SNAPSHOTS.name,
            key=record.key,
            value=record.value,
            headers=(("group", GROUP.encode()), *reported),
            partition=0,
        )


@pytest.mark.parametrize(
    ("partition", "group"), [(1, GROUP), (0, "another")], ids=["partition", "group"]
)
def test_a_state_counts_only_where_it_was_signed_for(partition: int, group: str) -> None:
    async def scene(log: EmbeddedLog) -> None:
        await write(log, states()[2], partition=partition, group=group)
        await moved(log, partition=partition, group=group)

    assert found(scene) == (0, {"bad_signature": 1})


def test_a_state_that_is_ahead_of_the_log_is_passed_over() -> None:
    records, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half)
        await write(log, changed(whole, next_offset=len(records) + 1))
        await write(log, changed(whole, next_offset=10**15))

    assert found(scene) == (end_of(half), {"bad_value": 2})


async def repeat(log: EmbeddedLog, *, until: int) -> None:
    """Write the first records of the topic again, as any reader of it can."""
    for record in (await log.read_to_end(SNAPSHOTS.name, 0, offset=0))[:until]:
        await log.append(
            SNAPSHOTS.name,
            key=record.key,
            value=record.value,
            headers=record.headers,
            partition=0,
        )


def test_an_old_state_that_is_written_again_does_not_come_before_the_newest() -> None:
    _, half, whole = states()

    async def scene(log: EmbeddedLog) -> None:
        await write(log, half)
        await write(log, whole)
        await repeat(log, until=len(half.chunks) + 1)

    assert found(scene) == (end_of(whole), {})


def test_a_chunk_that_is_written_again_with_other_bytes_damages_nothing() -> None:
    whole = states()[2]

    async def scene(log: EmbeddedLog) -> None:
        await write(log, whole)
        for record in await log.read_to_end(SNAPSHOTS.name, 0, offset=0):
            if record.key == CHUNK:
                await log.append(
                    SNAPSHOTS.name, key=CHUNK, value=b"", headers=record.headers, partition=0
                )

    assert found(scene) == (end_of(whole), {})


def test_a_later_release_s_own_state_ends_the_engine_still() -> None:
    async def scene(log: EmbeddedLog) -> None:
        await write(log, states()[1])
        await write(log, of_tomorrow(states()[2]))

    with pytest.raises(SnapshotTooNew, match=r"release 9\.0\.0.*Start that release"):
        found(scene)


def test_a_flood_of_forged_manifests_is_reported_in_one_sentence() -> None:
    whole = states()[2]

    async def scene(log: EmbeddedLog) -> None:
        await write(log, whole)
        for number in range(300):
            await log.append(
                SNAPSHOTS.name,
                key=MANIFEST,
                value=b"junk",
                headers=headers_of(GROUP, str(number), 1),
                partition=0,
            )

    with capture_logs() as logs:
        assert found(scene) == (end_of(whole), {"bad_signature": 300})
    assert len([line for line in logs if line["log_level"] == "warning"]) == 1


Role = Callable[[EmbeddedLog, LoopClock, Path], Detector | Foreteller | Recorder]


def an_engine(log: EmbeddedLog, clock: LoopClock, _: Path) -> Detector:
    config = DetectConfig(
        site="site", node="e", run="r", snapshot_every_s=5.0, tick_s=None, configuration=FAST
    )
    return Detector(log=log, config=config, clock=clock, health=Health(clock), state_keys=KEYS)


def a_forecaster(log: EmbeddedLog, clock: LoopClock, _: Path) -> Foreteller:
    config = ForecastConfig(group=GROUP, snapshot_every_s=5.0)
    return Foreteller(log=log, config=config, clock=clock, health=Health(clock), state_keys=KEYS)


def a_historian(log: EmbeddedLog, clock: LoopClock, folder: Path) -> Recorder:
    return Recorder(
        log=log,
        history=ParquetHistory(folder, clock=clock, retention_s=KEPT_S),
        config=RecordConfig(group=GROUP, gather_s=0.0, snapshot_every_s=5.0),
        clock=clock,
        health=Health(clock),
        state_keys=KEYS,
    )


@pytest.mark.parametrize(
    ("role", "topic"),
    [(an_engine, SNAPSHOTS), (a_forecaster, FORECASTER), (a_historian, SNAPSHOTS)],
    ids=["engine", "forecaster", "historian"],
)
def test_every_role_with_a_state_signs_it_and_outlives_a_forged_one(
    role: Role, topic: Any, tmp_path: Path
) -> None:
    records, _, whole = states()

    async def play() -> None:
        clock = LoopClock(epoch_ms=records[0].time_ms)
        async with EmbeddedLog(EmbeddedConfig(partitions=1), clock=clock) as log:
            for forged in (
                encode_manifest(of_tomorrow(whole).manifest),
                msgspec.msgpack.encode({"v": 99}),
            ):
                await log.append(
                    topic.name,
                    key=MANIFEST,
                    value=forged,
                    headers=headers_of(GROUP, "forged", 1),
                    partition=0,
                )
            for record in records:
                await log.append(
                    FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms
                )
            task = asyncio.create_task(role(log, clock, tmp_path).run())
            await asyncio.sleep(20.0)
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            found = await newest_state(
                log, 0, group=GROUP, topic=topic, restore=lambda _, value: value, keys=KEYS
            )
            assert found is not None

    virtual_time.run(play())


def test_an_empty_partition_is_what_a_new_site_begins_with() -> None:
    async def scene(log: EmbeddedLog) -> None:
        pass

    assert found(scene) == (0, {})

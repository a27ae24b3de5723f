import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.errors import GroupTaken, LogRefused, StateUnwritable
from flatline.engine.wire.topics import ALERTS, ORDERS, TOPICS, Topic, partition_count

TOPIC = Topic("unit.v1", 2, None, 1 << 20)

# Another program with the same folder: it appends and prints the position.
OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.errors import GroupTaken
from flatline.engine.wire.topics import Topic

class Clock:
    def now_ms(self): return 5
    def mono_ns(self): return 5

async def main(folder, verb):
    topics = (Topic("unit.v1", 2, None, 1 << 20),)
    async with EmbeddedLog(EmbeddedConfig(Path(folder), topics=topics), clock=Clock()) as log:
        if verb == "append":
            await log.append("unit.v1", key=b"", value=b"from outside", partition=1)
        else:
            try:
                async with log.subscribe("unit.v1", group="g"):
                    sys.exit("not refused")
            except GroupTaken as error:
                sys.stdout.write(str(error))

asyncio.run(main(*sys.argv[1:]))
"""


class _Clock:
    def now_ms(self) -> int:
        return 7

    def mono_ns(self) -> int:
        return 7


def make(folder: Path | None = None, topics: tuple[Topic, ...] = (TOPIC,)) -> EmbeddedLog:
    return EmbeddedLog(EmbeddedConfig(folder, topics=topics), clock=_Clock())


def forget(folder: Path, topic: Topic) -> None:
    for path in folder.glob(f"{topic.name}.sqlite*"):
        path.unlink()


async def elsewhere(folder: Path, action: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", OTHER_PROCESS, str(folder), action],
        cwd=Path.cwd(),
        env={"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.asyncio
async def test_another_process_appends_and_a_waiting_reader_notices(tmp_path: Path) -> None:
    async with (
        make(tmp_path) as log,
        log.tail(TOPIC.name, 1, offset=0) as batches,
        log.subscribe(TOPIC.name, group="g") as subscription,
    ):
        poll = asyncio.create_task(subscription.poll(max_records=5, wait_s=30.0))
        batch = asyncio.ensure_future(anext(batches))
        await elsewhere(tmp_path, "append")
        async with asyncio.timeout(5.0):
            assert [record.value for record in await batch] == [b"from outside"]
            assert [record.value for record in (await poll).records] == [b"from outside"]


@pytest.mark.asyncio
async def test_a_group_is_refused_while_another_process_reads_for_it(tmp_path: Path) -> None:
    async with make(tmp_path) as log, log.subscribe(TOPIC.name, group="g"):
        assert "'g' of unit.v1 already has a reader (process" in await elsewhere(tmp_path, "join")


@pytest.mark.asyncio
@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_second_member_is_refused_until_the_first_leaves(
    tmp_path: Path, on_disk: bool
) -> None:
    async with make(tmp_path if on_disk else None) as log:
        async with log.subscribe(TOPIC.name, group="a/b"):
            with pytest.raises(GroupTaken, match="another group"):
                async with log.subscribe(TOPIC.name, group="a/b"):
                    pass
            async with log.subscribe(TOPIC.name, group="other"):
                pass
        async with log.subscribe(TOPIC.name, group="a/b"):
            pass


@pytest.mark.asyncio
async def test_a_member_that_left_can_neither_poll_nor_commit() -> None:
    async with make() as log:
        async with log.subscribe(TOPIC.name, group="g") as subscription:
            pass
        with pytest.raises(LogRefused, match="was left"):
            await subscription.poll(max_records=1, wait_s=0.0)
        with pytest.raises(LogRefused, match="was left"):
            await subscription.commit({0: 1})


@pytest.mark.asyncio
async def test_a_commit_for_a_partition_that_is_not_there_is_refused() -> None:
    async with make() as log, log.subscribe(TOPIC.name, group="g") as subscription:
        with pytest.raises(LogRefused, match="does not have partition 2"):
            await subscription.commit({0: 1, 2: 1})


@pytest.mark.asyncio
async def test_a_folder_keeps_records_progress_and_identity(tmp_path: Path) -> None:
    async with make(tmp_path) as log:
        identity = await log.identity()
        for number in range(3):
            await log.append(TOPIC.name, key=b"", value=b"%d" % number, partition=0)
        async with log.subscribe(TOPIC.name, group="g") as subscription:
            await subscription.commit({0: 2})
    async with make(tmp_path) as log:
        assert await log.identity() == identity
        async with log.subscribe(TOPIC.name, group="g") as subscription:
            delivery = await subscription.poll(max_records=9, wait_s=0.0)
    assert [record.value for record in delivery.records] == [b"2"]


@pytest.mark.asyncio
async def test_every_log_has_its_own_identity(tmp_path: Path) -> None:
    async with make(tmp_path / "a") as one, make(tmp_path / "b") as two, make() as three:
        assert len({await one.identity(), await two.identity(), await three.identity()}) == 3


@pytest.mark.asyncio
async def test_a_lost_topic_changes_the_identity_and_a_new_one_does_not(tmp_path: Path) -> None:
    async with make(tmp_path, (ORDERS,)) as log:
        first = await log.identity()
    async with make(tmp_path, (ORDERS, ALERTS)) as log:
        assert await log.identity() == first
    forget(tmp_path, ORDERS)
    async with make(tmp_path, (ORDERS, ALERTS)) as log:
        assert await log.identity() != first


@pytest.mark.asyncio
async def test_files_replaced_under_an_open_log_are_another_log(tmp_path: Path) -> None:
    async with make(tmp_path, (ORDERS,)) as log:
        first = await log.identity()
        forget(tmp_path, ORDERS)
        assert await log.identity() != first
        async with make(tmp_path, (ORDERS,)):
            assert await log.identity() != first


@pytest.mark.asyncio
async def test_the_bounds_show_that_old_records_were_dropped() -> None:
    bounded = TOPIC._replace(retention_bytes=1000)
    async with make(topics=(bounded,)) as log:
        for _ in range(10):
            await log.append(TOPIC.name, key=b"", value=bytes(400), partition=0)
        assert await log.bounds(TOPIC.name, 0) == (8, 10)
        async with log.tail(TOPIC.name, 0, offset=3) as batches:
            assert (await anext(batches))[0].offset == 8
        async with log.subscribe(TOPIC.name, group="late") as subscription:
            await subscription.commit({0: 1})
        async with log.subscribe(TOPIC.name, group="late") as subscription:
            delivery = await subscription.poll(max_records=9, wait_s=0.0)
        assert [record.offset for record in delivery.records] == [8, 9]


@pytest.mark.asyncio
async def test_a_copy_keeps_the_times_of_its_original() -> None:
    async with make() as log:
        await log.append(TOPIC.name, key=b"", value=b"", partition=0, time_ms=123)
        await log.append(TOPIC.name, key=b"", value=b"", partition=0, time_ms=456)
        records = await log.read_to_end(TOPIC.name, 0, offset=0)
    assert [record.time_ms for record in records] == [123, 456]


@pytest.mark.asyncio
async def test_a_busy_partition_does_not_starve_another() -> None:
    async with make() as log, log.subscribe(TOPIC.name, group="g") as subscription:
        for _ in range(20):
            await log.append(TOPIC.name, key=b"", value=b"", partition=0)
        await log.append(TOPIC.name, key=b"", value=b"", partition=1)
        seen: list[int] = []
        for _ in range(2):
            delivery = await subscription.poll(max_records=5, wait_s=0.0)
            seen += [record.partition for record in delivery.records]
    assert 1 in seen


@pytest.mark.asyncio
async def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnwritable, match=r"Create it .* or set log\.folder"):
        async with make(tmp_path / "file" / "log"):
            pass


@pytest.mark.asyncio
async def test_the_declared_topics_open(tmp_path: Path) -> None:
    async with make(tmp_path, TOPICS) as log:
        assert all(log.partitions(topic.name) >= 1 for topic in TOPICS)


def test_a_bound_takes_the_same_share_from_every_topic() -> None:
    config = EmbeddedConfig(partitions=8, max_bytes=8 << 30)
    bounded = config.bounded_topics()
    sizes = [topic.retention_bytes * partition_count(topic, config.partitions) for topic in bounded]
    assert (8 << 30) - 1000 < sum(sizes) <= 8 << 30
    shares = {
        round(small.retention_bytes / large.retention_bytes, 6)
        for small, large in zip(bounded, TOPICS, strict=True)
    }
    assert len(shares) == 1


def test_a_bound_beyond_what_is_declared_changes_nothing() -> None:
    assert EmbeddedConfig(partitions=1, max_bytes=1 << 50).bounded_topics() == TOPICS

"""The snapshot that is found in the log, and the records read for it."""

from flatline.connectors.clock import ManualClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.errors import SnapshotDamaged
from flatline.engine.stream.snapshot_format import Manifest, Snapshot
from flatline.engine.stream.snapshot_store import append_snapshot, newest_state
from flatline.engine.wire.topics import FORECASTER

GROUP = "flatline-forecast"


class ReadingLog(EmbeddedLog):
    """A log that stores how many records each reading to the end returned."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.read = []

    async def read_to_end(self, topic, partition, *, offset):
        records = await super().read_to_end(topic, partition, offset=offset)
        self.read.append(len(records))
        return records


async def append(log, name, chunks):
    manifest = Manifest(
        generation=name, next_offset=0, time_ms=0, chunks=("",) * chunks, configuration=""
    )
    snapshot = Snapshot([b"%d" % index for index in range(chunks)], manifest)
    await append_snapshot(log, 0, group=GROUP, topic=FORECASTER, snapshot=snapshot)


def restore(chunks, manifest):
    if len(chunks) != len(manifest.chunks):
        raise SnapshotDamaged(f"{len(chunks)} chunks of {len(manifest.chunks)}")
    return manifest.generation


def found_in(scene):
    """Return the name of the generation that is found, and the records read for it."""

    async def play():
        async with ReadingLog(EmbeddedConfig(partitions=1), clock=ManualClock()) as log:
            await scene(log)
            log.read.clear()
            state = await newest_state(log, 0, group=GROUP, topic=FORECASTER, restore=restore)
            return state, log.read

    return virtual_time.run(play())


def test_the_newest_is_found_without_reading_all_of_the_topic():
    async def scene(log):
        for name in ("one", "two", "three", "four", "five"):
            await append(log, name, 100)

    assert found_in(scene) == ("five", [256])


def test_a_generation_longer_than_the_first_reach_is_whole():
    async def scene(log):
        await append(log, "one", 10)
        await append(log, "two", 300)

    assert found_in(scene) == ("two", [256, 312])


def test_a_damaged_one_leads_to_the_one_before_it():
    async def scene(log):
        await append(log, "one", 300)
        await append(log, "two", 20)
        await log.append(
            FORECASTER.name,
            key=b"manifest",
            value=b"torn 9",
            headers=(("group", GROUP.encode()), ("generation", b"torn"), ("index", b"9")),
            partition=0,
        )

    assert found_in(scene) == ("two", [256])


def test_of_a_topic_without_generations_there_is_none():
    async def scene(log):
        pass

    assert found_in(scene) == (None, [0])

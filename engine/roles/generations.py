"""Generations of snapshots in the log: chunks, then the manifest that makes them whole."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import structlog

from engine.detection.configuration import CONTINUED, Configuration, configuration_hash
from engine.detection.partition import Partition
from engine.detection.snapshot import Manifest, decode_manifest, restore
from engine.errors import RecordTooLarge, SnapshotDamaged
from engine.ports import Headers, Log, Record
from engine.roles import instruments
from engine.wire.topics import SNAPSHOTS, Topic

CHUNK: Final = b"chunk"
MANIFEST: Final = b"manifest"

# A topic may hold a gigabyte of generations, of which the newest counts: records read from the
# end at first (a forecaster of 2,000 VMs), and how many times more where none of them is whole.
_REACH: Final = 256
_FURTHER: Final = 8

State = TypeVar("State")

_log = structlog.get_logger()


def headers_of(group: str, generation: str, index: int) -> Headers:
    """Return what tells the records of one generation apart from all others."""
    return (
        ("group", group.encode()),
        ("generation", generation.encode()),
        ("index", str(index).encode()),
    )


async def load(
    log: Log, partition: int, *, group: str, configuration: Configuration
) -> tuple[Partition, list[int]]:
    """Return the newest whole state of a partition, and the offsets of the kept generations.

    A damaged generation is passed over for an older one, one of another configuration too;
    without any the state is empty.

    Raises
    ------
    SnapshotTooNew
        A later release wrote one: going on would lose what it learned.
    """
    bounds = await log.bounds(SNAPSHOTS.name, partition)
    records = await log.read_to_end(SNAPSHOTS.name, partition, offset=bounds.earliest)
    chunks, manifests = _sorted(records, group)
    wanted = {configuration_hash(configuration)}
    if configuration_hash(configuration) == configuration_hash(Configuration()):
        wanted |= CONTINUED
    for record in reversed(manifests):
        try:
            manifest = decode_manifest(record.value)
            if manifest.configuration not in wanted:
                _log.warning(
                    "A snapshot was made under another configuration and is passed over.",
                    partition=partition,
                    generation=manifest.generation,
                )
                continue
            state = restore(_chunks(chunks, manifest), manifest, configuration)
        except SnapshotDamaged as damage:
            _log.warning(str(damage), partition=partition)
            continue
        _log.info(
            "The engine goes on from a snapshot.",
            partition=partition,
            next_offset=manifest.next_offset,
        )
        return state, [manifest.next_offset]
    if manifests:
        _log.warning(
            f"None of {len(manifests)} snapshots can be used: the engine learns its VMs anew from"
            " the frames that the log still has.",
            partition=partition,
        )
    return Partition(configuration), []


def _sorted(records: list[Record], group: str) -> tuple[dict[tuple[str, int], bytes], list[Record]]:
    """Return this group's chunks by generation and index, and its manifests, oldest first."""
    chunks: dict[tuple[str, int], bytes] = {}
    manifests: list[Record] = []
    for record in records:
        named = dict(record.headers)
        if named.get("group") != group.encode():
            continue
        if record.key == MANIFEST:
            manifests.append(record)
        elif record.key == CHUNK:
            index = named.get("index", b"")
            if index.isdigit():
                chunks[named.get("generation", b"").decode("ascii", "replace"), int(index)] = (
                    record.value
                )
    return chunks, manifests


def _chunks(chunks: dict[tuple[str, int], bytes], manifest: Manifest) -> list[bytes]:
    """Return the chunks of a generation that are there, in order."""
    found = [chunks.get((manifest.generation, index)) for index in range(len(manifest.chunks))]
    return [chunk for chunk in found if chunk is not None]


async def append_generation(
    log: Log,
    partition: int,
    *,
    group: str,
    generation: str,
    chunks: Sequence[bytes],
    manifest: bytes,
    topic: Topic = SNAPSHOTS,
) -> bool:
    """Make one generation of a group's state stand in the log, its manifest last.

    Returns
    -------
    bool
        Whether it stands there. The log may never take a record of its size: the state is then
        told as unsaved and the role goes on, to read more again after a restart.
    """
    for index, chunk in enumerate((*chunks, manifest)):
        try:
            await log.append(
                topic.name,
                key=MANIFEST if index == len(chunks) else CHUNK,
                value=chunk,
                headers=headers_of(group, generation, index),
                partition=partition,
            )
        except RecordTooLarge as error:
            instruments.RECORDS_GIVEN_UP.labels(topic.name, "oversized").inc()
            _log.error(
                "The state cannot be saved; a restart reads all frames since the last one.",
                topic=topic.name,
                partition=partition,
                reason=str(error),
            )
            return False
    return True


async def stored_generations(
    log: Log, partition: int, *, group: str, topic: Topic, offset: int
) -> list[tuple[bytes, dict[int, bytes]]]:
    """Return manifest and chunks by index of a group's generations from `offset`, newest first."""
    chunks, manifests = _sorted(await log.read_to_end(topic.name, partition, offset=offset), group)
    found: list[tuple[bytes, dict[int, bytes]]] = []
    for record in reversed(manifests):
        name = dict(record.headers).get("generation", b"").decode("ascii", "replace")
        own = {index: chunk for (generation, index), chunk in chunks.items() if generation == name}
        found.append((record.value, own))
    return found


async def newest_state(
    log: Log,
    partition: int,
    *,
    group: str,
    topic: Topic,
    restore: Callable[[dict[int, bytes], bytes], State],
) -> State | None:
    """Return the newest state that `restore` makes of a group's generations, None without any.

    Raises
    ------
    SnapshotTooNew
        A later release wrote one: going on would lose what it learned.
    """
    bounds = await log.bounds(topic.name, partition)
    reach = _REACH
    while True:
        start = max(bounds.earliest, bounds.end - reach)
        damages: list[str] = []
        state: State | None = None
        for manifest, chunks in await stored_generations(
            log, partition, group=group, topic=topic, offset=start
        ):
            try:
                state = restore(chunks, manifest)
                break
            except SnapshotDamaged as damage:
                damages.append(str(damage))
        # A generation that the reach cuts through is not damaged: it is looked for again.
        if state is not None or start == bounds.earliest:
            for sentence in damages:
                _log.warning(sentence, partition=partition)
            return state
        reach *= _FURTHER

"""Snapshots in the log: chunks of state, then the manifest that names them.

Every writer of the topic can write any record there, so a manifest is signed, as alerts are, and it
holds the hash of its chunks. The signature covers topic, partition and group as well.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from flatline.engine import instruments
from flatline.engine.errors import RecordRejected, RecordTooLarge, SnapshotDamaged
from flatline.engine.ports import Headers, Log, Record
from flatline.engine.stream.snapshot_format import (
    Manifest,
    Snapshot,
    decode_manifest,
    encode_manifest,
)
from flatline.engine.wire import limits
from flatline.engine.wire.topics import FRAMES, Topic

CHUNK: Final = b"chunk"
MANIFEST: Final = b"manifest"

# A topic may hold a gigabyte of snapshots, of which only the newest is needed. So only the last
# `_REACH` records are read at first, enough for a forecaster of 2,000 VMs. As long as they hold no
# snapshot that can be used, `_FURTHER` times as many are read.
_REACH: Final = 256
_FURTHER: Final = 8
# The most digits of a chunk's index: no snapshot has a million chunks, and Python refuses to parse
# thousands of digits.
_DIGITS: Final = 6
# Reasons to distrust a manifest.
_NOT_BELIEVED: Final = frozenset({"bad_signature", "expired_key"})

State = TypeVar("State")

_log = structlog.get_logger()


class Seal(Protocol):
    """Signs snapshots, and checks who signed them."""

    def sign(self, value: bytes) -> Headers:
        """Return the headers with the signature of these bytes."""
        ...

    def check(self, value: bytes, record: Record) -> None:
        """Raise `RecordRejected` unless an accepted key signed the bytes."""
        ...


class Stored(NamedTuple):
    """One snapshot in the log: the record of its manifest, and its chunks by index."""

    record: Record
    chunks: dict[int, bytes]


class _Reach(msgspec.Struct):
    next_offset: limits.Count


_reach_decoder = msgspec.msgpack.Decoder(_Reach)


def headers_of(group: str, generation: str, index: int) -> Headers:
    """Return the headers that identify the records of one snapshot.

    `index` is that of the chunk, from 0; the manifest has the number of chunks.
    """
    return (
        ("group", group.encode()),
        ("generation", generation.encode()),
        ("index", str(index).encode()),
    )


def _bound(manifest: bytes, *, topic: Topic, partition: int, group: str) -> bytes:
    """Return the bytes to sign: the manifest after its topic, partition and group.

    So a copy of a signed manifest is not valid for another topic, partition or group.
    """
    return "\x00".join((topic.name, str(partition), group, "")).encode() + manifest


def _sorted(
    records: list[Record], group: str
) -> tuple[dict[bytes, dict[int, bytes]], list[Record]]:
    """Return this group's chunks by snapshot and index, and its manifests, newest first."""
    chunks: dict[bytes, dict[int, bytes]] = {}
    manifests: list[Record] = []
    for record in records:
        named = dict(record.headers)
        if named.get("group") != group.encode():
            continue
        index = named.get("index", b"")
        if record.key == MANIFEST:
            manifests.append(record)
        elif record.key == CHUNK and index.isdigit() and len(index) <= _DIGITS:
            # The first chunk with an index counts, so a later record cannot damage the snapshot.
            chunks.setdefault(_generation(record), {}).setdefault(int(index), record.value)
    return chunks, manifests[::-1]


async def append_snapshot(
    log: Log,
    partition: int,
    *,
    group: str,
    topic: Topic,
    snapshot: Snapshot,
    keys: Seal | None = None,
) -> bool:
    """Append a snapshot of a group's state to the log, its manifest last.

    Parameters
    ----------
    partition
        Partition of the frames, which is also that of the topic of snapshots.
    keys
        Sign the manifest; None leaves it unsigned, for tests.

    Returns
    -------
    bool
        Whether the snapshot is in the log. If a record is too large for the log, an error is logged
        and the role continues; after a restart it must read more frames again.

    Raises
    ------
    LogUnreachable, LogRefused, LogProducerBroken
        As by `Log.append`: the snapshot is incomplete, and readers skip it.
    """
    manifest = encode_manifest(snapshot.manifest)
    bound = _bound(manifest, topic=topic, partition=partition, group=group)
    signature = () if keys is None else keys.sign(bound)
    generation = snapshot.manifest.generation
    for index, chunk in enumerate((*snapshot.chunks, manifest)):
        is_manifest = index == len(snapshot.chunks)
        try:
            await log.append(
                topic.name,
                key=MANIFEST if is_manifest else CHUNK,
                value=chunk,
                headers=headers_of(group, generation, index) + (signature if is_manifest else ()),
                partition=partition,
            )
        except RecordTooLarge as error:
            instruments.RECORDS_GIVEN_UP.labels(topic.name, "oversized").inc()
            _log.error(
                "The state cannot be saved. A restart reads all frames since the last snapshot.",
                topic=topic.name,
                partition=partition,
                reason=str(error),
            )
            return False
    return True


async def stored_snapshots(
    log: Log, partition: int, *, group: str, topic: Topic, offset: int
) -> list[Stored]:
    """Return a group's snapshots in the log from `offset` on, newest first.

    They are neither verified nor complete: chunks before `offset` are missing. Raises
    `LogUnreachable` and `LogRefused` as `Log.read_to_end` does.
    """
    chunks, manifests = _sorted(await log.read_to_end(topic.name, partition, offset=offset), group)
    return [Stored(record, chunks.get(_generation(record), {})) for record in manifests]


def _generation(record: Record) -> bytes:
    return dict(record.headers).get("generation", b"")


async def newest_state(
    log: Log,
    partition: int,
    *,
    group: str,
    topic: Topic,
    restore: Callable[[Sequence[bytes], Manifest], State],
    keys: Seal | None = None,
) -> State | None:
    """Return the newest state that `restore` makes of a group's snapshots, None if there is none.

    A snapshot is logged, counted and skipped for an older one if no trusted key signed it, if it
    claims frames that the log does not have yet, or if it cannot be restored. The newest snapshot
    is the one with the highest `next_offset` in its manifest, so an old one that is appended again
    stays old. If the log no longer has the frames after the state, the engine counts them as lost.

    Parameters
    ----------
    keys
        Say whose states are trusted; None trusts every writer, for tests.

    Raises
    ------
    SnapshotTooNew
        A later release wrote the newest snapshot: to continue without it would lose its content.
    LogUnreachable, LogRefused
        The snapshots could not be read.
    """
    bounds = await log.bounds(topic.name, partition)
    reach = _REACH
    while True:
        start = max(bounds.earliest, bounds.end - reach)
        stored = await stored_snapshots(log, partition, group=group, topic=topic, offset=start)
        # The end is queried after reading, so that it is above every frame in a state just read.
        end = (await log.bounds(FRAMES.name, partition)).end
        passed: list[tuple[str, str]] = []
        believed: list[tuple[float, Stored]] = []
        for one in stored:
            try:
                bound = _bound(one.record.value, topic=topic, partition=partition, group=group)
                if keys is not None:
                    keys.check(bound, one.record)
                believed.append((_next_offset(one.record.value, end=end), one))
            except RecordRejected as refusal:
                passed.append((refusal.reason, refusal.detail))
        state: State | None = None
        for _, one in sorted(believed, key=lambda placed: placed[0], reverse=True):
            try:
                state = _restored(one, restore)
                break
            except SnapshotDamaged as damage:
                passed.append(("unusable", str(damage)))
        # A failed snapshot is reported only if the whole topic was read: before that, some of its
        # chunks may just not have been read yet.
        if state is not None or start == bounds.earliest:
            _tell(passed, topic=topic, partition=partition)
            if state is None and stored:
                _log.warning(
                    f"None of {len(stored)} snapshots can be used. Their state is learned again "
                    "from the frames that are still in the log.",
                    topic=topic.name,
                    partition=partition,
                )
            return state
        reach *= _FURTHER


def _restored(stored: Stored, restore: Callable[[Sequence[bytes], Manifest], State]) -> State:
    manifest, chunks = decode_manifest(stored.record.value), stored.chunks
    there = [chunks[index] for index in range(len(manifest.chunks)) if index in chunks]
    return restore(there, manifest)


def _next_offset(manifest: bytes, *, end: int) -> float:
    """Return the offset of the first frame that a state does not contain, by its manifest.

    The offset is infinite if the manifest cannot be read here. Such a snapshot is tried first,
    because only `restore` can tell whether it is damaged or of a later release.

    Raises
    ------
    RecordRejected
        `bad_value`: the log does not have so many frames.
    """
    try:
        found = _reach_decoder.decode(manifest).next_offset
    except (msgspec.DecodeError, ValueError, RecursionError):
        return float("inf")
    if found > end:
        raise RecordRejected(
            "bad_value",
            f"a snapshot contains all frames below offset {found}, but the log ends at {end}: "
            f"{FRAMES.name} was truncated or created again",
        )
    return found


def _tell(passed: list[tuple[str, str]], *, topic: Topic, partition: int) -> None:
    """Count and log the skipped snapshots with reasons; all untrusted ones share one log entry."""
    sentences = [detail for reason, detail in passed if reason not in _NOT_BELIEVED]
    strange = [detail for reason, detail in passed if reason in _NOT_BELIEVED]
    if strange:
        sentences.append(
            f"{len(strange)} snapshots are skipped because no trusted key signed them: "
            f"{strange[0]}. If another machine wrote them, copy its engine-NAME.pub to the trusted "
            "folder of this machine. Otherwise find out who may write the topic."
        )
    for sentence in sentences:
        _log.warning(sentence, topic=topic.name, partition=partition)
    for reason, _ in passed:
        instruments.SNAPSHOTS_PASSED_OVER.labels(topic.name, reason).inc()

"""The log of a site without a server: SQLite files in one folder, or memory.

Other processes of the same machine may append to the same folder and read from it. A consumer group
has one member at a time. All calls run in the event loop's thread; a call takes microseconds, or
milliseconds if the topic waits for the disk.
"""

import asyncio
import fcntl
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from flatline.connectors.embedded.database import connect, transaction
from flatline.connectors.embedded.lock import FileLock, holder_of
from flatline.connectors.embedded.partitioner import partition_of
from flatline.connectors.embedded.topic import TopicStore
from flatline.engine.errors import GroupTaken, LogRefused, StateUnwritable
from flatline.engine.ports import Bounds, Clock, Delivery, Headers, Position, Record
from flatline.engine.wire.topics import TOPICS, Topic, partition_count

# Interval at which a reader checks for appends of other processes. It is well below a tick (1 s),
# and a check without result costs 10 µs. Appends of this process wake its readers immediately.
_NOTICE_S: Final = 0.1

# A tail returns at most this many records in one batch; the topic limits the bytes.
_TAIL_RECORDS: Final = 1000


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """Location and size of the log.

    Attributes
    ----------
    folder
        Created if absent; None keeps everything in memory, for this process alone.
    partitions
        Number of partitions of the topics keyed by cell; fixed when the folder is created.
    max_bytes
        Limit for all topics together. If their declared sizes exceed it, each topic is reduced by
        the same factor. None keeps the declared sizes.
    """

    folder: Path | None = None
    partitions: int = 1
    topics: tuple[Topic, ...] = TOPICS
    max_bytes: int | None = None

    def bounded_topics(self) -> tuple[Topic, ...]:
        """Return the topics with sizes that fit `max_bytes`; compacted topics ignore their size."""
        declared_bytes = sum(
            topic.retention_bytes * partition_count(topic, self.partitions) for topic in self.topics
        )
        if self.max_bytes is None or declared_bytes <= self.max_bytes:
            return self.topics
        share = self.max_bytes / declared_bytes
        return tuple(
            topic._replace(retention_bytes=int(topic.retention_bytes * share))
            for topic in self.topics
        )


class EmbeddedLog:
    """`engine.ports.Log` on SQLite.

    Parameters
    ----------
    clock
        Gives the append time. Append times of a partition never decrease, even if the clock does.

    Raises
    ------
    StateUnwritable, SettingsError
        On entering: the folder cannot be used, or has another number of partitions.
    """

    def __init__(self, config: EmbeddedConfig, *, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._topics: dict[str, TopicStore] = {}
        self._bells: dict[str, _Bell] = {}
        self._groups_in_memory: set[tuple[str, str]] = set()
        self._identity = ""
        self._files: dict[Path, tuple[int, int]] = {}

    async def __aenter__(self) -> Self:
        folder = self._config.folder
        try:
            if folder is not None:
                folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                (folder / "groups").mkdir(mode=0o750, exist_ok=True)
            with _opening(folder):
                self._open_topics()
        except OSError as error:
            raise StateUnwritable(
                f"the log folder {folder} cannot be used: {error.strerror or error}. Create it for "
                "the user of this process, or set log.folder to another folder"
            ) from error
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _open_topics(self) -> None:
        config = self._config
        try:
            for topic in config.bounded_topics():
                path = config.folder and config.folder / f"{topic.name}.sqlite"
                partitions = partition_count(topic, config.partitions)
                self._topics[topic.name] = TopicStore(path, topic, partitions=partitions)
                self._bells[topic.name] = _Bell()
            births = {name: store.id for name, store in self._topics.items()}
            self._identity = _identify(config.folder and config.folder / "log.sqlite", births)
            if config.folder is not None:
                self._files = {path: _which(path) for path in config.folder.glob("*.sqlite")}
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for store in self._topics.values():
            store.close()
        self._topics.clear()

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
        """See `engine.ports.Log`; after any error nothing was written."""
        # Lets readers run between the appends of a busy writer. This is the only await, so a
        # cancellation takes effect before the write and never after it.
        await asyncio.sleep(0)
        store = self._topic(topic)
        if partition is None:
            partition = partition_of(key, store.partitions)
        self._check(store, partition)
        offset = store.append(
            partition,
            key=key,
            value=value,
            headers=headers,
            time_ms=self._clock.now_ms() if time_ms is None else time_ms,
        )
        self._bells[topic].ring()
        return Position(partition, offset)

    @asynccontextmanager
    async def subscribe(self, topic: str, *, group: str) -> AsyncIterator["EmbeddedSubscription"]:
        """See `engine.ports.Log`; one member holds all partitions of the topic.

        Raises
        ------
        GroupTaken
            The group already has a member, here or in another process.
        StateUnwritable
            The group's lock file cannot be made.
        """
        store = self._topic(topic)
        with self._membership(topic, group):
            subscription = EmbeddedSubscription(self, store, group)
            try:
                yield subscription
            finally:
                subscription.leave()

    @contextmanager
    def _membership(self, topic: str, group: str) -> Iterator[None]:
        taken = (
            f"the consumer group {group!r} of {topic} already has a reader ({{}}). Stop that "
            "reader, or use another group"
        )
        if self._config.folder is None:
            if (topic, group) in self._groups_in_memory:
                raise GroupTaken(taken.format("in this process"))
            self._groups_in_memory.add((topic, group))
            try:
                yield
            finally:
                self._groups_in_memory.discard((topic, group))
            return
        path = self._config.folder / "groups" / f"{topic}~{quote(group, safe='')}.lock"
        try:
            lock = FileLock.take(path)
        except OSError as error:
            raise StateUnwritable(f"{path} cannot be locked: {error.strerror}") from error
        if lock is None:
            raise GroupTaken(taken.format(holder_of(path)))
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Record]]]:
        """See `engine.ports.Log`."""
        store = self._topic(topic)
        self._check(store, partition)
        yield _Tail(self, store, partition, offset)

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """See `engine.ports.Log`."""
        await asyncio.sleep(0)
        store = self._topic(topic)
        self._check(store, partition)
        end = store.bounds(partition).end
        records: list[Record] = []
        while batch := store.read(partition, offset=offset, stop=end, max_records=_TAIL_RECORDS):
            records += batch
            offset = batch[-1].offset + 1
            await asyncio.sleep(0)
        return records

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """See `engine.ports.Log`."""
        await asyncio.sleep(0)  # lets writers run when a caller polls in a loop
        store = self._topic(topic)
        self._check(store, partition)
        return store.bounds(partition)

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        """See `engine.ports.Log`."""
        store = self._topic(topic)
        self._check(store, partition)
        return store.offset_at(partition, time_ms=time_ms)

    def partitions(self, topic: str) -> int:
        """See `engine.ports.Log`."""
        return self._topic(topic).partitions

    async def identity(self) -> str:
        """Return the random id drawn when the log was created or one of its topics was replaced.

        If the files are deleted or restored while this process has them open, records that other
        processes append never reach this process. The returned text then differs from the id.
        """
        if any(_which(path) != opened for path, opened in self._files.items()):
            return f"{self._identity}, but its files were replaced"
        return self._identity

    async def wait_for_append(self, topic: str, wait_s: float) -> None:
        """Return when a process may have appended to `topic`, or after `wait_s` seconds.

        With a folder it returns after 0.1 s at the latest, because appends of other processes give
        no signal.
        """
        if self._config.folder is not None:
            wait_s = min(wait_s, _NOTICE_S)
        await self._bells[topic].wait(wait_s)

    def _topic(self, name: str) -> TopicStore:
        try:
            return self._topics[name]
        except KeyError:
            known = ", ".join(self._topics) or "nothing, because it is closed"
            raise LogRefused(f"this log does not have topic {name!r}; it has {known}") from None

    def _check(self, store: TopicStore, partition: int) -> None:
        if not 0 <= partition < store.partitions:
            raise LogRefused(
                f"{store.topic.name} has partitions 0 to {store.partitions - 1}, not {partition}"
            )


class EmbeddedSubscription:
    """`engine.ports.Subscription` of the only member of a group: partitions are never revoked."""

    def __init__(self, log: EmbeddedLog, store: TopicStore, group: str) -> None:
        self._log = log
        self._store = store
        self._group = group
        self._assigned = frozenset(range(store.partitions))
        self._next = dict.fromkeys(sorted(self._assigned), 0) | store.committed(group)
        self._first = 0
        self._is_member = True

    def leave(self) -> None:
        """Refuse every later call, because another member may have joined the group."""
        self._is_member = False

    async def poll(self, *, max_records: int, wait_s: float) -> Delivery:
        """See `engine.ports.Subscription`."""
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            self._check_membership()
            # No await between the read and the return: a cancelled poll loses nothing.
            records = self._take(max_records)
            left_s = deadline - loop.time()
            if records or left_s <= 0:
                return Delivery(records=records, assigned=self._assigned, generation=1)
            await self._log.wait_for_append(self._store.topic.name, left_s)

    def _take(self, max_records: int) -> tuple[Record, ...]:
        """Return the next records. Each call starts with another partition: none may starve."""
        count = self._store.partitions
        records: list[Record] = []
        for step in range(count):
            room = max_records - len(records)
            if room <= 0:
                break
            partition = (self._first + step) % count
            batch = self._store.read(
                partition,
                offset=self._next[partition],
                stop=self._store.bounds(partition).end,
                max_records=room,
            )
            if batch:
                self._next[partition] = batch[-1].offset + 1
                records += batch
        self._first = (self._first + 1) % count
        return tuple(records)

    async def commit(self, next_offsets: Mapping[int, int]) -> None:
        """See `engine.ports.Subscription`."""
        await asyncio.sleep(0)
        self._check_membership()
        if unknown := next_offsets.keys() - self._assigned:
            raise LogRefused(
                f"{self._store.topic.name} does not have partition {min(unknown)}, so its progress "
                "cannot be committed"
            )
        self._store.commit(self._group, next_offsets)

    def _check_membership(self) -> None:
        if not self._is_member:
            raise LogRefused(f"the consumer group {self._group!r} was left: subscribe again")


class _Tail:
    """Follow one partition. Not a generator, because a cancelled wait would end a generator."""

    def __init__(self, log: EmbeddedLog, store: TopicStore, partition: int, offset: int) -> None:
        self._log = log
        self._store = store
        self._partition = partition
        self._offset = offset

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Record]:
        await asyncio.sleep(0)
        while True:
            batch = self._store.read(
                self._partition,
                offset=self._offset,
                stop=self._store.bounds(self._partition).end,
                max_records=_TAIL_RECORDS,
            )
            if batch:
                self._offset = batch[-1].offset + 1
                return batch
            await self._log.wait_for_append(self._store.topic.name, float("inf"))


class _Bell:
    """Wakes the readers in this process that wait for records of one topic."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, wait_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=None if wait_s == float("inf") else wait_s)
        finally:
            self._waiting.discard(waiter)


@contextmanager
def _opening(folder: Path | None) -> Iterator[None]:
    """Let one process at a time create files: SQLite cannot switch to WAL while others connect."""
    if folder is None:
        yield
        return
    with (folder / "open.lock").open("w") as file:
        # Another process holds this lock only while it opens the log, for a few milliseconds. So
        # this call may block the event loop.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _which(path: Path) -> tuple[int, int]:
    """Return the identity of a file, to detect a replacement; zeros if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _identify(path: Path | None, births: Mapping[str, str]) -> str:
    """Return the log's identity; draw a new one when a topic was replaced.

    A reader that counts orders must detect that the file of orders was deleted, or restored from a
    copy of another log, although the folder is the same.
    """
    connection = connect(path, durable=True)
    try:
        with transaction(connection, path):
            connection.execute("CREATE TABLE IF NOT EXISTS identity(id TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS topic(name TEXT PRIMARY KEY, id TEXT NOT NULL)"
            )
            known = dict(connection.execute("SELECT name, id FROM topic").fetchall())
            row = connection.execute("SELECT id FROM identity").fetchone()
            if row is None or any(known.get(name, born) != born for name, born in births.items()):
                row = (secrets.token_hex(16),)
                connection.execute("DELETE FROM identity")
                connection.execute("INSERT INTO identity VALUES (?)", row)
            connection.executemany("INSERT OR REPLACE INTO topic VALUES (?, ?)", births.items())
    finally:
        connection.close()
    return str(row[0])

"""What the engine asks of the outside world: the protocols that adapters implement.

Only `engine.wiring` knows both a port and its adapters. Every port has one contract
suite under `tests/contracts`, run on each adapter.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from engine.looks import Look, Permit
from engine.wire.frame import Event, Frame, InventoryItem, PoolSample, VmRows
from engine.wire.points import Points

Headers = tuple[tuple[str, bytes], ...]
# Gives the headers that authenticate a record, from its key and its value.
SignFrame = Callable[[bytes, bytes], Headers]


class Clock(Protocol):
    """Tells the time. Roles read it and hand the value to the steps; steps never ask."""

    def now_ms(self) -> int:
        """Return wall time in ms since the Unix epoch; it may jump."""
        ...

    def mono_ns(self) -> int:
        """Return a monotonic reading in ns; only differences mean anything."""
        ...


class Position(NamedTuple):
    """Where a record stands in its topic."""

    partition: int
    offset: int


class Bounds(NamedTuple):
    """The offsets a partition holds: `earliest` is readable unless it equals `end`."""

    earliest: int
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the log returned it.

    `time_ms` is the append time, set by the log and never by the writer: it is the
    clock of every reader that must decide the same on replay.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes
    value: bytes
    headers: Headers = ()


# Gives the frame of a record, or raises `RecordRejected`; where writers are known by their keys
# it checks first who wrote it.
OpenFrame = Callable[[Record], Frame]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one poll returned, and which partitions this reader holds as of now.

    `generation` grows whenever the assignment was revoked, even if the same partitions
    came back: whoever keeps state by partition must load it again.
    """

    records: tuple[Record, ...]
    assigned: frozenset[int]
    generation: int


class Subscription(Protocol):
    """A consumer group member's view of one topic: at-least-once, in order by partition."""

    async def poll(self, *, max_records: int, wait_s: float) -> Delivery:
        """Return records as soon as there are any, or none after `wait_s`.

        Asking for none (`max_records=0`) keeps the membership while the reader cannot go on:
        nothing is read, and nobody counts it as stalled.

        Raises
        ------
        LogUnreachable
            The log has been away longer than the adapter bridges by itself.
        LogRefused
            The group or topic may not be read by this principal.
        """
        ...

    async def commit(self, next_offsets: Mapping[int, int]) -> None:
        """Make `{partition: next offset to read}` the place where a successor starts."""
        ...


class Log(Protocol):
    """The one log of a site. Append is durable when it returns; order is kept by key."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

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
        """Append one record durably and return where it stands.

        Parameters
        ----------
        partition
            Only for records that belong to a partition rather than a key (ticks,
            snapshots); None lets the key decide.
        time_ms
            Only for copies of an existing log; None takes the log's own append time.

        Raises
        ------
        LogUnreachable, LogRefused, RecordTooLarge, LogProducerBroken
            See `engine.errors`. After `LogUnreachable` the record may or may not stand
            in the log: appending it again may double it.
        """
        ...

    def subscribe(self, topic: str, *, group: str) -> AbstractAsyncContextManager[Subscription]:
        """Join `group` on `topic`; leaving the context leaves the group."""
        ...

    def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Record]]]:
        """Follow one partition from `offset` for ever, without a group.

        The iterator yields batches as they come; an offset below the earliest one starts
        at the earliest.
        """
        ...

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """Return every record from `offset` up to the end as it stood when asked: a barrier."""
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """Return the earliest and the next offset of a partition."""
        ...

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        """Return the first offset whose append time is ≥ `time_ms`, else the end."""
        ...

    def partitions(self, topic: str) -> int:
        """Return how many partitions the topic has in this installation."""
        ...

    async def identity(self) -> str:
        """Return what tells this log from another one with the same address."""
        ...


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One bulk look at a node.

    `node` holds gauges by name (`engine.wire.frame.NODE_METRICS`); a name that is absent
    was not measured. `hung` lists the VMs whose monitor did not answer in time; their
    rows carry what libvirt knows without it, the rest is missing.
    """

    event_time_ns: int
    mono_ns: int
    rows: VmRows
    node: Mapping[str, float]
    pools: tuple[PoolSample, ...] = ()
    hung: tuple[bytes, ...] = ()


class Hypervisor(Protocol):
    """What the collector sees of a node: read-only."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def sample(self) -> NodeSample:
        """Return all VMs' counters, taken in one bulk call.

        Raises
        ------
        HypervisorUnreachable
            No answer; the next call tries to connect again.
        """
        ...

    def drain_events(self) -> tuple[Event, ...]:
        """Return the events since the last call, oldest first, each once."""
        ...

    async def inventory(self) -> tuple[InventoryItem, ...]:
        """Return what each VM is, from its definition."""
        ...


class Verbs(Protocol):
    """What the agent may do to a VM. There is no other verb, and none on more than one VM.

    Every verb raises `VerbRefused` or `VmNotFound` when nothing was done, `VerbUnsent` where only
    time was short, and `HypervisorUnreachable` when the outcome is unknown; that is never repeated.

    A call that cannot be sent as its `permit` says, however long the hypervisor was silent, is
    not sent; None permits it whenever the hypervisor answers. A caller who is cancelled takes
    back what was not sent.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def reach(self) -> None:
        """Return when the hypervisor answers; `HypervisorUnreachable` says why it does not."""
        ...

    async def look(self, vm: bytes) -> Look:
        """Return the VM as it is now."""
        ...

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Pull the VM's reset line; a VM paused by its own crash is resumed after it."""
        ...

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        """Resume a VM that this agent's reset left paused in an earlier life, and no other."""
        ...

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Ask the guest to reboot by itself."""
        ...

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        """Move the VM live to node `target`; returns when it runs there.

        One that gets nowhere, or is not over after `within_s`, is given up: `VerbRefused`.
        """
        ...

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Wait for a migration that this agent asked for in an earlier life, as `migrate` does."""
        ...

    async def move_disk(
        self,
        vm: bytes,
        *,
        disk: str,
        target: str,
        within_s: float,
        permit: Permit | None = None,
    ) -> None:
        """Move disk `disk` (target device) live to pool `target`; returns when the VM uses it.

        One that is not complete after `within_s` is given up: `VerbRefused`.
        """
        ...

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        """Give up a copy that this agent began in an earlier life; returns if it was complete."""
        ...

    async def abort_job(self, vm: bytes) -> None:
        """Abort the job that this agent started on the VM."""
        ...


class Evidence(Protocol):
    """Where a node keeps what a person will want to see of a VM that was acted on."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Keep what can be had of the VM within 5 s, and say where, in one phrase.

        Raises
        ------
        EvidenceUnsaved
            Nothing could be kept; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True)
class Notice:
    """What a person is to hear; the same `name` and `labels` are the same notice again."""

    name: str
    severity: str
    sentence: str
    time_ms: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Notifier(Protocol):
    """Whoever tells people."""

    async def send(self, notice: Notice) -> None:
        """Return when the notice has been taken over.

        Raises
        ------
        NotifierUnreachable
            It was not, or nobody knows: sending it again may double it.
        NotifierRefused
            It was not and will never be: the receiver answered no to this notice.
        """
        ...


class LedgerStore(Protocol):
    """Where the agent's ledger stands: append-only, durable when `append` returns."""

    def append(self, entry: bytes) -> None:
        """Write one entry and wait until the disk has it.

        Raises
        ------
        StateUnwritable
            The entry is not durable; what it announces must not be done.
        """
        ...

    def entries(self) -> Sequence[bytes]:
        """Return every entry, oldest first."""
        ...


class Moment(NamedTuple):
    """One record of a recording, and when its log took it (ms since the epoch).

    `value` is its bytes where it has any; `frame` None is a record that is no frame.
    """

    time_ms: int
    frame: Frame | None
    partition: int = 0
    value: bytes = b""


class Recording(Protocol):
    """What happened on a site once: its frames with their append times, ticks included.

    Attributes
    ----------
    name, interval_s
        What it is called, and how far apart a VM's samples are.
    names
        UUID text of each VM to what the recording calls it; a VM that is absent goes by its UUID.
    """

    name: str
    interval_s: float
    names: Mapping[str, str]

    def moments(self) -> Iterator[Moment]:
        """Yield the frames from the beginning, in the order of each partition.

        Raises
        ------
        FlatlineError
            Something in it cannot be read.
        """
        ...

    def figures(self) -> Mapping[str, int]:
        """Return what became of its rows so far, by name; nothing is dropped uncounted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the history; both stores give the same answers.

    Attributes
    ----------
    select
        Pairs of field and statistic: `count`, `sum`, `mean`, `min`, `max`, `first`, `last`, or
        `p95` for the 95th percentile by nearest rank (the value at place ⌊n·0.95 + 0.5⌋ of n
        sorted ones). An empty statistic selects each row's own value; it stands alone.
    begin_ns, end_ns
        Rows from `begin_ns` on and before `end_ns`.
    where
        Tags that must have these values.
    group_by
        Tags by which the answers are told apart.
    every_s
        Length of the windows, which begin at multiples of it; None is one window for all.
    """

    measurement: str
    select: tuple[tuple[str, str], ...]
    begin_ns: int
    end_ns: int
    where: Mapping[str, str] = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    every_s: int | None = None


class Answer(NamedTuple):
    """One group in one window, or one row.

    `tags` are the values of `group_by`, empty where a row has no such tag. `time_ns` is the
    row's own time, the window's beginning, or `begin_ns`. A value is None where nothing was
    known; what has no value at all is no answer.
    """

    tags: tuple[str, ...]
    time_ns: int
    values: tuple[float | int | str | None, ...]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the store will never take: which one of those given, its text, and why."""

    points: int
    row: int
    text: bytes
    reason: str


class History(Protocol):
    """What planners ask: rows by measurement, tags and time. Writing one again replaces it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        """Store rows durably, and return those that the store itself refused for good.

        Raises
        ------
        HistoryUnreachable
            Some or none of the rows are stored: the same call is to be made again.
        HistoryRefused
            Likewise, once a person has mended what the message names.
        """
        ...

    async def ask(self, question: Question) -> list[Answer]:
        """Return the answers, ordered by tags and time.

        Raises
        ------
        HistoryUnreachable, HistoryRefused
            See `write`.
        """
        ...

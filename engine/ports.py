"""The protocols through which the engine does I/O, and which adapters implement.

Only the wiring and `engine.log_factory` know both a port and its adapters. Every port has one
contract suite under `tests/contracts`, which is run on each adapter.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.wire.frame import Event, Frame, InventoryItem, PoolSample, VmRows
from flatline.engine.wire.points import Points

Headers = tuple[tuple[str, bytes], ...]
# Returns the headers that authenticate a record, from its key and its value.
SignFrame = Callable[[bytes, bytes], Headers]


class Opened(Protocol):
    """An adapter that is used as an async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Clock(Protocol):
    """The clocks. Roles read them and pass the value to the steps, which read no clock."""

    def now_ms(self) -> int:
        """Return wall time in ms since the Unix epoch; it may jump."""
        ...

    def mono_ns(self) -> int:
        """Return a monotonic time in ns; only differences are meaningful."""
        ...


class Position(NamedTuple):
    """The position of a record in its topic."""

    partition: int
    offset: int


class Bounds(NamedTuple):
    """Offsets of a partition: of the earliest record, and of the next one to be appended.

    The partition is empty if they are equal.
    """

    earliest: int
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the log returned it.

    `time_ms` is the append time, set by the log and never by the writer. It is the clock of every
    reader that must decide the same on replay.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes
    value: bytes
    headers: Headers = ()


# Returns the frame of a record, or raises `RecordRejected`. Where writers have keys it verifies the
# writer first.
OpenFrame = Callable[[Record], Frame]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The result of one poll, and the partitions that are assigned to this reader now.

    `generation` grows whenever the assignment was revoked, even if the same partitions were
    assigned again. A reader that keeps state by partition must then load it again.
    """

    records: tuple[Record, ...]
    assigned: frozenset[int]
    generation: int


class Subscription(Protocol):
    """A consumer group member's view of one topic: at-least-once, in order by partition."""

    async def poll(self, *, max_records: int, wait_s: float) -> Delivery:
        """Return records when there are any, or none after `wait_s`.

        A reader that cannot continue calls with `max_records=0`, which reads nothing but keeps its
        membership in the group.

        Raises
        ------
        LogUnreachable
            The outage of the log is longer than the adapter bridges by itself.
        LogRefused
            The group or topic may not be read by this principal.
        """
        ...

    async def commit(self, next_offsets: Mapping[int, int]) -> None:
        """Commit `{partition: next offset to read}`, from which a successor starts.

        The errors are those of `poll`.
        """
        ...


class Log(Opened, Protocol):
    """The one log of a site. Append is durable when it returns; order is kept by key.

    Other calls raise `LogUnreachable` where the log gives no answer in time, and `LogRefused` where
    the topic or partition does not exist or may not be read by this principal.
    """

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
        """Append one record durably and return its position.

        Parameters
        ----------
        partition
            Only for records that belong to a partition and not to a key (ticks, snapshots). None:
            the key determines the partition.
        time_ms
            Only for copies of an existing log. None: the log sets the append time.

        Raises
        ------
        LogUnreachable, LogRefused, RecordTooLarge, LogProducerBroken
            See `engine.errors`. After `LogUnreachable` the record may or may not be in the log: a
            retry may duplicate it.
        """
        ...

    def subscribe(self, topic: str, *, group: str) -> AbstractAsyncContextManager[Subscription]:
        """Join `group` on `topic` until the context ends, or raise `GroupTaken` (embedded log)."""
        ...

    def tail(
        self, topic: str, partition: int, *, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Record]]]:
        """Follow one partition from `offset` without end, without a group.

        The iterator yields batches as they arrive; an offset below the earliest one starts at the
        earliest.
        """
        ...

    async def read_to_end(self, topic: str, partition: int, *, offset: int) -> list[Record]:
        """Return every record from `offset` to the end that the partition has at the call."""
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """Return the earliest and the next offset of a partition."""
        ...

    async def offset_at(self, topic: str, partition: int, *, time_ms: int) -> int:
        """Return the first offset whose append time is ≥ `time_ms`, else the end."""
        ...

    def partitions(self, topic: str) -> int:
        """Return the number of partitions of the topic in this installation."""
        ...

    async def identity(self) -> str:
        """Return the identity of this log, which differs for another log at the same address."""
        ...


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One bulk sample of a node.

    `node` holds gauges by name (`engine.wire.metrics.NODE_METRICS`); an absent one is unknown.
    `hung` lists the VMs whose monitor did not answer in time. Their rows have only the values that
    libvirt knows without the monitor.
    """

    event_time_ns: int
    mono_ns: int
    rows: VmRows
    node: Mapping[str, float]
    pools: tuple[PoolSample, ...] = ()
    hung: tuple[bytes, ...] = ()


class Hypervisor(Opened, Protocol):
    """The collector's read-only access to a node."""

    async def sample(self) -> NodeSample:
        """Return all VMs' counters, from one bulk call.

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
        """Return the definition of each running VM, or raise `HypervisorUnreachable`."""
        ...


class Actuator(Opened, Protocol):
    """The actuator: all actions of the agent. No method acts on more than one VM.

    If nothing was done, an action raises `ActionRefused` or `VmNotFound`, and `ActionUnsent` if
    only the time was too short. If the outcome is unknown, it raises `HypervisorUnreachable`, and
    the action is never repeated.

    A call is not sent if its `permit` no longer allows it, for example after a long silence of the
    hypervisor. Without a permit a call is sent whenever the hypervisor answers. If the caller is
    cancelled, a call that was not sent yet is not sent. `vm` is the VM's UUID, 16 bytes.
    """

    async def reach(self) -> None:
        """Wait until the hypervisor answers, or raise `HypervisorUnreachable` with the reason."""
        ...

    async def sample(self, vm: bytes) -> PreflightSample:
        """Return a sample of the VM, or raise `VmNotFound` or `HypervisorUnreachable`."""
        ...

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Pulse the VM's reset line; a VM paused by its own crash is resumed after it."""
        ...

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        """Resume a VM only if an earlier run of this agent has reset it and left it paused."""
        ...

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Ask the guest to reboot by itself."""
        ...

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        """Move the VM live to node `target`; return when it runs there.

        A migration without progress, or longer than `within_s`, is aborted: `ActionRefused`.
        """
        ...

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Wait for a migration that an earlier run of this agent started, as `migrate` does."""
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
        """Move disk `disk` (target device) live to pool `target`; return when the VM uses it.

        A copy that is not complete after `within_s` is aborted: `ActionRefused`.
        """
        ...

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        """Find a copy that an earlier run of this agent started; return if it was complete.

        A copy that is not complete is aborted: `ActionRefused`.
        """
        ...

    async def abort_job(self, vm: bytes) -> None:
        """Abort the migration of the VM that this agent started."""
        ...


class Evidence(Opened, Protocol):
    """Saves evidence about a VM before an action on it, for people who examine the fault later."""

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Save the evidence available within 5 s, and return its location in one phrase.

        Raises
        ------
        EvidenceUnsaved
            Nothing could be saved; the message states the reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification of people. Two with the same `name` and `labels` are one notice, repeated."""

    name: str
    severity: str
    sentence: str
    time_ms: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Notifier(Protocol):
    """Sends notifications to people."""

    async def send(self, notice: Notice) -> None:
        """Send a notice; return when it has been accepted.

        Raises
        ------
        NotifierUnreachable
            The notice was not accepted, or this is unknown: a retry may duplicate it.
        NotifierRefused
            The receiver refused this notice permanently.
        """
        ...


class LedgerStore(Protocol):
    """The store of the agent's ledger: append-only, durable when `append` returns."""

    def append(self, entry: bytes) -> None:
        """Write one entry and wait until it is on disk.

        Raises
        ------
        StateUnwritable
            The entry is not durable; the action that it announces must not be done.
        """
        ...

    def entries(self) -> Sequence[bytes]:
        """Return every entry, oldest first.

        Raises
        ------
        StateUnwritable
            The entries cannot be read, so no action may be done.
        """
        ...


class RecordedFrame(NamedTuple):
    """One record of a recording, and its append time (ms since the epoch).

    `value` holds the record's bytes if they are known. `frame` is None if the record is not a
    frame.
    """

    time_ms: int
    frame: Frame | None
    partition: int = 0
    value: bytes = b""


class Recording(Protocol):
    """A recorded stream of a site: its frames with their append times, ticks included.

    Attributes
    ----------
    name, interval_s
        Name of the recording, and the interval between two samples of a VM.
    names
        Names of VMs by UUID text; a VM without a name here is shown by its UUID.
    """

    name: str
    interval_s: float
    names: Mapping[str, str]

    def recorded_frames(self) -> Iterator[RecordedFrame]:
        """Yield the frames from the beginning, in the order of each partition.

        Raises
        ------
        FlatlineError
            A part of it cannot be read.
        """
        ...

    def figures(self) -> Mapping[str, int]:
        """Return the number of rows read so far by outcome; every dropped row is counted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query of the history; all stores return the same results.

    Attributes
    ----------
    select
        Pairs of field and statistic: `count`, `sum`, `mean`, `min`, `max`, `first`, `last`, or
        `p95` for the 95th percentile by nearest rank (the value at place ⌊n·0.95 + 0.5⌋ of n sorted
        ones). An empty statistic selects each row's own value; it excludes other statistics.
    begin_ns, end_ns
        Rows from `begin_ns` on and before `end_ns`.
    where
        Tags that must have these values.
    group_by
        Tags by which the results are grouped.
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
    """One query result: for a group in a window, or for a row.

    `tags` are the values of `group_by`, empty if a row has no such tag. `time_ns` is the time of
    the row or the beginning of the window; without windows it is `begin_ns`. An unknown value is
    None. A result without any known value is omitted.
    """

    tags: tuple[str, ...]
    time_ns: int
    values: tuple[float | int | str | None, ...]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the store will never accept, its text, and the reason.

    `points` is the index in the batch, and `row` the index in that `Points`.
    """

    points: int
    row: int
    text: bytes
    reason: str


class HistorySink(Opened, Protocol):
    """Takes the history: rows by measurement, tags and time. Writing a row again replaces it."""

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        """Store rows durably, and return those that the store refused permanently.

        Raises
        ------
        HistoryUnreachable
            Not all rows are stored, perhaps none: repeat the same call.
        HistoryRefused
            As above, but a person must first correct the fault that the message states.
        """
        ...


@runtime_checkable
class HistoryQuery(Opened, Protocol):
    """Answers queries of the history; a sink that cannot be queried does not implement it."""

    async def ask(self, query: Query) -> list[Answer]:
        """Return the results, ordered by tags and time.

        Raises
        ------
        HistoryUnreachable
            The store does not answer: repeat the same call.
        HistoryRefused
            The store refuses; a person must first correct the fault that the message states.
        """
        ...

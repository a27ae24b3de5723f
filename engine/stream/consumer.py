"""The consumer of engine, forecaster and historian: assigns, restores, folds, saves and commits.

It never seeks in its input. The group starts at the offset of the older of two snapshots, and
records that the newer one already contains are skipped. The role writes the results of a record to
the log or the store before it saves a snapshot that contains the record. So a crash may repeat
results, but loses none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from flatline.engine.ports import Delivery, Log, OpenFrame, Record, Subscription
from flatline.engine.stream.refolding import Fold, Folded, Refolding
from flatline.engine.stream.snapshot_format import Manifest, Snapshot
from flatline.engine.stream.snapshot_store import Seal, append_snapshot, newest_state
from flatline.engine.wire.topics import Topic

# The group starts at the older snapshot, so that nothing is lost if the newer one is damaged.
_KEPT_SNAPSHOTS: Final = 2

State = TypeVar("State", bound=Folded)
Result = TypeVar("Result")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving(Generic[State]):
    """How a role's state begins, and how it is saved and restored.

    Attributes
    ----------
    new, take, restore
        Return an empty state, the snapshot of a state, and the state of a snapshot.
    group, topic
        The consumer group, and the topic of its snapshots.
    every_s
        Time between two snapshots of one partition, by the append times of its records.
    saves_first
        Whether a partition without a snapshot gets one as soon as a record was folded, instead of
        after `every_s`.
    keys
        Sign the snapshots and say which ones are trusted; None trusts every writer, for tests.
    """

    new: Callable[[], State]
    take: Callable[[State], Snapshot]
    restore: Callable[[Sequence[bytes], Manifest], State]
    group: str
    topic: Topic
    every_s: float
    saves_first: bool = False
    keys: Seal | None = None


@dataclass(slots=True)
class _Held(Generic[State]):
    """One partition that is assigned to this process now, and the offsets of its snapshots."""

    state: State
    saved_ms: int
    offsets: list[int]


class Consumer(Generic[State, Result]):
    """The states of the partitions of frames that are assigned to this process.

    Parameters
    ----------
    role
        Labels metrics and log.
    step
        Folds one record.
    open_frame
        Verifies the writer of a frame and decodes it.
    """

    def __init__(
        self,
        log: Log,
        *,
        role: str,
        saving: Saving[State],
        step: Fold[State, Result],
        open_frame: OpenFrame,
    ) -> None:
        self._log = log
        self._role = role
        self._saving = saving
        self._open_frame = open_frame
        self._held: dict[int, _Held[State]] = {}
        self._generation = -1
        self._refolding: Refolding[State, Result] = Refolding(log, role, self._load, step)

    @property
    def states(self) -> dict[int, State]:
        """The states by partition."""
        return {number: held.state for number, held in self._held.items()}

    async def assign(self, delivery: Delivery) -> list[int]:
        """Hold exactly the assigned partitions, and return those that are new.

        After each reassignment all states are restored, because another process may have had a
        partition in between: the state of that partition is then stale.

        Raises
        ------
        SnapshotTooNew
            A later release wrote the newest snapshot.
        LogUnreachable, LogRefused
            The snapshots could not be read; partitions not restored yet are not held.
        """
        if delivery.generation != self._generation:
            self._generation = delivery.generation
            self._held.clear()
        for number in self._held.keys() - delivery.assigned:
            del self._held[number]
        added = sorted(delivery.assigned - self._held.keys())
        for number in added:
            state = await self._load(number)
            offsets = [state.next_offset] if state.next_offset else []
            self._held[number] = _Held(state, state.time_ms, offsets)
        return added

    async def fold(self, record: Record) -> Result | None:
        """Fold a record, without the parts that failed twice, and return its results.

        None for a record of another partition, or one that was folded before.

        Raises
        ------
        FoldFailed
            The record fails each time, although its failed parts are to be skipped.
        SnapshotTooNew, LogUnreachable, LogRefused
            After a failure, the state could not be restored from the log.
        """
        held = self._held.get(record.partition)
        if held is None or record.offset < held.state.next_offset:
            return None
        held.state, result = await self._refolding.fold(held.state, record)
        if not self._saving.saves_first:
            held.saved_ms = held.saved_ms or held.state.time_ms
        return result

    async def save_due(self, subscription: Subscription) -> dict[int, int]:
        """Save the states that are due; return the sizes of their snapshots in bytes, by partition.

        The committed offset, where a successor starts, is that of the snapshot before the newest. A
        snapshot that is too large for the log is logged and missing from the result. Other errors
        of `Log.append` and `Subscription.commit` are raised, such as `LogUnreachable`.
        """
        every_ms = self._saving.every_s * 1000
        saved = {}
        for number, held in self._held.items():
            # The time of a state without records is 0: it is not saved.
            if held.state.time_ms - held.saved_ms < every_ms:
                continue
            snapshot = self._saving.take(held.state)
            # After a failure the next attempt is at the next due time.
            held.saved_ms = held.state.time_ms
            if not await append_snapshot(
                self._log,
                number,
                group=self._saving.group,
                topic=self._saving.topic,
                snapshot=snapshot,
                keys=self._saving.keys,
            ):
                continue
            held.offsets = [*held.offsets, held.state.next_offset][-_KEPT_SNAPSHOTS:]
            if len(held.offsets) == _KEPT_SNAPSHOTS:
                await subscription.commit({number: held.offsets[0]})
            saved[number] = sum(map(len, snapshot.chunks))
        return saved

    async def _load(self, number: int) -> State:
        """Return the newest whole state of a partition, an empty one if there is none."""
        state = await newest_state(
            self._log,
            number,
            group=self._saving.group,
            topic=self._saving.topic,
            restore=self._saving.restore,
            keys=self._saving.keys,
        )
        if state is None:
            state = self._saving.new()
        else:
            _log.info(
                f"The {self._role} continues from a snapshot.",
                partition=number,
                next_offset=state.next_offset,
            )
        state.open_frame = self._open_frame
        return state

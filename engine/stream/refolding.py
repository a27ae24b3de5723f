"""Error handling of folds: repeat a failed record from the last snapshot, then skip it.

A fold changes its state step by step, so after an error the state may be half changed. The newest
snapshot is loaded, and the records since then are read and folded again. If the failed record fails
a second time, its culprit is skipped: the record itself, or the part of the state that cannot
continue. The same records raise the same errors, so every restart reaches the same state.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import structlog

from flatline.engine import instruments
from flatline.engine.errors import FoldFailed
from flatline.engine.ports import Log, OpenFrame, Record
from flatline.engine.wire.topics import FRAMES

# The first failure may be a fault of the machine (memory, a signal); the second one is attributed
# to the record.
_ATTEMPTS: Final = 2
_HOPELESS: Final = 8

_log = structlog.get_logger()


class Folded(Protocol):
    """A state into which records of one partition are folded.

    Attributes
    ----------
    open_frame
        Verifies the writer of a frame and decodes it.
    next_offset
        The first offset that was not folded; 0 for a state without records.
    time_ms
        Append time of the newest record, 0 without one.
    """

    open_frame: OpenFrame
    next_offset: int
    time_ms: int


State = TypeVar("State", bound=Folded)
Result = TypeVar("Result")
State_contra = TypeVar("State_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Fold(Protocol[State_contra, Result_co]):
    """Folds one record, but skips the culprits in `given_up`; `FoldFailed` names a new culprit."""

    def __call__(
        self, state: State_contra, record: Record, /, *, given_up: Collection[str]
    ) -> Result_co:
        """Return the results of the record."""
        ...


@dataclass(slots=True)
class Refolding(Generic[State, Result]):
    """Folds the frames of a role's partitions; a frame that raises an error does not stop it.

    Attributes
    ----------
    role
        Labels the metric and the log.
    load
        Returns the newest state of a partition in the log, else an empty one.
    step
        Folds one record.
    """

    log: Log
    role: str
    load: Callable[[int], Awaitable[State]]
    step: Fold[State, Result]
    # By partition: the first offset that was folded into a state without a snapshot.
    _begun: dict[int, int] = field(default_factory=dict)
    # By partition and offset of a record: how often each of its culprits failed.
    _failed: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)

    async def fold(self, state: State, record: Record) -> tuple[State, Result]:
        """Fold a record, without the parts that failed twice.

        Return the state to continue with and the results of the record. After a failure, the state
        is one restored from the newest snapshot.

        Raises
        ------
        FoldFailed
            The record fails each time, although its failed parts are to be skipped.
        SnapshotTooNew, LogUnreachable, LogRefused
            After a failure, the state could not be restored from the log.
        """
        if not state.next_offset:
            self._begun[record.partition] = record.offset
        while True:
            try:
                return state, self.step(state, record, given_up=self._given_up(record))
            except FoldFailed as failure:
                self._note(record, failure)
                state = await self._recovered(record)

    def _given_up(self, record: Record) -> frozenset[str]:
        """Return the culprits of a record that are skipped, because they failed twice."""
        failed = self._failed.get((record.partition, record.offset))
        if failed is None:
            return frozenset()
        return frozenset(culprit for culprit, count in failed.items() if count >= _ATTEMPTS)

    async def _recovered(self, record: Record) -> State:
        """Return the state as it was before `record`."""
        while True:
            state = await self.load(record.partition)
            if not state.next_offset:
                state.next_offset = self._begun.get(record.partition, record.offset)
            again = await self._caught_up(state, record)
            if again is None:
                return state
            # An earlier record failed this time, so the state must be restored once more.
            self._note(*again)

    def _note(self, record: Record, failure: FoldFailed) -> None:
        failed = self._failed.setdefault((record.partition, record.offset), {})
        count = failed[failure.culprit] = failed.get(failure.culprit, 0) + 1
        if count > _HOPELESS:
            # The fold does not skip its culprits. Without this limit it would be repeated forever.
            raise failure
        where = f"{record.topic}/{record.partition} at offset {record.offset}"
        if count < _ATTEMPTS:
            _log.warning(
                f"Processing a record failed ({failure}). The {self.role} restarts from its last "
                f"snapshot and tries the record once more: {where}.",
                culprit=failure.culprit,
            )
            return
        instruments.POISON.labels(self.role).inc()
        _log.error(
            f"Processing a record failed twice ({failure}). The {self.role} skips it: {where}. "
            "Please report this error with the record.",
            culprit=failure.culprit,
            exc_info=failure.cause,
        )

    async def _caught_up(self, state: State, record: Record) -> tuple[Record, FoldFailed] | None:
        """Fold the records before `record`; return the first failure, None if there is none."""
        if state.next_offset >= record.offset:
            return None
        async with self.log.tail(
            FRAMES.name, record.partition, offset=state.next_offset
        ) as batches:
            async for batch in batches:
                for one in batch:
                    if one.offset >= record.offset:
                        return None
                    try:
                        # The results are in the log already.
                        self.step(state, one, given_up=self._given_up(one))
                    except FoldFailed as failure:
                        return one, failure
        return None

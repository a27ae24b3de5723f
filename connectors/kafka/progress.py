"""Notices a reader that asks for records, gets none, and yet there are some.

Consumers of Kafka have been seen to stop fetching for days without an error. What counts
here is processing, not committing, and it is measured from outside the consumer: against
the ends of the partitions as another connection sees them.
"""

from collections.abc import Collection, Iterable, Mapping

from engine.errors import LogError
from engine.ports import Record


class Progress:
    """How far one member has come in each partition that it holds.

    Parameters
    ----------
    name
        What is read and for whom, for the message.
    checks
        How many looks in a row must find a partition behind and still before it is stalled.
    """

    def __init__(self, name: str, *, checks: int) -> None:
        self._name = name
        self._checks = checks
        self._next: dict[int, int | None] = {}
        self._still: dict[int, int] = {}
        self._asked = False

    @property
    def unknown(self) -> frozenset[int]:
        """Partitions from which nothing was delivered since they were assigned."""
        return frozenset(number for number, offset in self._next.items() if offset is None)

    @property
    def partitions(self) -> frozenset[int]:
        """Partitions that are held."""
        return frozenset(self._next)

    def assign(self, partitions: Collection[int]) -> None:
        """Begin anew with these partitions."""
        self._next = dict.fromkeys(partitions)
        self._still = dict.fromkeys(partitions, 0)

    def start_at(self, next_offsets: Mapping[int, int]) -> None:
        """Learn where the group had committed, for partitions that delivered nothing yet."""
        for number in self.unknown & next_offsets.keys():
            self._next[number] = next_offsets[number]

    def polled(self, records: Iterable[Record]) -> None:
        """Note that the reader asked, and what it got."""
        self._asked = True
        for record in records:
            if record.partition in self._next:
                self._next[record.partition] = record.offset + 1
                self._still[record.partition] = 0

    def lag(self, ends: Mapping[int, int]) -> int:
        """Return how many offsets are not delivered yet, over all partitions."""
        return sum(
            max(0, end - (self._next.get(number) or 0))
            for number, end in ends.items()
            if number in self._next
        )

    def check(self, ends: Mapping[int, int]) -> None:
        """Look at the partitions' ends; whoever does not ask is busy and not stalled.

        Raises
        ------
        LogError
            A partition is behind and has not moved for `checks` looks in a row. The process
            must end: a consumer in this state does not recover.
        """
        asked, self._asked = self._asked, False
        for number, end in ends.items():
            offset = self._next.get(number)
            if offset is None or end <= offset:
                self._still[number] = 0
            elif asked:
                self._still[number] = self._still.get(number, 0) + 1
            if self._still[number] > self._checks:
                raise LogError(
                    f"{self._name}: partition {number} stands still at {offset} although the log "
                    f"goes on to {end}; this process must be restarted"
                )

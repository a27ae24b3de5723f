"""Detect a reader that polls and receives nothing although records are waiting.

Kafka consumers are known to stop fetching for days without an error. The check compares delivered
offsets, not commits, with the end offsets of the partitions. A connection other than that of the
consumer reads the end offsets.
"""

from collections.abc import Collection, Iterable, Mapping

from flatline.engine.errors import LogError
from flatline.engine.ports import Record


class Progress:
    """Delivered offsets of one member in each partition that it holds.

    Parameters
    ----------
    name
        Topic and group, for the message.
    checks
        A partition counts as stalled when more consecutive checks than this find it behind and
        without a delivery.
    """

    def __init__(self, name: str, *, checks: int) -> None:
        self._name = name
        self._checks = checks
        self._next: dict[int, int | None] = {}
        self._still: dict[int, int] = {}
        self._asked = False

    @property
    def unknown(self) -> frozenset[int]:
        """Partitions without a delivery since they were assigned."""
        return frozenset(number for number, offset in self._next.items() if offset is None)

    @property
    def partitions(self) -> frozenset[int]:
        """Partitions that are assigned."""
        return frozenset(self._next)

    def assign(self, partitions: Collection[int]) -> None:
        """Start over with these partitions."""
        self._next = dict.fromkeys(partitions)
        self._still = dict.fromkeys(partitions, 0)

    def start_at(self, next_offsets: Mapping[int, int]) -> None:
        """Assume the committed offsets for partitions without a delivery so far."""
        for number in self.unknown & next_offsets.keys():
            self._next[number] = next_offsets[number]

    def polled(self, records: Iterable[Record]) -> None:
        """Record a poll and the records it returned."""
        self._asked = True
        for record in records:
            if record.partition in self._next:
                self._next[record.partition] = record.offset + 1
                self._still[record.partition] = 0

    def lag(self, ends: Mapping[int, int]) -> int:
        """Return the number of offsets not yet delivered, over all assigned partitions.

        `ends` maps each partition to its next offset. A partition without a delivery or a start
        counts from offset 0.
        """
        return sum(
            max(0, end - (self._next.get(number) or 0))
            for number, end in ends.items()
            if number in self._next
        )

    def check(self, ends: Mapping[int, int]) -> None:
        """Compare with the partitions' ends; a reader that does not poll is busy, not stalled.

        `ends` maps each partition to its next offset.

        Raises
        ------
        LogError
            More than `checks` consecutive checks found a partition behind and without a delivery.
            The process must end: a consumer in this state does not recover.
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
                    f"{self._name}: partition {number} stays at offset {offset} although the log "
                    f"ends at {end}; this process must be restarted"
                )

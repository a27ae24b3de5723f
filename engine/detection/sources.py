"""The order of frames: each source's sequence decides, not the order of arrival.

A source is (node, role, run). Every frame that is offered ends in exactly one counter, so
that in = processed + duplicate + late + rejected + shed + waiting at any moment.
"""

import msgspec

from engine.detection.configuration import Configuration
from engine.wire.frame import Frame

# A run that begins with one of its first frames may have been overtaken by frame 0.
_EARLY_SEQUENCE = 16
_SKIPPED_KEPT = 256


class Counters(msgspec.Struct):
    """What became of the records of one partition.

    `missing` are frames that their sources numbered and that had not come when their gap was
    given up; one that comes all the same is then `late`.
    """

    received: int = 0
    processed: int = 0
    duplicate: int = 0
    late: int = 0
    rejected: int = 0
    shed: int = 0
    clock_backwards: int = 0
    missing: int = 0

    def balanced(self, waiting: int) -> bool:
        """Return whether every record is accounted for."""
        done = self.processed + self.duplicate + self.late + self.rejected + self.shed
        return self.received == done + waiting


class Waiting(msgspec.Struct):
    """A frame ahead of its sequence; `value` is its bytes, so that a snapshot can hold it."""

    sequence: int
    time_ms: int
    value: bytes


class Source(msgspec.Struct):
    """One run of one writer: the next sequence, and what waits or was given up."""

    following: int
    seen_ms: int
    first: int = 0
    waiting: list[Waiting] = []
    skipped: list[int] = []


class Arrival(msgspec.Struct, frozen=True):
    """A frame as it arrived: decoded, with what a snapshot needs of its record."""

    frame: Frame
    value: bytes
    time_ms: int


def source_key(frame: Frame) -> str:
    """Return what names the source of a frame within its partition."""
    header = frame.header
    return "\x00".join((header.cell, header.node, header.role, header.run))


def order(
    sources: dict[str, Source],
    arrival: Arrival,
    counters: Counters,
) -> bool:
    """Return whether a frame is to be folded now, as the next one of its source.

    A frame ahead of its sequence is put aside; a repeated one is counted `duplicate`, one
    whose gap was given up `late`.
    """
    key = source_key(arrival.frame)
    sequence = arrival.frame.header.sequence
    source = sources.get(key)
    if source is None:
        early = sequence <= _EARLY_SEQUENCE
        first = 0 if early else sequence
        source = Source(following=first, seen_ms=arrival.time_ms, first=first)
        sources[key] = source
    source.seen_ms = arrival.time_ms
    if sequence == source.following:
        source.following += 1
        return True
    if sequence < source.following:
        if sequence in source.skipped:
            source.skipped.remove(sequence)
            counters.late += 1
        elif sequence < source.first:
            counters.late += 1
        else:
            counters.duplicate += 1
        return False
    if any(other.sequence == sequence for other in source.waiting):
        counters.duplicate += 1
        return False
    source.waiting.append(
        Waiting(
            sequence=sequence,
            time_ms=arrival.time_ms,
            value=arrival.value,
        )
    )
    source.waiting.sort(key=lambda waiting: waiting.sequence)
    return False


def release(
    source: Source, counters: Counters, *, time_ms: int, configuration: Configuration
) -> list[Waiting]:
    """Return the frames whose turn has come: the gap closed, or was waited for long enough."""
    ready: list[Waiting] = []
    while source.waiting:
        first = source.waiting[0]
        oldest_ms = min(waiting.time_ms for waiting in source.waiting)
        overdue = (
            time_ms - oldest_ms >= configuration.reorder_s * 1000
            or len(source.waiting) > configuration.reorder_frames
        )
        if first.sequence != source.following and not overdue:
            break
        counters.missing += first.sequence - source.following
        source.skipped += range(
            max(source.following, first.sequence - _SKIPPED_KEPT), first.sequence
        )
        del source.skipped[:-_SKIPPED_KEPT]
        source.following = first.sequence + 1
        ready.append(source.waiting.pop(0))
    return ready


def forget_ended(sources: dict[str, Source], *, time_ms: int, configuration: Configuration) -> None:
    """Drop runs that a later run of the same writer followed, once no repeat can come.

    The latest run is kept however long it is quiet: an agent may have nothing to say for months,
    and where its sequence stood is then needed, lest its next mark wait for frames long folded.
    """
    kept_ms = configuration.source_kept_s * 1000
    latest_ms: dict[str, int] = {}
    for key, source in sources.items():
        writer = _writer(key)
        latest_ms[writer] = max(latest_ms.get(writer, 0), source.seen_ms)
    ended = [
        key
        for key, source in sources.items()
        if not source.waiting
        and time_ms - source.seen_ms > kept_ms
        and source.seen_ms < latest_ms[_writer(key)]
    ]
    for key in ended:
        del sources[key]


def _writer(key: str) -> str:
    """Return the part of a source's key that outlives its runs."""
    return key.rpartition("\x00")[0]

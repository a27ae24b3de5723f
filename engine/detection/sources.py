"""The order of frames: each source's sequence decides, not the order of arrival.

A source is (node, role, run). Every frame that is offered ends in exactly one counter, so
that in = processed + duplicate + late + rejected + shed + waiting at any moment.
"""

from collections.abc import Callable, Iterator

import msgspec

from engine.detection.bounds import MAX_RUNS, MAX_SOURCES
from engine.detection.configuration import Configuration
from engine.errors import RecordRejected
from engine.wire.frame import Frame
from engine.wire.limits import MAX_COUNT
from engine.wire.runs import REPLAYED_MS, is_replayed

# A run that begins with one of its first frames may have been overtaken by frame 0.
_EARLY_SEQUENCE = 16
_SKIPPED_KEPT = 256
# At a sample a second more than ten days of one run that no reader saw.
_MOST_MISSING = 1_000_000
# A writer that nobody knows here is believed for a day: no collector keeps frames for longer.
_OLDEST_MS = 86_400_000
# An owner's word is of now. Clocks that are kept and a log that restarts take seconds to minutes; a
# word that took longer may be a copy of an old one, since a MAC holds for ever. Words of control
# have the same five minutes (`engine.action.words`).
OWNER_FRESH_MS = 300_000


class Counters(msgspec.Struct):
    """What became of the records of one partition.

    `missing` are frames that their sources numbered and that had not come when their gap was
    given up; one that comes all the same is then `late`. `poison` are those of `rejected` that
    could not be folded, and cells that had to begin anew. `foreign` are rows, events and items of
    VMs that another node runs, `rival` frames of a second collector of a node: both are not used.
    """

    received: int = 0
    processed: int = 0
    duplicate: int = 0
    late: int = 0
    rejected: int = 0
    shed: int = 0
    clock_backwards: int = 0
    missing: int = 0
    poison: int = 0
    foreign: int = 0
    rival: int = 0

    def balanced(self, waiting: int) -> bool:
        """Return whether every record is accounted for."""
        done = self.processed + self.duplicate + self.late + self.rejected + self.shed
        return self.received == done + waiting


class Sample(msgspec.Struct, frozen=True):
    """When a sample was taken, by its node's clocks; `mono_ns` 0 is none."""

    mono_ns: int = 0
    event_ms: int = 0


class Waiting(msgspec.Struct):
    """A frame whose turn has not come; `value` is its bytes, so that a snapshot can hold it.

    `sample` is the one that it reports.
    """

    sequence: int
    time_ms: int
    value: bytes
    sample: Sample = Sample()


class Source(msgspec.Struct):
    """One run of one writer: the next sequence, and what waits or was given up.

    `event_ms` is when the frame that last came was taken, by its node's clock.
    """

    following: int
    seen_ms: int
    first: int = 0
    event_ms: int = 0
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


def sample_of(frame: Frame) -> Sample:
    """Return which sample a frame reports."""
    header = frame.header
    if header.role != "collector" or not (len(frame.rows) or frame.node):
        return Sample()
    return Sample(header.mono_ns, header.event_time_ns // 1_000_000)


def stale_word(frame: Frame, *, appended_ms: int) -> RecordRejected | None:
    """Return why an owner's word is not one of now, None for all other frames.

    `appended_ms` is when the log took its record, whatever time is believed meanwhile.
    """
    if frame.header.role != "owner":
        return None
    for event in frame.events:
        age_ms = appended_ms - event.time_ns // 1_000_000
        if abs(age_ms) > OWNER_FRESH_MS:
            way = "after" if age_ms > 0 else "before"
            return RecordRejected(
                "stale",
                f"{event.kind} by owner {frame.header.node} in cell {frame.header.cell} reached the"
                f" log {abs(age_ms) / 1000:.0f} s {way} it was said"
                f" ({OWNER_FRESH_MS // 1000} s at most): it may be a copy of an old record, or the"
                " owner's clock is wrong; set that clock and say it again, or find out who may"
                " write the topic",
            )
    return None


def refusal_of(
    sources: dict[str, Source], marks: dict[str, int], frame: Frame, *, time_ms: int
) -> RecordRejected | None:
    """Return why a frame is not taken in by its source, None where nothing speaks against it.

    `marks` hold, by writer, when the frame that came last was taken by its node's clock. They
    outlive runs: whoever can read the log can write frames of an ended run once more, and their
    MAC holds.
    """
    key, header = source_key(frame), frame.header
    source = sources.get(key)
    if source is not None:
        if header.sequence - source.following <= _MOST_MISSING:
            return None
        # Given up after a while, such a gap would make all that follows a repeat.
        detail = f"sequence {header.sequence} after {source.following - 1} of the same run"
        return RecordRejected("bad_value", detail)
    event_ms = header.event_time_ns // 1_000_000
    last_ms = marks.get(_writer(key))
    if last_ms is None:
        is_old, than = event_ms < time_ms - _OLDEST_MS, f"the log by more than {_OLDEST_MS} ms"
    else:
        is_old = is_replayed(event_ms, last_ms=last_ms, now_ms=time_ms)
        than = f"what its writer told before by {last_ms - event_ms} ms"
    if is_old:
        who = f"{header.role} {header.node} in cell {header.cell}"
        return RecordRejected(
            "replayed",
            f"run {header.run} of {who} begins with frame {header.sequence}, which is older than"
            f" {than}: somebody writes old frames again, or the node's clock went back; set its"
            " clock, or find out who may write the topic",
        )
    if len(sources) >= MAX_SOURCES:
        return RecordRejected("too_many", f"{len(sources)} runs write to this partition already")
    runs = sum(one.startswith(_writer(key) + "\x00") for one in sources)
    if runs >= MAX_RUNS:
        who = f"{header.role} {header.node} in cell {header.cell}"
        return RecordRejected("too_many", f"{who} began {runs} runs within minutes")
    return None


def note_mark(marks: dict[str, int], key: str, source: Source) -> None:
    """Note when the frame that a source's writer told last was taken."""
    marks[_writer(key)] = source.event_ms


def overtaken_ms(source: Source, arrival: Arrival) -> int:
    """Return how long after the first of those behind it a frame came, 0 if it came before them."""
    sequence = arrival.frame.header.sequence
    # What owners and agents send again says nothing of how samples travel.
    if sequence < source.following or not sample_of(arrival.frame).mono_ns:
        return 0
    behind = [one.time_ms for one in source.waiting if one.sequence > sequence]
    repeated = any(one.sequence == sequence for one in source.waiting)
    return 0 if repeated or not behind else max(0, arrival.time_ms - min(behind))


def order(
    sources: dict[str, Source],
    arrival: Arrival,
    counters: Counters,
    waits: Callable[[Waiting], bool] | None = None,
) -> bool:
    """Return whether a frame is to be folded now, as the next one of its source.

    A frame ahead of its sequence, or a next one that `waits` says is early, is put aside; a
    repeated one is counted `duplicate`, one whose gap was given up `late`.
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
    source.event_ms = arrival.frame.header.event_time_ns // 1_000_000
    waiting = Waiting(
        sequence=sequence,
        time_ms=arrival.time_ms,
        value=arrival.value,
        sample=sample_of(arrival.frame),
    )
    if sequence == source.following and not (waits is not None and waits(waiting)):
        source.following += 1
        return True
    source.waiting.append(waiting)
    source.waiting.sort(key=lambda waiting: waiting.sequence)
    return False


def release(
    source: Source,
    counters: Counters,
    *,
    time_ms: int,
    configuration: Configuration,
    waits: Callable[[Waiting], bool] | None = None,
    crowded: bool = False,
) -> Iterator[Waiting]:
    """Yield the frames whose turn has come: the gap closed, or was waited for long enough.

    `waits` says of a next one that it is early still; where it is `crowded` nothing waits. Each is
    to be folded before the following one is asked for, since that may follow from it.
    """
    while source.waiting:
        first = source.waiting[0]
        oldest_ms = min(waiting.time_ms for waiting in source.waiting)
        too_many = crowded or len(source.waiting) > configuration.reorder_frames
        overdue = too_many or time_ms - oldest_ms >= configuration.reorder_s * 1000
        is_next = first.sequence == source.following
        is_early = is_next and not too_many and waits is not None and waits(first)
        if is_early or not (is_next or overdue):
            break
        # A sequence from nowhere makes a gap of any size; a snapshot holds 64 bits.
        counters.missing = min(
            MAX_COUNT, counters.missing + max(0, first.sequence - source.following)
        )
        source.skipped += range(
            max(source.following, first.sequence - _SKIPPED_KEPT), first.sequence
        )
        del source.skipped[:-_SKIPPED_KEPT]
        source.following = first.sequence + 1
        yield source.waiting.pop(0)


def forget_ended(
    sources: dict[str, Source],
    marks: dict[str, int],
    *,
    time_ms: int,
    configuration: Configuration,
) -> None:
    """Drop runs that a later run of the same writer followed, once no repeat can come.

    What comes of them later is a replay by its time, which `marks` tell.

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
        and source.event_ms < marks.get(_writer(key), 0) - REPLAYED_MS
    ]
    for key in ended:
        del sources[key]


def _writer(key: str) -> str:
    """Return the part of a source's key that outlives its runs."""
    return key.rpartition("\x00")[0]

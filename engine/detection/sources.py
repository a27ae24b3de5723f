"""Order frames by the sequence of their source, not by arrival.

A source is one run of one role on one node. Every received frame waits or is counted in exactly
one counter: received = processed + duplicate + late + rejected + shed + waiting at any moment.
"""

from collections.abc import Callable, Iterator

import msgspec

from flatline.engine.detection.bounds import MAX_RUNS, MAX_SOURCES
from flatline.engine.detection.configuration import Configuration
from flatline.engine.errors import RecordRejected
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.limits import MAX_COUNT
from flatline.engine.wire.runs import REPLAYED_MS, is_replayed

# If the first frame received of a run has at most this sequence, the frames before it are awaited
# too: frame 0 may arrive later than others.
_EARLY_SEQUENCE = 16
_SKIPPED_KEPT = 256
# Longest gap in a sequence. With a sample each second, it is more than ten days of lost frames.
_MOST_MISSING = 1_000_000
# An unknown writer is accepted with frames up to a day old: no collector buffers for longer.
_OLDEST_MS = 86_400_000
# Longest age of an owner's command. Synchronised clocks and a log that restarts take seconds to
# minutes. An older command may be a replayed one, since a MAC does not expire. Control commands
# have the same limit of five minutes (`engine.action.commands`).
OWNER_FRESH_MS = 300_000


class Counters(msgspec.Struct):
    """Counts of the records of one partition by outcome.

    `missing` counts frames that had not arrived when the gap in their sequence was given up. Such a
    frame counts as `late` if it arrives afterwards. `poison` counts the rejected records whose
    folding failed, and the cells that were reset after an error. `foreign` counts unused rows,
    events and items of VMs that another node runs, `rival` unused frames of a node's second
    collector.
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
        """Return whether every record is counted in exactly one outcome.

        `waiting` is the number of frames that still wait for a gap to close.
        """
        done = self.processed + self.duplicate + self.late + self.rejected + self.shed
        return self.received == done + waiting


class Sample(msgspec.Struct, frozen=True):
    """Time at which a sample was taken, by its node's clocks; `mono_ns` 0 is no sample."""

    mono_ns: int = 0
    event_ms: int = 0


class Waiting(msgspec.Struct):
    """A frame that is not due yet; `value` is its bytes, so that a snapshot can store it.

    `sample` is the sample that it reports.
    """

    sequence: int
    time_ms: int
    value: bytes
    sample: Sample = Sample()


class Source(msgspec.Struct):
    """One run of one writer: the next sequence, waiting frames and skipped sequences.

    `event_ms` is the time of the last received frame, by its node's clock.
    """

    following: int
    seen_ms: int
    first: int = 0
    event_ms: int = 0
    waiting: list[Waiting] = []
    skipped: list[int] = []


class Arrival(msgspec.Struct, frozen=True):
    """A received frame: decoded, with the parts of its record that a snapshot needs."""

    frame: Frame
    value: bytes
    time_ms: int


def source_key(frame: Frame) -> str:
    """Return the key of a frame's source within its partition."""
    header = frame.header
    return "\x00".join((header.cell, header.node, header.role, header.run))


def sample_of(frame: Frame) -> Sample:
    """Return the sample that a frame reports; `Sample()` if it reports none."""
    header = frame.header
    if header.role != "collector" or not (len(frame.rows) or frame.node):
        return Sample()
    return Sample(header.mono_ns, header.event_time_ns // 1_000_000)


def stale_command(frame: Frame, *, appended_ms: int) -> RecordRejected | None:
    """Return why an owner's command is not current; None if it is, and for all other frames.

    `appended_ms` is the append time of its record, independent of the accepted log clock.
    """
    if frame.header.role != "owner":
        return None
    for event in frame.events:
        age_ms = appended_ms - event.time_ns // 1_000_000
        if abs(age_ms) > OWNER_FRESH_MS:
            way = "after" if age_ms > 0 else "before"
            return RecordRejected(
                "stale",
                f"{event.kind} by owner {frame.header.node} in cell {frame.header.cell} reached "
                f"the log {abs(age_ms) / 1000:.0f} s {way} its date (at most "
                f"{OWNER_FRESH_MS // 1000} s are allowed). Either it is a copy of an old record, "
                "or the owner's clock is wrong. Set that clock and repeat the command, or find "
                "out who may write the topic",
            )
    return None


def refusal_of(
    sources: dict[str, Source], marks: dict[str, int], frame: Frame, *, time_ms: int
) -> RecordRejected | None:
    """Return why a frame must not enter its source, None if it may.

    `marks` has the time of the last received frame of each writer, by its node's clock. These times
    are kept after a run is dropped, because anyone who can read the log can write frames of an
    ended run again, and their MAC is still valid. `time_ms` is the accepted append time.
    """
    key, header = source_key(frame), frame.header
    source = sources.get(key)
    if source is not None:
        if header.sequence - source.following <= _MOST_MISSING:
            return None
        # If such a gap were given up, all frames with a smaller sequence would count as repeats.
        detail = f"sequence {header.sequence} after {source.following - 1} of the same run"
        return RecordRejected("bad_value", detail)
    event_ms = header.event_time_ns // 1_000_000
    last_ms = marks.get(_writer(key))
    if last_ms is None:
        is_old, than = event_ms < time_ms - _OLDEST_MS, f"the log by more than {_OLDEST_MS} ms"
    else:
        is_old = is_replayed(event_ms, last_ms=last_ms, now_ms=time_ms)
        than = f"the last date of its writer by {last_ms - event_ms} ms"
    if is_old:
        who = f"{header.role} {header.node} in cell {header.cell}"
        return RecordRejected(
            "replayed",
            f"run {header.run} of {who} begins with frame {header.sequence}, which is older than "
            f"{than}. Either these are copies of old frames, or the clock of the node went "
            "back. Set that clock, or find out who may write the topic",
        )
    if len(sources) >= MAX_SOURCES:
        return RecordRejected("too_many", f"{len(sources)} runs already write to this partition")
    runs = sum(one.startswith(_writer(key) + "\x00") for one in sources)
    if runs >= MAX_RUNS:
        who = f"{header.role} {header.node} in cell {header.cell}"
        return RecordRejected("too_many", f"{who} started {runs} runs within minutes")
    return None


def note_mark(marks: dict[str, int], key: str, source: Source) -> None:
    """Record the time of the last frame of a source's writer; `key` is that of `source_key`."""
    marks[_writer(key)] = source.event_ms


def out_of_order_ms(source: Source, arrival: Arrival) -> int:
    """Return how many ms a frame came after the first waiting one of higher sequence.

    0 if it is in order, repeated, older than the next frame due, or not a collector's sample. Call
    it before `order`, which may add the frame to those that wait.
    """
    sequence = arrival.frame.header.sequence
    # Frames that owners and agents send again do not measure the delay of samples.
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

    A frame ahead of its sequence, or a next one that `waits` classifies as early, is stored. A
    repeated frame counts as `duplicate`, a frame whose gap was given up as `late`.
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
    """Yield the frames that are due: their gap closed, or they waited for long enough.

    `waits` states whether a next frame is still early. If `crowded`, no frame waits. Fold each
    frame before requesting the following one, which may depend on it.
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
        # An invalid sequence makes a gap of any size, so the count is limited to what a snapshot
        # stores, 64 bits.
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
    """Drop runs that a later run of the same writer followed, once no repeat can arrive.

    Frames of a dropped run that still arrive are rejected as replayed, by the times in `marks`.

    The latest run is kept however long it is quiet. An agent may send nothing for months, and
    without the run's sequence its next frame would wait for frames folded long ago.
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
    """Return the part of a source's key that is the same for all its runs."""
    return key.rpartition("\x00")[0]

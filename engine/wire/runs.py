"""Selects the run of a node's collector whose frames are used, if several report.

A restarted collector is a new run, and the run before it has ended. Two runs that report at the
same time (one started by hand, or two machines with one hostname) are a collision: the frames of
the first run are used as long as it reports, and the other runs are listed by name.
"""

from typing import Final

import msgspec

from flatline.engine.wire.frame import Header

# A run has ended after so many intervals without a frame.
SILENT_INTERVALS: Final = 3
# For this long after a new run began, frames of the run before it may be late ones. Later frames
# show that the earlier run still reports.
_ON_ITS_WAY_MS: Final = 30_000
# One frame may be a late one; two show that a collector runs.
_FRAMES_OF_A_RIVAL: Final = 2
# Number of other runs that are kept. A crash loop adds one run a minute, and the latest suffice for
# a diagnosis.
_KEPT: Final = 8
# A frame counts as replayed only if its time differs by more than this. Out-of-order frames are at
# most half as late, and synchronised clocks differ by less.
REPLAYED_MS: Final = 60_000


def is_replayed(event_ms: int, *, last_ms: int, now_ms: int) -> bool:
    """Return whether the first frame of a run that a reader sees is a copy of an old frame.

    This is so if its time is long before that of its writer's last frame, and not near the present
    time. So the frames of a node whose fast clock was corrected between two runs are accepted.

    Parameters
    ----------
    event_ms, last_ms
        Times at which this frame and the writer's last frame were sampled, by the node's clock.
    now_ms
        The reader's present time.
    """
    return event_ms < last_ms - REPLAYED_MS and abs(now_ms - event_ms) > REPLAYED_MS


class Other(msgspec.Struct):
    """A run whose frames are not used: an ended run, or a rival that still reports.

    `frames` is the number of its frames that arrived while another run was in use; 0 for an ended
    run.
    """

    run: str
    sequence: int
    seen_ms: int
    frames: int = 0


class Runs(msgspec.Struct):
    """The runs of one node; empty at first.

    Attributes
    ----------
    run, sequence, seen_ms
        The run in use, the sequence of its last frame, and when the reader received it.
    began_ms, began_event_ms
        When the run in use was first seen, by the reader's clock and by the node's clock.
    event_ms
        When the last frame of the run in use was sampled, by the node's clock.
    others
        The latest runs whose frames are not used.
    """

    run: str = ""
    sequence: int = -1
    seen_ms: int = 0
    event_ms: int = 0
    began_ms: int = 0
    began_event_ms: int = 0
    others: list[Other] = []

    def hears(
        self, run: str, *, sequence: int, event_ms: int, now_ms: int, interval_ms: int
    ) -> bool:
        """Return whether a frame is to be used, and record its arrival.

        Parameters
        ----------
        run, sequence, interval_ms
            From the header of the frame (`engine.wire.frame.Header`).
        event_ms, now_ms
            When the frame was sampled, by its node's clock, and the reader's present time.
        """
        if run == self.run:
            if sequence >= self.sequence:
                self.sequence, self.event_ms = sequence, event_ms
            self.seen_ms = now_ms
            return True
        silent_ms = SILENT_INTERVALS * interval_ms
        has_ended = not self.run or now_ms - self.seen_ms >= silent_ms
        other = next((one for one in self.others if one.run == run), None)
        if other is None:
            if not has_ended and self.rivals(now_ms=now_ms, interval_ms=interval_ms):
                # While two runs report, a third one has to wait until one ends.
                self._keep(Other(run, sequence, now_ms, frames=1))
                return False
            self._turn_to(run, sequence, event_ms, now_ms, frames=0)
            return True
        if sequence <= other.sequence:
            return False
        was_rival = other.frames > 0
        lives = event_ms > self.began_event_ms or now_ms - self.began_ms > _ON_ITS_WAY_MS
        other.sequence, other.seen_ms = sequence, now_ms
        if was_rival and not has_ended:
            other.frames += 1
            return False
        if not was_rival and not lives:
            return False
        # Change to the other run: either the run in use has ended, or both report and the other run
        # is the older one.
        self._turn_to(run, sequence, event_ms, now_ms, frames=0 if has_ended else 1)
        return True

    def takes(self, header: Header, *, now_ms: int) -> bool:
        """Return whether a frame is to be used and is not a replay, and record its arrival.

        `now_ms` is the accepted time of the log (`engine.wire.log_clock`).
        """
        event_ms = header.event_time_ns // 1_000_000
        if self.is_replay(header.run, event_ms=event_ms, time_ms=now_ms):
            return False
        return self.hears(
            header.run,
            sequence=header.sequence,
            event_ms=event_ms,
            now_ms=now_ms,
            interval_ms=header.interval_ms,
        )

    def is_replay(self, run: str, *, event_ms: int, time_ms: int) -> bool:
        """Return whether a frame is a copy of an old frame, of a run that is not remembered.

        Parameters
        ----------
        event_ms, time_ms
            When the frame was sampled, by its node's clock, and the accepted time of the log.
        """
        is_known = not self.run or run == self.run or any(one.run == run for one in self.others)
        return not is_known and is_replayed(event_ms, last_ms=self.event_ms, now_ms=time_ms)

    def rivals(self, *, now_ms: int, interval_ms: int) -> list[str]:
        """Return the names of the runs that report beside the run in use, sorted.

        The times are as in `hears`.
        """
        since_ms = now_ms - SILENT_INTERVALS * interval_ms
        return sorted(one.run for one in self.others if one.frames and one.seen_ms > since_ms)

    def are_several(self, *, now_ms: int, interval_ms: int) -> bool:
        """Return whether another run certainly reports beside the one in use."""
        names = self.rivals(now_ms=now_ms, interval_ms=interval_ms)
        certain = {one.run for one in self.others if one.frames >= _FRAMES_OF_A_RIVAL}
        return not certain.isdisjoint(names)

    def _turn_to(self, run: str, sequence: int, event_ms: int, now_ms: int, *, frames: int) -> None:
        before, others = self.run, [one for one in self.others if one.run != run]
        self.others = others
        if before:
            self._keep(Other(before, self.sequence, self.seen_ms, frames=frames))
        self.run, self.sequence, self.seen_ms = run, sequence, now_ms
        self.began_ms, self.began_event_ms, self.event_ms = now_ms, event_ms, event_ms

    def _keep(self, other: Other) -> None:
        self.others = [*self.others, other][-_KEPT:]

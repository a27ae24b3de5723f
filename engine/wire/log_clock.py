"""The log clock of a reader: it follows append time, but not its temporary jumps.

Append time is set by brokers, or by nodes on a topic with the writer's time. It may run ahead for a
while, be set back, or stop. A jump is accepted in two cases: a tick, which an engine dates by its
own clock, agrees with the new time, or all records agree on it for a minute. Until then the
accepted time advances by the differences between records. The same records give the same times.
"""

from typing import Final

import msgspec

# The clocks of a log's brokers differ by up to this, so a smaller step back is not a jump.
_SLACK_MS: Final = 2_500
# A tick agrees with its append time if its own date differs from it by at most this.
_AGREES_MS: Final = 5_000
# A jump that no tick confirms is accepted once append time has continued from it for this long.
_BELIEVED_AFTER_MS: Final = 60_000
# An idle partition gets a tick each second. Two ticks that are further apart than this mean that no
# engine was running between them.
_TICK_MS: Final = 2_500


class LogClock(msgspec.Struct):
    """State of the clock of one partition.

    Attributes
    ----------
    time_ms
        The accepted time, 0 before the first record.
    raw_ms
        Append time of the last record.
    apart_ms
        For how long all records have agreed on a time other than the accepted one, in ms.
    tick_ms, tick_raw_ms
        The date of the last tick by its writer's clock, and its append time.
    """

    time_ms: int = 0
    raw_ms: int = 0
    apart_ms: int = 0
    tick_ms: int = 0
    tick_raw_ms: int = 0

    def read(self, raw_ms: int, *, limit_ms: int, tick_ms: int | None = None) -> int:
        """Process the append time of a record; return the jump of the accepted time in ms.

        The result is 0 without a jump, and negative for a jump back.

        Parameters
        ----------
        raw_ms
            Append time of the record.
        limit_ms
            The longest time between two records while the log is available.
        tick_ms
            The date of a tick by its writer's clock; None for other records.
        """
        if not self.time_ms:
            self.time_ms = self.raw_ms = raw_ms
            self.tick_ms, self.tick_raw_ms = tick_ms or 0, raw_ms
            return 0
        advance_ms, self.raw_ms = raw_ms - self.raw_ms, raw_ms
        if tick_ms is not None:
            stood, ticked_ms = raw_ms == self.tick_raw_ms, tick_ms - self.tick_ms
            self.tick_ms, self.tick_raw_ms = tick_ms, raw_ms
            if stood and 0 < ticked_ms <= _TICK_MS:
                # Two ticks have the same append time, but their own dates differ: the log's clock
                # has stopped, and the clock of the engine advances.
                self.time_ms += ticked_ms
                return 0
        ahead_ms = raw_ms - self.time_ms
        if -_SLACK_MS <= ahead_ms <= limit_ms:
            self.time_ms, self.apart_ms = max(self.time_ms, raw_ms), 0
            return 0
        goes_on = 0 <= advance_ms <= limit_ms
        self.apart_ms = self.apart_ms + advance_ms if goes_on else 0
        self.time_ms += advance_ms if goes_on else 0
        agrees = tick_ms is not None and abs(tick_ms - raw_ms) <= _AGREES_MS
        if not agrees and self.apart_ms < _BELIEVED_AFTER_MS:
            return 0
        jump_ms, self.time_ms, self.apart_ms = raw_ms - self.time_ms, raw_ms, 0
        return jump_ms

    def is_unsure(self, *, limit_ms: int) -> bool:
        """Return whether the append time of the last record differs from the accepted time.

        `limit_ms` is as in `read`.
        """
        return not -_SLACK_MS <= self.raw_ms - self.time_ms <= limit_ms

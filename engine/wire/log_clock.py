"""The log's clock as a reader believes it: it follows append time, and no excursion of it.

Append time is set by brokers, or by nodes on a topic that takes the writer's time. It may run ahead
for a while, be set back, or stand still. A jump is believed when a tick agrees, which the engine
writes with its own clock, or when all records agree on it for long enough; until then time goes on
at the pace of the records. The same records give the same times.
"""

from typing import Final

import msgspec

# Brokers of one log differ by so much; it is no step back.
_SLACK_MS: Final = 2_500
# A tick whose own date is so near to its append time agrees with it.
_AGREES_MS: Final = 5_000
# What all records agreed on for so long is the time.
_BELIEVED_AFTER_MS: Final = 60_000
# A tick comes each second where nothing else does: one that is later passed while nobody read.
_TICK_MS: Final = 2_500


class LogClock(msgspec.Struct):
    """What the append times of one partition come to.

    Attributes
    ----------
    time_ms
        The time that is believed, 0 before the first record.
    raw_ms
        Append time of the last record.
    apart_ms
        For how long records have agreed on another time.
    tick_ms, tick_raw_ms
        The date of the last tick by its writer's clock, and its append time.
    """

    time_ms: int = 0
    raw_ms: int = 0
    apart_ms: int = 0
    tick_ms: int = 0
    tick_raw_ms: int = 0

    def read(self, raw_ms: int, *, limit_ms: int, tick_ms: int | None = None) -> int:
        """Take a record's append time; return by how much the believed time jumps with it.

        Parameters
        ----------
        limit_ms
            What may lie between two records where the log was there.
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
                # The log's clock stands while that of its reader goes on.
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
        """Return whether the last record's append time is not what is believed."""
        return not -_SLACK_MS <= self.raw_ms - self.time_ms <= limit_ms

"""Times in files: validation as seconds since the epoch."""

from math import isfinite
from typing import Final

# Seconds since the epoch end here, in the year 2286; a larger value has another unit. Present times
# in ms, us or ns are above it.
_LATEST_S: Final = 1e10
_UNITS: Final = (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))


def not_seconds(value: float) -> str | None:
    """Return why a time cannot be seconds since the epoch, with its likely unit.

    None where it can. Times of a dataset may count from any moment, so small values are valid.
    """
    if isfinite(value) and 0 <= value < _LATEST_S:
        return None
    for unit, per_second in _UNITS:
        if _LATEST_S <= value < _LATEST_S * per_second:
            return (
                f"not a time in seconds since the epoch: it looks like {unit}; divide the times"
                f" by {per_second:,.0f}"
            )
    return "not a time in seconds since the epoch"

"""Times in files: validation as seconds since the epoch."""

from math import isfinite
from typing import Final

# A larger value has another unit: as seconds it would be after the year 2286, and present times in
# ms, µs or ns are larger.
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

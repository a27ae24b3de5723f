"""Clocks: the machine's, a manual one for tests, and the event loop's."""

import asyncio
import time

_NS_PER_MS = 1_000_000


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Return the machine's wall time in ms since the Unix epoch."""
        return time.time_ns() // _NS_PER_MS

    def mono_ns(self) -> int:
        """Return the machine's monotonic reading in ns."""
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves only when set. Wall and monotonic time can be moved apart.

    Parameters
    ----------
    now_ms
        Wall time at the start, ms since the Unix epoch.
    mono_ns
        Monotonic reading at the start, in ns.
    """

    def __init__(self, *, now_ms: int = 0, mono_ns: int = 0) -> None:
        self._wall_ns = now_ms * _NS_PER_MS
        self._mono_ns = mono_ns

    def now_ms(self) -> int:
        """Return the wall time as set, in ms since the Unix epoch."""
        return self._wall_ns // _NS_PER_MS

    def mono_ns(self) -> int:
        """Return the monotonic reading as set, in ns."""
        return self._mono_ns

    def advance(self, seconds: float) -> None:
        """Advance the wall and the monotonic time by `seconds`.

        Raises
        ------
        ValueError
            `seconds` is negative: a monotonic reading never goes back.
        """
        if seconds < 0:
            raise ValueError(
                f"time cannot advance by {seconds} s; use step_wall to set a clock back"
            )
        passed_ns = round(seconds * 1e9)
        self._wall_ns += passed_ns
        self._mono_ns += passed_ns

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock by `seconds`, as a time service does, but not the monotonic time."""
        self._wall_ns += round(seconds * 1e9)


class LoopClock:
    """A clock that follows the event loop's time, so that a program can run in virtual time.

    Parameters
    ----------
    epoch_ms
        Wall time, ms since the Unix epoch, at which the loop's own time is 0.
    loop
        The loop to read; None takes the loop that runs when the clock is made.
    """

    def __init__(self, *, epoch_ms: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._epoch_ms = epoch_ms
        self._loop = asyncio.get_running_loop() if loop is None else loop

    def now_ms(self) -> int:
        """Return the wall time in ms since the Unix epoch."""
        return self._epoch_ms + self.mono_ns() // _NS_PER_MS

    def mono_ns(self) -> int:
        """Return the loop's time in ns."""
        return round(self._loop.time() * 1e9)

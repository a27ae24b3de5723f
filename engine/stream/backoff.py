"""The pause between attempts, for every loop and adapter that tries again."""


class Backoff:
    """The pause before the next attempt: doubled after each failure, within bounds.

    Parameters
    ----------
    first_s, last_s
        The shortest pause, and the longest one unless the receiver asks for more, in s.
    """

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed."""
        return self._next_s != self._first_s

    def failed(self, asked_s: float | None = None) -> float:
        """Record a failure and return the pause in s; `asked_s` is what the receiver asked for.

        A receiver that asks for less than the shortest pause gets the shortest one.
        """
        pause_s = self._next_s
        self._next_s = min(2 * self._next_s, self._last_s)
        return pause_s if asked_s is None else max(asked_s, self._first_s)

    def worked(self) -> None:
        """Reset the pause after a success."""
        self._next_s = self._first_s

"""Decides, once, whether a verb is sent or was given up before."""

import math
import threading
import time


class Request:
    """Decides, once, between a thread that sends a verb and a caller who gives it up."""

    def __init__(self, *, within_s: float | None) -> None:
        self._guard = threading.Lock()
        self._fate = ""
        self._not_after_s = math.inf if within_s is None else time.monotonic() + within_s

    @property
    def late(self) -> bool:
        """Whether the verb was not sent because it was too late for it."""
        return self._fate == "late"

    def send(self) -> bool:
        """Return whether the verb may be sent; from then on it cannot be withdrawn."""
        if time.monotonic() > self._not_after_s:
            self._settle("late")
            return False
        return self._settle("sent")

    @property
    def over(self) -> bool:
        """Whether the verb may no longer be sent: it is too late, or was taken back."""
        return bool(self._fate) or time.monotonic() > self._not_after_s

    def withdraw(self) -> bool:
        """Return whether the verb was not sent, and now never will be."""
        return self._settle("withdrawn") or self.late

    def _settle(self, fate: str) -> bool:
        with self._guard:
            self._fate = self._fate or fate
            return self._fate == fate

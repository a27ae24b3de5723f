"""Decide once whether an action is sent, or is withdrawn or too late."""

import math
import threading
import time


class Request:
    """Decides once between a thread that sends an action and a caller that withdraws it."""

    def __init__(self, *, within_s: float | None) -> None:
        self._guard = threading.Lock()
        self._fate = ""
        self._not_after_s = math.inf if within_s is None else time.monotonic() + within_s

    @property
    def late(self) -> bool:
        """Whether the action was not sent because its time limit had passed."""
        return self._fate == "late"

    def send(self) -> bool:
        """Return whether the action may be sent; after that it cannot be withdrawn."""
        if time.monotonic() > self._not_after_s:
            self._settle("late")
            return False
        return self._settle("sent")

    @property
    def over(self) -> bool:
        """Whether the action may no longer be sent: it is too late or withdrawn."""
        return bool(self._fate) or time.monotonic() > self._not_after_s

    def withdraw(self) -> bool:
        """Return whether the action was not sent and never will be."""
        return self._settle("withdrawn") or self.late

    def _settle(self, fate: str) -> bool:
        with self._guard:
            self._fate = self._fate or fate
            return self._fate == fate

"""Blocking calls in separate threads, so that a caller waits no longer than its limit.

A call into libvirt can block while a qemu does not answer, and it cannot be cancelled from outside.
So each call runs in a daemon thread: the caller stops waiting at its deadline, and the thread stays
until the call returns. A daemon thread does not prevent the process from ending.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Call(Generic[T_co]):
    """One blocking call, started by the constructor in a running event loop."""

    def __init__(self, work: Callable[[], T_co], *, name: str) -> None:
        self.begun_ns = time.monotonic_ns()
        self._work = work
        self._value: T_co | None = None
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self.returned: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def waits(self) -> bool:
        """Whether the call has not returned yet."""
        return not self.returned.done()

    def waited_s(self) -> float:
        """Return how long the call has been running, in s."""
        return (time.monotonic_ns() - self.begun_ns) / 1e9

    def result(self) -> T_co:
        """Return the result of the call, or raise its exception; only after it returned."""
        if self.waits:
            raise RuntimeError("the call has not returned yet")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # None may be the result itself

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 -- raised again by result()
            self._error = error
        try:
            self._loop.call_soon_threadsafe(self._notify)
        except RuntimeError:
            return  # the loop is closed: no caller waits any more

    def _notify(self) -> None:
        if not self.returned.done():
            self.returned.set_result(None)


async def first_returned(calls: Iterable[Call[T]], *, patience_s: float) -> Call[T] | None:
    """Return one of the calls that have returned, or None after `patience_s`.

    Without any calls it returns None immediately. The result may be an error: see `Call.result`.
    """
    by_future = {call.returned: call for call in calls}
    if not by_future:
        return None
    done, _ = await asyncio.wait(
        by_future, timeout=max(0.0, patience_s), return_when=asyncio.FIRST_COMPLETED
    )
    return next((call for future, call in by_future.items() if future in done), None)

"""An event loop whose time jumps to the next timer instead of waiting for it.

Virtual, accelerated and real time share one mechanism: the loop's time advances only while the loop
would wait, and `speed` sets how much real time that wait takes. Any asyncio program (sleep,
timeouts, events, queues) runs unchanged, and two runs of the same program interleave their tasks in
the same order.

Time does not advance while callbacks run, nor while a thread of `run_in_executor` (and so of
`asyncio.to_thread`) is running, so no virtual time passes between a request to a thread and its
result. The loop does not know other threads, which answer only by `call_soon_threadsafe`: its time
may jump before they answer.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")
Ready = list[tuple[selectors.SelectorKey, int]]


class DeadlockError(RuntimeError):
    """Every task waits for another one: nothing is ready, no timer is set, no I/O is open."""


class _JumpingSelector(selectors.BaseSelector):
    """A selector that advances virtual time where the real one would wait."""

    def __init__(self, speed: float | None) -> None:
        self._real = selectors.DefaultSelector()
        self._speed = speed
        self._origin_s = time.monotonic()
        self._virtual_origin_s = 0.0
        self.now_s = 0.0
        self.threads_at_work = 0
        # The loop's own wake-up pipe is always registered and is not I/O of the program.
        self.own_descriptors = 0

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> Ready:
        """Return the ready events, after at most `timeout` seconds of virtual time."""
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads_at_work:
            return self._wait_really()
        if timeout is None:
            if len(self._real.get_map()) <= self.own_descriptors:
                raise DeadlockError(
                    "no task is ready, no timer is set and no I/O is open at virtual time "
                    f"{self.now_s:.3f} s: " + _what_waits()
                )
            return self._wait_really()
        return self._pass(timeout)

    def pace(self, speed: float | None) -> None:
        """Continue at another speed from now on."""
        self._speed = speed
        self._origin_s, self._virtual_origin_s = time.monotonic(), self.now_s

    def _pass(self, timeout_s: float) -> Ready:
        """Let `timeout_s` of virtual time pass, at the loop's speed."""
        end_s = self.now_s + timeout_s
        if self._speed is None:
            self.now_s = end_s
            return []
        wait_s = self._origin_s + (end_s - self._virtual_origin_s) / self._speed - time.monotonic()
        ready = self._real.select(max(0.0, wait_s))
        # If I/O ends the wait early, only the time up to the I/O has passed.
        self.now_s = min(end_s, max(self.now_s, self._paced_now_s())) if ready else end_s
        if wait_s < 0:
            # The callbacks took longer than the speed allows. Continue at the set speed from here,
            # and do not catch up: people who watch a paced run do not expect a faster speed.
            self._origin_s, self._virtual_origin_s = time.monotonic(), end_s
        return ready

    def _wait_really(self) -> Ready:
        """Wait for I/O or a thread; without a speed, virtual time does not advance meanwhile."""
        ready = self._real.select(None)
        if self._speed is not None:
            self.now_s = max(self.now_s, self._paced_now_s())
        return ready

    def _paced_now_s(self) -> float:
        assert self._speed is not None
        return self._virtual_origin_s + (time.monotonic() - self._origin_s) * self._speed


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and advances only while nothing is ready.

    Parameters
    ----------
    speed
        Virtual seconds per real second, > 0: 1 is real time; None does not wait at all.
    """

    def __init__(self, *, speed: float | None = None) -> None:
        self._virtual = _JumpingSelector(speed)
        super().__init__(self._virtual)
        self._virtual.own_descriptors = len(self._virtual.get_map())

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._virtual.now_s

    def pace(self, speed: float | None) -> None:
        """Continue the run at another speed.

        Raises
        ------
        ValueError
            `speed` is not positive.
        """
        self._virtual.pace(_checked(speed))

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
    ) -> "asyncio.Future[Result]":
        """Run `func` in a thread; virtual time does not advance until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self._virtual.threads_at_work += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *timeout: float | None) -> None:
        """Wait for the threads to end; the loop must not take this wait for a deadlock."""
        self._virtual.threads_at_work += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._virtual.threads_at_work -= 1

    def _thread_done(self, _: "asyncio.Future[Any]") -> None:
        self._virtual.threads_at_work -= 1


def run(main: Coroutine[Any, Any, Result], *, speed: float | None = None) -> Result:
    """Run `main` to its end on a `VirtualLoop` and return its result.

    Raises
    ------
    DeadlockError
        No task can ever continue; the message names the waiting tasks.
    ValueError
        `speed` is not positive.
    """
    try:
        _checked(speed)
    except ValueError:
        main.close()
        raise
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(speed=speed)) as runner:
        return runner.run(main)


def _checked(speed: float | None) -> float | None:
    if speed is not None and speed <= 0:
        raise ValueError(f"speed is {speed}, must be positive; None for pure virtual time")
    return speed


def _what_waits() -> str:
    """Return the tasks of the loop and their current lines."""
    tasks = sorted(asyncio.all_tasks(asyncio.get_running_loop()), key=lambda task: task.get_name())
    if not tasks:
        return "no task remains to stop the loop"
    return "; ".join(f"{task.get_name()} waits {_place(task)}" for task in tasks)


def _place(task: "asyncio.Task[Any]") -> str:
    """Return file and line of the innermost frame in which a task is suspended."""
    frames = task.get_stack()
    if not frames:
        return "nowhere"
    return f"in {frames[-1].f_code.co_qualname} line {frames[-1].f_lineno}"

"""Restarts of roles, and the conditions that end them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator import virtual_time
from flatline.engine.errors import AlreadyRunning, HistoryUnreachable, LogRefused, LogUnreachable
from flatline.engine.roles.health import Health
from flatline.engine.roles.run import Role, keep, run_roles


class Fickle:
    """A role whose runs end as a test defines; None runs until cancelled."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.born_s: list[float] = []
        self.opened = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Role]:
        self.opened += 1
        try:
            yield self
        finally:
            self.opened -= 1

    async def run(self) -> None:
        self.born_s.append(asyncio.get_running_loop().time())
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        await asyncio.get_running_loop().create_future()


def health() -> Health:
    return Health(LoopClock(epoch_ms=0))


def test_a_role_is_opened_anew_with_growing_waits_while_its_log_is_away() -> None:
    role = Fickle(*[LogUnreachable("It is away") for _ in range(7)])

    async def main() -> None:
        state = health()
        task = asyncio.create_task(keep("plan", role.open, health=state))
        await asyncio.wait({task}, timeout=50)
        (waits,) = state.ready().sentences
        assert waits == "start is waiting: It is away. Retrying in 30 s."
        await asyncio.wait({task}, timeout=100)
        assert role.born_s == [0, 1, 3, 7, 15, 31, 61, 91]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert role.opened == 0

    virtual_time.run(main())


@pytest.mark.parametrize("error", [LogUnreachable("Nobody answers"), HistoryUnreachable("Full")])
def test_what_cannot_be_opened_is_tried_again_too(error: Exception) -> None:
    tries: list[float] = []

    @asynccontextmanager
    async def never() -> AsyncIterator[Role]:
        tries.append(asyncio.get_running_loop().time())
        raise error
        yield Fickle()

    async def main() -> None:
        task = asyncio.create_task(keep("plan", never, health=health()))
        await asyncio.wait({task}, timeout=4)
        assert tries == [0, 1, 3]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    virtual_time.run(main())


@pytest.mark.parametrize("error", [LogRefused("No."), AlreadyRunning("Another one runs.")])
def test_what_waiting_does_not_cure_ends_every_role_and_is_raised_plainly(
    error: Exception,
) -> None:
    well, ill = Fickle(), Fickle(error)

    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await run_roles({"collect": well.open, "plan": ill.open}, health=health())
        assert caught.value is error
        assert well.opened == ill.opened == 0

    virtual_time.run(main())


def test_cancelling_closes_every_role() -> None:
    first, second = Fickle(), Fickle()

    async def main() -> None:
        openers = {"collect": first.open, "plan": second.open}
        task = asyncio.create_task(run_roles(openers, health=health()))
        await asyncio.wait({task}, timeout=5)
        assert first.opened == second.opened == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert first.opened == second.opened == 0

    virtual_time.run(main())

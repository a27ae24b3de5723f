"""Runs all roles of one process: a temporary failure restarts a role, a permanent one ends all."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from flatline.engine import instruments
from flatline.engine.errors import (
    HistoryUnreachable,
    HypervisorUnreachable,
    LogProducerBroken,
    LogUnreachable,
)
from flatline.engine.roles.health import Health, as_sentence
from flatline.engine.stream.backoff import Backoff

# A broker that restarts is reached again within seconds; one that stays away is tried twice a
# minute.
_FIRST_BACKOFF_S: Final = 1.0
_LAST_BACKOFF_S: Final = 30.0
# A role that ran this long has recovered: its next failure starts a new back-off.
RECOVERED_S: Final = 120.0

# Errors that may end by themselves. All others need a person or the service manager.
PASSING: Final = (LogUnreachable, LogProducerBroken, HypervisorUnreachable, HistoryUnreachable)


class Role(Protocol):
    """A loop that ends only by cancellation or by an error."""

    async def run(self) -> None:
        """Run until cancelled."""
        ...


# Each call returns a context manager that opens a role and its connections, and closes them again.
Opener = Callable[[], AbstractAsyncContextManager[Role]]


async def keep(name: str, opener: Opener, *, health: Health) -> None:
    """Run a role until cancelled; reopen it after its log, hypervisor or history was lost.

    Parameters
    ----------
    opener
        Opens the resources of the role and the role itself.
    health
        The role's own view of the health; it reports a wait while the role is not open.

    Raises
    ------
    FlatlineError
        An error that does not end by itself.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
    while True:
        began_s = loop.time()
        if not backoff.has_failed:
            health.expect("start")
        try:
            async with opener() as role:
                health.done("start")
                await role.run()
            return
        except PASSING as error:
            if loop.time() - began_s > RECOVERED_S:
                backoff.worked()
            pause_s = backoff.failed()
            instruments.ROLE_RESTARTS.labels(name).inc()
            health.waiting("start", f"{as_sentence(error)} Retrying in {pause_s:.0f} s.")
            await asyncio.sleep(pause_s)


async def run_roles(openers: Mapping[str, Opener], *, health: Health) -> None:
    """Keep all roles running until cancelled; the first error ends them and is raised.

    Each role is run as `keep` does, with its key in `openers` as its name.

    Raises
    ------
    FlatlineError
        The first error of any role, not wrapped in an exception group.
    """
    tasks = {
        asyncio.create_task(keep(name, opener, health=health.of(name)), name=name): name
        for name, opener in openers.items()
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()

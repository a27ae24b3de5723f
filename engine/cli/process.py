"""One process from start to end: signals, probes, roles, exit code."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog

from flatline.engine.cli.logs import set_up_logs
from flatline.engine.roles.run import Opener, run_roles
from flatline.engine.wiring import Process, probes

# The exit code of shells for a command that Ctrl-C ended (128 + SIGINT).
INTERRUPTED: Final = 130

_log = structlog.get_logger()


def serve(process: Process, openers: Mapping[str, Opener]) -> int:
    """Run roles until a signal asks to stop, and return the exit code.

    `openers` has an opener for each role by the role's name. The code is as in `until_stopped`.

    Raises
    ------
    FlatlineError
        A fault that waiting does not resolve.
    """
    set_up_logs()
    place = process.settings.site
    structlog.contextvars.bind_contextvars(node=place.node, run=process.run)

    async def main() -> None:
        async with probes(process):
            _log.info(f"{', '.join(openers)} starts.", site=place.name, cell=place.cell)
            await run_roles(openers, health=process.health)

    return until_stopped(main)


async def abandonable(work: Callable[[], None]) -> None:
    """Run `work` in a thread that is abandoned when this coroutine is cancelled.

    Compiling the kernels takes seconds; after Ctrl-C the process must not wait for them. An
    exception of `work` is raised here.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def main() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as caught:  # noqa: BLE001 -- it is raised where it is awaited
            error = caught
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=main, name=work.__name__, daemon=True).start()
    await done


def until_stopped(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `main` until it ends or SIGTERM or SIGINT cancels it, and return the exit code.

    The code is `INTERRUPTED` after SIGINT, else 0. Exceptions of `main` are passed on. A second
    signal ends the process immediately, without a clean end.
    """
    reported: list[signal.Signals] = []

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            if reported:
                os._exit(128 + number)
            reported.append(number)
            _log.info(f"{number.name} received: exiting after the work in progress.")
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        try:
            await main()
        except asyncio.CancelledError:
            if not reported:
                raise

    asyncio.run(watched())
    return INTERRUPTED if signal.SIGINT in reported else 0

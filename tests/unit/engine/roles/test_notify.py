"""People hear what they must, late rather than never, and hear that they would; in virtual_time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from connectors.clock import LoopClock
from connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from connectors.simulator import virtual_time
from engine.errors import NotifierUnreachable
from engine.ports import Notice
from engine.roles.health import Health
from engine.roles.notify import ALIVE, MAX_AGE_MS, Notifying
from engine.roles.outbox import Journal, Outbox

EPOCH_MS = 1_790_000_000_000


class Pager:
    """Hears notices, unless it is `away`."""

    def __init__(self) -> None:
        self.heard: list[Notice] = []
        self.away = False

    async def send(self, notice: Notice) -> None:
        if self.away:
            raise NotifierUnreachable("The pager is away.")
        self.heard.append(notice)

    def pages(self) -> list[str]:
        return [notice.sentence for notice in self.heard if notice.name != ALIVE]


class Scene:
    def __init__(self, log: EmbeddedLog, clock: LoopClock) -> None:
        self.log, self.clock, self.pager = log, clock, Pager()
        self.health = Health(clock)
        self.outbox = Outbox(log, health=self.health)
        self.journal = Journal(self.outbox, clock=clock, writer="w", cell="c0")
        self.tasks = [asyncio.create_task(self.outbox.run())]

    def start(self) -> asyncio.Task[None]:
        role = Notifying(
            log=self.log, notifier=self.pager, site="lab", clock=self.clock, health=self.health
        )
        task = asyncio.create_task(role.run())
        self.tasks.append(task)
        return task


def play(scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def played() -> None:
        clock = LoopClock(epoch_ms=EPOCH_MS)
        async with EmbeddedLog(EmbeddedConfig(folder=None, partitions=2), clock=clock) as log:
            stage = Scene(log, clock)
            try:
                await scene(stage)
            finally:
                for task in stage.tasks:
                    task.cancel()
                await asyncio.wait(stage.tasks)

    virtual_time.run(played())


def test_what_is_marked_for_people_is_told_and_the_rest_is_not() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        stage.journal.write("outcome", "All is well.")
        stage.journal.write("outcome", "Nobody knows.", incident="i1", vm="v1", page=True)
        await asyncio.sleep(5)
        assert stage.pager.pages() == ["Nobody knows."]
        [notice] = [n for n in stage.pager.heard if n.name != ALIVE]
        assert notice.labels == {"site": "lab", "incident": "i1", "vm": "v1"}

    play(scene)


def test_alive_fires_each_minute_whatever_happens() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        await asyncio.sleep(301)
        names = [notice.name for notice in stage.pager.heard]
        assert set(names) == {ALIVE}
        assert 5 <= len(names) <= 6

    play(scene)


def test_a_pager_that_was_away_hears_it_when_it_is_back() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        await asyncio.sleep(5)
        stage.pager.away = True
        stage.journal.write("outcome", "Nobody knows.", page=True)
        await asyncio.sleep(120)
        assert not stage.health.ready().ok
        stage.pager.away = False
        await asyncio.sleep(60)
        assert stage.pager.pages() == ["Nobody knows."]
        assert stage.health.ready().ok

    play(scene)


def test_a_restart_repeats_nothing_that_was_noted_and_leaves_nothing_out() -> None:
    async def scene(stage: Scene) -> None:
        first = stage.start()
        stage.journal.write("outcome", "One.", page=True)
        await asyncio.sleep(5)
        first.cancel()
        await asyncio.wait({first})
        stage.journal.write("outcome", "Two.", page=True)
        stage.start()
        await asyncio.sleep(30)
        assert stage.pager.pages() == ["One.", "Two."]

    play(scene)


def test_a_group_that_is_new_does_not_wake_people_for_last_week() -> None:
    async def scene(stage: Scene) -> None:
        stage.journal.write("outcome", "Long ago.", page=True)
        await asyncio.sleep(MAX_AGE_MS / 1000 + 10)
        stage.start()
        await asyncio.sleep(5)
        assert stage.pager.pages() == []

    play(scene)

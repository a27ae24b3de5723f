"""People get the required notices, late rather than never; in virtual_time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.simulator import virtual_time
from flatline.engine.errors import LogRefused, NotifierRefused, NotifierUnreachable
from flatline.engine.ports import Notice
from flatline.engine.roles.health import Health
from flatline.engine.roles.notify import ALIVE, MAX_AGE_MS, Notifying
from flatline.engine.roles.outbox import Journal, Outbox
from flatline.engine.wire.journal import JournalEntry, decode_entry
from flatline.engine.wire.topics import JOURNAL

EPOCH_MS = 1_790_000_000_000


class Pager:
    """Receives notices, unless `away`; rejects texts with `refused` and fails on `failing`."""

    def __init__(self) -> None:
        self.heard: list[Notice] = []
        self.away = False
        self.busy_s: float | None = None
        self.refused = "refused"
        self.failing = "failing"
        self.tries = 0

    async def send(self, notice: Notice) -> None:
        self.tries += 1
        if self.away:
            raise NotifierUnreachable("The pager is away.")
        if self.busy_s is not None:
            raise NotifierUnreachable("Busy.", retry_after_s=self.busy_s, has_answered=True)
        if self.refused in notice.sentence:
            raise NotifierRefused("The pager answered 400.")
        if self.failing in notice.sentence:
            raise NotifierUnreachable("The pager answered 500.", has_answered=True)
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


def test_what_is_marked_for_people_is_reported_and_the_rest_is_not() -> None:
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


async def journal_of(stage: Scene) -> list[JournalEntry]:
    found: list[JournalEntry] = []
    for partition in range(2):
        records = await stage.log.read_to_end(JOURNAL.name, partition, offset=0)
        found += [decode_entry(record.value) for record in records]
    return found


@pytest.mark.parametrize("poison", ["refused", "failing"])
def test_a_page_that_is_never_taken_holds_up_neither_others_nor_the_heartbeat(
    poison: str,
) -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        stage.journal.write("refusal", "One.", page=True)
        stage.journal.write("refusal", f"Two is {poison}.", vm="v2", incident="i2", page=True)
        await asyncio.sleep(5)
        for number in range(5):
            stage.journal.write("refusal", f"Later {number}.", page=True)
            await asyncio.sleep(100)
        assert stage.pager.pages() == ["One.", *(f"Later {number}." for number in range(5))]
        beats = [notice.time_ms for notice in stage.pager.heard if notice.name == ALIVE]
        assert len(beats) >= 8

    play(scene)


def test_what_was_refused_stands_in_the_journal_with_the_reason_and_is_not_committed_twice() -> (
    None
):
    async def scene(stage: Scene) -> None:
        task = stage.start()
        stage.journal.write("refusal", "Two is refused.", vm="v2", incident="i2", page=True)
        await asyncio.sleep(5)
        [entry] = [e for e in await journal_of(stage) if e.writer == "notify"]
        assert entry.sentence == "The pager answered 400. No person was notified: Two is refused."
        assert (entry.vm, entry.incident) == ("v2", "i2")
        assert entry.detail == {"rule": "notify.page_refused"}
        assert stage.health.ready().ok
        task.cancel()
        await asyncio.wait({task})
        stage.start()
        await asyncio.sleep(30)
        assert len([e for e in await journal_of(stage) if e.writer == "notify"]) == 1

    play(scene)


def test_a_page_that_fails_for_the_moment_is_reported_when_it_is_taken() -> None:
    async def scene(stage: Scene) -> None:
        task = stage.start()
        stage.journal.write("refusal", "Two is failing.", page=True)
        stage.journal.write("refusal", "Three.", page=True)
        await asyncio.sleep(100)
        assert stage.pager.pages() == ["Three."]
        assert not stage.health.ready().ok
        # A restart before the notice reads it again, and the following records too.
        task.cancel()
        await asyncio.wait({task})
        stage.pager.failing = "nothing"
        stage.start()
        await asyncio.sleep(60)
        assert "Two is failing." in stage.pager.pages()
        assert stage.health.ready().ok

    play(scene)


def test_a_page_that_fails_for_an_hour_is_given_up() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        stage.journal.write("refusal", "Two is failing.", page=True)
        await asyncio.sleep(MAX_AGE_MS / 1000 + 60)
        stage.pager.failing = "nothing"
        tries = len(stage.pager.heard)
        await asyncio.sleep(60)
        assert stage.pager.pages() == []
        assert stage.health.ready().ok
        assert tries <= len(stage.pager.heard) <= tries + 2

    play(scene)


def test_a_receiver_that_asks_for_time_is_left_alone() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        await asyncio.sleep(5)
        stage.pager.busy_s = 600.0
        for number in range(20):
            stage.journal.write("refusal", f"Page {number}.", page=True)
        await asyncio.sleep(500)
        assert stage.pager.tries <= 3
        stage.pager.busy_s = None
        await asyncio.sleep(200)
        assert len(stage.pager.pages()) == 20

    play(scene)


def test_many_pages_that_fail_take_a_few_tries_at_a_time() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        for number in range(200):
            stage.journal.write("refusal", f"Page {number} is failing.", page=True)
        await asyncio.sleep(60)
        assert stage.pager.tries < 400
        stage.journal.write("refusal", "Good.", page=True)
        await asyncio.sleep(120)
        assert stage.pager.pages() == ["Good."]

    play(scene)


def test_a_journal_that_cannot_be_written_keeps_no_page_from_people() -> None:
    async def scene(stage: Scene) -> None:
        stage.start()
        stage.journal.write("refusal", "Two is refused.", page=True)
        stage.journal.write("refusal", "Three.", page=True)
        assert await stage.outbox.emptied(within_s=5)

        async def refuse(*_: object, **__: object) -> None:
            raise LogRefused("nobody may write here")

        stage.log.append = refuse  # type: ignore[assignment, method-assign]
        await asyncio.sleep(200)
        assert stage.pager.pages() == ["Three."]
        assert len(stage.pager.heard) >= 4

    play(scene)

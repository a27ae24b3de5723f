"""A person's approval of one incident, as read by the agents that wait for it."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.action.admit import admit
from flatline.engine.action.catalogue import Modes
from flatline.engine.action.commands import hear
from flatline.engine.keyring import trusted_keys
from flatline.engine.ports import Record
from flatline.engine.wire.topics import CONTROL
from tests.unit.engine.action.samples import NOW_MS, POLICY, order, past
from tests.unit.engine.cli.conftest import Flatline

APPROVING = msgspec.structs.replace(POLICY, modes=Modes(actions={"reset": "approve"}))


def test_an_approval_is_signed_and_lets_the_steps_of_its_incident_run_for_its_time(
    flatline: Flatline, state: Path
) -> None:
    waits = order(policy=APPROVING.hash)
    said = flatline("approve", waits.incident, "--reason", "it is dead", "--minutes", "10")
    assert said.code == 0

    async def words() -> list[Record]:
        config = EmbeddedConfig(folder=state / "log", partitions=8)
        async with EmbeddedLog(config, clock=SystemClock()) as log:
            return await log.read_to_end(CONTROL.name, 0, offset=0)

    (record,) = asyncio.run(words())
    trusted = trusted_keys(state / "trusted", own=state / "keys")
    heard = hear(
        record.key,
        record.value,
        record.headers,
        time_ms=record.time_ms,
        trusted=trusted,
        controls={},
    )
    command = heard.command
    assert command is not None
    assert heard.rejected is None
    for minutes, rule in ((0, "admitted"), (9, "admitted"), (11, "not_approved")):
        now_ms = command.time_ms + 60_000 * minutes
        given = past(waits, ago_s=(NOW_MS - now_ms) / 1000, opened_ms=now_ms)
        controls = {command.key(): command}
        verdict = admit(given, (), APPROVING, at_ms=now_ms, now_ms=now_ms, controls=controls)
        assert verdict.rule == rule


@pytest.mark.parametrize("incident", ["abc", "A" * 32, "0" * 31, "a" * 33])
def test_what_can_be_no_incident_is_not_approved(flatline: Flatline, incident: str) -> None:
    said = flatline("approve", incident, "--reason", "x")
    assert said.code == 2
    assert "is not an incident" in said.err

"""The right to end a pause from the command line, and the records to sign after an upgrade."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from flatline.connectors.clock import ManualClock, SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.cli.control_commands import (
    _say,
    append_approval,
    append_pause,
    controls_in_force,
    end_pause,
)
from flatline.engine.errors import CommandRefused, SettingsError
from flatline.engine.log_factory import Process
from flatline.engine.settings import load_settings
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.topics import CONTROL
from flatline.engine.wiring import process
from tests.unit.engine.cli.conftest import Flatline, append


def pause(**changes: object) -> Control:
    command = Control(
        kind="pause", scope="cell", subject="c1", active=True, by="bob", reason="work",
        time_ms=SystemClock().now_ms(),
    )  # fmt: skip
    return msgspec.structs.replace(command, **changes)


def test_a_pause_that_somebody_else_ends_without_a_key_still_holds(
    flatline: Flatline, state: Path
) -> None:
    assert flatline("pause", "on", "cell:c1", "--reason", "work").code == 0
    over = pause(active=False)
    append(state, CONTROL, (over.key(), encode_control(over)))
    shown = " ".join(flatline("pause", "show").out.split())
    assert "cell:c1" in shown
    assert "To end the restrictions on cell:c1: flatline pause off cell:c1" in shown
    assert flatline("pause", "off", "cell:c1").code == 0
    assert "Nothing is paused" in flatline("pause", "show").out


def test_refused_records_of_one_scope_are_one_row_with_the_command_that_ends_them(
    flatline: Flatline, state: Path
) -> None:
    ends = [pause(active=False, source=source) for source in ("", "breaker")]
    append(state, CONTROL, *((command.key(), encode_control(command)) for command in ends))
    shown = flatline("pause", "show").out
    assert shown.count("safety hold") == 1
    assert shown.count("flatline pause off cell:c1") == 1
    assert flatline("pause", "off", "cell:c1").code == 0
    assert "Nothing is paused" in flatline("pause", "show").out


def test_what_was_ended_before_an_upgrade_is_signed_at_once(
    flatline: Flatline, state: Path
) -> None:
    ended = [pause(active=False, subject=name) for name in ("c1", "c2")]
    standing = pause(subject="c3")
    words = [*ended, standing]
    append(state, CONTROL, *((command.key(), encode_control(command)) for command in words))
    said = flatline("pause", "adopt")
    assert said.code == 0
    assert "2 ends of pauses were signed" in said.out
    shown = flatline("pause", "show").out
    assert "cell:c3" in shown
    assert "cell:c1" not in shown
    assert "cell:c2" not in shown


@pytest.mark.asyncio
async def test_without_an_operator_s_key_nothing_is_taken_back_and_the_cure_is_reported(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATLINE_LOG__KIND", "kafka")
    here = process(load_settings()[0])
    with pytest.raises(SettingsError, match="flatline keys create operator NAME"):
        await _say(here, None, pause(active=False), signing=True)  # type: ignore[arg-type]
    assert not (state / "keys" / "operator.key").exists()


def log_of(state: Path) -> EmbeddedLog:
    return EmbeddedLog(EmbeddedConfig(folder=state / "log", partitions=8), clock=SystemClock())


async def commands_in(state: Path) -> int:
    async with log_of(state) as log:
        return len(await log.read_to_end(CONTROL.name, 0, offset=0))


def trust(state: Path, name: str) -> None:
    """Copy a public key of this machine to its trusted folder, as an operator does."""
    folder = state / "trusted"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / name).write_bytes((state / "keys" / name).read_bytes())


LOOSENING = [
    ("pause", "off", "node:n8"),
    ("approve", "a" * 32, "--reason", "it is dead"),
]


@pytest.mark.parametrize("words", LOOSENING)
def test_a_command_under_a_revoked_key_is_refused_before_it_is_written(
    flatline: Flatline, state: Path, words: tuple[str, ...]
) -> None:
    assert flatline("keys", "create", "operator", "ann").code == 0
    trust(state, "operator-ann.pub")
    assert flatline("pause", "on", "node:n8", "--reason", "work").code == 0
    assert flatline("keys", "revoke", "operator", "ann").code == 0
    before = asyncio.run(commands_in(state))
    said = flatline(*words)
    reported = " ".join(said.err.split())
    assert (said.code, said.out) == (1, "")
    assert "Nothing was written" in reported
    assert "(ann) of this machine expired at" in reported
    assert "flatline keys create operator NAME" in reported
    assert asyncio.run(commands_in(state)) == before
    assert "node:n8" in flatline("pause", "show").out


def test_a_command_under_a_key_that_no_reader_trusts_is_refused_before_it_is_written(
    state: Path, flatline: Flatline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATLINE_LOG__KIND", "kafka")
    assert flatline("keys", "create", "operator", "ann").code == 0
    here = process(load_settings()[0])
    with pytest.raises(
        CommandRefused, match=r"of this machine is not trusted .* copy operator-NAME\.pub"
    ):
        asyncio.run(_say(here, None, pause(active=False), signing=True))  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_an_approval_that_the_log_s_readers_refuse_is_not_said_to_hold(state: Path) -> None:
    settings = load_settings()[0]
    behind = process(settings)
    clock = ManualClock(now_ms=SystemClock().now_ms() - 600_000)
    async with log_of(state) as log:
        here = Process(settings, clock, behind.health)
        with pytest.raises(CommandRefused, match=r"was signed 60\d s before .* Nothing changed"):
            await append_approval(here, log, incident="a" * 32, reason="r", minutes=1)
        here = Process(settings, SystemClock(), behind.health)
        await append_approval(here, log, incident="a" * 32, reason="r", minutes=1)


@pytest.mark.asyncio
async def test_a_pause_is_ended_by_an_operator_whose_clock_is_behind(state: Path) -> None:
    settings = load_settings()[0]
    behind = ManualClock(now_ms=SystemClock().now_ms() - 120_000)
    async with log_of(state) as log:
        here = Process(settings, behind, process(settings).health)
        await append_pause(here, log, scope="cell:c1", reason="work", minutes=None)
        assert await end_pause(here, log, scope="cell:c1", reason="done")
        assert not await controls_in_force(here, log)

"""Who may end a pause from the command line, and what an upgrade leaves to be signed."""

from pathlib import Path

import msgspec
import pytest

from connectors.clock import SystemClock
from engine.cli.words import _say
from engine.errors import SettingsError
from engine.settings import load_settings
from engine.wire.control import Control, encode_control
from engine.wire.topics import CONTROL
from engine.wiring import process
from tests.unit.engine.cli.conftest import Flatline, append


def pause(**changes: object) -> Control:
    word = Control(
        kind="pause", scope="cell", subject="c1", active=True, by="bob", reason="work",
        time_ms=SystemClock().now_ms(),
    )  # fmt: skip
    return msgspec.structs.replace(word, **changes)


def test_a_pause_that_somebody_else_ends_without_a_key_still_holds(
    flatline: Flatline, state: Path
) -> None:
    assert flatline("pause", "on", "cell:c1", "--reason", "work").code == 0
    over = pause(active=False)
    append(state, CONTROL, (over.key(), encode_control(over)))
    shown = " ".join(flatline("pause", "show").out.split())
    assert "cell:c1" in shown
    assert flatline("pause", "off", "cell:c1").code == 0
    assert "Nothing is paused" in flatline("pause", "show").out


def test_what_was_ended_before_an_upgrade_is_signed_at_once(
    flatline: Flatline, state: Path
) -> None:
    ended = [pause(active=False, subject=name) for name in ("c1", "c2")]
    standing = pause(subject="c3")
    words = [*ended, standing]
    append(state, CONTROL, *((word.key(), encode_control(word)) for word in words))
    said = flatline("pause", "adopt")
    assert said.code == 0
    assert "2 ends were signed" in said.out
    shown = flatline("pause", "show").out
    assert "cell:c3" in shown
    assert "cell:c1" not in shown
    assert "cell:c2" not in shown


@pytest.mark.asyncio
async def test_without_an_operator_s_key_nothing_is_taken_back_and_the_cure_is_told(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATLINE_LOG__KIND", "kafka")
    here = process(load_settings()[0])
    with pytest.raises(SettingsError, match="flatline keys create operator NAME"):
        await _say(here, None, pause(active=False), signing=True)  # type: ignore[arg-type]
    assert not (state / "keys" / "operator.key").exists()

"""A command line in this process, with a separate state folder and environment."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from flatline.__main__ import main
from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.engine.wire.topics import Topic


class Said(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str


Flatline = Callable[..., Said]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FLATLINE_CONFIG", raising=False)
    monkeypatch.setattr("flatline.engine.settings.DEFAULT_FILE", tmp_path / "absent.toml")
    monkeypatch.setenv("FLATLINE_STATE__FOLDER", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "state"


def append(state: Path, topic: Topic, *records: tuple[bytes, bytes]) -> None:
    """Append records, each a key and a value, to the log of the commands with this state."""

    async def write() -> None:
        config = EmbeddedConfig(folder=state / "log", partitions=8)
        async with EmbeddedLog(config, clock=SystemClock()) as log:
            for key, value in records:
                await log.append(topic.name, key=key, value=value)

    asyncio.run(write())


@pytest.fixture
def flatline(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Flatline]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level

    def call(*words: str) -> Said:
        monkeypatch.setattr("sys.argv", ["flatline", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        captured = capsys.readouterr()
        return Said(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield call
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)

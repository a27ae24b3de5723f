"""What all subcommands share: the settings' options, and where text goes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engine.errors import SettingsError
from engine.settings import Settings, load_settings

File = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings file in TOML."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="One setting, as log.kind=kafka."),
]

# Wide enough for a path in a table where the output is no terminal and has no width.
_PLAIN_WIDTH = 120


def console(*, stderr: bool = False) -> Console:
    """Return where text goes; colours and width only where there is a terminal."""
    found = Console(stderr=stderr, soft_wrap=True, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, width=_PLAIN_WIDTH)


def settings_of(file: Path | None, sets: list[str] | None) -> Settings:
    """Return the settings of one command line."""
    return load_settings(file, flags=flags_of(sets))[0]


def flags_of(sets: list[str] | None) -> dict[str, str]:
    """Return what `--set` gave, by name."""
    flags: dict[str, str] = {}
    for text in sets or []:
        setting, equals, value = text.partition("=")
        if not equals or not setting.strip():
            raise SettingsError(f"--set {text}: write NAME=VALUE, as log.kind=kafka.")
        flags[setting.strip()] = value
    return flags


def moment(time_ms: int) -> str:
    """Return a time in ms since the epoch as people read it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

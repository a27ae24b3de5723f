"""Common parts of all subcommands: the options for settings, and text output."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flatline.engine.errors import SettingsError
from flatline.engine.plain_text import one_line
from flatline.engine.settings import Settings, load_settings

File = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings file in TOML."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="NAME=VALUE", help="One setting, for example log.kind=kafka."
    ),
]

# Wide enough for a path in a table where the output is not a terminal and has no width.
_PLAIN_WIDTH = 120


class PlainConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, no control characters.

    Every string is processed here, including cells and titles of tables, so that callers need not
    escape names of guests. Styled text must be a `rich.text.Text`.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 -- rich's own
        """Return the text unchanged except for escaped characters."""
        return super().render_str(one_line(text), **{**options, "markup": False, "emoji": False})


def console(*, stderr: bool = False) -> PlainConsole:
    """Return the console; colours and width only where there is a terminal."""
    found = PlainConsole(stderr=stderr, soft_wrap=True, highlight=False)
    return found if found.is_terminal else PlainConsole(stderr=stderr, width=_PLAIN_WIDTH)


def say(text: str, *, stderr: bool = False) -> None:
    """Print one sentence."""
    console(stderr=stderr).print(text)


def settings_of(file: Path | None, sets: list[str] | None) -> Settings:
    """Return the settings of one command line, given by `--config` and `--set`.

    Raises
    ------
    SettingsError
        The file cannot be read, or a setting does not exist or is not valid.
    """
    return load_settings(file, flags=flags_of(sets))[0]


def flags_of(sets: list[str] | None) -> dict[str, str]:
    """Return the values given by `--set`, by name.

    Raises
    ------
    SettingsError
        A text is not NAME=VALUE.
    """
    flags: dict[str, str] = {}
    for text in sets or []:
        setting, equals, value = text.partition("=")
        if not equals or not setting.strip():
            raise SettingsError(f"--set {text}: use NAME=VALUE, for example log.kind=kafka.")
        flags[setting.strip()] = value
    return flags


def moment(time_ms: int) -> str:
    """Return a time in ms since the epoch in readable form, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

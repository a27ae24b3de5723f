"""What all subcommands share: the settings' options, and where text goes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from engine.errors import SettingsError
from engine.plain_text import one_line
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


class PlainConsole(Console):
    """A console to which a string is text: no markup, no emoji codes, no control characters.

    Every string passes here, cells and titles of tables too, so that no name of a guest needs
    care where it is shown. What is to have a style is a `rich.text.Text`.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 -- rich's own
        """Return the text as it stands."""
        return super().render_str(one_line(text), **{**options, "markup": False, "emoji": False})


def console(*, stderr: bool = False) -> PlainConsole:
    """Return where text goes; colours and width only where there is a terminal."""
    found = PlainConsole(stderr=stderr, soft_wrap=True, highlight=False)
    return found if found.is_terminal else PlainConsole(stderr=stderr, width=_PLAIN_WIDTH)


def say(text: str, *, stderr: bool = False) -> None:
    """Print one sentence."""
    console(stderr=stderr).print(text)


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

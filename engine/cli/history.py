"""`flatline history`: the historian, and the setup of its store."""

from pathlib import Path
from typing import Annotated

import typer

from flatline.engine.cli.options import File, Sets, console, settings_of
from flatline.engine.errors import SettingsError

history = typer.Typer(
    help="Set up the history that capacity planners query.", invoke_without_command=True
)


@history.callback()
def record(context: typer.Context, file: File = None, sets: Sets = None) -> None:
    """Write the records of the log to the history."""
    if context.invoked_subcommand is not None:
        return
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import frame_keyring, open_log, process
    from flatline.engine.wiring_history import history_opener

    settings = settings_of(file, sets)
    here = process(settings)
    opener = history_opener(here, lambda: open_log(here), frame_keyring(settings, here.clock))
    raise typer.Exit(serve(here, {"history": opener}))


@history.command("setup")
def history_setup(
    admin_token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token of an administrator of the InfluxDB organisation."),
    ] = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Make buckets, retention, InfluxQL names and tokens. A second call changes nothing."""
    from flatline.engine.secret_file import read_secret
    from flatline.engine.wiring_history import set_up_history

    settings = settings_of(file, sets)
    if settings.history.kind == "embedded":
        console().print(f"Nothing to do: {settings.history_folder} is created with the first row.")
        return
    if admin_token_file is None:
        raise SettingsError(
            "--admin-token-file is required: it authorises the creation of buckets and tokens."
        )
    token = read_secret(admin_token_file, name="--admin-token-file")
    done = set_up_history(settings, admin_token=token)
    for sentence in done or ("Everything exists already.",):
        console().print(sentence)

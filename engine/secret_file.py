"""Secrets in files, for example as credentials of systemd."""

from pathlib import Path
from typing import Annotated

from pydantic import PlainSerializer

from flatline.engine.errors import SettingsError
from flatline.engine.plain_text import masked_url

# A setting that is a URL; `flatline config show` prints it without possible secrets.
Url = Annotated[str, PlainSerializer(masked_url, when_used="json")]


def read_secret(file: Path, *, name: str) -> str:
    """Return the secret in a file; `name` is the setting that names the file, for messages.

    Raises
    ------
    SettingsError
        The file cannot be read or is empty.
    """
    try:
        secret = file.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"{name} {file} cannot be read: {error.strerror}. Allow this user to read it, or use "
            "another file."
        ) from error
    if not secret:
        raise SettingsError(f"{name} {file} is empty.")
    return secret

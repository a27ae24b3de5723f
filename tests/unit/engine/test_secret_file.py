"""A secret is in its file, or the error names the file."""

from pathlib import Path

import pytest

from flatline.engine.errors import SettingsError
from flatline.engine.secret_file import read_secret


@pytest.mark.parametrize("text", [None, " \n"])
def test_a_secret_that_cannot_be_had_names_setting_and_file(
    text: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=r"notify\.token_file .*token"):
        read_secret(file, name="notify.token_file")

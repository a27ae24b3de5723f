"""The command `flatline`: runs one subcommand and reports errors as a sentence and an exit code."""

import sys
from typing import Final

from flatline.engine.errors import FlatlineError, SettingsError

# Packages that an installation on a node may lack, and the command that installs each.
_BROUGHT_BY: Final = {
    "numba": "pip install flatline",
    "river": "pip install flatline",
    "faust": "pip install flatline",
    "influxdb_client": "pip install flatline",
    "libvirt": "pip install 'flatline[libvirt]' (needs libvirt-dev, pkg-config and gcc)",
}


def main() -> None:
    """Run one subcommand and end the process with its exit code."""
    from flatline.engine.cli.app import app
    from flatline.engine.cli.options import say

    try:
        app()
    except FlatlineError as error:
        for line in f"flatline: {error}".split("\n"):
            say(line, stderr=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _BROUGHT_BY:
            raise
        sentence = f"flatline: {name} is not installed here: {_BROUGHT_BY[name]}"
        say(sentence, stderr=True)
        sys.exit(SettingsError.exit_code)


if __name__ == "__main__":
    main()

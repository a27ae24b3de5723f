"""The file `revoked` in the `keys` folder: a list of revoked frame keys and signing keys."""

from pathlib import Path
from typing import Final

from flatline.engine.errors import SettingsError
from flatline.engine.key_files import (
    Damaged,
    date_of,
    judged,
    refuse,
    require_unwritable_by_others,
    write_key_file,
)
from flatline.engine.wire.frame_mac import Revoked

REVOKED: Final = "revoked"
_MS_DIGITS: Final = 20


def read_revoked(folder: Path, damaged: Damaged = refuse) -> Revoked:
    """Return the revoked keys of a folder.

    Each line is the id of a key, or `kind/name` and a time in ms, or `key/ID` and a time in ms.

    Parameters
    ----------
    damaged
        Called for each line that cannot be parsed, and if other users may write the file. Lines of
        other users are in force too, because they can only revoke keys and not add one.

    Raises
    ------
    SettingsError
        With the default `damaged`: a line cannot be parsed, or other users may write the file.
    """
    path, found = folder / REVOKED, Revoked()
    with judged(damaged):
        if not path.exists():
            return found
        lines = path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            with judged(damaged):
                found = found.joined(_revoked_by(line, source=f"{path}, line {number}"))
        require_unwritable_by_others(path)
    return found


def _revoked_by(line: str, *, source: str) -> Revoked:
    words = line.partition("#")[0].split()
    match words:
        case []:
            return Revoked()
        case [key_id] if len(key_id) == 16 and "/" not in key_id:
            return Revoked(frozenset({key_id}))
        case [name, time_ms] if "/" in name and time_ms.isdecimal() and len(time_ms) < _MS_DIGITS:
            return Revoked(names={name: int(time_ms)})
        case _:
            raise SettingsError(
                f"{source}: {line!r} is neither the id of a key nor KIND/NAME and a time in ms. "
                "Use the form that `flatline keys revoke` writes."
            )


def revoke(folder: Path, *, what: str, now_ms: int) -> None:
    """Add `what` to the list: an id, `key/ID`, or `kind/name` (all its keys made until now).

    Raises
    ------
    StateUnwritable
        The list cannot be written.
    """
    path = folder / REVOKED
    text = path.read_text() if path.exists() else ""
    line = what if "/" not in what else f"{what} {now_ms}"
    write_key_file(path, f"{text}{line}  # {date_of(now_ms)}\n", mode=0o644)

"""The list `revoked` in the `keys` folder: keys of frames and of signatures that count no more."""

from pathlib import Path
from typing import Final

from engine.errors import SettingsError
from engine.key_files import date_of, require_unwritable_by_others, write_key_file
from engine.wire.frame_mac import SIGNING, Revoked

REVOKED: Final = "revoked"


def read_revoked(folder: Path) -> Revoked:
    """Return what was revoked: lines of an id, or of `kind/name` or `key/ID` and a time in ms.

    Raises
    ------
    SettingsError
        A line cannot be read, or others may write the file.
    """
    path = folder / REVOKED
    if not path.exists():
        return Revoked()
    require_unwritable_by_others(path)
    ids: set[str] = set()
    names: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.partition("#")[0].split()
        match words:
            case []:
                continue
            case [key_id] if len(key_id) == 16 and "/" not in key_id:
                ids.add(key_id)
            case [name, time_ms] if "/" in name and time_ms.isdecimal():
                # A key that signs ends once; a name may lose its keys again and again.
                first = min if name.startswith(f"{SIGNING}/") else max
                names[name] = first(names.get(name, int(time_ms)), int(time_ms))
            case _:
                raise SettingsError(
                    f"{path}, line {number}: {line!r} is neither a key's id nor KIND/NAME and a"
                    " time in ms, as `flatline keys revoke` writes them."
                )
    return Revoked(frozenset(ids), names)


def revoke(folder: Path, *, what: str, now_ms: int) -> None:
    """Add to `revoked` a key's id, `key/ID`, or `kind/name` with each key made for it until now."""
    path = folder / REVOKED
    text = path.read_text() if path.exists() else ""
    line = what if "/" not in what else f"{what} {now_ms}"
    write_key_file(path, f"{text}{line}  # {date_of(now_ms)}\n", mode=0o644)

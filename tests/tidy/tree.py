"""The files of the project as the tidy tests see them."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders that the package `flatline` links to.
LINKED = ("engine", "connectors", "models")
PRODUCT = ("flatline", *LINKED)


@cache
def files() -> tuple[Path, ...]:
    """Return every file that is in the repository or would be added to it."""
    listed = subprocess.run(
        # The checkout may belong to another user than the one who runs the tests.
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(path for name in listed.split("\0")[:-1] if (path := ROOT / name).is_file())


def sources(*folders: str) -> list[Path]:
    """Return the Python files below these folders, or of the whole project if none is named."""
    return [
        path
        for path in files()
        if path.suffix == ".py" and (not folders or path.relative_to(ROOT).parts[0] in folders)
    ]


def shown(path: Path) -> str:
    """Return the path relative to the project's root."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """Return the name under which Python imports this file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("flatline", *parts) if parts[0] in LINKED else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def link_packages(project: Path) -> None:
    """Link the folders of a copy of the project into its package, as here."""
    for name in LINKED:
        link = project / "flatline" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to((ROOT / "flatline" / name).readlink())

"""Long runs in slices: a report continues the previous one, only over the same code."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_FOLDERS: Final = ("engine", "connectors", "models", "tests")


def code() -> str:
    """Return a hash over all source and test code."""
    digest = sha256()
    for folder in _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def earlier(report: Path) -> dict[str, Any]:
    """Return the results of the previous slices; empty where the code has changed since."""
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return found if found.get("code") == code() else {}


def keep(report: Path, found: dict[str, Any]) -> None:
    """Write the results of all slices so far, with the hash of the code."""
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps({"code": code()} | found, indent=2) + "\n")
